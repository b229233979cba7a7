import os
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from backbones.weights import read_state_dict


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def equal(found, wanted):
    return list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
def test_reads_what_torch_saves(tmp_path, zipped, as_text):
    wanted = network().state_dict()
    path = saved(tmp_path / "model.pt", wanted, _use_new_zipfile_serialization=zipped)
    found = read_state_dict(str(path) if as_text else path)
    assert type(found) is dict
    assert equal(found, wanted)


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "backbone.", "module._orig_mod.", "_orig_mod.module.backbone.", "module.module."],
)
@pytest.mark.parametrize("nested", [True, False])
def test_prefixes_of_wrappers_are_dropped(tmp_path, prefix, nested):
    wanted = network().state_dict()
    content = {prefix + name: value for name, value in wanted.items()}
    path = saved(tmp_path / "model.pt", {"state_dict": content, "epoch": 3} if nested else content)
    assert equal(read_state_dict(path), wanted)


def test_prefixes_stay_inside_a_name(tmp_path):
    content = {"model.0.weight": torch.ones(1), "layer.module.weight": torch.ones(1), "modules": torch.ones(1)}
    assert equal(read_state_dict(saved(tmp_path / "model.pt", content)), content)


def test_two_names_that_become_one(tmp_path):
    path = saved(tmp_path / "model.pt", {"module.a": torch.ones(1), "a": torch.ones(1)})
    with pytest.raises(ValueError, match=r"model\.pt: two tensors are named 'a'"):
        read_state_dict(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pt"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="is a folder"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "found a Tensor"),
        ([torch.ones(3)], "found a list"),
        ({}, "found an empty dictionary"),
        ({"state_dict": {}}, "found an empty dictionary"),
        ({"epoch": 3, "weight": torch.ones(1)}, "'epoch' holds a int"),
        ({"state_dict": [torch.ones(1)]}, "'state_dict' holds a list"),
        ({"state_dict": {"a": None}}, "'a' holds a NoneType"),
        ({0: torch.ones(1)}, "'0' holds a Tensor"),
    ],
)
def test_what_is_no_state_dict(tmp_path, content, message):
    path = saved(tmp_path / "model.pt", content)
    with pytest.raises(ValueError, match=message) as caught:
        read_state_dict(path)
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
            read_state_dict(path)
        assert "weights_only" not in str(caught.value)  # torch advises to set it to False
    assert not (tmp_path / "ran").exists()


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        torch.jit.script(network()).save(str(path))
    with pytest.raises(ValueError, match="TorchScript"):
        read_state_dict(path)


def test_other_files(tmp_path):
    path = tmp_path / "model.pt"
    whole = saved(tmp_path / "whole.pt", network().state_dict()).read_bytes()
    for content in (b"", b"hello there", b"\x80", whole[:100], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.pt is no file of torch\.save"):
            read_state_dict(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ValueError, match="is no file of torch"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="other objects than tensors"):
        read_state_dict(path)
