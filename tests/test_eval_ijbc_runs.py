"""eval_ijbc.py run twice, interrupted, and on several ranks."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import eval_ijbc
from embedder.load import TorchEmbedder
from eval.ijb import cache as embedding_cache
from ijb_tree import arguments, loop_scores, make_model, make_tree
from paths import ROOT
from ranks import run_ranks


@pytest.fixture
def ijb(tmp_path):
    return make_tree(tmp_path / "ijb")


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "run" / "model.pt")


def count_embedded(monkeypatch):
    """Count the images that go through the network."""
    seen = []
    embed = TorchEmbedder.embed

    def counting(self, images):
        seen.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(TorchEmbedder, "embed", counting)
    return seen


def test_a_second_run_embeds_nothing(ijb, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embedding_cache, "IMAGES_PER_PART", 7)
    argv = arguments(model, ijb, tmp_path)
    assert eval_ijbc.main(argv) == 0
    first = np.load(tmp_path / "out" / "IJBC" / "insightface.npy")
    seen = count_embedded(monkeypatch)
    assert eval_ijbc.main([*argv, "--job", "again", "--protocol", "both"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "IJBC" / "again.npy"), first)
    assert "30 of 30 embeddings were there already" in capsys.readouterr().out
    assert eval_ijbc.main([*argv, "--job", "another mode", "--no-flip", "--no-norm-score"]) == 0
    scores = np.load(tmp_path / "out" / "IJBC" / "another mode.npy")
    np.testing.assert_allclose(scores, loop_scores(model, ijb, flip=False, norm_score=False), atol=1e-5)
    assert seen == []
    # Parts are lost and damaged: only these are made again.
    cache = next((tmp_path / "out" / "IJBC" / "cache").iterdir())
    next(cache.glob("000000000-*")).unlink()
    damaged = next(cache.glob("000000014-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert eval_ijbc.main([*argv, "--job", "third"]) == 0
    assert sum(seen) == 2 * 14
    assert f"Damaged, made again: {damaged}" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "IJBC" / "third.npy"), first)


def test_what_changes_an_embedding_is_embedded_again(ijb, model, tmp_path, monkeypatch):
    argv = arguments(model, ijb, tmp_path)
    seen = count_embedded(monkeypatch)
    assert eval_ijbc.main(argv) == 0
    photo = ijb / "loose_crop" / "3.jpg"
    photo.write_bytes((ijb / "loose_crop" / "20.jpg").read_bytes())
    assert eval_ijbc.main(argv) == 0
    assert eval_ijbc.main([*argv, "--bf16"]) == 0
    weights = torch.load(model)
    weights["conv1.weight"].mul_(0.9)
    torch.save(weights, model)
    assert eval_ijbc.main(argv) == 0
    assert sum(seen) == 4 * 2 * 30
    assert len(list((tmp_path / "out" / "IJBC" / "cache").iterdir())) == 4


def test_an_interrupted_run_goes_on_where_it_was(ijb, model, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "IMAGES_PER_PART", 4)
    argv = arguments(model, ijb, tmp_path)
    embed, calls = TorchEmbedder.embed, []

    def interrupted(self, images):
        calls.append(len(images))
        if len(calls) > 7:
            raise KeyboardInterrupt
        return embed(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEmbedder, "embed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            eval_ijbc.main(argv)
    seen = count_embedded(monkeypatch)
    assert eval_ijbc.main(argv) == 0
    assert sum(seen) == 2 * (30 - 3 * 4)
    np.testing.assert_allclose(
        np.load(tmp_path / "out" / "IJBC" / "insightface.npy"), loop_scores(model, ijb), atol=1e-5
    )


def test_no_cache_leaves_none(ijb, model, tmp_path, monkeypatch):
    argv = arguments(model, ijb, tmp_path, "--no-cache")
    assert eval_ijbc.main(argv) == 0
    folder = tmp_path / "out" / "IJBC"
    np.testing.assert_allclose(np.load(folder / "insightface.npy"), loop_scores(model, ijb), atol=1e-5)
    assert list((folder / "cache").iterdir()) == []


def evaluate_on_ranks(rank, world_size, argv):
    embedding_cache.IMAGES_PER_PART = 4
    report = eval_ijbc.evaluate(eval_ijbc.parse_arguments(argv))
    assert (report is None) is (rank > 0)
    return None if report is None else (report.scores, report.identification)


@pytest.mark.distributed
def test_ranks_share_the_work_and_give_the_same_bits(ijb, model, tmp_path):
    """Batches are the same whatever the number of ranks, and so is each of them computed by one rank."""
    results = {}
    for ranks in (1, 2, 3):
        argv = arguments(model, ijb, tmp_path / str(ranks), "--protocol", "both")
        results[ranks] = run_ranks(evaluate_on_ranks, ranks, argv)[0]
    for ranks in (2, 3):
        np.testing.assert_array_equal(results[ranks][0], results[1][0])
        assert results[ranks][1].keys() == results[1][1].keys()
        for gallery, found in results[ranks][1].items():
            np.testing.assert_equal(vars(found), vars(results[1][1][gallery]))


@pytest.mark.distributed
def test_torchrun(ijb, model, tmp_path):
    """The real launcher; ranks find each other's parts, and a wrong input ends all of them with one message."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "eval_ijbc.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, *arguments(model, ijb, tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert ", 2 ranks" in run.stdout
    assert run.stdout.count("Written: ") == 1
    np.testing.assert_allclose(
        np.load(tmp_path / "out" / "IJBC" / "insightface.npy"), loop_scores(model, ijb), atol=1e-5
    )
    (ijb / "loose_crop" / "7.jpg").unlink()
    run = subprocess.run(
        [*command, *arguments(model, ijb, tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode != 0
    assert run.stderr.count("eval_ijbc.py: error: 1 of 30 images are missing") == 1
