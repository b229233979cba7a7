"""The learning benchmark: its figures against loop forms, its tables, and small runs of both kinds."""

import json
import pickle
import statistics

import pytest
import torch
import torch.nn.functional as F

from benchmarks import learning, learning_faces, learning_features
from benchmarks.learning_arms import CUSTOMARY, FULL, SPARSE, Arm, Rule, selections
from benchmarks.learning_features import TEST_IMAGES, Size
from benchmarks.learning_table import best_rules, groups_of, interval, reference, table
from data.records.writer import write_face_records
from heads.selection import expected_share
from made_faces import encode

TINY = Size(60, images=3, batch=16, epochs=1, dim=8, test_identities=12)


def test_identification_equals_a_loop_form():
    g = torch.Generator().manual_seed(0)
    people = torch.randn(30, 1, 6, generator=g) + 0.7 * torch.randn(30, TEST_IMAGES, 6, generator=g)
    found = learning_features._identify(torch.nn.Identity(), people.flatten(0, 1))
    faces = F.normalize(people, dim=2)
    hits, genuine, impostor = 0, [], []
    for person in range(30):
        for probe in faces[person, 1:]:
            cosines = [float(probe @ faces[other, 0]) for other in range(30)]
            hits += max(cosines) == cosines[person]
            genuine.append(cosines.pop(person))
            impostor += cosines
    assert found["rank1"] == pytest.approx(hits / len(genuine))
    for far in (1e-2, 1e-3):
        threshold = sorted(impostor, reverse=True)[round(far * len(impostor)) - 1]
        assert found[f"tar_{far:g}"] == pytest.approx(sum(c > threshold for c in genuine) / len(genuine), abs=0.006)


def test_made_up_identities_are_the_same_for_every_seed_and_can_be_told_apart():
    one, two = (learning_features._World(TINY) for _ in range(2))
    assert torch.equal(one.train, two.train)
    assert one.train.shape == (180, 128)
    people = one.test.unflatten(0, (12, TEST_IMAGES))
    within = (people - people.mean(1, keepdim=True)).norm(dim=2).mean()
    between = (people.mean(1) - people.mean((0, 1))).norm(dim=1).mean()
    assert between > 0.5 * within


@pytest.mark.parametrize("selection", [FULL, (4, 0.0, "batch"), (4, 0.3, "own")])
def test_a_run_counts_what_it_works_on(selection):
    found = learning_features.train_and_test(Arm("any", *selection, SPARSE), 0, TINY)
    L, rate, scope = selection
    share = expected_share(60, L, rate, 16)
    assert found["share"] == pytest.approx(share, abs=0.12)
    wanted = 60 * share - 1 if scope == "batch" else L - 1 + rate * (60 - L)
    assert found["negatives"] == pytest.approx(wanted, abs=8)
    assert found["steps"] == 11
    assert 0 <= found["rank1"] <= 1


def test_the_same_share():
    rate = selections("faces", 4040, 64)["PartialFC, same share"][1]
    assert expected_share(4040, 1, rate, 64) == pytest.approx(expected_share(4040, 4, 0.0, 64))


def runs(selection, rule, values):
    return [
        {
            "task": "features",
            "selection": selection,
            "seed": seed,
            "row_lr": rule.row_lr,
            "row_momentum": rule.row_momentum,
            "row_idle": rule.row_idle,
            "share": 0.5,
            "negatives": 10.0,
            "rank1": value,
            "tar_0.0001": value - 0.2,
            "tar_1e-05": 0.1,
        }
        for seed, value in enumerate(values)
    ]


def test_table_is_paired_against_full_softmax_at_its_best():
    better, heads = Rule(0.3, 0.9, "keep"), [0.85, 0.90, 0.86, 0.87, 0.88]
    full = [0.84, 0.87, 0.85, 0.86, 0.86]
    records = [*runs("full softmax", CUSTOMARY, [0.5] * 5), *runs("full softmax", better, full)]
    records += runs("heads of 4", SPARSE, heads)
    assert best_rules(records) == {"full softmax": better, "heads of 4": SPARSE}
    assert reference(groups_of(records))[1]["rank1"] == 0.87
    differences = [100 * (a - b) for a, b in zip(heads, full, strict=True)]
    mean, half = interval(differences)
    assert mean == pytest.approx(1.6)
    assert half == pytest.approx(2.776 * statistics.stdev(differences) / 5**0.5, rel=2e-3)
    last = str(table(records)).splitlines()[-2]
    assert f"+{mean:.1f} ± {half:.1f}" in last
    assert "87.2 ± 1.9" in last


def test_quick_writes_its_runs_once(tmp_path, capsys):
    out, figure = tmp_path / "raw" / "learning.jsonl", tmp_path / "learning.png"
    command = ["--quick", "--seeds", "1", "--workers", "1", "--only", "heads of 4", "own heads of 4 + 5 % drawn"]
    assert learning.main([*command, "--out", str(out), "--figure", str(figure)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {r["selection"] for r in records} == {"heads of 4", "own heads of 4 + 5 % drawn"}
    assert "heads of 4" in capsys.readouterr().out
    assert figure.stat().st_size > 5_000
    assert learning.main([*command, "--out", str(out)]) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == records
    assert learning.main(["--read", str(out)]) == 0
    other = learning.Job("features", Arm("heads of 4", 4, 0.0, "batch", SPARSE), 0, TINY)
    assert not any(other.is_in(record) for record in records)  # of another size
    out.write_text(out.read_text() + '{"task": "fea')
    assert learning.main(["--read", str(out)]) == 2
    assert f"{out}, line {len(records) + 1}: not a run of learning.py" in capsys.readouterr().err


def test_faces_go_through_the_training_step(tmp_path):
    people = [[encode(10 * i + k) for k in range(4)] for i in range(12)]
    write_face_records(tmp_path, people)
    pairs = [image for i in range(20) for image in (people[i % 12][0], people[(i + i % 2) % 12][1])]
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((pairs, [i % 2 == 0 for i in range(20)])))
    faces = learning_faces.Faces(str(tmp_path), str(tmp_path / "lfw.bin"), batch=8, epochs=2, dim=16)
    found = learning_faces.train_and_test(Arm("heads of 2", 2, 0.0, "batch", SPARSE), 0, faces)
    assert learning_faces.count_classes(tmp_path) == 12
    assert found["steps"] == 12
    assert found["negatives"] < 11
    assert 0.4 <= found["accuracy"] <= 1
    assert 0 <= found["tar_0.1"] <= 1


def test_an_unknown_selection_is_named(capsys):
    assert learning.main(["--quick", "--only", "heads of 5"]) == 2
    assert "no selection heads of 5; there are full softmax, " in capsys.readouterr().err


def test_faces_need_records(capsys):
    with pytest.raises(SystemExit):
        learning.main(["faces"])
    assert "faces needs --rec FOLDER" in capsys.readouterr().err
