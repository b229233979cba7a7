"""The sharded classifier on 1 to 4 gloo ranks equals the dense one in one process."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from heads.optim import RowSGD
from losses import ArcFace, MagFace, cosine
from partial_fc_mhs import PartialFCMHS
from ranks import run_ranks
from utils.distributed import RowExchange, all_gather_objects

pytestmark = [pytest.mark.distributed, pytest.mark.numeric]
G, D, STEPS = 12, 8, 3

CASES = {
    "mhs": {"num_classes": 29, "head_size": 3},
    "own": {"num_classes": 29, "head_size": 3, "head_scope": "own"},
    "negatives": {"num_classes": 29, "head_size": 3, "negative_rate": 0.4},
    "own_negatives": {"num_classes": 29, "head_size": 3, "negative_rate": 0.4, "head_scope": "own"},
    "full": {"num_classes": 29, "head_size": 1, "negative_rate": 1.0},
    "partial_fc": {"num_classes": 29, "head_size": 1, "sample_rate": 0.6},
    "partial_fc_own": {"num_classes": 29, "head_size": 1, "sample_rate": 0.6, "head_scope": "own"},
    "partial_fc_labels_alone": {"num_classes": 29, "head_size": 1, "sample_rate": 0.0},
    "fewer_heads_than_ranks": {"num_classes": 29, "head_size": 20},
    "one_head": {"num_classes": 29, "head_size": 50},
    "one_identity": {"num_classes": 29, "head_size": 3, "labels": [17] * G},
    "all_on_the_last_rank": {"num_classes": 29, "head_size": 3, "labels": [27, 28] * (G // 2)},
}


def problem(case):
    g = torch.Generator().manual_seed(7)
    C = case["num_classes"]
    x = torch.randn(STEPS, G, 5, generator=g, dtype=torch.float64)
    labels = torch.randint(0, C, (STEPS, G), generator=g)
    if "labels" in case:
        labels[:] = torch.tensor(case["labels"])
    weight = torch.randn(C, D, generator=g, dtype=torch.float64)
    start = torch.randn(D, 5, generator=g, dtype=torch.float64)
    network = torch.nn.Linear(5, D, bias=False, dtype=torch.float64)
    with torch.no_grad():
        network.weight.copy_(start)
    return x, labels, weight, network


def make_classifier(case):
    options = {k: v for k, v in case.items() if k not in ("labels", "num_classes")}
    return PartialFCMHS(ArcFace(16.0, 0.3), D, case["num_classes"], dtype=torch.float64, seed=5, **options)


def train_sharded(rank, world_size, case):
    x, labels, weight, network = problem(case)
    classifier = make_classifier(case)
    classifier.shard.weight.copy_(weight[classifier.shard.layout.class_start : classifier.shard.layout.class_end])
    classifier.shard.visits.fill_(1)
    model = DistributedDataParallel(network)
    optimizers = [
        torch.optim.SGD(model.parameters(), 0.1, 0.9),
        RowSGD(classifier.shard, 0.1, 0.9, 1e-2, idle="keep"),
    ]
    B = G // world_size
    record = {"loss": [], "grad": [], "stats": []}
    for step in range(STEPS):
        mine = slice(rank * B, (rank + 1) * B)
        loss = classifier(model(x[step, mine]), labels[step, mine])
        loss.backward()
        record["loss"].append(loss.item())
        record["grad"].append(network.weight.grad.clone())
        stats = classifier.stats
        record["stats"].append([float(v) for v in vars(stats).values()])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    record["centres"] = torch.cat(all_gather_objects(classifier.shard.weight))
    record["momentum"] = torch.cat(all_gather_objects(classifier.shard.tensors()["momentum_buffer"]))
    return record


def train_dense(case):
    """The same three steps on one dense parameter, gradient and decay masked to the selected classes."""
    x, labels, weight, network = problem(case)
    C, L = case["num_classes"], case["head_size"]
    weight, margin = weight.clone().requires_grad_(), ArcFace(16.0, 0.3)
    momentum = torch.zeros_like(weight)
    draws = make_classifier(case).shard
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    heads = torch.arange(C) // L
    record = {"loss": [], "grad": []}
    for step in range(STEPS):
        drawn = torch.isin(heads, draws.drawn_heads(step, labels[step]))
        own = ((labels[step] // L).unsqueeze(1) == heads) | drawn
        selected = own.any(0)
        visible = own if case.get("head_scope") == "own" else selected.expand_as(own)
        cosines = F.linear(F.normalize(network(x[step])), F.normalize(weight))
        logits = margin(cosines, labels[step]).masked_fill(~visible, -torch.inf)
        loss = F.cross_entropy(logits, labels[step])
        optimizer.zero_grad()
        (gw,) = torch.autograd.grad(loss, weight, retain_graph=True)
        loss.backward()
        record["loss"].append(loss.item())
        record["grad"].append(network.weight.grad.clone())
        optimizer.step()
        with torch.no_grad():
            rows = selected.nonzero().squeeze(1)
            momentum[rows] = 0.9 * momentum[rows] + gw[rows] + 1e-2 * weight[rows]
            weight[rows] -= 0.1 * momentum[rows]
    record["centres"], record["momentum"] = weight.detach(), momentum
    return record


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_sharded_equals_dense(name, world_size):
    results = run_ranks(train_sharded, world_size, CASES[name])
    want = train_dense(CASES[name])
    for got in results:
        torch.testing.assert_close(got["loss"], want["loss"], rtol=0, atol=1e-12)
        torch.testing.assert_close(got["grad"], want["grad"], rtol=0, atol=1e-12)
        torch.testing.assert_close(got["centres"], want["centres"], rtol=0, atol=1e-12)
        torch.testing.assert_close(got["momentum"], want["momentum"], rtol=0, atol=1e-12)
        assert got["stats"] == results[0]["stats"]


def draw(rank, world_size):
    classifier = PartialFCMHS(ArcFace(), 8, 1000, head_size=7, negative_rate=0.25, seed=11)
    drawn = [classifier.shard.drawn_heads(iteration, torch.tensor([0])) for iteration in range(3)]
    centres = classifier.shard.initial_centres(
        torch.arange(classifier.shard.layout.class_start, classifier.shard.layout.class_end)
    )
    return drawn, centres


def test_draws_and_initial_centres_do_not_depend_on_the_number_of_ranks():
    (alone,) = run_ranks(draw, 1)
    several = run_ranks(draw, 3)
    for step in range(3):
        assert torch.equal(alone[0][step], torch.cat([drawn[step] for drawn, _ in several]))
    assert not torch.equal(alone[0][0], alone[0][1])
    assert torch.equal(alone[1], torch.cat([centres for _, centres in several]))


def count_collectives(rank, world_size):
    counted = []

    def counting(name):
        inner = getattr(dist, name)

        def call(*args, **kwargs):
            sizes = [a.numel() for a in args if torch.is_tensor(a)]
            counted.append((name, sizes))
            return inner(*args, **kwargs)

        return call

    import utils.distributed as ours

    dist.all_reduce = counting("all_reduce")
    ours._all_gather = counting(ours._all_gather.__name__)
    ours._reduce_scatter = counting(ours._reduce_scatter.__name__)
    classifier = PartialFCMHS(ArcFace(), D, 1000, head_size=10)
    classifier(torch.randn(6, D, requires_grad=True), torch.arange(6) * 100).backward()
    return counted


def test_five_collectives_of_the_stated_size():
    for counted in run_ranks(count_collectives, 2):
        sizes = [max(sizes) for _, sizes in counted]
        assert sizes == [12, 12 * D, 2 * 12, 2 * 12 + 3, 12 * D]


def one_rank_with_a_bad_label(rank, world_size):
    classifier = PartialFCMHS(ArcFace(), D, 100, head_size=10)
    try:
        classifier(torch.randn(2, D), torch.tensor([0, 100 if rank == 1 else 5]))
    except ValueError as error:
        return str(error)


def test_a_bad_label_on_one_rank_is_an_error_on_all():
    errors = run_ranks(one_rank_with_a_bad_label, 2)
    assert ["found 0 to 100" in error for error in errors] == [True, True]


def order_of_backward(rank, world_size, margin):
    """What happens in backward, in its order."""
    calls = []

    def noting(kind, name):
        original = getattr(kind, name)

        def noted(*args):
            calls.append(name)
            return original(*args)

        setattr(kind, name, noted)

    noting(RowExchange, "send")
    noting(RowExchange, "arrive")
    noting(cosine._Parts, "gradient")
    classifier = PartialFCMHS(margin(), D, 29, head_size=3)
    network = torch.nn.Linear(4, D)
    handle = network.weight.register_hook(lambda grad: calls.append("network"))
    classifier(network(torch.randn(6, 4)), torch.arange(6) * 2 + 10 * rank).backward()
    handle.remove()
    return calls


@pytest.mark.parametrize("margin", [ArcFace, MagFace])
def test_the_centres_gradient_is_computed_while_that_of_the_embeddings_travels(margin):
    for calls in run_ranks(order_of_backward, 2, margin):
        assert calls == ["send", "gradient", "arrive", "network"]
