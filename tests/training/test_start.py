"""A new run's backbone from a file of weights: what fits, what is left out, what is refused."""

import pytest
import torch

import train
from backbones import get_model
from embedder.load import load_network
from tiny_runs import TINY
from training.start import start_from
from utils.config import get_config
from utils.distributed import Ranks

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def rtiny(embedding_size=32, seed=0):
    torch.manual_seed(seed)
    return get_model("rtiny", embedding_size)


def saved(path, content):
    torch.save(content, path)
    return path


def equal(network, state):
    return all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


FOREIGN = {
    "lightning": lambda state: {
        "state_dict": {**{f"model.{k}": v for k, v in state.items()}, "head.kernel": torch.ones(32, 9)},
        "pytorch-lightning_version": "1.7",
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(3)}}}],
    },
    "ddp": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled": lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
    "magface": lambda state: {
        "arch": "rtiny",
        "state_dict": {**{f"features.module.{k}": v for k, v in state.items()}, "fc.weight": torch.ones(32, 9)},
        "optimizer": {"state": {}},
    },
    "cvlface": lambda state: {f"net.{k}": v for k, v in state.items()},
    "insightface": lambda state: {
        "epoch": 1,
        "state_dict_backbone": state,
        "state_dict_softmax_fc": {"weight": torch.ones(9, 32)},
        "state_optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
    },
    "classifier": lambda state: {**state, "classifier.weight": torch.ones(9, 32)},
    "half": lambda state: {"model": {k: v.half() if v.is_floating_point() else v for k, v in state.items()}},
}


@pytest.mark.parametrize("form", FOREIGN)
def test_foreign_checkpoints_start_a_run_and_are_evaluated(tmp_path, form):
    state = rtiny().state_dict()
    if form == "half":
        state = {k: v.half().float() if v.is_floating_point() else v for k, v in state.items()}
    path = saved(tmp_path / "theirs.pt", FOREIGN[form](state))
    backbone = rtiny(seed=1)
    fit = start_from(backbone, path)
    assert (fit.share, fit.warning()) == (1, "")
    assert equal(backbone, state)
    network, name, embedding_size = load_network(path)
    assert (name, embedding_size) == ("rtiny", 32)
    assert equal(network, state)


def test_what_is_left_out_is_said(tmp_path, caplog, monkeypatch):
    path = saved(tmp_path / "theirs.pt", FOREIGN["lightning"](rtiny().state_dict()))
    left_out = "left out what else is in the file: head.kernel, pytorch-lightning_version, optimizer_states"
    train.prepare(get_config(TINY, [f"output={tmp_path / 'run'}", f"init_backbone={path}"]), ALONE)
    assert f"init_backbone: {left_out}\n" in (tmp_path / "run" / "training.log").read_text()
    with caplog.at_level("WARNING", "mhs_arcface"):
        monkeypatch.setattr(train.log, "propagate", True)
        load_network(path)
    assert caplog.messages == [f"{path}: {left_out}"]


def test_a_checkpoint_of_this_project_starts_a_run_too(tmp_path):
    train.main([TINY, f"output={tmp_path}", "num_image=16"])
    backbone = rtiny(seed=1)
    fit = start_from(backbone, tmp_path / "checkpoints" / "step_2" / "training.pt")
    assert fit.warning() == ""
    assert equal(backbone, torch.load(tmp_path / "model.pt", weights_only=True))
    assert "optimizer" in fit.left_out


def test_weights_that_fit_in_part_are_named(tmp_path):
    """A network without a stage and with another embedding size: more than half of it fits."""
    state = rtiny().state_dict()
    dropped = [name for name in state if name.startswith("layer4")]
    kept = {name: value for name, value in state.items() if name not in dropped}
    kept["fc.weight"] = torch.zeros(16, 2048)
    kept["fc.extra"] = torch.zeros(3)
    path = saved(tmp_path / "part.pt", kept)
    train.prepare(get_config(TINY, [f"output={tmp_path / 'run'}", f"init_backbone={path}"]), ALONE)
    log = (tmp_path / "run" / "training.log").read_text()
    missing = sum(not name.endswith("num_batches_tracked") for name in dropped)
    (warning,) = (line for line in log.splitlines() if "not all tensors fit" in line)
    assert warning.endswith(
        f"not all tensors fit: {missing} not in the file (layer4: {missing}); 1 of another shape "
        "(fc.weight (16, 2048) in place of (32, 2048)); 1 not the network's (fc.extra); what the file does not give "
        "starts as in a new network"
    )


@pytest.mark.parametrize(
    ("network", "given"), [("r18", "r34"), ("r18", "r100"), ("r34", "r50"), ("r50", "r100"), ("r100", "r50")]
)
def test_weights_of_another_depth_are_refused_by_its_name(tmp_path, network, given):
    """All names of the shallower are names of the deeper, of the same shapes."""
    state = get_model(given).state_dict()
    path = saved(tmp_path / "given.pt", {name: value.half() for name, value in state.items()})
    with pytest.raises(ValueError, match=f"holds the weights of network {given}, not of .* set network to '{given}'"):
        start_from(get_model(network), path)
    with pytest.raises(ValueError, match=rf"network '{network}' .* They fit --network {given}"):
        load_network(path, network)


@pytest.mark.parametrize("head", [("features.",), ("bn2.", "fc.", "features.")])
def test_weights_without_their_head_are_taken_by_their_own_network_alone(tmp_path, head):
    state = {name: value for name, value in get_model("r18").state_dict().items() if not name.startswith(head)}
    path = saved(tmp_path / "trunk.pt", state)
    assert start_from(get_model("r18"), path).extra == []
    assert start_from(get_model("r18", 256), path).extra == []  # another embedding size is no other network
    with pytest.raises(ValueError, match="holds the weights of network r18, not of this one"):
        start_from(get_model("r34"), path)


def test_files_without_the_batch_norms_counters_are_taken(tmp_path):
    state = {name: value for name, value in rtiny().state_dict().items() if not name.endswith("num_batches_tracked")}
    path = saved(tmp_path / "old.pt", state)
    fit = start_from(rtiny(), path)
    assert (fit.share, fit.warning()) == (1.0, "")
    backbone, name, _ = load_network(path)
    assert name == "rtiny"
    assert all(torch.equal(backbone.state_dict()[key], value) for key, value in state.items())


def test_another_embedding_size_is_named(tmp_path):
    path = saved(tmp_path / "r18.pt", get_model("r18", 256).state_dict())
    fit = start_from(get_model("r18", 512), path)
    assert fit.misshapen[:2] == ["fc.weight", "fc.bias"]
    assert fit.warning().startswith("not all tensors fit: 6 of another shape (fc: 2, features: 4); what the file")


@pytest.mark.parametrize("form", ["ddp", "lightning"])
def test_weights_of_a_run_that_diverged_are_refused(tmp_path, form):
    state = rtiny().state_dict()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    state["fc.bias"][3] = torch.inf
    path = saved(tmp_path / "bad.pt", FOREIGN[form](state))
    message = rf"bad\.pt: 2 of {len(state)} tensors hold values that are not finite, layer2\.0\.conv1\.weight first"
    with pytest.raises(ValueError, match=message):
        start_from(rtiny(), path)
    with pytest.raises(ValueError, match=message):
        load_network(path)


def test_another_projects_network_is_named_by_its_parts(tmp_path):
    theirs = {f"net.{part}.0.weight": torch.ones(1) for part in ("input_layer", "body", "output_layer")}
    path = saved(tmp_path / "theirs.pt", theirs)
    with pytest.raises(
        ValueError, match=r"fits 0 of the network's \d+ tensors: .*, with net\.input_layer\.0\.weight, net"
    ):
        start_from(rtiny(), path)
    with pytest.raises(ValueError, match=r"They fit none here: net\.input"):
        load_network(path)
