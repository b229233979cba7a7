import math

import pytest
import torch

from losses import ArcFace, CurricularFace, get_margin

pytestmark = pytest.mark.numeric

SHARDS = ((0, 3), (3, 3), (3, 4), (4, 9))  # column ranges, one of them empty
AGES = (-0.3, 0.0, 0.2, 0.7, 1.0)  # values of t


def aged(t, margin=0.5):
    out = CurricularFace(margin=margin)
    out.t.fill_(t)
    return out


def batch(rows=60, columns=9, seed=0):
    """Cosines and targets over the whole range, so that the fallback and hard negatives of both signs are met."""
    g = torch.Generator().manual_seed(seed)
    cosines = torch.rand(rows, columns, generator=g, dtype=torch.float64) * 1.98 - 0.99
    labels = torch.randint(0, columns, (rows,), generator=g)
    return cosines, labels, cosines.gather(1, labels.unsqueeze(1)).squeeze(1)


def largest_other(cosines, labels):
    return cosines.scatter(1, labels.unsqueeze(1), -2.0).amax(1)


def loop_reference(cosines, labels, targets, t, m=0.5, scale=64.0):
    out = []
    for row, label, target in zip(cosines.tolist(), labels.tolist(), targets.tolist(), strict=True):
        limit = math.cos(math.acos(target) + m)
        new = [c * (t + c) if c > limit else c for c in row]
        if label >= 0:
            c = row[label]
            new[label] = c - math.sin(math.pi - m) * m if c <= math.cos(math.pi - m) else limit
        out.append([scale * c for c in new])
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("t", AGES)
def test_equals_loop_form(t):
    margin = aged(t)
    cosines, labels, targets = batch()
    labels[5] = -1  # its target, on another shard, still bends the row
    before = cosines.clone(), labels.clone(), targets.clone()
    want = loop_reference(cosines, labels, targets, margin.t.item())
    torch.testing.assert_close(margin(cosines, labels, targets, None), want, rtol=0, atol=1e-12)
    margin.highest(cosines.amax(1), targets, None)
    for now, then in zip((cosines, labels, targets), before, strict=True):
        assert torch.equal(now, then)


def test_looks_targets_up_when_not_given():
    cosines, labels, targets = batch()
    assert torch.equal(aged(0.4)(cosines, labels), aged(0.4)(cosines, labels, targets))


def test_is_arcface_without_hard_negatives():
    cosines = torch.tensor([[0.9, 0.1, -0.5], [-0.2, 0.3, 0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(aged(0.6)(cosines, labels), ArcFace(64, 0.5)(cosines, labels), rtol=0, atol=0)


def test_gradient_is_the_true_derivative():
    g = torch.Generator().manual_seed(1)
    cosines = (torch.rand(6, 5, generator=g, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
    labels = torch.tensor([0, 4, -1, 2, 2, 1])
    targets = cosines.detach().gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    assert torch.autograd.gradcheck(lambda c: aged(0.3)(c, labels, targets, None), (cosines,))


def test_a_target_gets_no_gradient_from_the_comparison():
    cosines = torch.tensor([[0.2, 0.7]], dtype=torch.float64, requires_grad=True)
    logits = aged(0.3)(cosines, torch.tensor([0]))
    (grad,) = torch.autograd.grad(logits[0, 1], cosines)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 64 * (0.3 + 2 * 0.7)]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", AGES)
def test_finite_at_the_ends(dtype, t):
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    logits = aged(t)(cosines, torch.tensor([0, 0, 1]))
    logits.sum().backward()
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("t", AGES)
def test_shards_give_the_columns_of_the_whole(t):
    cosines, labels, targets = batch()
    whole = aged(t)(cosines, labels, targets, None)
    for first, end in SHARDS:
        here = torch.where((labels >= first) & (labels < end), labels - first, -1)
        part = aged(t)(cosines[:, first:end], here, targets, None)
        torch.testing.assert_close(part, whole[:, first:end], rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("t", AGES)
def test_highest_is_a_close_upper_bound(t, m):
    margin = aged(t, m)
    exact_rows = 0
    for columns in (2, 3, 9, 200):
        cosines, labels, targets = batch(500, columns, seed=columns)
        others = largest_other(cosines, labels)
        highest = margin.highest(others, targets, None)
        true = margin(cosines, labels, targets, None).amax(1)
        over = highest - true
        assert over.min() >= -1e-12
        assert over.max() <= 64 * (1 - t / 2) ** 2 + 1e-12
        limit = margin.limit(targets)
        usual = (limit >= 0) & (targets >= math.cos(math.pi - m))
        exact = usual | (others <= limit)
        assert (over[exact] <= 1e-12).all()
        exact_rows += int(exact.sum())
    assert exact_rows > 50


def test_highest_holds_where_the_largest_cosine_is_not_the_largest_logit():
    # a hard negative of 0.6 shrinks to 0.36, below the 0.5 that just is not hard
    theta = math.acos(0.55) - 0.5
    cosines = torch.tensor([[math.cos(theta), 0.6, 0.5]], dtype=torch.float64)
    labels, targets = torch.tensor([0]), cosines[:, 0]
    margin = aged(0.0)
    logits = margin(cosines, labels, targets, None)
    assert logits[0, 1] < logits[0, 2]
    torch.testing.assert_close(margin.highest(cosines[:, 1], targets, None), logits.amax(1), rtol=0, atol=1e-12)


def test_highest_of_a_row_without_other_classes():
    targets = torch.tensor([0.5, -0.99])
    highest = aged(0.3).highest(torch.full((2,), -math.inf), targets, None)
    torch.testing.assert_close(highest, aged(0.3).shift(targets) * 64)


def test_observe_moves_t():
    margin = CurricularFace(momentum=0.1).double()
    targets = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)
    margin.observe(targets, torch.ones(3))
    assert margin.t.item() == pytest.approx(0.1 * 0.5, rel=0, abs=1e-12)
    margin.observe(targets, torch.ones(3))
    assert margin.t.item() == pytest.approx(0.1 * 0.5 + 0.9 * 0.05, rel=0, abs=1e-12)
    margin.observe(torch.tensor([0.1, math.nan]), torch.ones(2))
    margin.observe(torch.zeros(0), torch.zeros(0))
    assert margin.t.item() == pytest.approx(0.1 * 0.5 + 0.9 * 0.05, rel=0, abs=1e-12)


def test_observing_between_forward_and_backward_is_safe():
    cosines, labels, targets = batch()
    cosines.requires_grad_()
    margin = aged(0.3)
    logits = margin(cosines, labels, targets, None)
    (want,) = torch.autograd.grad(logits.sum(), cosines, retain_graph=True)
    margin.observe(targets, torch.ones(len(targets)))
    (got,) = torch.autograd.grad(logits.sum(), cosines)
    assert torch.equal(got, want)


def test_state_dict_round_trip():
    margin, other = CurricularFace(), CurricularFace()
    margin.observe(torch.tensor([0.5, 0.7]), torch.ones(2))
    assert set(margin.state_dict()) == {"t"}
    assert margin.t != 0
    other.load_state_dict(margin.state_dict())
    cosines, labels, targets = batch()
    assert torch.equal(other(cosines, labels, targets), margin(cosines, labels, targets))


def test_no_columns():
    assert CurricularFace()(torch.zeros(3, 0), torch.tensor([-1, -1, -1]), torch.zeros(3), None).shape == (3, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CurricularFace(0), "scale must be above 0"),
        (lambda: CurricularFace(margin=3.5), "angle in"),
        (lambda: CurricularFace(momentum=-0.1), r"momentum must be in \[0, 1\]"),
        (lambda: CurricularFace(momentum=1.1), r"momentum must be in \[0, 1\]"),
    ],
)
def test_refuses_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_get_margin():
    margin = get_margin("curricularface", 64)
    assert (type(margin), margin.margin, margin.momentum) == (CurricularFace, 0.5, 0.01)
    assert get_margin("curricularface", 64, 0.3).margin == 0.3
