import pytest
import torch
import torch.nn.functional as F

from losses import sharded_cross_entropy

pytestmark = pytest.mark.numeric


def same(x):
    return x


def test_one_shard_equals_torch():
    g = torch.Generator().manual_seed(0)
    logits = (torch.randn(9, 5, generator=g, dtype=torch.float64) * 30).requires_grad_()
    labels = torch.randint(0, 5, (9,), generator=g)
    loss = sharded_cross_entropy(logits, labels, logits.amax(1), same)
    (grad,) = torch.autograd.grad(loss * 3, logits)
    want = F.cross_entropy(logits, labels)
    (want_grad,) = torch.autograd.grad(want * 3, logits)
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, want_grad, rtol=0, atol=1e-12)


def test_gradcheck_with_hidden_columns():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 5, 1])
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[0, 2] = hidden[1, 0] = hidden[2, :5] = True
    assert torch.autograd.gradcheck(
        lambda z: sharded_cross_entropy(z.masked_fill(hidden, -torch.inf), labels, z.amax(1), same), (logits,)
    )


def test_shards_joined_by_hand():
    """Two shards, one of them without columns: each gives the common loss, and its part of the gradient."""
    whole = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 3])
    want = F.cross_entropy(whole, labels)
    (want_grad,) = torch.autograd.grad(want, whole)
    highest, sums = whole.amax(1), []
    full = whole.detach().clone().requires_grad_()
    sharded_cross_entropy(full, labels, highest, lambda s: sums.append(s.clone()))
    empty = torch.zeros(5, 0, dtype=torch.float64, requires_grad=True)
    loss = sharded_cross_entropy(empty, torch.full((5,), -1), highest, lambda s: s.add_(sums[0]))
    loss.backward()
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-12)
    assert empty.grad.shape == (5, 0)
    (grad,) = torch.autograd.grad(sharded_cross_entropy(full, labels, highest, same), full)
    torch.testing.assert_close(grad, want_grad, rtol=0, atol=1e-12)


def test_a_bound_above_the_highest_logit_changes_nothing():
    logits = torch.randn(5, 4, dtype=torch.float64) * 20
    labels = torch.tensor([0, 1, 2, 3, 3])
    exact = sharded_cross_entropy(logits, labels, logits.amax(1), same)
    torch.testing.assert_close(
        sharded_cross_entropy(logits, labels, logits.amax(1) + 7, same), exact, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_large_logits_do_not_overflow(size):
    logits = torch.tensor([[size, 0.0], [0.0, size]], requires_grad=True)
    loss = sharded_cross_entropy(logits, torch.tensor([0, 0]), logits.amax(1), same)
    loss.backward()
    assert loss.item() == pytest.approx(size / 2)
    assert logits.grad.isfinite().all()
