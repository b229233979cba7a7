import math

import pytest
import torch

from losses import AdaFace, get_margin

pytestmark = pytest.mark.numeric

SHARDS = ((0, 3), (3, 3), (3, 4), (4, 9))  # column ranges, one of them empty


def batch(rows=60, columns=9, seed=0):
    """Cosines with the labels of all rows, and lengths on both sides of every clip."""
    g = torch.Generator().manual_seed(seed)
    cosines = torch.rand(rows, columns, generator=g, dtype=torch.float64) * 1.98 - 0.99
    labels = torch.randint(0, columns, (rows,), generator=g)
    norms = torch.rand(rows, generator=g, dtype=torch.float64) * 60
    norms[:4] = torch.tensor([0.0, 1e-4, 100.0, 900.0])
    return cosines, labels, norms


def trained():
    """Statistics as a run would have them: tight enough that the quality reaches its ends."""
    margin = AdaFace()
    margin.batch_mean.fill_(25.0)
    margin.batch_std.fill_(5.0)
    return margin


def loop_reference(cosines, labels, norms, mu, sigma, m=0.4, h=0.333, scale=64.0):
    out = [[c * scale for c in row] for row in cosines.tolist()]
    for i, (label, norm) in enumerate(zip(labels.tolist(), norms.tolist(), strict=True)):
        if label < 0:
            continue
        z = max(-1.0, min(1.0, (max(0.001, min(100.0, norm)) - mu) / (sigma + 0.001) * h))
        theta = math.acos(max(-0.999, min(0.999, cosines[i, label].item())))
        theta = max(0.001, min(math.pi - 0.001, theta - m * z))
        out[i][label] = scale * (math.cos(theta) - (m + m * z))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("make", [AdaFace, trained])
def test_equals_loop_form(make):
    margin = make()
    cosines, labels, norms = batch()
    labels[5] = -1
    before = cosines.clone(), labels.clone(), norms.clone()
    want = loop_reference(cosines, labels, norms, margin.batch_mean.item(), margin.batch_std.item())
    torch.testing.assert_close(margin(cosines, labels, None, norms), want, rtol=0, atol=1e-12)
    for now, then in zip((cosines, labels, norms), before, strict=True):
        assert torch.equal(now, then)


def test_quality_reaches_both_ends():
    torch.testing.assert_close(trained().quality(torch.tensor([0.0, 25.0, 99.0])), torch.tensor([-1.0, 0.0, 1.0]))


def test_is_arcface_at_the_lowest_quality_and_cosface_at_the_mean():
    cosines, labels = torch.tensor([[0.3, 0.1]], dtype=torch.float64), torch.tensor([0])
    low = trained()(cosines, labels, None, torch.tensor([0.0], dtype=torch.float64))
    mean = trained()(cosines, labels, None, torch.tensor([25.0], dtype=torch.float64))
    torch.testing.assert_close(low[0, 0].item(), 64 * math.cos(math.acos(0.3) + 0.4))
    torch.testing.assert_close(mean[0, 0].item(), 64 * (0.3 - 0.4))


def test_gradient_is_the_true_derivative():
    margin = trained()
    g = torch.Generator().manual_seed(1)
    cosines = (torch.rand(6, 5, generator=g, dtype=torch.float64) * 1.6 - 0.8).requires_grad_()
    labels = torch.tensor([0, 4, -1, 2, 2, 1])
    norms = torch.tensor([3.0, 22.0, 25.0, 30.0, 60.0, 24.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c: margin(c, labels, None, norms), (cosines,))


def test_lengths_get_no_gradient():
    cosines, labels, norms = batch()
    cosines.requires_grad_()
    norms.requires_grad_()
    trained()(cosines, labels, None, norms).sum().backward()
    assert cosines.grad is not None
    assert norms.grad is None
    assert trained().penalty(norms) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [0.0, 25.0, 1e6])
def test_finite_at_the_ends(dtype, norm):
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    logits = trained()(cosines, torch.tensor([0, 0, 1]), None, torch.full((3,), norm))
    logits.sum().backward()
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert cosines.grad.isfinite().all()


def test_shards_give_the_columns_of_the_whole():
    margin = trained()
    cosines, labels, norms = batch()
    targets = cosines.gather(1, labels.unsqueeze(1)).squeeze(1)
    whole = margin(cosines, labels, targets, norms)
    for first, end in SHARDS:
        here = torch.where((labels >= first) & (labels < end), labels - first, -1)
        part = margin(cosines[:, first:end], here, targets, norms)
        torch.testing.assert_close(part, whole[:, first:end], rtol=0, atol=1e-12)


def test_highest_is_the_largest_logit():
    margin = trained()
    cosines, labels, norms = batch()
    targets = cosines.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = cosines.scatter(1, labels.unsqueeze(1), -2.0).amax(1)
    want = margin(cosines, labels, targets, norms).amax(1)
    torch.testing.assert_close(margin.highest(others, targets, norms), want, rtol=0, atol=1e-12)


def test_observe_moves_the_statistics():
    margin = AdaFace(t_alpha=0.1).double()
    norms = torch.tensor([5.0, 20.0, 35.0, 1e9], dtype=torch.float64, requires_grad=True)  # the last counts as 100
    mean = (5 + 20 + 35 + 100) / 4
    std = math.sqrt(sum((n - mean) ** 2 for n in (5, 20, 35, 100)) / 3)
    margin.observe(torch.zeros(4), norms)
    want = 0.9 * 20 + 0.1 * mean, 0.9 * 100 + 0.1 * std
    assert (margin.batch_mean.item(), margin.batch_std.item()) == pytest.approx(want, rel=0, abs=1e-12)
    assert not margin.batch_mean.requires_grad
    margin.observe(torch.zeros(4), norms)
    want = 0.9 * want[0] + 0.1 * mean, 0.9 * want[1] + 0.1 * std
    assert (margin.batch_mean.item(), margin.batch_std.item()) == pytest.approx(want, rel=0, abs=1e-12)


@pytest.mark.parametrize("norms", [[], [7.0], [7.0, math.nan, 9.0]])
def test_observe_ignores_batches_without_statistics(norms):
    margin = AdaFace()
    margin.observe(torch.zeros(len(norms)), torch.tensor(norms))
    assert (margin.batch_mean.item(), margin.batch_std.item()) == (20.0, 100.0)


def test_forward_does_not_move_the_statistics():
    margin = AdaFace()
    cosines, labels, norms = batch()
    margin(cosines, labels, None, norms)
    assert (margin.batch_mean.item(), margin.batch_std.item()) == (20.0, 100.0)


def test_state_dict_round_trip():
    margin, other = AdaFace(), AdaFace()
    margin.observe(torch.zeros(3), torch.tensor([1.0, 20.0, 90.0]))
    assert set(margin.state_dict()) == {"batch_mean", "batch_std"}
    other.load_state_dict(margin.state_dict())
    assert torch.equal(other.batch_mean, margin.batch_mean)
    assert torch.equal(other.batch_std, margin.batch_std)
    cosines, labels, norms = batch()
    assert torch.equal(other(cosines, labels, None, norms), margin(cosines, labels, None, norms))


def test_no_columns():
    assert AdaFace()(torch.zeros(3, 0), torch.tensor([-1, -1, -1]), None, torch.ones(3)).shape == (3, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaFace(0), "scale must be above 0"),
        (lambda: AdaFace(margin=-0.1), r"\[0, 1\)"),
        (lambda: AdaFace(margin=1.0), r"\[0, 1\)"),
        (lambda: AdaFace(h=0), "h must be above 0"),
        (lambda: AdaFace(h=math.nan), "h must be above 0"),
        (lambda: AdaFace(t_alpha=1.5), r"t_alpha must be in \[0, 1\]"),
        (lambda: AdaFace()(torch.zeros(1, 1), torch.tensor([0])), "needs norms_N"),
    ],
)
def test_refuses_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_get_margin():
    margin = get_margin("adaface", 64)
    assert (type(margin), margin.margin, margin.h, margin.t_alpha) == (AdaFace, 0.4, 0.333, 0.01)
    assert get_margin("adaface", 32, 0.3).margin == 0.3
