import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import embedder.load
from backbones import get_model
from backbones.base import to_network_input
from backbones.weights import WeightsFile
from embedder.load import fitting_networks, load_embedder, load_network

pytestmark = pytest.mark.numeric


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "run" / "model.pt"
    path.parent.mkdir()
    torch.save(get_model("rtiny", num_features=64).state_dict(), path)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)


def test_embeds_as_the_network_does(model, images):
    embedder = load_embedder(model)
    assert (embedder.name, embedder.embedding_size, embedder.image_size) == ("rtiny", 64, 112)
    assert embedder.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    net = get_model("rtiny", num_features=64).eval()
    net.load_state_dict(torch.load(model))
    with torch.no_grad():
        wanted = net(to_network_input(torch.from_numpy(images))).numpy()
        mirrored = net(to_network_input(torch.from_numpy(images[:, :, ::-1].copy()))).numpy()
    out = embedder.embed(images)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, wanted, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_halves(images), np.hstack([wanted, mirrored]), atol=1e-5)


def test_bfloat16_is_named_and_near(model, images):
    embedder = load_embedder(model, bf16=True)
    assert embedder.precision == "bfloat16"
    exact, out = load_embedder(model).embed(images), embedder.embed(images)
    assert out.dtype == np.float32
    assert not np.array_equal(out, exact)
    cosine = (out * exact).sum(1) / np.linalg.norm(out, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.99


def test_network_and_size_come_from_the_run(model):
    (model.parent / "config.json").write_text(json.dumps({"network": "rtiny", "embedding_size": 64, "seed": 1}))
    assert load_network(model.parent)[1:] == ("rtiny", 64)


def test_network_comes_from_the_weights_where_nothing_names_it(tmp_path):
    torch.save(get_model("r18", num_features=32).state_dict(), tmp_path / "a.pth")
    assert load_network(tmp_path / "a.pth")[1:] == ("r18", 32)


VIT_B = ["vit_b", "vit_b_dp005_mask_005"]


@pytest.mark.parametrize(
    ("name", "found"),
    [("vtiny", ["vtiny"]), ("vit_b", VIT_B), ("vit_b_dp005_mask_005", VIT_B), ("vit_h", ["vit_h"]), ("r34", ["r34"])],
)
def test_networks_that_differ_in_training_alone_have_the_same_weights(name, found):
    with torch.device("meta"):
        file = WeightsFile(Path("model.pt"), get_model(name, 128).state_dict())
    assert fitting_networks(file) == found


def test_a_network_that_is_slow_to_build_is_looked_at_last(monkeypatch):
    with torch.device("meta"):
        files = [WeightsFile(Path("model.pt"), get_model(name).state_dict()) for name in ("mbf", "rtiny")]
    monkeypatch.setattr(embedder.load, "SLOW_TO_BUILD", ("rtiny",))
    built, fits = [], embedder.load._fits

    def fits_quickly(file, name, headless):
        built.append(name)
        return name != "r2060" and fits(file, name, headless)

    monkeypatch.setattr(embedder.load, "_fits", fits_quickly)
    assert [fitting_networks(file) for file in files] == [["mbf"], ["rtiny"]]
    assert built.count("rtiny") == 1
    assert built[-1] == "rtiny"


def test_weights_saved_from_ddp_load(model):
    weights = torch.load(model)
    torch.save({"state_dict": {f"_orig_mod.module.{key}": value for key, value in weights.items()}}, model)
    net, name, _ = load_network(model, "rtiny")
    assert name == "rtiny"
    assert torch.equal(net.state_dict()["conv1.weight"], weights["conv1.weight"])


def test_what_cannot_be_loaded_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_embedder(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"network 'mbf' \(chosen by --network\): .* They fit --network rtiny"):
        load_embedder(model, "mbf")
    (model.parent / "config.json").write_text('{"embedding_size": true}')
    with pytest.raises(ValueError, match="embedding_size is True"):
        load_embedder(model)
    for device in ("toaster", "meta", "cuda:x", "cpu:"):
        with pytest.raises(ValueError, match="--device must be"):
            load_embedder(model, device=device)


def make_onnx(path, shape=("N", 3, 112, 112), names=("pool", "flat"), outputs=1, metadata=None, prologue=()):
    """Channel means: D = 3. ``prologue`` names nodes before it that do nothing."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -r requirement-dev.txt")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -r requirement-dev.txt")
    helper, float_type = onnx.helper, onnx.TensorProto.FLOAT
    nodes, last = [], "data"
    for i, name in enumerate(prologue):
        nodes.append(helper.make_node("Identity", [last], [f"p{i}"], name=name))
        last = f"p{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"], name=names[0]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["out"], name=names[1]))
    wanted = [helper.make_tensor_value_info(name, float_type, None) for name in ("out", "pooled")[:outputs]]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("data", float_type, shape)], wanted)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if metadata:
        helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", ["N", 1, 2, 5, 7])
def test_onnx_of_any_batch_size(tmp_path, images, batch):
    embedder = load_embedder(make_onnx(tmp_path / "net.onnx", (batch, 3, 112, 112)))
    assert (embedder.name, embedder.embedding_size) == ("net.onnx", 3)
    assert embedder.sha256 == hashlib.sha256((tmp_path / "net.onnx").read_bytes()).hexdigest()
    wanted = (images.mean(axis=(1, 2)) - 127.5) / 127.5  # red first, as they came
    np.testing.assert_allclose(embedder.embed(images), wanted, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_halves(images), np.hstack([wanted, wanted]), atol=1e-5)


@pytest.mark.parametrize(
    ("prologue", "metadata", "mean", "std"),
    [
        ((), None, 127.5, 127.5),
        (("Sub_0", "Mul_1"), None, 0, 1),
        (("_minusscalar0", "_mulscalar0"), None, 0, 1),
        (("Sub_0",), None, 127.5, 127.5),
        (("a", "b", "c", "d", "e", "f", "g", "Sub_0", "Mul_1"), None, 127.5, 127.5),  # the ninth is too far in
        ((), {"input_mean": "100", "input_std": "50"}, 100, 50),
        (("Sub_0", "Mul_1"), {"input_mean": "127.5", "input_std": "127.5"}, 127.5, 127.5),
    ],
)
def test_onnx_input_is_normalised_as_insightface_does(tmp_path, images, prologue, metadata, mean, std):
    embedder = load_embedder(make_onnx(tmp_path / "net.onnx", prologue=prologue, metadata=metadata))
    np.testing.assert_allclose(embedder.embed(images), (images.mean(axis=(1, 2)) - mean) / std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": ("N", 1, 112, 112)}, r"expected an input of shape \(batch, 3, side, side\) or .*, found"),
        ({"shape": ("N", 3, 112, 96)}, r"expected an input of shape"),
        ({"outputs": 2}, r"expected one output of shape \(2, D\) .* found \(2, 3\), \(2, 3, 1, 1\); detection and"),
        ({"metadata": {"color_order": "YUV"}}, "say color_order 'YUV', expected RGB or BGR"),
        ({"metadata": {"input_mean": "grey", "input_std": "1"}}, "input_mean 'grey'"),
        ({"metadata": {"input_mean": "127.5"}}, "give input_mean alone: write input_mean and input_std"),
        ({"metadata": {"input_std": "128"}}, "give input_std alone"),
    ],
)
def test_other_onnx_graphs_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_embedder(make_onnx(tmp_path / "net.onnx", **change))


def test_metadata_need_no_onnx_package(tmp_path, images, monkeypatch):
    path = make_onnx(tmp_path / "net.onnx", metadata={"input_mean": "127.5", "input_std": "127.5"})
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert load_embedder(path).embed(images).shape == (len(images), 3)


def test_onnx_faults_are_named(tmp_path, monkeypatch):
    path = make_onnx(tmp_path / "net.onnx")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        load_embedder(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="leave --network out"):
        load_embedder(path, "r50")
    with pytest.raises(ValueError, match="leave --bf16 out"):
        load_embedder(path, bf16=True)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"broken\.onnx is no ONNX model"):
        load_embedder(broken)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"net\.onnx has no input_mean .*: pip install onnx,"):
        load_embedder(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="pip install onnxruntime"):
        load_embedder(path)


def make_graph(path, nodes, shape, outputs, constants=None):
    """An ONNX file of these nodes from "data"; ``constants`` are initialisers."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -r requirement-dev.txt")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -r requirement-dev.txt")
    helper, float_type = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [out], name=out, **more) for kind, inputs, out, more in nodes],
        "g",
        [helper.make_tensor_value_info("data", float_type, shape)],
        [helper.make_tensor_value_info(name, float_type, None) for name in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


MEANS = [("GlobalAveragePool", ["data"], "pooled", {}), ("Flatten", ["pooled"], "out", {})]


@pytest.mark.parametrize("outputs", [("out", "length"), ("length", "out")])
def test_of_an_embedding_and_its_length_the_embedding_is_taken(tmp_path, images, outputs):
    nodes = [*MEANS, ("ReduceL2", ["out"], "length", {"axes": [1], "keepdims": 1})]
    embedder = load_embedder(make_graph(tmp_path / "net.onnx", nodes, ("N", 3, 112, 112), outputs))
    assert embedder.embedding_size == 3
    np.testing.assert_allclose(embedder.embed(images), (images.mean(axis=(1, 2)) - 127.5) / 127.5, atol=1e-5)


def test_a_batch_size_built_into_the_graph_is_found_without_a_word(tmp_path, images, capfd):
    """It announces any, and its reshape takes one image."""
    nodes = [MEANS[0], ("Reshape", ["pooled", "to"], "out", {})]
    path = make_graph(tmp_path / "net.onnx", nodes, ("N", 3, 112, 112), ["out"], {"to": np.array([1, 3])})
    np.testing.assert_allclose(
        load_embedder(path).embed(images), (images.mean(axis=(1, 2)) - 127.5) / 127.5, atol=1e-5
    )
    assert capfd.readouterr().err == ""  # the runtime's own complaints come from C++


def test_channels_last_graphs_are_fed_so(tmp_path, images):
    path = make_graph(
        tmp_path / "net.onnx", [("ReduceMean", ["data"], "out", {"axes": [1, 2], "keepdims": 0})], ("N", 112, 112, 3),
        ["out"],
    )  # fmt: skip
    np.testing.assert_allclose(
        load_embedder(path).embed(images), (images.mean(axis=(1, 2)) - 127.5) / 127.5, atol=1e-5
    )


def test_blue_first_where_asked_for_or_said_by_the_file(tmp_path, images, model):
    wanted = (images.mean(axis=(1, 2)) - 127.5)[:, ::-1] / 127.5
    for path, bgr in (
        (make_onnx(tmp_path / "said.onnx", metadata={"color_order": "BGR"}), False),
        (make_onnx(tmp_path / "asked.onnx"), True),
    ):
        embedder = load_embedder(path, bgr=bgr)
        assert embedder.color_order == "BGR"
        np.testing.assert_allclose(embedder.embed(images), wanted, atol=1e-5)
    plain, turned = load_embedder(model), load_embedder(model, bgr=True)
    np.testing.assert_allclose(turned.embed(images), plain.embed(images[..., ::-1]), atol=1e-6)
