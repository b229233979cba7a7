"""Runs with the networks that differ in kind: a ViT in half precision, checkpointed, and of another image size."""

import functools
import json

import numpy as np
import pytest
import torch

import backbones
import torch2onnx
import train
from embedder.load import load_embedder
from ranks import run_ranks
from tiny_runs import TINY, metrics, run, run_saving_in_time, weights
from utils.config import get_config
from utils.distributed import Ranks

ADAMW = ("network=vtiny", "optimizer=adamw", "lr=0.001", "weight_decay=0.1", "val_targets=[]")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_vit_trains_in_half_precision(tmp_path, precision):
    losses = run(tmp_path / precision, *ADAMW, f"{precision}=True", "num_epoch=2")
    assert len(losses) == 24
    assert np.isfinite(list(losses.values())).all()
    state = weights(tmp_path / precision)
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert load_embedder(tmp_path / precision).name == "vtiny"


@pytest.mark.parametrize("network", ["vtiny", "rtiny"])
def test_a_checkpointed_run_is_the_same_to_the_bit(tmp_path, network):
    options = ("val_targets=[]", f"network={network}", "dropout=0.1", "gradient_acc=2")
    losses = [run(tmp_path / f"{on}", *options, f"gradient_checkpointing={on}") for on in (False, True)]
    assert losses[0] == losses[1]
    one, other = weights(tmp_path / "False"), weights(tmp_path / "True")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_vit_resumes_to_the_bit(tmp_path):
    whole = run(tmp_path / "whole", *ADAMW, "num_epoch=2")
    run_saving_in_time(tmp_path / "parts", *ADAMW, "num_epoch=2", "checkpoint_steps=5", "keep_checkpoints=9")
    resumed = tmp_path / "resumed"
    train.main([TINY, f"output={resumed}", *ADAMW, "num_epoch=2", f"resume={tmp_path / 'parts/checkpoints/step_15'}"])
    assert metrics(resumed) == {step: loss for step, loss in whole.items() if step > 15}


def train_on_ranks(rank, world_size, overrides, masked):
    if not masked:
        backbones._NETWORKS["vtiny"] = functools.partial(backbones._NETWORKS["vtiny"], mask_ratio=0)
    state, data = train.prepare(get_config(TINY, overrides), Ranks(rank, world_size, rank, torch.device("cpu")))
    train.train(state, data)
    return {name: value.clone() for name, value in state.backbone.state_dict().items()}


@pytest.mark.distributed
def test_two_ranks_with_and_without_checkpointing(tmp_path):
    results = []
    for on in (False, True):
        options = [
            *ADAMW,
            f"gradient_checkpointing={on}",
            "gradient_acc=2",
            "sync_bn=True",
            f"output={tmp_path / str(on)}",
        ]
        results.append(run_ranks(train_on_ranks, 2, options, True))
    (one, other), checkpointed = results
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(one[name], checkpointed[0][name]) for name in one)


@pytest.mark.distributed
def test_two_ranks_wait_for_no_gradient_of_an_unused_mask_token(tmp_path):
    one, other = run_ranks(train_on_ranks, 2, [*ADAMW, f"output={tmp_path}"], False)
    assert all(torch.equal(one[name], other[name]) for name in one if "running" not in name)


def test_a_vit_of_another_image_size_is_trained_exported_and_loaded(tmp_path):
    folder = tmp_path / "run"
    run(folder, *ADAMW, "image_size=(84,84)")
    embedder = load_embedder(folder)
    assert embedder.image_size == 84
    assert torch2onnx.main([str(folder)]) == 0
    exported = load_embedder(folder / "model.onnx")
    assert exported.image_size == 84
    images = np.random.default_rng(0).integers(0, 256, (3, 84, 84, 3), np.uint8)
    found, expected = exported.embed(images), embedder.embed(images)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_size": [84, 96]}))
    with pytest.raises(ValueError, match=r"config.json: image_size is \[84, 96\], expected \[side, side\]"):
        load_embedder(folder)


@pytest.mark.parametrize("override", ["image_size=(96,96)", "image_size=(84,96) network=vtiny"])
def test_an_image_size_that_no_network_takes_is_refused(override):
    with pytest.raises(ValueError, match=r"image_size must be \(112, 112\), or a square for a ViT"):
        get_config(TINY, override.split())


def test_a_vit_keeps_its_batch_norms_where_freeze_bn_asks_for_it(tmp_path):
    run(tmp_path / "first", *ADAMW)
    start = tmp_path / "first" / "model.pt"
    run(tmp_path / "second", *ADAMW, "freeze_bn=True", f"init_backbone={start}")
    before, after = torch.load(start), weights(tmp_path / "second")
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.startswith(("feature.1.", "feature.3."))}
