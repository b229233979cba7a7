import argparse
import os
import pickle
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from backbones.weights import read_state_dict, read_weights


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


NAMES = list(network().state_dict())


def equal(found, wanted):
    return list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
def test_reads_what_torch_saves(tmp_path, zipped, as_text):
    wanted = network().state_dict()
    path = saved(tmp_path / "model.pt", wanted, _use_new_zipfile_serialization=zipped)
    found = read_state_dict(str(path) if as_text else path, NAMES)
    assert type(found) is dict
    assert equal(found, wanted)


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "backbone.", "module._orig_mod.", "_orig_mod.module.backbone.", "module.module.",
     "model.", "net.", "features.module.", "anything.at.all."],
)  # fmt: skip
@pytest.mark.parametrize("place", [None, "state_dict", "model", "state_dict_backbone"])
def test_what_wrappers_put_before_names_is_dropped(tmp_path, prefix, place):
    wanted = network().state_dict()
    content = {prefix + name: value for name, value in wanted.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []}
    path = saved(tmp_path / "a.pt", {place: content, "epoch": 3, "optimizer": optimizer} if place else content)
    weights = read_weights(path).of(NAMES)
    assert equal(weights.tensors, wanted)
    assert weights.left_out == (["epoch", "optimizer"] if place else [])


def test_compiled_parts_are_found(tmp_path):
    wanted = network().state_dict()
    content = {f"module.{name.replace('.', '._orig_mod.')}": value for name, value in wanted.items()}
    assert equal(read_state_dict(saved(tmp_path / "a.pt", content), NAMES), wanted)


@pytest.mark.parametrize("prefix", ["", "module.", "features.module.", "net."])
def test_a_networks_own_parts_of_such_names_stay(tmp_path, prefix):
    """iresnet ends in a batch norm that is called features."""
    names = ["features.weight", "net.0.weight", "model.features.module.weight", "conv1.weight", "fc.weight"]
    wanted = {name: torch.full((2,), float(i)) for i, name in enumerate(names)}
    content = {prefix + name: value for name, value in wanted.items()}
    assert equal(read_state_dict(saved(tmp_path / "a.pt", content), names), wanted)


def test_a_classifier_beside_the_network_is_left_out_and_another_depth_is_not(tmp_path):
    """The second matters: a deeper network holds all names of a shallower one."""
    wanted = network().state_dict()
    one = torch.ones(1)
    beside = {f"features.module.{name}": value for name, value in wanted.items()} | {"fc.weight": one, "0.bias": one}
    weights = read_weights(saved(tmp_path / "a.pt", beside)).of(NAMES)
    assert equal(weights.tensors, wanted)
    assert weights.left_out_text() == "fc.weight, 0.bias"
    weights = read_weights(saved(tmp_path / "b.pt", {**wanted, "1.2.weight": one, "head": one})).of(NAMES)
    assert list(weights.tensors) == [*NAMES, "1.2.weight"]
    assert weights.left_out == ["head"]
    many = {**wanted, **{f"head{i}.x": one for i in range(10)}}
    assert read_weights(saved(tmp_path / "c.pt", many)).of(NAMES).left_out_text().endswith("head7.x and 2 more")


@pytest.mark.parametrize("nested", [True, False])
def test_two_networks_in_one_file_are_named(tmp_path, nested):
    own = network().state_dict()
    two = {"model": dict(own), "ema": dict(own)}
    flat = {f"{key}.{name}": value for key, state in two.items() for name, value in state.items()}
    path = saved(tmp_path / "model.pt", two if nested else flat)
    with pytest.raises(
        ValueError, match=r"model\.pt holds the network twice, under (model and under ema|ema and un)"
    ):
        read_state_dict(path, NAMES)


def test_two_names_that_become_one(tmp_path):
    path = saved(tmp_path / "model.pt", {"a._orig_mod.b": torch.ones(1), "a.b": torch.ones(1)})
    with pytest.raises(ValueError, match=r"model\.pt: two tensors are named 'a\.b'"):
        read_weights(path)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    state = network().state_dict()
    state["0.bias"][1] = state["1.running_var"][0] = bad
    path = saved(tmp_path / "model.pt", {"state_dict": state, "head": torch.full((3,), bad)})
    with pytest.raises(ValueError, match=r"model\.pt: 2 of 7 tensors hold values that are not finite, 0\.bias first"):
        read_state_dict(path, NAMES)
    assert len(read_weights(path).match(NAMES).tensors) == len(NAMES)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pt"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="is a folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "found a Tensor"),
        ([torch.ones(3)], "found a list"),
        ({}, "found an empty dictionary"),
        ({"state_dict": {}}, "found no tensor under state_dict"),
        ({"epoch": 3}, "found no tensor under epoch"),
        ({"state_dict": [torch.ones(1)]}, "found no tensor"),
        ({"state_dict": {"a": None}}, "found no tensor"),
        ({0: torch.ones(1)}, "found no tensor under 0"),
    ],
)
def test_what_is_no_state_dict(tmp_path, content, message):
    path = saved(tmp_path / "model.pt", content)
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_are_refused(tmp_path, zipped):
    for content in (network(), {"weight": torch.ones(1), "x": Attack(tmp_path / "ran")}):
        path = saved(tmp_path / "model.pt", content, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match="other objects than tensors") as caught:
            read_weights(path)
        assert "weights_only" not in str(caught.value)  # torch advises to set it to False
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "beside", [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), argparse.Namespace(lr=0.1, name="x")]
)
def test_numbers_and_settings_beside_the_network_do_no_harm(tmp_path, beside):
    wanted = network().state_dict()
    weights = read_weights(saved(tmp_path / "a.pt", {"state_dict": wanted, "best": beside})).of(NAMES)
    assert equal(weights.tensors, wanted)
    assert weights.left_out == ["best"]


def test_settings_cannot_hold_an_attack(tmp_path):
    settings = argparse.Namespace(x=Attack(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"other objects than tensors \(posix\.mkdir\)"):
        read_weights(saved(tmp_path / "a.pt", {"weight": torch.ones(1), "x": settings}))
    assert not (tmp_path / "ran").exists()


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        torch.jit.script(network()).save(str(path))
    with pytest.raises(ValueError, match="TorchScript"):
        read_weights(path)


def test_other_files(tmp_path):
    path = tmp_path / "model.pt"
    whole = saved(tmp_path / "whole.pt", network().state_dict()).read_bytes()
    for content in (b"", b"hello there", b"\x80", whole[:100], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.pt is no file of torch\.save"):
            read_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("run/model.pt", "b")
    with pytest.raises(ValueError, match=r"is an archive of files: unpack it, .* \(of run/model\.pt\)"):
        read_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", "b")
    with pytest.raises(ValueError, match="is a Keras model"):
        read_weights(path)
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(ValueError, match=r"is an \.npz file of numpy's arrays"):
        read_weights(path)
    path.write_bytes(pickle.dumps({"a": np.ones(3)}, protocol=2))
    with pytest.raises(ValueError, match="holds arrays of numpy, expected tensors"):
        read_weights(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="other objects than tensors"):
        read_weights(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a pointer of Git LFS.*git lfs pull"),
        (b"\x12\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02", "a file of mxnet's parameters"),
        (b"\x08\x0a\x12\x07pytorch\x1a\x05", "an ONNX model"),
        (b"\n <!DOCTYPE html><html>", "a web page"),
        (b'{\n  "nodes": [', "the description of an mxnet network, without any weights"),
        (b'{"error": "not found"}', "a text of JSON, without any weights"),
        (b"\x89HDF\r\n\x1a\n", "a file of HDF5, as Keras .* convert the network to ONNX"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
        (b"\x93NUMPY\x01\0", "an array of numpy"),
        (b"7767517\n75 83\n", "the description of an ncnn network"),
        (b"\x47\x6b\x30\x01", "ncnn's weights"),
        (b"\x1f\x8b\x08", "an archive of files: unpack it"),
        (bytes(257) + b"ustar", "an archive of files: unpack it"),
        (b"\x80\x02}q\0X\x1b\0\0\0StructuredToParameterName@@q\x01}s.", "a file of Paddle's parameters"),
    ],
)
def test_other_formats_are_named(tmp_path, start, message):
    (tmp_path / "model.pt").write_bytes(start + bytes(100))
    with pytest.raises(ValueError, match=rf"model\.pt is {message}"):
        read_weights(tmp_path / "model.pt")


def test_formats_without_a_mark_are_named_by_their_endings_unless_torch_wrote_them(tmp_path):
    for name, message in (
        ("saved_model.pb", "a TensorFlow graph"),  # begins as ONNX does
        ("net.caffemodel", "a file of Caffe's weights"),
        ("deploy.PROTOTXT", "the description of a Caffe network"),
        ("net.bin", "ncnn's weights"),
    ):
        (tmp_path / "net.param").write_text("7767517\n")
        (tmp_path / name).write_bytes(b"\x08\x01\x12\x00\x00\x00")
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path / name)
        assert read_weights(saved(tmp_path / name, {"weight": torch.ones(2)})).entries == ["weight"]


def test_onnx_is_named_as_its_own_package_writes_it(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -r requirement-dev.txt")
    graph = onnx.helper.make_graph([], "g", [], [])
    for options in ({"producer_name": "torch"}, {}):
        onnx.save(onnx.helper.make_model(graph, **options), tmp_path / "model.pt")
        with pytest.raises(ValueError, match="an ONNX model"):
            read_weights(tmp_path / "model.pt")


def test_safetensors_are_read_and_damage_is_named(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors: pip install safetensors")
    wanted = network().state_dict()
    path = tmp_path / "model.bin"  # the content tells, not the name
    safetensors.save_file({f"net.{name}": value for name, value in wanted.items()}, path)
    found = read_state_dict(path, NAMES)
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is a damaged file of safetensors"):
        read_weights(path)


def test_safetensors_without_their_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "a.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"a\.safetensors is a file of safetensors: pip install safetensors"):
        read_weights(tmp_path / "a.safetensors")
