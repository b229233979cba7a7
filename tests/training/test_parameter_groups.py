"""Which parameters get weight decay, and that optimizer state finds its parameter whatever group that is in."""

import pytest
import torch

from backbones import get_model
from tiny_runs import prepared
from training.optimizers import make_optimizer
from training.parameter_groups import load_numbered_state, numbered_state, parameter_groups
from utils.config import get_config

OPTIMIZERS = [["optimizer=sgd"], ["optimizer=adamw"]]
SPARED = "decay_norms_and_biases=False"


def spared(name):
    network = get_model(name, 32)
    decayed, kept = parameter_groups(network, 0.1, decay_norms_and_biases=False)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [[names[id(parameter)] for parameter in group["params"]] for group in (decayed, kept)]
    assert sorted(found[0] + found[1]) == sorted(names.values())
    return found


@pytest.mark.parametrize(
    ("network", "with_decay", "without"),
    [
        ("rtiny", ["conv1.weight", "fc.weight"], ["bn1.weight", "bn1.bias", "prelu.weight", "fc.bias"]),
        ("vtiny", ["patch_embed.proj.weight"], ["patch_embed.proj.bias", "norm.weight"]),
    ],
)
def test_norms_biases_and_slopes_are_spared(network, with_decay, without):
    decayed, kept = spared(network)
    assert set(with_decay) <= set(decayed)
    assert set(without) <= set(kept)
    assert not [name for name in decayed if name.endswith("bias") or ".bn" in name]


def test_by_default_all_decay_in_one_group():
    network = get_model("rtiny", 32)
    (group,) = make_optimizer(get_config("demo"), network, 0.1).param_groups
    assert list(map(id, group["params"])) == list(map(id, network.parameters()))


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_a_step_without_gradient_shrinks_what_decays_alone(options):
    network = get_model("rtiny", 32)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = make_optimizer(get_config("demo", [*options, SPARED, "weight_decay=0.5"]), network, 0.1)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(network.named_parameters())
    assert torch.allclose(after["conv1.weight"], 0.95 * before["conv1.weight"])
    for name in ("bn1.weight", "prelu.weight", "fc.bias"):
        assert torch.equal(after[name], before[name])


def stepped(options):
    """A network and its optimizer after two steps."""
    torch.manual_seed(0)
    network = get_model("rtiny", 32)
    optimizer = make_optimizer(get_config("demo", options), network, 0.01)
    for _ in range(2):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return network, optimizer


def state_by_name(network, optimizer):
    return {name: optimizer.state[parameter] for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("options", OPTIMIZERS)
@pytest.mark.parametrize(("saved_with", "loaded_with"), [([], [SPARED]), ([SPARED], []), ([SPARED], [SPARED])])
def test_state_finds_its_parameter_in_any_group(options, saved_with, loaded_with):
    network, optimizer = stepped([*options, *saved_with])
    fresh = make_optimizer(get_config("demo", [*options, *loaded_with]), network, 0.5)
    load_numbered_state(fresh, network, numbered_state(optimizer, network))
    expected, found = state_by_name(network, optimizer), state_by_name(network, fresh)
    for name, values in expected.items():
        assert values.keys() == found[name].keys()
        assert all(torch.equal(value, found[name][key]) for key, value in values.items()), name
    assert all(group["lr"] == 0.5 for group in fresh.param_groups)
    assert len(fresh.param_groups) == (2 if loaded_with else 1)


def test_one_group_is_saved_as_torch_does_it():
    network, optimizer = stepped([])
    ours, theirs = numbered_state(optimizer, network), optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    assert all(ours["state"][n]["momentum_buffer"] is own["momentum_buffer"] for n, own in theirs["state"].items())


def test_state_of_a_larger_network_is_refused():
    network, optimizer = stepped([])
    saved = numbered_state(optimizer, network)
    saved["state"][999] = saved["state"][0]
    with pytest.raises(ValueError, match="state is of 1 parameters more than the network has"):
        load_numbered_state(optimizer, network, saved)


@pytest.mark.parametrize("now", [[SPARED], []])
def test_a_run_may_switch_it_with_resume(tmp_path, now):
    before = [] if now else [SPARED]
    state, batches = prepared(tmp_path, *before)
    state.train_step(batches)
    state.train_step(batches)
    state.save()
    state.close()
    before = state_by_name(state.backbone, state.optimizer)
    momenta = {name: own["momentum_buffer"] for name, own in before.items() if own}  # none of a fixed parameter
    assert len(momenta) > 40
    resumed, batches = prepared(tmp_path, *now, "resume=True")
    found = state_by_name(resumed.backbone, resumed.optimizer)
    assert all(torch.equal(found[name]["momentum_buffer"], value) for name, value in momenta.items())
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == ([5e-4, 0.0] if now else [5e-4])
    assert float(resumed.train_step(batches)) > 0
    resumed.close()
