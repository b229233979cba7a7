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
    (warning,) = (line for line in log.splitlines() if "not all tensors fit" in line)
    assert warning.endswith(
        f"not all tensors fit: {len(dropped)} not in the file (layer4: {len(dropped)}); 1 of another shape "
        "(fc.weight (16, 2048) in place of (32, 2048)); 1 not the network's (fc.extra); what the file does not give "
        "starts as in a new network"
    )


def test_another_depth_is_counted_part_by_part(tmp_path):
    """All names of r50 are names of r100, of the same shapes."""
    r50, r100 = (get_model(name, 512).state_dict() for name in ("r50", "r100"))
    assert set(r50) < set(r100)
    counts = {part: sum(k not in r50 for k in r100 if k.startswith(part)) for part in ("layer2", "layer3")}
    text = f"({', '.join(f'{part}: {n}' for part, n in counts.items())})"
    path = saved(tmp_path / "r100.pt", r100)
    fit = start_from(get_model("r50"), path)
    assert fit.warning() == f"not all tensors fit: {sum(counts.values())} not the network's {text}"
    with pytest.raises(ValueError, match=r"network 'r50' .*are not the network's: .* They fit --network r100"):
        load_network(path, "r50")
    fit = start_from(get_model("r100"), saved(tmp_path / "r50.pt", r50))
    assert fit.share == len(r50) / len(r100)
    new = "what the file does not give starts as in a new network"
    assert fit.warning() == f"not all tensors fit: {sum(counts.values())} not in the file {text}; {new}"


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
