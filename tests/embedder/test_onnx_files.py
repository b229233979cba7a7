"""Weights that an ONNX model keeps in other files: only in its own folder, whatever the runtime allows."""

import shutil

import numpy as np
import pytest

from embedder.load import load_embedder
from embedder.onnx_files import external_files

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -r requirement-dev.txt")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -r requirement-dev.txt")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4) / 10


def tensor(location):
    """A matrix (3, 4) that lies in another file."""
    made = onnx.TensorProto(name="w", data_type=FLOAT, dims=(3, 4), data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", str(WEIGHTS.nbytes))):
        made.external_data.add(key=key, value=value)
    return made


def graph(nodes, initializers=()):
    inputs = [helper.make_tensor_value_info("data", FLOAT, ("N", 3, 112, 112))]
    outputs = [helper.make_tensor_value_info("out", FLOAT, ("N", 4))]
    return helper.make_graph(nodes, "g", inputs, outputs, initializers)


def model_with(location, place="weight"):
    """A model that takes a matrix from ``location``, which stands in one of the places that can hold a tensor."""
    pooled = [helper.make_node("GlobalAveragePool", ["data"], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
    product = helper.make_node("MatMul", ["f", "w"], ["out"])
    constant = helper.make_node("Constant", [], ["w"], value=tensor(location))
    if place == "weight":
        made = helper.make_model(graph([*pooled, product], [tensor(location)]))
    elif place == "constant":
        made = helper.make_model(graph([*pooled, constant, product]))
    elif place == "branch":
        branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("w", FLOAT, (3, 4))])
        choice = helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)
        yes = helper.make_tensor("yes", onnx.TensorProto.BOOL, (), [True])
        made = helper.make_model(graph([*pooled, choice, product], [yes]))
    elif place == "sparse":
        made = helper.make_model(graph([*pooled, product]))
        made.graph.sparse_initializer.add(values=tensor(location))
    elif place == "function":
        function = helper.make_function("d", "F", [], ["w"], [constant], [helper.make_opsetid("", 17)])
        made = helper.make_model(graph([*pooled, product]), functions=[function])
    else:
        made = helper.make_model(graph([*pooled, product]))
        made.training_info.add(algorithm=graph([constant]))
    del made.opset_import[:]
    made.opset_import.append(helper.make_opsetid("", 17))
    made.ir_version = 9
    helper.set_model_props(made, {"input_mean": "0", "input_std": "1"})
    return made.SerializeToString()


@pytest.fixture
def folder(tmp_path):
    """Weights in the model's folder, and beside it."""
    for path in (tmp_path / "given" / "sub" / "inside.bin", tmp_path / "secret.bin"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(WEIGHTS.tobytes())
    (tmp_path / "given" / "link.bin").symlink_to("../secret.bin")
    return tmp_path / "given"


def test_weights_in_its_own_folder(folder):
    path = folder / "net.onnx"
    path.write_bytes(model_with("sub/inside.bin"))
    embedder = load_embedder(path)
    images = np.full((2, 112, 112, 3), (1, 2, 3), np.uint8)
    np.testing.assert_allclose(embedder.embed(images), np.tile([1, 2, 3] @ WEIGHTS, (2, 1)), rtol=1e-6)
    (folder / "sub" / "inside.bin").write_bytes((2 * WEIGHTS).tobytes())
    assert load_embedder(path).sha256 != embedder.sha256  # else another network's cache would be taken


def test_names_that_are_no_utf8(folder):
    """The runtime takes none, so it gets the content, which must then be all in one file."""
    strange = folder.parent / "\udcd5"
    try:
        shutil.copytree(folder, strange, symlinks=True)
    except OSError:
        pytest.skip("this system's names are UTF-8")
    (strange / "net.onnx").write_bytes(model_with("sub/inside.bin"))
    with pytest.raises(ValueError, match=r"takes weights from inside\.bin, which onnxruntime finds only where"):
        load_embedder(strange / "net.onnx")


@pytest.mark.parametrize("place", ["weight", "constant", "branch", "sparse", "function", "training"])
def test_wherever_they_stand_they_are_found(folder, place):
    path = folder / "net.onnx"
    path.write_bytes(model_with("sub/inside.bin", place))
    assert external_files(path) == [folder / "sub" / "inside.bin"]
    path.write_bytes(model_with("../secret.bin", place))
    with pytest.raises(ValueError, match=r"net\.onnx takes weights from '\.\./secret\.bin', which is no file in the"):
        load_embedder(path)


@pytest.mark.parametrize(
    "location",
    [
        *("../secret.bin", "sub/../../secret.bin", "link.bin", "/proc/self/environ", "/etc/passwd", "missing.bin"),
        *("sub", "*/_ORT_MEM_ADDR_/*", "a\0b", "", "\x1b[31m"),
    ],
)
def test_weights_from_elsewhere_are_refused(folder, location):
    path = folder / "net.onnx"
    path.write_bytes(model_with(location))
    with pytest.raises(ValueError, match="which is no file in the model's folder") as caught:
        load_embedder(path)
    assert repr(location) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", range(0, 200, 7))
def test_a_damaged_model_is_named(folder, end):
    path = folder / "net.onnx"
    whole = model_with("sub/inside.bin")
    for content in (whole[:end], whole[:end] + b"\xff" * 20, whole[:end] + b"\x0b" + whole[end:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"net\.onnx (is no ONNX model|takes weights|: expected)"):
            load_embedder(path)


@pytest.mark.parametrize("value", ["1e999", "nan", "x" * 100_000, "\x1b[31m"])
def test_metadata_that_are_no_numbers_are_refused_in_one_line(folder, value):
    model = onnx.load_from_string(model_with("sub/inside.bin"))
    for numbers in ({"input_mean": value, "input_std": "1"}, {"input_mean": "0", "input_std": value}):
        helper.set_model_props(model, numbers)
        (folder / "net.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match=r"net\.onnx: its metadata say input_mean") as caught:
            load_embedder(folder / "net.onnx")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
