"""The classifier in one process: selection, the dense reference, contracts, degenerate cases, sparse updates."""

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.optim import RowSGD
from heads.shard import INITIAL_STD
from losses import ArcFace, CosFace, MagFace
from partial_fc_mhs import PartialFCMHS
from ranks import run_ranks

pytestmark = pytest.mark.numeric


def make_classifier(num_classes=13, head_size=4, margin=None, weight=None, **options):
    options.setdefault("dtype", torch.float64)
    classifier = PartialFCMHS(margin or ArcFace(16.0, 0.3), 8, num_classes, head_size=head_size, **options)
    if weight is not None:
        classifier.shard.weight.copy_(weight)
        classifier.shard.visits.fill_(1)
    return classifier


def data(n=6, num_classes=13, seed=7):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, num_classes, (n,), generator=g)
    weight = torch.randn(num_classes, 8, generator=g, dtype=torch.float64)
    return x, labels, weight


def dense_loss(x, labels, weight, margin, visible):
    """Loop-free but dense: every class is computed, those that a sample may not see get -inf."""
    logits = margin(F.linear(F.normalize(x), F.normalize(weight)), labels)
    return F.cross_entropy(logits.masked_fill(~visible, -torch.inf), labels)


def visible_classes(labels, num_classes, head_size, scope):
    heads = torch.arange(num_classes) // head_size
    own = (labels // head_size).unsqueeze(1) == heads
    return own if scope == "own" else own.any(0).expand_as(own)


@pytest.mark.parametrize("scope", ["batch", "own"])
@pytest.mark.parametrize("head_size", [1, 3, 4, 13, 50])
def test_equals_dense(scope, head_size):
    x, labels, weight = data()
    margin = ArcFace(16.0, 0.3)
    classifier = make_classifier(head_size=head_size, weight=weight, head_scope=scope)
    loss = classifier(x, labels)
    loss.backward()
    dense_x = x.detach().clone().requires_grad_()
    dense_weight = weight.clone().requires_grad_()
    want = dense_loss(dense_x, labels, dense_weight, margin, visible_classes(labels, 13, head_size, scope))
    want.backward()
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(x.grad, dense_x.grad, rtol=0, atol=1e-12)
    grad = torch.zeros_like(weight)
    (forward,) = classifier.shard.pending
    grad[forward.selection.classes_S] = forward.leaf_SD.grad
    torch.testing.assert_close(grad, dense_weight.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scope", ["batch", "own"])
def test_equals_contract(contracts, scope):
    recorded = {k: torch.tensor(v) for k, v in np.load(contracts / "mhs_arcface.npz").items()}
    H, L, D = recorded["weight"].shape
    classifier = PartialFCMHS(ArcFace(64, 0.5), D, H * L, head_size=L, head_scope=scope)
    classifier.shard.weight.copy_(recorded["weight"].view(H * L, D))
    classifier.shard.visits.fill_(1)
    x = recorded["x"].requires_grad_()
    loss = classifier(x, recorded["labels"])
    loss.backward()
    grad = torch.zeros(H * L, D)
    grad[classifier.shard.pending[0].selection.classes_S] = classifier.shard.leaves[0].grad
    torch.testing.assert_close(loss.detach(), recorded[f"{scope}_loss"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(x.grad, recorded[f"{scope}_grad_x"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad.view(H, L, D), recorded[f"{scope}_grad_weight"], rtol=1e-4, atol=1e-5)


def test_every_head_is_full_softmax():
    x, labels, weight = data()
    classifier = make_classifier(head_size=1, negative_rate=1.0, weight=weight)
    want = dense_loss(x, labels, weight, ArcFace(16.0, 0.3), torch.ones(6, 13, dtype=torch.bool))
    torch.testing.assert_close(classifier(x, labels), want, rtol=0, atol=1e-12)
    assert int(classifier.stats.selected_classes) == 13


def test_single_class_heads_with_negatives_are_partial_fc():
    """PartialFC: positives and a random share of the others, softmax over those."""
    C = 4000
    x, labels, weight = data(6, C)
    classifier = make_classifier(C, 1, weight=weight, negative_rate=0.1)
    chosen = []
    for _ in range(4):
        loss = classifier(x, labels)
        rows = classifier.shard.pending[-1].selection.classes_S
        chosen.append(rows)
        assert torch.isin(labels, rows).all()
        assert 300 < len(rows) < 500  # 0.1 * 4000, four standard deviations being 76
        visible = torch.zeros(C, dtype=torch.bool).index_fill_(0, rows, True).expand(6, C)
        want = dense_loss(x, labels, weight, ArcFace(16.0, 0.3), visible)
        torch.testing.assert_close(loss, want, rtol=0, atol=1e-12)
    assert not torch.equal(chosen[0], chosen[1])


def test_pure_mhs_selects_the_labels_heads_only():
    x, labels, weight = data()
    classifier = make_classifier(weight=weight)
    classifier(x, labels)
    assert classifier.shard.pending[0].selection.heads_h.tolist() == sorted({int(v) // 4 for v in labels})


@settings(max_examples=60, deadline=None)
@given(
    num_classes=st.integers(1, 40),
    head_size=st.integers(1, 50),
    rate=st.sampled_from([0.0, 0.4, 1.0]),
    scope=st.sampled_from(["batch", "own"]),
    seed=st.integers(0, 1000),
)
def test_any_layout_points_labels_at_their_rows(num_classes, head_size, rate, scope, seed):
    x, labels, weight = data(5, num_classes, seed)
    classifier = make_classifier(num_classes, head_size, weight=weight, negative_rate=rate, head_scope=scope)
    selection = classifier.shard.select(labels, 0)
    assert torch.equal(selection.classes_S[selection.columns_G], labels)
    assert selection.classes_S.max() < num_classes
    assert torch.equal(selection.classes_S, selection.classes_S.unique())
    if selection.hidden_GS is not None:
        assert not selection.hidden_GS.gather(1, selection.columns_G.unsqueeze(1)).any()
    assert classifier(x, labels).isfinite()


def test_own_scope_sees_drawn_heads():
    x, labels, weight = data()
    classifier = make_classifier(weight=weight, head_scope="own", negative_rate=1.0)
    want = dense_loss(x, labels, weight, ArcFace(16.0, 0.3), torch.ones(6, 13, dtype=torch.bool))
    torch.testing.assert_close(classifier(x, labels), want, rtol=0, atol=1e-12)


def test_eval_mode_leaves_nothing_to_update():
    x, labels, weight = data()
    classifier = make_classifier(weight=weight).eval()
    classifier(x, labels)
    with torch.no_grad():
        classifier.train()(x, labels)
    assert not classifier.shard.pending
    assert classifier.shard.iteration == 0


def test_initial_centres_depend_on_seed_and_class_only():
    a = make_classifier(1000, 7, seed=3, dtype=torch.float32)
    b = make_classifier(1000, 100, seed=3, dtype=torch.float32)
    classes = torch.arange(1000)
    order = torch.randperm(1000)
    assert torch.equal(a.shard.initial_centres(classes)[order], b.shard.initial_centres(classes[order]))
    assert not torch.equal(
        a.shard.initial_centres(classes), make_classifier(1000, 7, seed=4).shard.initial_centres(classes).float()
    )


def test_initial_centres_are_normal():
    classifier = PartialFCMHS(CosFace(), 64, 20000, head_size=10)
    values = classifier.shard.initial_centres(torch.arange(20000)) / INITIAL_STD
    n = values.numel()
    assert abs(values.mean()) < 5 / n**0.5
    assert abs(values.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / n) ** 0.5
    for edge, share in ((1.0, 0.682689), (2.0, 0.954500), (3.0, 0.997300)):
        assert abs((values.abs() < edge).float().mean() - share) < 5 * (share * (1 - share) / n) ** 0.5
    assert abs((values[1:] * values[:-1]).mean()) < 5 / n**0.5
    assert abs((values[:, 1:] * values[:, :-1]).mean()) < 5 / n**0.5


def test_first_visit_starts_from_the_initial_centre():
    x, labels, _ = data()
    classifier = make_classifier()
    assert not classifier.shard.weight.any()
    classifier(x, labels)
    rows = classifier.shard.pending[0].selection.classes_S
    torch.testing.assert_close(
        classifier.shard.leaves[0].detach(), classifier.shard.initial_centres(rows), rtol=0, atol=0
    )


def test_autocast_type_stays_near_float32():
    torch.manual_seed(0)
    x, labels = torch.randn(16, 64), torch.randint(0, 100, (16,))
    losses = {}
    for amp in (None, torch.bfloat16, torch.float16):
        classifier = PartialFCMHS(ArcFace(16, 0.3), 64, 100, head_size=5, amp_dtype=amp)
        losses[amp] = classifier(x, labels)
        losses[amp].backward()
        assert losses[amp].dtype == torch.float32
        assert classifier.shard.leaves[0].grad.dtype == torch.float32
    assert losses[torch.bfloat16].item() == pytest.approx(losses[None].item(), rel=2e-2)
    assert losses[torch.float16].item() == pytest.approx(losses[None].item(), rel=5e-3)


def test_stats():
    weight = torch.eye(8, dtype=torch.float64)
    classifier = make_classifier(8, 2, weight=weight)
    x = torch.stack((weight[0], weight[5], weight[1] + 0.1 * weight[0])).requires_grad_()
    classifier(x, torch.tensor([0, 5, 0]))
    assert classifier.stats.top1.item() == pytest.approx(2 / 3)
    assert classifier.stats.positive_cosine.item() == pytest.approx((1 + 1 + 0.1 / 1.01**0.5) / 3)
    assert classifier.stats.selected_heads.item() == 2
    assert classifier.stats.selected_classes.item() == 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 13, 0, 0]), r"\[0, 12\], found 0 to 13"),
        (torch.tensor([0, -1, 2, 3, 0, 0]), "found -1 to 3"),
        (torch.zeros(6), "must be int64"),
        (torch.zeros(6, 1, dtype=torch.int64), r"must be \(6,\)"),
    ],
)
def test_refuses_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        make_classifier()(torch.zeros(6, 8), labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_size": 0}, "head_size must be at least 1"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"negative_rate": 1.5}, r"negative_rate must be in \[0, 1\]"),
        ({"head_scope": "all"}, "head_scope must be"),
    ],
)
def test_refuses_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(**options)


def test_refuses_embeddings_of_another_size():
    with pytest.raises(ValueError, match=r"must be \(B, 8\), got \(6, 9\)"):
        make_classifier()(torch.zeros(6, 9), torch.zeros(6, dtype=torch.int64))


def garbage_of_steps(rank, world_size, margin):
    classifier = PartialFCMHS(margin(), 8, 100, head_size=3)
    optimizer = RowSGD(classifier.shard, 0.1)

    def step():
        x = torch.randn(4, 8, requires_grad=True)
        classifier(x, torch.tensor([1, 50, 50, 99])).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # what is made once
    gc.collect()
    gc.disable()
    for _ in range(3):
        step()
    return gc.collect()


@pytest.mark.parametrize("margin", [ArcFace, MagFace])
def test_a_step_leaves_nothing_to_the_garbage_collector(margin):
    """Tensors that wait for it fill the memory. In a process of its own: other tests leave something in this one."""
    assert run_ranks(garbage_of_steps, 1, margin) == [0]
