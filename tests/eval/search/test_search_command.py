import json

import numpy as np
import pytest

from eval.search.__main__ import main
from eval.search.images import NamedFaces
from eval.search.run import mean_templates, search_faces
from ijb_tree import make_model, save_jpg
from tinyface_tree import make_tinyface


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "run" / "model.pt")


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Eight people in the gallery, and probes of them and of four others."""
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for person in range(12):
        look = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        for side in ("gallery", "probes")[person >= 8 :]:
            (root / side / f"p{person}").mkdir(parents=True)
            for i in range(2):
                noisy = np.clip(look + rng.normal(0, 10, look.shape), 0, 255).astype(np.uint8)
                save_jpg(root / side / f"p{person}" / f"{i}.jpg", noisy)
    return root


def arguments(model, *more):
    return ["--model", str(model), "--device", "cpu", "--batch-size", "7", *map(str, more)]


@pytest.mark.parametrize("mean", [False, True])
def test_open_set(model, sides, tmp_path, capsys, mean):
    out, page = tmp_path / "deep" / "s.json", tmp_path / "s.html"
    given = ("--gallery", sides / "gallery", "--probes", sides / "probes", "--out", out, "--report", page)
    assert main(arguments(model, *given, *(["--mean"] if mean else []))) == 0
    printed = capsys.readouterr().out
    assert "probes: 24 of 12 people, 16 of 8 with a mate" in printed
    found = json.loads(out.read_text())
    assert (found["gallery_templates"], found["mated_people"]) == (8 if mean else 16, 8)
    assert found["rates"]["Rank-1"]["value"] == 1
    assert found["rates"]["Rank-1"]["interval"] == pytest.approx([1 - 3 / 8, 1])
    assert 0 <= found["rates"]["TPIR at FPIR 0.1, similarities counted"]["value"] <= 1
    assert (
        "not resolved: FPIR 0.001, 0.01, 0.1. Each is less than one of the 8 probes without a mate" in found["notes"]
    )
    assert (tmp_path / "s_cmc.png").stat().st_size > 10_000
    assert "Rank-1" in page.read_text()
    legend = page.read_text().split("How to read this")[1]
    assert all(term in legend for term in ("Rank-r", "Mean average precision", "FPIR, TPIR", "95 % interval"))
    assert not any(term in legend for term in ("Genuine", "Equal error rate", "Worst pairs"))


def test_tinyface(model, tmp_path, capsys):
    assert main(arguments(model, "--tinyface", make_tinyface(tmp_path))) == 0
    printed = capsys.readouterr().out
    assert "gallery: 12 images of 7 people" in printed
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("|")]
    rates = {row[1].strip(): row[2].strip() for row in rows}
    assert rates["Rank-20"] == "100.00"
    assert {"Rank-1", "Rank-5", "Rank-10", "Mean average precision"} <= set(rates)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gallery", "{}/gallery"], "give --gallery and --probes, or --tinyface"),
        (["--tinyface", "{}", "--mean"], "--tinyface fixes gallery, probes and templates"),
        (["--gallery", "{}/gallery", "--probes", "{}/gone"], "no folder or list"),
        (["--gallery", "{}/gallery", "--probes", "{}/gallery", "--batch-size", "0"], "at least 1"),
    ],
)
def test_wrong_arguments(model, sides, capsys, more, message):
    assert main(arguments(model, *(word.format(sides) for word in more))) == 2
    assert message in capsys.readouterr().err


def test_people_of_other_names_are_an_error_that_shows_both():
    faces = [NamedFaces([], [name]) for name in ("ann", "Ann")]
    with pytest.raises(ValueError, match="the gallery has 'ann', the probes have 'Ann'"):
        search_faces(*faces, (np.eye(1, 4, dtype=np.float32),) * 2, False)


def test_the_same_images_on_both_sides_are_noted(tmp_path):
    faces = NamedFaces([tmp_path / "a", tmp_path / "b"], ["a", "b"])
    result = search_faces(faces, faces, (np.eye(2, 4, dtype=np.float32),) * 2, False)
    assert result.notes[0] == "2 images are in the gallery and among the probes: they find themselves"
    assert "no open-set figure" in result.notes[1]


def test_names_that_differ_in_capital_letters_are_noted(tmp_path):
    gallery = NamedFaces([tmp_path / "1", tmp_path / "2"], ["bob", "Ann"])
    probes = NamedFaces([tmp_path / "3", tmp_path / "4"], ["bob", "ann"])
    result = search_faces(gallery, probes, (np.eye(2, 4, dtype=np.float32),) * 2, False)
    assert result.found.mated == 1
    assert result.notes[0] == (
        "1 name differs from another in capital letters alone, the first: 'Ann' and 'ann' count as two people; spell "
        "them alike if they are one"
    )


def test_a_mean_template_is_the_normalised_mean():
    rows = np.array([[1, 0], [0, 1], [1, 0], [-1, 0], [0, 1]], np.float32)
    templates, people = mean_templates(rows, np.array([5, 5, 2, 9, 9]))
    assert people.tolist() == [2, 5, 9]
    np.testing.assert_allclose(templates, [[1, 0], [0.5**0.5] * 2, [-(0.5**0.5), 0.5**0.5]], rtol=1e-6)
