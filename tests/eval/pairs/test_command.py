import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from backbones import get_model
from embedder.embedder import LengthMeter
from embedder.load import load_embedder
from embedder.threshold import Threshold
from eval.pairs import __main__ as pairs_command
from eval.pairs.protocol import evaluate_embeddings
from eval.pairs.sets import load_pairs
from pair_stub import embed_images, face, made_set, png
from paths import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "model.pt"
    network = get_model("rtiny", num_features=32)
    network.train()(torch.rand(32, 3, 112, 112) * 2 - 1)  # running statistics of something
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def data(tmp_path):
    """Two sets in .bin, one in .csv."""
    for name, n in (("lfw", 20), ("mine", 6)):
        pairs = made_set(n)
        (tmp_path / f"{name}.bin").write_bytes(pickle.dumps((pairs.encoded, pairs.issame.tolist())))
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(face(i, 112 if i else 160)))
    (tmp_path / "3.png").write_bytes(png(face(3)[:, :100]))
    (tmp_path / "list.csv").write_text("0.png,0.png,1\n0.png,1.png,0\n2.png,2.png,1\n3.png,1.png,0\n")
    return tmp_path


def arguments(model, data, *more):
    return ["--model", str(model), "--data", str(data), "--batch-size", "7", "--device", "cpu", *more]


def test_every_set_of_a_folder(model, data, capsys):
    out = data / "deep" / "report.json"
    assert pairs_command.main(arguments(model, data, "--out", str(out))) == 0
    printed = capsys.readouterr().out
    assert "network rtiny, 32 numbers" in printed
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    names = ["lfw", "list", "mine"]
    assert rows == ["set", *names, "95 % intervals", *names]
    assert "mine: 6 pairs for 10 folds: 6 folds used" in printed
    report = json.loads(out.read_text())
    assert report["network"] == "rtiny"
    assert len(report["sha256"]) == 64
    assert report["left_out"] == {}
    lfw = report["sets"]["lfw"]
    assert lfw["pairs"] == 20
    assert lfw["accuracy"] == 1
    assert lfw["genuine_cosine"] == pytest.approx(1)
    assert lfw["tar_at_far"] == {"0.0001": None, "0.001": None, "0.01": None, "0.1": 1.0}


def test_the_form_of_a_list_and_images_of_another_size_are_told(model, data, capsys):
    (data / "pairs.txt").write_text((data / "list.csv").read_text().replace(",", " "))
    out = data / "report.json"
    assert pairs_command.main(["--model", str(model), "--data", str(data / "pairs.txt"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "pairs.txt: list: 4 pairs, blank-separated, paths in columns 1 and 2, same or not in column 3" in printed
    note = "4 of 8 images had another size and were resized, 1 of them not square before and distorted: are the faces"
    assert f"pairs: {note} aligned?" in printed
    found = json.loads(out.read_text())["sets"]["pairs"]
    assert (found["resized_images"], found["not_square_images"]) == (4, 1)


def test_lfws_list_beside_a_folder_of_people(model, data, capsys):
    for name in ("ann", "bob"):
        (data / "faces" / name).mkdir(parents=True)
        for i in (1, 2):
            (data / "faces" / name / f"{name}_000{i}.png").write_bytes(png(face(i)))
    (data / "pairs.txt").write_text("1\t1\nann\t1\t2\nann\t1\tbob\t2\n")
    command = ["--model", str(model), "--data", str(data), "--targets", "pairs", "--device", "cpu", "--folds", "2"]
    assert pairs_command.main([*command, "--root", str(data / "faces")]) == 0
    printed = capsys.readouterr().out
    assert "pairs: list: 2 pairs, LFW's names and numbers, tab-separated, heading line '1\\t1'" in printed
    assert "resized" not in printed
    assert pairs_command.main(command) == 2
    assert "--root gives another folder" in capsys.readouterr().err


def test_figures_are_those_of_training(model, data):
    pairs = load_pairs(data / "lfw.bin")
    embedder = load_embedder(model)
    found = pairs_command.embed_set(embedder, pairs, 7)
    backbone = get_model("rtiny", num_features=32)
    backbone.load_state_dict(torch.load(model))
    expected = embed_images(backbone, pairs.encoded, torch.device("cpu"), 7)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    alone = pairs_command.embed_set(embedder, pairs, 7, flip=False)
    np.testing.assert_allclose(
        alone, embed_images(backbone, pairs.encoded, torch.device("cpu"), 7, flip=False), atol=1e-4
    )
    assert not np.allclose(alone, found)
    results, _, _ = pairs_command.evaluate(
        pairs_command.parse_arguments(arguments(model, data, "--targets", "lfw", "--no-flip"))
    )
    assert results["lfw"].norm == pytest.approx(evaluate_embeddings(alone, pairs.issame).norm, rel=1e-5)
    mirrored = found - alone
    lengths = np.linalg.norm(np.concatenate((alone, mirrored)), axis=1)  # insightface's XNorm
    results, _, _ = pairs_command.evaluate(pairs_command.parse_arguments(arguments(model, data, "--targets", "lfw")))
    assert results["lfw"].norm == pytest.approx(lengths.mean(), rel=1e-4)


def test_an_image_that_pairs_repeat_is_embedded_once(model, data, monkeypatch):
    pairs = load_pairs(data / "lfw.bin")
    again = replace(pairs, encoded=pairs.encoded[:6] * 3 + pairs.encoded[:2], issame=pairs.issame[:10])
    embedder, seen = load_embedder(model), []
    embed = embedder.embed
    monkeypatch.setattr(embedder, "embed", lambda images: seen.append(len(images)) or embed(images))
    meter = LengthMeter()
    found = pairs_command.embed_set(embedder, again, 4, meter=meter)
    assert sum(seen) == 2 * len(set(again.encoded))
    assert meter.count == 2 * 20
    wanted = pairs_command.embed_set(embedder, replace(pairs, encoded=pairs.encoded[:6]), 4)
    np.testing.assert_array_equal(found, np.concatenate([wanted] * 3 + [wanted[:2]]))


def test_named_targets_and_files_from_elsewhere(model, data, tmp_path, capsys):
    more = ["--targets", "mine", str(data / "list.csv"), str(data / "lfw.bin")]
    assert pairs_command.main(arguments(model, tmp_path, *more)) == 0
    printed = capsys.readouterr().out
    assert printed.index("| mine") < printed.index("| list") < printed.index("| lfw")


def test_a_set_that_cannot_be_used_is_left_out(model, data, capsys):
    pairs = made_set(4)
    pairs.encoded[5] = b"no image"
    (data / "broken.bin").write_bytes(pickle.dumps((pairs.encoded, pairs.issame.tolist())))
    more = ["--targets", "lfw", "agedb_30", "broken"]
    assert pairs_command.main(arguments(model, data, *more)) == 1
    printed = capsys.readouterr().out
    assert "| lfw" in printed
    assert f"agedb_30 is left out: no verification set {data / 'agedb_30.bin'}" in printed
    assert "broken is left out: image 5: not a decodable image" in printed


def test_weights_that_overflow_make_a_report(data, tmp_path, capsys):
    state = get_model("rtiny", num_features=32).state_dict()
    state["fc.weight"].fill_(3e38)
    torch.save(state, tmp_path / "nan.pt")
    out = tmp_path / "report.json"
    assert pairs_command.main(arguments(tmp_path / "nan.pt", data, "--targets", "lfw", "--out", str(out))) == 0
    printed = capsys.readouterr().out
    assert "lfw: 40 of 40 embeddings are not finite" in printed
    assert "training has diverged" in printed
    assert json.loads(out.read_text())["sets"]["lfw"]["accuracy"] is None


def test_a_collapsed_network_is_told(data, tmp_path, capsys):
    state = get_model("rtiny", num_features=32).state_dict()
    state["fc.weight"].zero_()
    torch.save(state, tmp_path / "same.pt")
    assert pairs_command.main(arguments(tmp_path / "same.pt", data, "--targets", "lfw")) == 0
    printed = capsys.readouterr().out
    assert "all embeddings are nearly the same" in printed
    assert "its weights were not loaded" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--folds", "1"], "--folds at least 2"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--data", "nowhere"], "no folder nowhere"),
        (["--model", "nowhere.pt"], "no file nowhere.pt"),
        (["--network", "r18"], "does not hold the weights of network 'r18'"),
        (["--targets", "cplfw"], "no verification set"),
        (["--device", "toaster"], "--device must be"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(model, data, capsys, more, message):
    assert pairs_command.main(arguments(model, data, *more)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("eval.pairs: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""


def test_a_folder_without_sets(model, tmp_path, capsys):
    assert pairs_command.main(arguments(model, tmp_path)) == 2
    assert "holds no .bin or .csv set" in capsys.readouterr().err


def test_public_sets_come_first(tmp_path):
    for name in ("zz.bin", "calfw.bin", "agedb_30.csv", "lfw.bin", "aa.csv", "aa.bin", "notes.txt"):
        (tmp_path / name).touch()
    assert pairs_command.list_sets(tmp_path) == ["lfw", "agedb_30", "calfw", "aa", "zz"]


def test_as_a_module(model, data):
    command = [sys.executable, "-m", "eval.pairs", *arguments(model, data, "--targets", "mine")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "| mine" in done.stdout


def test_the_public_form_of_real_faces(model, shared_data, capsys):
    more = ["--targets", "lfw", "--batch-size", "100"]
    assert pairs_command.main(arguments(model, shared_data / "lfw_train", *more)) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| lfw"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2] == "1200"
    assert 50 < float(cells[3]) < 80  # untrained: above chance, far from good


@pytest.fixture
def grouped(tmp_path):
    """Two groups of 30 genuine and 30 impostor pairs, whose faces are blurred a little."""
    rng = np.random.default_rng(0)
    lines = ["path1,path2,issame,group"]
    for i in range(60):
        for side in range(2):
            image = face(i).astype(float) + rng.normal(0, 60, (112, 112, 3))
            (tmp_path / f"{i}_{side}.png").write_bytes(png(np.clip(image, 0, 255).astype(np.uint8)))
    for i in range(60):
        lines += [f"{i}_0.png,{i}_1.png,1,{'ab'[i % 2]}", f"{i}_0.png,{(i + 2) % 60}_1.png,0,{'ab'[i % 2]}"]
    (tmp_path / "set.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_groups_and_threshold(model, grouped, capsys):
    out, threshold, page = grouped / "o.json", grouped / "run" / "threshold.json", grouped / "p.html"
    more = ["--threshold-at", "0.2", "--threshold-out", str(threshold), "--out", str(out), "--report", str(page)]
    assert pairs_command.main(arguments(model, grouped, *more)) == 0
    printed = capsys.readouterr().out
    assert "set, groups at one threshold" in printed
    assert "as genuine pairs join their images" in printed
    told = json.loads(out.read_text())
    assert list(told["sets"]["set"]["groups"]["groups"]) == ["a", "b"]
    low, high = told["sets"]["set"]["accuracy_interval"]
    assert low <= told["sets"]["set"]["accuracy"] <= high
    found = Threshold.read(threshold)
    assert (found.impostor_pairs, found.flip, found.model) == (60, True, told["sha256"])
    assert found.false_match_rate <= 0.2
    text = page.read_text()
    assert "How far groups lie apart" in text
    assert "95 % interval" in text


def test_sets_are_groups(model, grouped, capsys):
    (grouped / "other.csv").write_text((grouped / "set.csv").read_text())
    out = grouped / "o.json"
    more = ["--sets-are-groups", "--threshold-at", "0.2", "--out", str(out), "--report", str(grouped / "p.html")]
    assert pairs_command.main(arguments(model, grouped, *more)) == 0
    assert "all sets, groups at one threshold" in capsys.readouterr().out
    told = json.loads(out.read_text())
    assert list(told["groups"]["groups"]) == ["other", "set"]
    assert told["threshold"]["impostor_pairs"] == 120


def test_two_models(model, grouped, tmp_path_factory, capsys):
    torch.manual_seed(5)
    other = tmp_path_factory.mktemp("other") / "model.pt"
    torch.save(get_model("rtiny", num_features=32).state_dict(), other)
    out, page = grouped / "o.json", grouped / "p.html"
    more = ["--model", str(other), "--out", str(out), "--report", str(page)]
    assert pairs_command.main(arguments(model, grouped, *more)) == 0
    assert "beyond chance" in capsys.readouterr().out
    told = json.loads(out.read_text())
    assert [run["model"] for run in told["models"]] == [str(model), str(other)]
    row = told["differences"]["set"]["accuracy"]
    assert row["difference"] == pytest.approx(row["second"] - row["first"])
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert [run["sets"]["set"]["accuracy"] for run in told["models"]] == [row["first"], row["second"]]
    assert "Both models, in percent" in page.read_text()
    assert len(list(grouped.glob("p_*_both.png"))) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--threshold-out", "t.json"], "--threshold-out needs --threshold-at RATE and one --model"),
        (["--model", "b", "--model", "c"], "--model is given once, or twice"),
        (["--threshold-at", "1e-3"], "needs 10,000 impostor pairs"),
        (["--sets-are-groups"], "groups are compared from two on"),
    ],
)
def test_what_does_not_go_together(model, grouped, capsys, more, message):
    assert pairs_command.main(arguments(model, grouped, *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--targets", "lfw", "--threshold-at", "1e-3"], "needs 10,000 impostor pairs, .* but there are 10"),
        (["--targets", "lfw", "mine", "--threshold-at", "0.2", "--sets-are-groups"], "needs 50 .* there are 13"),
        (["--threshold-at", "0.5"], "one set with pairs of both kinds, found 3"),
        (["--targets", "lfw", "--threshold-at", "2"], "between 0 and 1, got 2"),
    ],
)
def test_a_threshold_that_cannot_be_found_is_told_before_anything_is_embedded(
    model, data, capsys, monkeypatch, more, message
):
    monkeypatch.setattr(pairs_command, "load_embedder", None)
    assert pairs_command.main(arguments(model, data, *more)) == 2
    assert re.search(message, capsys.readouterr().err)
