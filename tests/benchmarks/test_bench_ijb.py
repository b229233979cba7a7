"""The IJB benchmark: its records, and that the two methods are held against each other."""

import json

import numpy as np
import pytest

from benchmarks import bench_ijb, ijb_made_up, ijb_reference
from benchmarks.ijb_made_up import Size, write_features_tree
from embedder.align import similarity_transform
from eval.ijb.cache import EmbeddingCache
from eval.ijb.lists import read_ijb, read_lists

KEYS = {"part", "method", "stage", "seconds", "peak_mib", "ratio", "largest_score_difference", "images", "cpus"}
SMALL = Size(images=600, galleries=20, probes=80, genuine=80, pairs=900, embedding_size=16)


def test_writes_its_records(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_ijb, "QUICK", SMALL)
    out = tmp_path / "raw" / "ijb.jsonl"
    bench_ijb.main(["--quick", "--images", "8", "--folder", str(tmp_path), "--out", str(out)])
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["part"], r["method"]) for r in records if r["stage"] in ("total", "photo to table")] == [
        (part, method) for part in ("features", "photos") for method in ("reference", "this project")
    ]
    for r in records:
        assert r.keys() >= KEYS
        assert r["seconds"] >= 0
        assert r["peak_mib"] > 20
        assert r["largest_score_difference"] <= (1e-14 if r["part"] == "features" else 1e-4)
    parts = {r["stage"]: r["seconds"] for r in records if (r["part"], r["method"]) == ("features", "this project")}
    total, without = parts.pop("total"), parts.pop("total but matrices")
    assert parts.pop("intervals") > 0
    assert {r["ratio"] is None for r in records if r["stage"] == "intervals"} == {True}
    assert sum(parts.values()) == pytest.approx(total)
    assert without == pytest.approx(total - parts["landmarks to matrices"])
    assert "reference / this" in capsys.readouterr().out
    assert not list(tmp_path.glob("bench_ijb_*"))


def test_made_up_lists_have_the_counts_of_the_set(tmp_path):
    write_features_tree(tmp_path / "tree", EmbeddingCache(tmp_path / "parts", SMALL.images), SMALL)
    tree = read_lists(tmp_path / "tree")
    assert len(tree.names) == 600
    assert len(np.unique(tree.template_ids)) == 100
    assert len(tree.pair_label) == 900
    assert tree.pair_label.sum() == 80
    assert len({*zip(tree.pair_template_1.tolist(), tree.pair_template_2.tolist(), strict=True)}) == 900
    assert EmbeddingCache(tmp_path / "parts", 600).read(0, 600).shape == (600, 32)


@pytest.mark.parametrize("real", [False, True])
def test_photo_tree_is_a_sound_one(tmp_path, request, real):
    data = request.getfixturevalue("shared_data") if real else None
    source = ijb_made_up.write_photo_tree(tmp_path / "tree", 24, data)
    assert source == ("crops of lfw.bin" if real else "made-up photos")
    tree = read_ijb(tmp_path / "tree")
    assert len(tree.names) == 24
    assert len(tree.pair_label) == 12


def test_methods_that_disagree_are_an_error(tmp_path):
    outcomes = {}
    for i, method in enumerate(bench_ijb.METHODS):
        np.save(bench_ijb._scores_file(tmp_path, "features", method), np.array([0.5, 0.25 + 1e-6 * i]))
        outcomes[method] = {"seconds": {"total": 1.0}, "peak_mib": 1.0, "table": "the same"}
    with pytest.raises(RuntimeError, match="scores differ by"):
        bench_ijb.compare("features", outcomes, tmp_path)


def test_reference_aligns_by_the_same_matrices():
    """Its singular value decomposition and the closed form agree."""
    points = np.random.default_rng(0).uniform(0, 200, (50, 5, 2)).astype(np.float32)
    wanted = np.stack([ijb_reference.umeyama(five) for five in points])
    np.testing.assert_allclose(similarity_transform(points), wanted, atol=1e-4)
