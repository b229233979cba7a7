"""What travels between ranks for the backbone: its gradients, whole or rounded, and its buffers."""

import pytest
import torch

import train
from ranks import run_ranks
from tiny_runs import TINY
from training import ddp
from training.ddp import join_ranks, share_buffers
from utils.config import get_config
from utils.distributed import Ranks, all_gather_objects, get_rank

CPU = torch.device("cpu")
COMPRESSIONS = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 30), torch.nn.ReLU(), torch.nn.Linear(30, 4))


def gradient(compression, own=False):
    """Of a sum over this rank's images, all parameters in one; ``own``: before the ranks take the mean."""
    cfg = get_config(TINY, [f"gradient_compression={compression}"])
    model = network() if own else join_ranks(network(), cfg, CPU)
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(get_rank()))
    model(images).square().sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def gradients(rank, world_size):
    own = all_gather_objects(gradient(None, own=True))
    return torch.stack(own), {name: gradient(name) for name in COMPRESSIONS}


@pytest.fixture(scope="module")
def travelled():
    """For each rank: all ranks' own gradients, and the means by compression."""
    return run_ranks(gradients, 2)


@pytest.mark.distributed
def test_gradients_are_the_mean_over_ranks(travelled):
    for own, means in travelled:
        torch.testing.assert_close(means[None], own.mean(0), rtol=1e-6, atol=1e-7)


@pytest.mark.distributed
@pytest.mark.parametrize("compression", ["bf16", "fp16"])
def test_compressed_gradients_differ_by_the_rounding_alone_and_not_between_ranks(travelled, compression):
    """Each rank's part is rounded once, their sum once more."""
    assert torch.equal(travelled[0][1][compression], travelled[1][1][compression])
    own, means = travelled[0]
    number = torch.finfo(COMPRESSIONS[compression])
    error = (means[compression] - means[None]).abs()
    assert (error <= 1.01 * number.eps * own.abs().mean(0) + 2 * number.smallest_normal * number.eps).all()
    assert error.max() > number.eps / 8 * own.abs().mean(0).min()
    assert means[compression].dtype == torch.float32
    assert torch.equal(means[compression], means[compression].to(COMPRESSIONS[compression]).float())


def overflow_on_one_rank(rank, world_size, output, compression):
    """Whether a step changes the weights that has a gradient on rank 1 too large for half precision; and the next."""
    options = [f"output={output}", "batch_size=4", f"gradient_compression={compression}"]
    run, data = train.prepare(get_config(TINY, options), Ranks(rank, world_size, rank, CPU))
    batches = train.epoch_batches(run, data, train.Speedometer())
    run.train_step(batches)

    def enlarge(module, inputs, embeddings):
        embeddings.register_hook(lambda grad: grad * 1e9)

    hook = run.backbone.register_forward_hook(enlarge) if rank == 1 else None
    moved = []
    for _ in range(2):
        before = [parameter.clone() for parameter in run.backbone.parameters()]
        run.train_step(batches)
        moved.append(not all(map(torch.equal, before, run.backbone.parameters())))
        if hook is not None:
            hook.remove()
    return moved, all(parameter.isfinite().all() for parameter in run.backbone.parameters())


@pytest.mark.distributed
@pytest.mark.parametrize(("compression", "moves"), [("fp16", False), ("bf16", True)])
def test_a_gradient_that_overflows_on_its_way_is_a_step_that_all_ranks_skip(tmp_path, compression, moves):
    for moved, finite in run_ranks(overflow_on_one_rank, 2, tmp_path, compression):
        assert moved == [moves, True]
        assert finite


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_type_that_cannot_be_added_up_is_refused_with_what_to_do(monkeypatch, dtype):
    def refuse(x, what):
        raise RuntimeError("Invalid scalar type")

    monkeypatch.setattr(ddp, "all_reduce_sum_", refuse)
    other = {"bf16": "fp16", "fp16": "bf16"}[dtype]
    with pytest.raises(
        ValueError, match=rf"'{dtype}', but .*\(Invalid scalar type\): set it to '{other}', or to None"
    ):
        ddp._compress(None, dtype, CPU)


def test_a_rank_lost_at_that_moment_is_not_taken_for_a_type(monkeypatch):
    def lose(x, what):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(ddp, "all_reduce_sum_", lose)
    with pytest.raises(RuntimeError, match="by peer"):
        ddp._compress(None, "bf16", CPU)


def buffers_of_a_rank(rank, world_size):
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm1d(2))
    network.register_buffer("table", torch.arange(6.0).view(2, 3).t() * (rank + 1))  # not contiguous
    network[0].running_mean.fill_(rank)
    network[1].num_batches_tracked.fill_(2**40 + rank)
    addresses = [buffer.data_ptr() for buffer in network.buffers()]
    share_buffers(network)
    assert [buffer.data_ptr() for buffer in network.buffers()] == addresses
    return dict(network.named_buffers())


@pytest.mark.distributed
def test_buffers_become_those_of_rank_0():
    first, *others = run_ranks(buffers_of_a_rank, 2)
    assert first["1.num_batches_tracked"] == 2**40
    assert torch.equal(first["table"], torch.arange(6.0).view(2, 3).t())
    for other in others:
        assert all(torch.equal(other[name], value) for name, value in first.items())
