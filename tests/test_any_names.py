"""Names that are no UTF-8 go through every command that takes a trained network: model, folder, list and image."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import eval_ijbc
import inference
import torch2onnx
from eval.ijb import compare
from eval.pairs import __main__ as pairs_command
from eval.search import __main__ as search_command
from ijb_tree import arguments, make_model, make_tree
from pair_stub import face, png

NAME = "张三".encode("gbk")
TEXT = os.fsdecode(NAME)


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """A folder of that name: a model, and people's folders, a list of images and one of pairs, all so named."""
    root = tmp_path_factory.mktemp("any") / TEXT
    try:
        root.mkdir()
    except OSError:
        pytest.skip("this system's names are UTF-8")
    make_model(root / "run" / "model.pt")
    for person in (TEXT, "bob"):
        (root / "faces" / person).mkdir(parents=True)
        for i in range(2):
            (root / "faces" / person / f"{TEXT}{i}.png").write_bytes(png(face(10 * len(person) + i)))
    one, other = (b"faces/%s/%s" % (person, NAME) for person in (NAME, b"bob"))
    (root / f"{TEXT}.txt").write_bytes(b"%s0.png %s1.png 1\n%s1.png %s0.png 0\n" % (one, one, one, other))
    (root / f"list{TEXT}.txt").write_bytes(b"%s0.png\t%s\n%s0.png\tbob\n" % (one, NAME, other))
    return root


@pytest.fixture
def strict_stdout(capfdbinary, monkeypatch):
    """The standard output as a program has it: UTF-8, which takes no other bytes unless told to."""
    with open(os.dup(1), "w", encoding="utf-8", errors="strict") as out:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", out)
        yield capfdbinary


def common(root, tmp_path):
    return [
        *("--model", str(root / "run"), "--device", "cpu"),
        *("--out", str(tmp_path / f"{TEXT}.json"), "--report", str(tmp_path / f"{TEXT}.html")),
    ]


def printed(capture):
    captured = capture.readouterr()
    assert b"Traceback" not in captured.err
    return captured.out


def test_pairs(strange, tmp_path, strict_stdout):
    given = ["--data", str(strange), "--targets", TEXT, "--folds", "2"]
    assert pairs_command.main([*common(strange, tmp_path), *given]) == 0
    found = json.loads((tmp_path / f"{TEXT}.json").read_text(encoding="utf-8"))
    assert list(found["sets"]) == [TEXT]
    assert NAME in printed(strict_stdout)
    assert (tmp_path / f"{TEXT}.html").read_text(encoding="utf-8")


def test_search(strange, tmp_path, strict_stdout):
    given = ["--gallery", str(strange / "faces"), "--probes", str(strange / f"list{TEXT}.txt")]
    assert search_command.main([*common(strange, tmp_path), *given]) == 0
    assert b"probes: list: 2 lines, tab-separated" in (out := printed(strict_stdout))
    assert NAME in out
    found = json.loads((tmp_path / f"{TEXT}.json").read_text(encoding="utf-8"))
    assert (found["mated_people"], found["rates"]["Rank-1"]["value"]) == (2, 1)
    assert (tmp_path / f"{TEXT}.html").read_text(encoding="utf-8")


def test_ijb_and_its_comparison(strange, tmp_path, strict_stdout):
    tree = make_tree(tmp_path / TEXT)
    shutil.copy(tree / "loose_crop" / "0.jpg", tree / "loose_crop" / f"{TEXT}.jpg")
    for path in (tree / "meta").glob("ijbc_[fn]*.txt"):
        path.write_bytes(path.read_bytes().replace(b"0.jpg", NAME + b".jpg", 1))
    job = ["--job", TEXT, "--report"]
    argv = [word for word in arguments(strange / "run", tree, tmp_path) if word != "--no-report"]
    assert eval_ijbc.main([*argv, *job]) == 0
    scores = str(tmp_path / "out" / "IJBC" / f"{TEXT}.npy")
    second = shutil.copy(scores, tmp_path / "second.npy")
    made = ["--out", str(tmp_path / "c.json"), "--png", str(tmp_path / f"{TEXT}.png")]
    assert compare.main([scores, str(second), "--image-path", str(tree), *made]) == 0
    assert NAME in printed(strict_stdout)
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["first"] == scores


@pytest.mark.parametrize("ending", [".npz", ".csv"])
def test_many_images(strange, tmp_path, strict_stdout, ending):
    out = tmp_path / f"{TEXT}{ending}"
    names = [str(path) for path in sorted((strange / "faces").rglob("*.png"))]
    argv = ["--model", str(strange / "run"), "--device", "cpu", str(strange / "faces"), "--out", str(out)]
    assert inference.main(argv) == 0
    if ending == ".csv":
        with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            assert [row["name"] for row in csv.DictReader(file)] == names
        return
    assert [str(name) for name in np.load(out)["names"]] == names
    assert inference.main([*argv[:4], names[0], "--gallery", str(out), "--top", "1"]) == 0
    assert printed(strict_stdout).rstrip().endswith(b"1.0000")


def test_two_images_and_export(strange, tmp_path, strict_stdout):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    images = [str(path) for path in sorted((strange / "faces" / TEXT).iterdir())]
    out = tmp_path / f"{TEXT}.onnx"
    assert torch2onnx.main([str(strange / "run"), "--output", str(out)]) == 0
    assert NAME in printed(strict_stdout)
    report = tmp_path / "r.json"
    assert inference.main(["--model", str(out), "--device", "cpu", *images, "--out", str(report)]) == 0
    assert [one["path"] for one in json.loads(Path(report).read_text())["images"]] == images
