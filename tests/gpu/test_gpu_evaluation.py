"""What becomes of a trained network: embeddings on a GPU, the IJB protocol, ONNX."""

import json

import numpy as np
import pytest
import torch

import eval_ijbc
from embedder.load import load_embedder
from ijb_tree import arguments, make_model, make_tree
from model_files import save_random_model
from tiny_runs import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def faces(number):
    return np.random.default_rng(0).integers(0, 256, (number, 112, 112, 3), np.uint8)


@pytest.mark.parametrize("network", ["rtiny", "r50", "mbf", "vtiny"])
def test_embeddings_are_the_cpus(tmp_path, monkeypatch, network):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = save_random_model(tmp_path, network)
    cpu, gpu = (load_embedder(model, network, device=device).embed(faces(5)) for device in ("cpu", "cuda"))
    assert np.abs(gpu - cpu).max() < 1e-3 * np.abs(cpu).max()
    assert cosines(cpu, gpu).min() > 0.99999


@pytest.mark.parametrize("bf16", [False, True], ids=["TF32 where cuDNN likes", "bf16"])
def test_embeddings_in_the_fast_types_stay_near(tmp_path, bf16):
    model = save_random_model(tmp_path, "r50")
    cpu = load_embedder(model, "r50", device="cpu").embed(faces(5))
    gpu = load_embedder(model, "r50", device="cuda", bf16=bf16).embed(faces(5))
    assert cosines(cpu, gpu).min() > (0.98 if bf16 else 0.9995)


def test_ijb_scores_are_the_cpus(tmp_path):
    tree, model = make_tree(tmp_path / "IJBC"), make_model(tmp_path / "model" / "model.pt")
    scores = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        more = ["--device", device, "--job", "job", "--protocol", "both", "--result-dir", str(out)]
        assert eval_ijbc.main(arguments(model, tree, tmp_path, *more)) == 0
        scores[device] = np.load(out / "IJBC" / "job.npy")
        assert json.loads((out / "IJBC" / "job.json").read_text())["embedded_images"] == 30
    assert np.abs(scores["cuda"] - scores["cpu"]).max() < 5e-3


@pytest.mark.parametrize("precision", ["bf16=True", "fp16=True"])
def test_a_network_trained_on_the_device_is_exported(tmp_path, precision):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="exporting needs onnx, onnxruntime, onnxscript")
    import torch2onnx

    run(tmp_path / "run", "device=cuda", precision)
    assert torch2onnx.main([str(tmp_path / "run")]) == 0
    cpu = load_embedder(tmp_path / "run" / "model.pt", device="cpu").embed(faces(3))
    onnx = load_embedder(tmp_path / "run" / "model.onnx", device="cpu").embed(faces(3))
    np.testing.assert_allclose(onnx, cpu, atol=1e-3 * np.abs(cpu).max())
