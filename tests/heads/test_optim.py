"""Updates of the selected rows: equal to torch's on rows always selected, and nothing else moves."""

import pytest
import torch

from heads.optim import RowAdamW, RowSGD
from losses import ArcFace
from test_partial_fc_mhs import data, dense_loss, make_classifier, visible_classes

pytestmark = pytest.mark.numeric

OPTIMIZERS = {
    "sgd": (
        lambda classifier: RowSGD(classifier.shard, 0.5, 0.9, 5e-2),
        lambda params: torch.optim.SGD(params, 0.5, 0.9, weight_decay=5e-2),
    ),
    "plain sgd": (
        lambda classifier: RowSGD(classifier.shard, 0.5, 0.0, 0.0),
        lambda params: torch.optim.SGD(params, 0.5),
    ),
    "nesterov": (
        lambda classifier: RowSGD(classifier.shard, 0.5, 0.9, 5e-2, nesterov=True),
        lambda params: torch.optim.SGD(params, 0.5, 0.9, weight_decay=5e-2, nesterov=True),
    ),
    "adamw": (
        lambda classifier: RowAdamW(classifier.shard, 0.05, (0.8, 0.99), 1e-8, 0.1),
        lambda params: torch.optim.AdamW(params, 0.05, (0.8, 0.99), 1e-8, 0.1),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_torch_when_every_head_is_selected(name):
    x, labels, weight = data()
    classifier = make_classifier(weight=weight, negative_rate=1.0)
    classifier.shard.visits.zero_()
    classifier.shard.storage.initial = lambda classes: weight[classes]
    rows = OPTIMIZERS[name][0](classifier)
    dense_weight = torch.nn.Parameter(weight.clone())
    dense = OPTIMIZERS[name][1]([dense_weight])
    everything = torch.ones(6, 13, dtype=torch.bool)
    for _ in range(5):
        for optimizer, loss in (
            (rows, classifier(x, labels)),
            (dense, dense_loss(x, labels, dense_weight, ArcFace(16.0, 0.3), everything)),
        ):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(classifier.shard.weight, dense_weight.detach(), rtol=0, atol=1e-12)
    for key in set(classifier.shard.tensors()) & set(dense.state[dense_weight]):
        if dense.state[dense_weight][key] is not None:
            torch.testing.assert_close(
                classifier.shard.tensors()[key], dense.state[dense_weight][key], rtol=0, atol=1e-12
            )


def test_adamw_counts_the_steps_of_each_head():
    """A head selected in step 3 only moves as in a first step of AdamW."""
    x, _, weight = data()
    classifier = make_classifier(weight=weight)
    classifier.shard.visits.zero_()
    classifier.shard.storage.initial = lambda classes: weight[classes]
    optimizer = RowAdamW(classifier.shard, 0.05, weight_decay=0.0)
    for label in (0, 0, 4):
        classifier(x, torch.full((6,), label)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert classifier.shard.visits.tolist() == [2, 1, 0, 0]
    moved = (classifier.shard.weight[4] - weight[4]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.05), rtol=1e-4, atol=0)


def test_unselected_heads_keep_every_bit():
    x, _, weight = data()
    classifier = make_classifier(weight=weight)
    optimizer = RowSGD(classifier.shard, 0.5, 0.9, 5e-2)
    for labels in ([0, 1, 2, 3, 0, 1], [4, 4, 4, 4, 4, 4]):
        before = (
            classifier.shard.weight.clone(),
            classifier.shard.tensors()["momentum_buffer"].clone(),
            classifier.shard.visits.clone(),
        )
        classifier(x, torch.tensor(labels)).backward()
        optimizer.step()
        optimizer.zero_grad()
        touched = torch.zeros(13, dtype=torch.bool)
        touched[labels[0] // 4 * 4 : labels[0] // 4 * 4 + 4] = True
        assert torch.equal(classifier.shard.weight[~touched], before[0][~touched])
        assert torch.equal(classifier.shard.tensors()["momentum_buffer"][~touched], before[1][~touched])
        assert not torch.isclose(classifier.shard.weight[touched], before[0][touched]).all(1).any()
        assert (classifier.shard.visits - before[2]).tolist() == [int(h == labels[0] // 4) for h in range(4)]


def test_accumulated_forwards_add_up():
    """Two forwards that share some heads, one step: as if the mean of the two losses were one loss."""
    x, labels, weight = data()
    other = torch.tensor([0, 0, 5, 12, 12, 1])
    classifier = make_classifier(weight=weight)
    optimizer = RowSGD(classifier.shard, 0.5, 0.9, 5e-2)
    dense_weight = torch.nn.Parameter(weight.clone())
    dense = torch.optim.SGD([dense_weight], 0.5, 0.9)  # decay by hand, on the touched rows only
    touched = torch.zeros(13, 1, dtype=torch.bool)
    for y in (labels, other):
        (classifier(x, y) / 2).backward()
        visible = visible_classes(y, 13, 4, "batch")
        (dense_loss(x, y, dense_weight, ArcFace(16.0, 0.3), visible) / 2).backward()
        touched |= visible[0].unsqueeze(1)
    dense_weight.grad += 5e-2 * weight * touched
    optimizer.step()
    dense.step()
    torch.testing.assert_close(classifier.shard.weight, dense_weight.detach(), rtol=0, atol=1e-12)
    assert classifier.shard.visits.tolist() == [1 + int(touched[h * 4]) for h in range(4)]


def test_zero_grad_forgets():
    x, labels, weight = data()
    classifier = make_classifier(weight=weight)
    optimizer = RowSGD(classifier.shard, 0.5)
    classifier(x, labels).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(classifier.shard.weight, weight)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (RowSGD, {"lr": -1}),
        (RowSGD, {"lr": 1, "momentum": 1.0}),
        (RowSGD, {"lr": 1, "momentum": 0.0, "nesterov": True}),
        (RowAdamW, {"lr": -1}),
        (RowAdamW, {"lr": 1, "betas": (0.9, 1.0)}),
    ],
)
def test_refuses_bad_settings(optimizer, options):
    with pytest.raises(ValueError, match=r"expected lr|needs momentum"):
        optimizer(make_classifier(), **options)


def test_grad_scaler_and_schedule_drive_it():
    """A GradScaler unscales the rows and skips them when they overflow; a schedule sets the rate."""
    x, labels, weight = data()
    classifier = make_classifier(weight=weight)
    optimizer = RowSGD(classifier.shard, 0.5, 0.0, 0.0)
    plain = make_classifier(weight=weight)
    plain_optimizer = RowSGD(plain.shard, 0.25, 0.0, 0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(classifier(x, labels)).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    plain(x, labels).backward()
    plain_optimizer.step()
    torch.testing.assert_close(classifier.shard.weight, plain.shard.weight, rtol=0, atol=1e-12)
    optimizer.zero_grad()
    before = classifier.shard.weight.clone()
    (scaler.scale(classifier(x, labels)) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(classifier.shard.weight, before)
    assert scaler.get_scale() == 2.0**9
