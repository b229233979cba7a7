"""What the optimizers make of the steps between two visits of a row: equal to loop forms and to dense optimizers."""

import pytest
import torch

from heads.checkpoint import save_heads
from heads.optim import RowAdamW, RowSGD
from losses import ArcFace
from ranks import run_ranks
from saved_heads import load
from test_partial_fc_mhs import dense_loss, make_classifier, visible_classes

pytestmark = pytest.mark.numeric
C, L, G, D, STEPS = 29, 3, 6, 8, 12
RATES = [0.4 * (1 - step / 15) ** 2 for step in range(STEPS)]
BETAS, DECAY = (0.8, 0.95), 3e-2


def problem():
    """Few labels a step, so that most rows are idle for several steps, and some till the end."""
    g = torch.Generator().manual_seed(11)
    x = torch.randn(STEPS, G, D, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 20, (STEPS, 1), generator=g) + torch.randint(0, 4, (STEPS, G), generator=g)
    return x, labels, torch.randn(C, D, generator=g, dtype=torch.float64)


def sgd(idle, momentum=0.9, nesterov=False):
    return lambda shard: RowSGD(shard, 1.0, momentum, DECAY, nesterov, idle)


def adamw(idle):
    return lambda shard: RowAdamW(shard, 1.0, BETAS, 1e-8, DECAY, idle)


def train(classifier, optimizer, rank, world_size, steps=range(STEPS)):
    x, labels, _ = problem()
    mine = slice(rank * G // world_size, (rank + 1) * G // world_size)
    for step in steps:
        optimizer.param_groups[0]["lr"] = RATES[step]
        if step + 1 < steps.stop:  # announced a step before, so that it is fetched before the update
            for later in range(step if step == steps.start else step + 1, step + 2):
                classifier.shard.prefetch(labels[later, mine])
        classifier(x[step, mine].requires_grad_(), labels[step, mine]).backward()
        optimizer.step()
        optimizer.zero_grad()


def present(classifier):
    """All centres of this rank as the next forward would see them, and their classes."""
    start, end = classifier.shard.layout.class_start, classifier.shard.layout.class_end
    return start, end, classifier.shard.centres(torch.arange(start, end)).detach()


def sharded(rank, world_size, make, place, folder):
    classifier = make_classifier(C, L, head_storage=place, head_folder=folder)
    start, end = classifier.shard.layout.class_start, classifier.shard.layout.class_end
    weight = problem()[2]
    classifier.shard.storage.initial = lambda classes: weight[classes]
    train(classifier, OPTIMIZERS[make](classifier.shard), rank, world_size)
    assert present(classifier)[:2] == (start, end)
    return present(classifier)


OPTIMIZERS = {
    "dense": sgd("dense"),
    "dense without momentum": sgd("dense", 0.0),
    "dense nesterov": sgd("dense", 0.9, True),
    "decay": sgd("decay"),
    "decay nesterov": sgd("decay", 0.9, True),
    "keep": sgd("keep"),
    "no momentum": sgd("decay", 0.0),
    "adamw keep": adamw("keep"),
    "adamw decay": adamw("decay"),
}


def dense(name):
    """torch.optim.SGD on all rows, whether selected or not."""
    x, labels, weight = problem()
    weight = torch.nn.Parameter(weight)
    momentum = 0.0 if "without" in name else 0.9
    optimizer = torch.optim.SGD([weight], 1.0, momentum, weight_decay=DECAY, nesterov="nesterov" in name)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATES[step]
        optimizer.zero_grad()
        visible = visible_classes(labels[step], C, L, "batch")
        dense_loss(x[step], labels[step], weight, ArcFace(16.0, 0.3), visible).backward()
        optimizer.step()
    return weight.detach()


def looped(name):
    """Row by row, with the step of each row's last visit."""
    x, labels, weight = problem()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    last, visits = [0] * C, [0] * C
    for step, rate in enumerate(RATES):
        leaf = weight.clone().requires_grad_()
        visible = visible_classes(labels[step], C, L, "batch")
        dense_loss(x[step], labels[step], leaf, ArcFace(16.0, 0.3), visible).backward()
        for row in visible[0].nonzero().flatten().tolist():
            idle, grad = step - last[row], leaf.grad[row]
            visits[row] += 1
            if "adamw" in name:
                if "decay" in name:
                    first[row] *= BETAS[0] ** idle
                    second[row] *= BETAS[1] ** idle
                t = step + 1 if "decay" in name else visits[row]
                first[row] = BETAS[0] * first[row] + (1 - BETAS[0]) * grad
                second[row] = BETAS[1] * second[row] + (1 - BETAS[1]) * grad**2
                root = (second[row] / (1 - BETAS[1] ** t)).sqrt() + 1e-8
                weight[row] -= rate * (DECAY * weight[row] + first[row] / (1 - BETAS[0] ** t) / root)
            else:
                beta = 0.0 if name == "no momentum" else 0.9
                if "decay" in name:
                    first[row] *= beta**idle
                grad = grad + DECAY * weight[row]
                first[row] = beta * first[row] + grad
                weight[row] -= rate * (grad + beta * first[row] if "nesterov" in name else first[row])
            last[row] = step + 1
    return weight


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_loop_form(name, world_size):
    want = dense(name) if name.startswith("dense") else looped(name)
    here = world_size == 1
    results = [sharded(0, 1, name, "device", None)] if here else run_ranks(sharded, 3, name, "device", None)
    for start, end, got in results:
        torch.testing.assert_close(got, want[start:end], rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", ["host", "file"])
@pytest.mark.parametrize("name", ["dense", "decay", "adamw decay"])
def test_wherever_heads_live(name, place, tmp_path):
    assert torch.equal(sharded(0, 1, name, place, tmp_path)[2], sharded(0, 1, name, "device", None)[2])


def half(rank, world_size, name, folder, resume):
    classifier = make_classifier(C, L)
    weight = problem()[2]
    classifier.shard.storage.initial = lambda classes: weight[classes]
    optimizer = OPTIMIZERS[name](classifier.shard)
    if not resume:
        train(classifier, optimizer, rank, world_size, range(STEPS // 2))
        save_heads(classifier.shard, folder)
        return classifier.shard.settings(), optimizer.state_dict()
    settings, state = resume
    classifier.shard.load_settings(settings)
    load(classifier.shard, folder)
    optimizer.load_state_dict(state)
    train(classifier, optimizer, rank, world_size, range(STEPS // 2, STEPS))
    return present(classifier)


@pytest.mark.distributed
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("name", ["dense", "decay", "no momentum", "adamw decay"])
def test_resumes_on_any_number_of_ranks(name, before, after, tmp_path):
    saved = run_ranks(half, before, name, tmp_path, None)[0]
    want = sharded(0, 1, name, "device", None)[2]
    for start, end, got in run_ranks(half, after, name, tmp_path, saved):
        if before == after:
            assert torch.equal(got, want[start:end])
        torch.testing.assert_close(got, want[start:end], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("keep", "no momentum", "momentum of the classifier's rows is dropped"),
        ("no momentum", "decay", "starts from 0"),
    ],
)
def test_momentum_may_end_or_begin_in_the_middle(before, after, line, tmp_path, caplog):
    first = make_classifier(C, L)
    train(first, OPTIMIZERS[before](first.shard), 0, 1)
    save_heads(first.shard, tmp_path)
    second, in_memory = make_classifier(C, L), make_classifier(C, L)
    optimizer = OPTIMIZERS[after](second.shard)
    OPTIMIZERS[after](in_memory.shard)
    with caplog.at_level("INFO", "mhs_arcface"):
        caplog.clear()
        second.shard.load_settings(first.shard.settings())
        load(second.shard, tmp_path)
    assert line in caplog.text
    in_memory.load_state_dict(first.state_dict())
    for shard in (second.shard, in_memory.shard):
        assert torch.equal(shard.visits, first.shard.visits)
        visited = shard.visits.repeat_interleave(L)[:C] > 0
        assert torch.equal(shard.weight[visited], first.shard.weight[visited])
        if after == "decay":
            assert not shard.tensors()["momentum_buffer"].any()
            assert (shard.storage.counts["last_step"][shard.visits > 0] == STEPS).all()  # as if updated just now
    train(second, optimizer, 0, 1)


@pytest.mark.parametrize(("before", "after"), [("adamw keep", "no momentum"), ("no momentum", "adamw keep")])
def test_another_optimizer_is_refused(before, after, tmp_path):
    first, second = make_classifier(C, L), make_classifier(C, L)
    train(first, OPTIMIZERS[before](first.shard), 0, 1)
    save_heads(first.shard, tmp_path)
    OPTIMIZERS[after](second.shard)
    with pytest.raises(ValueError, match="written with another optimizer"):
        load(second.shard, tmp_path)
    with pytest.raises(ValueError, match="trained with another optimizer"):
        second.load_state_dict(first.state_dict())


def test_a_row_without_state_stores_none(tmp_path):
    classifier = make_classifier(C, L)
    optimizer = RowSGD(classifier.shard, 0.1)
    train(classifier, optimizer, 0, 1)
    assert list(classifier.shard.tensors()) == ["weight"]
    assert list(classifier.shard.storage.counts) == ["visits"]
    save_heads(classifier.shard, tmp_path)
    assert sorted(p.name for p in (tmp_path / "rank_0_of_1" / "layer_0").iterdir()) == [
        "heads.npy",
        "visits.npy",
        "weight.npy",
    ]


@pytest.mark.parametrize("make", [lambda s: RowSGD(s, 0.1, idle="wait"), lambda s: RowAdamW(s, 0.1, idle="dense")])
def test_refuses_an_unknown_idle(make):
    with pytest.raises(ValueError, match="idle must be one of 'keep', 'decay'"):
        make(make_classifier().shard)
