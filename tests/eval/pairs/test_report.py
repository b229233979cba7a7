import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from backbones import get_model
from eval.pairs import __main__ as pairs_command
from eval.pairs import report as pairs_report
from eval.pairs.protocol import evaluate_embeddings
from eval.pairs.report import pair_section
from pair_stub import made_set


def embeddings(pairs, seed=0):
    """The two of a genuine pair are alike, those of an impostor pair are not; lengths differ."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(len(pairs.issame), 8))
    second = rng.normal(size=first.shape) + 2 * first * pairs.issame[:, None]
    both = np.stack([first, second], 1).reshape(-1, 8) * rng.uniform(0.1, 9, (2 * len(first), 1))
    return both.astype(np.float32)


def test_section_agrees_with_the_result():
    pairs = made_set(200)
    made = embeddings(pairs)
    made[4] = 0  # a row of zeros is alike to none
    result = evaluate_embeddings(made, pairs.issame)
    section = pair_section("made", pairs, made, result)
    for i in (0, 1, 2, 77):
        a, b = made[2 * i].astype(float), made[2 * i + 1].astype(float)
        expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b) if i != 2 else 0
        assert section.pairs.scores[i] == pytest.approx(expected)
    assert [section.pairs.curve.tar_at(far) for far in (1e-2, 1e-1)] == pytest.approx(result.tar[2:])
    assert section.pairs.scores[pairs.issame].mean() == pytest.approx(result.genuine_cosine)
    assert [tile.value for tile in section.headline] == [
        f"{100 * result.accuracy:.2f} %",
        f"{result.genuine_cosine:.3f}",
        f"{result.impostor_cosine:.3f}",
    ]
    assert section.headline[0].label == f"Accuracy, 10 folds ± {100 * result.accuracy_std:.2f}"
    assert section.pairs.first[7] == 14
    assert section.pairs.second[7] == 15
    assert section.pairs.image_of(3).shape == (112, 112, 3)


def test_without_a_curve_the_section_says_why():
    pairs = made_set(20)
    made = embeddings(pairs)
    made[3, 1] = np.nan
    section = pair_section("made", pairs, made, evaluate_embeddings(made, pairs.issame))
    assert section.pairs is None
    assert "not finite" in section.notes[0]
    alike = replace(pairs, issame=np.ones(20, bool))
    made = embeddings(alike)
    section = pair_section("made", alike, made, evaluate_embeddings(made, alike.issame))
    assert section.pairs is None
    assert "Mean impostor cosine" not in [tile.label for tile in section.headline]


def test_command(tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(get_model("rtiny", num_features=32).state_dict(), tmp_path / "model.pt")
    pairs = made_set(20)
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((pairs.encoded, pairs.issame.tolist())))
    page = tmp_path / "new" / "page.html"
    argv = ["--model", str(tmp_path / "model.pt"), "--data", str(tmp_path), "--report", str(page), "--no-flip"]
    assert pairs_command.main([*argv, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"Report: {page}" in printed
    text = page.read_text()
    for part in ("lfw", "straight only", "rtiny, 32 numbers, float32", "10 folds ± ", "95 %", "images 0 and 1"):
        assert part in text
    assert len(list(page.parent.glob("page_*.png"))) == 5


def test_a_report_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    torch.save(get_model("rtiny", num_features=32).state_dict(), tmp_path / "model.pt")
    pairs = made_set(12)
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((pairs.encoded, pairs.issame.tolist())))
    monkeypatch.setattr(pairs_report, "write_report", full)
    argv = ["--model", str(tmp_path / "model.pt"), "--data", str(tmp_path), "--report", str(tmp_path / "a.html")]
    assert pairs_command.main([*argv, "--device", "cpu"]) == 2
    assert "eval.pairs: error: [Errno 28] No space left" in capsys.readouterr().err
