"""The benchmark of first centres: its two halves are different people, and what it reads out of a run."""

import json

import pytest

from benchmarks import moving_on
from data.faces import FaceRecords
from data.records.writer import write_face_records
from made_faces import encode

KEYS = {"loss": 2.0, "positive_cosine": 0.5, "top1": 0.25}


def test_the_halves_share_nobody(tmp_path):
    people = [[encode(i, suffix=".png") + bytes([k]) for k in range(2)] for i in range(5)]
    write_face_records(tmp_path / "all", people)
    found = []
    for half in moving_on.split(tmp_path / "all", tmp_path):
        faces = FaceRecords(half)
        found.append([bytes(faces.read(i)[0]) for i in range(len(faces))])
    assert [sorted(images) for images in found] == [
        sorted(image for images in people[half::2] for image in images) for half in (0, 1)
    ]


def test_a_set_without_pairs_is_refused(tmp_path, capsys):
    write_face_records(tmp_path / "all", [[encode(0)], [encode(1)]])
    assert moving_on.main(["--rec", str(tmp_path / "all"), "--folder", str(tmp_path)]) == 2
    assert "holds no .bin with pairs of other people" in capsys.readouterr().err


def write_metrics(run, losses, accuracies):
    lines = [{"step": 0, "p/accuracy": accuracies[0], "p/tar_at_far_0.1": 0.1}]
    lines += [{"step": i + 1, **KEYS, "loss": loss} for i, loss in enumerate(losses)]
    lines += [{"step": len(losses), "p/accuracy": accuracies[1], "p/tar_at_far_0.1": 0.2}]
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_first_and_last_steps_are_averaged(tmp_path):
    write_metrics(tmp_path / "run", [4.0] * 10 + [3.0] * 5 + [1.0] * 10, (0.5, 0.75))
    found = moving_on.figures(tmp_path / "run")
    assert (found["steps"], found["first_loss"], found["last_loss"], found["first_top1"]) == (25, 4, 1, 0.25)
    assert (found["accuracy_before"], found["accuracy"], found["tar_0.1_before"], found["tar_0.1"]) == (
        0.5, 0.75, 0.1, 0.2,
    )  # fmt: skip


def test_gains_are_seed_by_seed(tmp_path, capsys, monkeypatch):
    write_face_records(tmp_path / "all", [[encode(i)] for i in range(4)])
    (tmp_path / "all" / "p.bin").touch()
    trained = []

    def train(run, settings, reuse=False):
        trained.append(settings)
        if run.name == "new":
            run = run.with_name(f"new{len(trained)}")
            gain = 0.05 if "init_centres=class_means" in settings else 0.0
            write_metrics(run, [2.0], (0.5, 0.6 + gain + 0.1 * ("seed=1" in settings)))
            monkeypatch.setattr(moving_on, "figures", lambda _run, of=moving_on_figures, run=run: of(run))
        return run

    moving_on_figures = moving_on.figures
    monkeypatch.setattr(moving_on, "train", train)
    out = tmp_path / "out.jsonl"
    options = ["--rec", str(tmp_path / "all"), "--folder", str(tmp_path), "--lr", "0.01", "--seeds", "2"]
    assert moving_on.main([*options, "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 2 * 2 * 2
    assert [one["centres"] for one in records] == ["random", "class_means"] * 4
    assert all(f"freeze_backbone={r['frozen']}" in s for r, s in zip(records, trained[1:], strict=True))
    table = capsys.readouterr().out
    assert table.count("+5.0 (+5.0 to +5.0)") == 2
    assert moving_on.main(["--read", str(out)]) == 0
    assert capsys.readouterr().out == table


@pytest.mark.slow
def test_it_runs(tmp_path):
    assert moving_on.main(["--quick", "--out", str(tmp_path / "out.jsonl")]) == 0
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(one["centres"], one["frozen"]) for one in records] == [
        ("random", True), ("class_means", True),
    ]  # fmt: skip
    assert records[1]["first_loss"] < records[0]["first_loss"]
