import pytest
import torch
import torch.nn.functional as F

from losses import LateCentres, cosines

pytestmark = pytest.mark.numeric


def data(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(5, 7, generator=g, dtype=dtype)).requires_grad_()
    return x, (torch.randn(9, 7, generator=g, dtype=dtype) * 3).requires_grad_()


def test_equals_normalise_and_multiply():
    x, w = data()
    grad = torch.randn(5, 9, dtype=torch.float64)
    ours, want = cosines(x, w), x @ F.normalize(w).T
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-14)
    got = torch.autograd.grad(ours, (x, w), grad)
    torch.testing.assert_close(got, torch.autograd.grad(want, (x, w), grad), rtol=0, atol=1e-13)


def test_gradcheck():
    assert torch.autograd.gradcheck(cosines, data())


def test_only_what_is_needed_gets_a_gradient():
    x, w = data()
    (gx,) = torch.autograd.grad(cosines(x, w.detach()).sum(), x)
    (gw,) = torch.autograd.grad(cosines(x.detach(), w).sum(), w)
    want = torch.autograd.grad(cosines(x, w).sum(), (x, w))
    torch.testing.assert_close((gx, gw), want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_in_a_short_type(dtype):
    x, w = data(torch.float32)
    got = cosines(x.detach().to(dtype), w)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, x @ F.normalize(w).T, rtol=0, atol=2e-2)


def test_a_centre_of_length_zero_stays_finite():
    x, w = data(torch.float32)
    w = torch.cat((w.detach(), torch.zeros(1, 7))).requires_grad_()
    out = cosines(x, w)
    (grad,) = torch.autograd.grad(out.sum(), w)
    assert not out[:, -1].any()
    assert grad[:-1].isfinite().all()


def test_no_columns():
    x, _ = data()
    w = torch.zeros(0, 7, dtype=torch.float64, requires_grad=True)
    out = cosines(x, w)
    out.sum().backward()
    assert out.shape == (5, 0)
    assert w.grad.shape == (0, 7)
    assert not x.grad.any()


def test_a_backward_that_stops_at_the_embeddings_leaves_nothing_for_the_next():
    g = torch.Generator().manual_seed(3)
    x = F.normalize(torch.randn(5, 4, dtype=torch.float64, generator=g)).requires_grad_()
    w = torch.randn(6, 4, dtype=torch.float64, generator=g, requires_grad=True)
    (want,) = torch.autograd.grad((cosines(x, w) ** 2).sum(), w)
    loss = (cosines(x, w) ** 2).sum()
    torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward(retain_graph=True)
    assert torch.equal(w.grad, want)
    loss.backward()
    assert torch.equal(w.grad, 2 * want)


def test_late_centres_may_be_used_twice():
    g = torch.Generator().manual_seed(3)
    x = F.normalize(torch.randn(5, 4, dtype=torch.float64, generator=g))
    w = torch.randn(6, 4, dtype=torch.float64, generator=g, requires_grad=True)
    late = LateCentres(w)
    (ours,) = torch.autograd.grad((cosines(x[:2], late) ** 2).sum() + cosines(x[2:], late).sin().sum(), w)
    plain = x @ F.normalize(w).T
    (want,) = torch.autograd.grad((plain[:2] ** 2).sum() + plain[2:].sin().sum(), w)
    torch.testing.assert_close(ours, want)
