"""What users load our files into: insightface's recognition class, and networks of the published names."""

import importlib.util
import json
import warnings

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from backbones import get_model
from embedder.align import TEMPLATE, align_face
from embedder.load import load_embedder
from eval.pairs.bin_file import load_bin
from paths import data_path
from training.saving import write_model
from training.sync_bn import synchronise_batch_norm
from utils.decode import decode_rgb

NEEDED = ("onnx", "onnxruntime", "onnxscript", "insightface")
absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
with_insightface = pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)} (make clients)")
clients = pytest.mark.clients


@pytest.fixture(scope="session")
def insightface():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that it imports
        import insightface
        import insightface.app.common
        import insightface.model_zoo.arcface_onnx
    return insightface


def cosine(a, b):
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def faces(n=3):
    """(n, 112, 112, 3) uint8 RGB: real ones where there are any, tinted so that the order of channels counts."""
    folder = data_path()
    if folder is not None:
        encoded = load_bin(folder / "lfw_train" / "lfw.bin").encoded[:n]
        images = np.stack([decode_rgb(image) for image in encoded]).astype(float)
    else:
        rng = np.random.default_rng(0)
        images = np.stack([cv2.resize(rng.uniform(0, 255, (7, 7, 3)), (112, 112)) for _ in range(n)])
    return (images * (1.0, 0.7, 0.4)).clip(0, 255).astype(np.uint8)


@clients
@with_insightface
@pytest.mark.parametrize("name", ["rtiny", "mbf", "r18"])
def test_get_feat_of_insightface_is_our_embedding(insightface, exported_network, name):
    model, path, _ = exported_network(name)
    client = insightface.model_zoo.arcface_onnx.ArcFaceONNX(model_file=str(path))
    assert (client.input_mean, client.input_std) == (127.5, 127.5)
    assert client.input_size == (112, 112)
    images_BHW3 = faces()
    ours = load_embedder(model, name).embed(images_BHW3)
    bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images_BHW3]
    for image, wanted in zip(bgr, ours, strict=True):
        found = client.get_feat(image)
        assert found.shape == (1, 64)
        assert cosine(found, wanted) > 0.9999
        np.testing.assert_allclose(found[0], wanted, atol=1e-4 * np.abs(ours).max())
    np.testing.assert_allclose(client.get_feat(bgr), ours, atol=1e-4 * np.abs(ours).max())
    # The test sees a swapped channel order.
    assert cosine(client.get_feat(images_BHW3[0]), ours[0]) < 0.999


@clients
@with_insightface
@pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")  # insightface's own call
def test_the_model_zoo_takes_it_for_a_recognition_model_and_aligns_as_we_do(insightface, exported_network):
    model, path, _ = exported_network("rtiny")
    client = insightface.model_zoo.get_model(str(path), providers=["CPUExecutionProvider"])
    assert client.taskname == "recognition"
    landmarks = TEMPLATE * 1.3 + (25, 18)
    photo = cv2.resize(faces(1)[0], (200, 190), interpolation=cv2.INTER_CUBIC)
    face = insightface.app.common.Face(kps=landmarks.astype(np.float32))
    found = client.get(np.ascontiguousarray(photo[..., ::-1]), face)
    ours = load_embedder(model, "rtiny").embed(align_face(photo, landmarks)[None])
    assert cosine(found, ours) > 0.9999


class PublishedNetwork(nn.Module):
    """A network of somebody else's code, known by the names and shapes of its tensors alone."""

    def __init__(self, shapes):
        super().__init__()
        for key, shape in shapes.items():
            *path, last = key.split(".")
            module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_buffer(last, torch.full(shape, torch.nan))


@pytest.mark.parametrize("wrapped", ["plain", "synchronised"])
@pytest.mark.parametrize("name", ["r18", "r50", "mbf", "mbf_large"])
def test_model_pt_loads_strictly_under_the_published_names(tmp_path, contracts, name, wrapped):
    network = get_model(name, amp_dtype=torch.bfloat16)
    if wrapped == "synchronised":
        network = synchronise_batch_norm(network, torch.device("cpu"))
    write_model(network.state_dict(), tmp_path / "model.pt")
    shapes = json.loads((contracts / "backbone_state_dicts.json").read_text())[name]
    client = PublishedNetwork(shapes)
    result = client.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    for key, value in network.state_dict().items():
        assert torch.equal(client.state_dict()[key].to(value.dtype), value)
