import math

import pytest
import torch

from losses import ArcFace, MagFace, get_margin

pytestmark = pytest.mark.numeric

SHARDS = ((0, 3), (3, 3), (3, 4), (4, 9))  # column ranges, one of them empty


def batch(rows=80, columns=9, seed=0):
    """Cosines with the labels of all rows, some past the fallback, and lengths on both sides of the clips."""
    g = torch.Generator().manual_seed(seed)
    cosines = torch.rand(rows, columns, generator=g, dtype=torch.float64) * 1.98 - 0.99
    labels = torch.randint(0, columns, (rows,), generator=g)
    norms = torch.rand(rows, generator=g, dtype=torch.float64) * 130
    norms[:2] = torch.tensor([0.0, 1e5])
    return cosines, labels, norms


def loop_margin(norm):
    return 0.45 + (0.8 - 0.45) * (max(10.0, min(110.0, norm)) - 10) / (110 - 10)


def loop_reference(cosines, labels, norms, scale=64.0):
    out = [[c * scale for c in row] for row in cosines.tolist()]
    past = 0
    for i, (label, norm) in enumerate(zip(labels.tolist(), norms.tolist(), strict=True)):
        if label < 0:
            continue
        c, m = cosines[i, label].item(), loop_margin(norm)
        past += c <= math.cos(math.pi - m)
        target = c - math.sin(math.pi - m) * m if c <= math.cos(math.pi - m) else math.cos(math.acos(c) + m)
        out[i][label] = scale * target
    return torch.tensor(out, dtype=torch.float64), past


def test_equals_loop_form():
    cosines, labels, norms = batch()
    labels[5] = -1
    before = cosines.clone(), labels.clone(), norms.clone()
    want, past = loop_reference(cosines, labels, norms)
    assert 0 < past < len(labels)  # both branches are met
    torch.testing.assert_close(MagFace()(cosines, labels, None, norms), want, rtol=0, atol=1e-12)
    MagFace().penalty(norms)
    for now, then in zip((cosines, labels, norms), before, strict=True):
        assert torch.equal(now, then)


def test_easy_margin_spares_cosines_up_to_zero_as_its_authors_run_it():
    cosines, labels, norms = batch()
    want = cosines * 64
    for i, label in enumerate(labels):
        c = cosines[i, label].item()
        if c > 0:
            want[i, label] = 64 * math.cos(math.acos(c) + loop_margin(norms[i].item()))
    assert 0 < (cosines[range(len(labels)), labels] > 0).sum() < len(labels)  # both branches are met
    found = MagFace(easy_margin=True)(cosines, labels, None, norms)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


def test_penalty_equals_loop_form():
    _, _, norms = batch()
    lengths = [max(10.0, min(110.0, n)) for n in norms.tolist()]
    want = torch.tensor([20 * (a / 110**2 + 1 / a) for a in lengths], dtype=torch.float64)
    torch.testing.assert_close(MagFace().penalty(norms), want, rtol=0, atol=1e-12)


def test_penalty_falls_up_to_the_longest():
    penalty = MagFace().penalty(torch.linspace(10, 110, 50, dtype=torch.float64))
    assert (penalty.diff() < 0).all()


def test_equal_margins_are_arcface():
    cosines, labels, norms = batch()
    want = ArcFace(64, 0.5)(cosines, labels)
    torch.testing.assert_close(MagFace(l_m=0.5, u_m=0.5)(cosines, labels, None, norms), want, rtol=0, atol=1e-12)


def test_gradient_is_the_true_derivative_in_cosines_and_lengths():
    g = torch.Generator().manual_seed(1)
    cosines = (torch.rand(6, 5, generator=g, dtype=torch.float64) * 1.2 - 0.6).requires_grad_()
    cosines.data[0, 0] = -0.97  # past the fallback
    labels = torch.tensor([0, 4, -1, 2, 2, 1])
    norms = torch.tensor([30.0, 5.0, 60.0, 40.0, 200.0, 90.0], dtype=torch.float64, requires_grad=True)
    margin = MagFace()
    assert torch.autograd.gradcheck(lambda c, n: margin(c, labels, None, n), (cosines, norms))
    assert torch.autograd.gradcheck(margin.penalty, (norms,))
    margin(cosines, labels, None, norms).sum().backward()
    got_none = norms.grad == 0
    assert got_none.tolist() == [False, True, True, False, True, False]  # clipped, or no target here


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [0.0, 10.0, 60.0, 1e6])
def test_finite_at_the_ends(dtype, norm):
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    norms = torch.full((3,), norm, requires_grad=True)
    logits = MagFace()(cosines, torch.tensor([0, 0, 1]), None, norms)
    (logits.sum() + MagFace().penalty(norms).mean()).backward()
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert cosines.grad.isfinite().all()
    assert norms.grad.isfinite().all()


def test_shards_give_the_columns_and_the_gradient_of_the_whole():
    cosines, labels, norms = batch()
    norms.requires_grad_()
    targets = cosines.gather(1, labels.unsqueeze(1)).squeeze(1)
    whole = MagFace()(cosines, labels, targets, norms)
    (whole_grad,) = torch.autograd.grad(whole.sin().sum(), norms)
    grad = torch.zeros_like(norms)
    for first, end in SHARDS:
        here = torch.where((labels >= first) & (labels < end), labels - first, -1)
        part = MagFace()(cosines[:, first:end], here, targets, norms)
        torch.testing.assert_close(part, whole[:, first:end], rtol=0, atol=1e-12)
        if end > first:
            grad += torch.autograd.grad(part.sin().sum(), norms)[0]
    torch.testing.assert_close(grad, whole_grad, rtol=0, atol=1e-12)


def test_highest_is_the_largest_logit():
    cosines, labels, norms = batch()
    targets = cosines.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = cosines.scatter(1, labels.unsqueeze(1), -2.0).amax(1)
    want = MagFace()(cosines, labels, targets, norms).amax(1)
    torch.testing.assert_close(MagFace().highest(others, targets, norms), want, rtol=0, atol=1e-12)


def test_has_no_state():
    margin = MagFace()
    margin.observe(torch.zeros(3), torch.ones(3))
    assert margin.state_dict() == {}
    margin.load_state_dict({})


def test_no_columns():
    assert MagFace()(torch.zeros(3, 0), torch.tensor([-1, -1, -1]), None, torch.ones(3)).shape == (3, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MagFace(0), "scale must be above 0"),
        (lambda: MagFace(l_a=0.0), "0 < l_a < u_a"),
        (lambda: MagFace(l_a=110.0), "0 < l_a < u_a"),
        (lambda: MagFace(l_m=-0.1), "0 <= l_m <= u_m < pi"),
        (lambda: MagFace(l_m=0.9), "0 <= l_m <= u_m < pi"),
        (lambda: MagFace(u_m=3.2), "0 <= l_m <= u_m < pi"),
        (lambda: MagFace(lambda_g=-1.0), "lambda_g must be at least 0"),
        (lambda: MagFace()(torch.zeros(1, 1), torch.tensor([0])), "needs norms_N"),
        (lambda: get_margin("magface", 64, 0.5), "leave margin None"),
    ],
)
def test_refuses_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_get_margin():
    margin = get_margin("magface", 64)
    assert isinstance(margin, MagFace)
    assert (margin.l_a, margin.u_a, margin.l_m, margin.u_m, margin.lambda_g) == (10, 110, 0.45, 0.8, 20)
