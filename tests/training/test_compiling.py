"""compile = True: the training pass is compiled, and nothing else changes."""

import copy
from functools import partial

import pytest
import torch

import train
from backbones import get_model
from tiny_runs import TINY, run, weights
from training.compiling import check_compiler, compile_training_pass
from utils.config import get_config
from utils.distributed import Ranks


@pytest.fixture
def pretended(monkeypatch):
    """torch.compile calls the function as it is, and the calls are noted."""
    calls = []

    def compile_(function, *, dynamic):
        assert dynamic is False
        return lambda x: calls.append(x.shape) or function(x)

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


def test_training_alone_runs_compiled_and_names_stay(pretended):
    network = get_model("rtiny", 16)
    names = list(network.state_dict())
    compile_training_pass(network)
    pretended.clear()
    network.train()(torch.zeros(4, 3, 112, 112))
    network.eval()(torch.zeros(2, 3, 112, 112))
    assert pretended == [(4, 3, 112, 112)]
    assert list(network.state_dict()) == names


def test_a_run_compiles_its_backbone_and_leaves_the_same_model(tmp_path, pretended):
    plain = run(tmp_path / "plain", "num_image=32")
    assert run(tmp_path / "compiled", "num_image=32", "compile=True") == plain
    assert pretended.count((8, 3, 112, 112)) == len(plain) == 4
    before, after = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_average_of_a_compiled_network_is_evaluated_on_its_own_weights(tmp_path, pretended):
    cfg = get_config(TINY, [f"output={tmp_path}", "compile=True", "ema_decay=0.5", "lr=1"])
    run, data = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    batches = train.epoch_batches(run, data, train.Speedometer())
    for _ in range(6):
        run.train_step(batches)
    x = torch.randn(2, 3, 112, 112)
    average = get_model(**run.cfg.network_options()).eval()
    average.load_state_dict(run.ema.tensors)
    with torch.no_grad():
        assert torch.allclose(run.ema.network(x), average(x), rtol=1e-4, atol=1e-3)
        assert not torch.allclose(run.ema.network(x), run.backbone.eval()(x), rtol=1e-2)
    run.close()


@pytest.mark.parametrize("other", ["sync_bn", "gradient_checkpointing"])
def test_settings_that_do_not_go_with_it_are_refused(other):
    with pytest.raises(ValueError, match=f"compile = True does not go with {other} = True: set one"):
        get_config("demo", ["compile=True", f"{other}=True"])


def test_a_network_that_checkpoints_by_default_says_what_to_set():
    with pytest.raises(ValueError, match="which this network has by default: set gradient_checkpointing = False"):
        compile_training_pass(get_model("rtiny", 16, gradient_checkpointing=True))


def test_a_frozen_backbone_has_nothing_to_compile():
    cfg = get_config("demo", ["compile=True", "freeze_backbone=True", "init_backbone=model.pt"])
    assert cfg.without_effect() == ["compile"]


def test_without_a_compiler_one_line_says_what_to_do(monkeypatch):
    def fails(function, *, dynamic):
        raise RuntimeError("\nNo working C++ compiler found\nmore lines")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ValueError, match=r"not work here \(No working C\+\+ compiler found\): install .* g\+\+") as e:
        check_compiler(torch.device("cpu"))
    assert "\n" not in str(e.value)


def test_the_whole_network_is_one_graph_with_the_same_gradients(monkeypatch):
    backend = {"backend": "aot_eager", "fullgraph": True}  # the tracing of torch.compile, without its C++ compiler
    monkeypatch.setattr(torch, "compile", partial(torch.compile, **backend))
    torch.manual_seed(0)
    network, x = get_model("rtiny", 16, amp_dtype=torch.bfloat16), torch.randn(4, 3, 112, 112)
    compiled = copy.deepcopy(network)
    compile_training_pass(compiled)
    for one in (network, compiled):
        one.train()(x).square().sum().backward()
    for (name, own), other in zip(compiled.named_parameters(), network.parameters(), strict=True):
        if own.requires_grad:
            torch.testing.assert_close(own.grad, other.grad, msg=name)
    assert all(torch.equal(a, b) for a, b in zip(compiled.buffers(), network.buffers(), strict=True))
