"""The PReLU of the backbones against torch's."""

import pytest
import torch
from torch import nn

from backbones.prelu import PReLU

pytestmark = pytest.mark.numeric


def both(x, amp_dtype=None, slope=0.25):
    """Output and gradients of our PReLU and of torch's, for the same weights."""
    results = []
    for kind in (PReLU, nn.PReLU):
        layer, leaf = (
            kind(x.shape[1], slope).to(torch.promote_types(x.dtype, torch.float32)),
            x.clone().requires_grad_(),
        )
        with torch.no_grad():
            layer.weight.add_(torch.linspace(-1, 1, x.shape[1]))
        with torch.autocast("cpu", amp_dtype, enabled=amp_dtype is not None):
            out = layer(leaf)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        out.backward(torch.empty_like(out).copy_(grad))  # in the output's layout, as a convolution gives it
        results.append((out, leaf.grad, layer.weight.grad))
    return results


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "amp_dtype"),
    [
        (torch.float32, None),
        (torch.float64, None),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_numbers_and_layout_are_torchs_to_the_bit(dtype, amp_dtype, memory_format):
    x = torch.randn(3, 16, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, :, 0, 0], x[1, 0] = 0.0, -0.0
    ours, theirs = both(x.to(memory_format=memory_format), amp_dtype)
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own, other)
        assert (own.dtype, own.stride()) == (other.dtype, other.stride())


def test_rows_without_an_image_are_taken_too():
    ours, theirs = both(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(own, other) for own, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_stays_so(bad):
    layer, x = PReLU(2), torch.tensor([[1.0, -1.0]], requires_grad=True)
    layer(x).backward(torch.tensor([[bad, bad]]))
    assert not x.grad.isfinite().any()


@pytest.mark.parametrize("frozen", ["input", "slopes"])
def test_what_needs_no_gradient_gets_none(frozen):
    layer, x = PReLU(4), torch.randn(2, 4, 3, 3, requires_grad=frozen == "slopes")
    layer.weight.requires_grad_(frozen == "input")
    layer(x).sum().backward()
    assert (x.grad is None) == (frozen == "input")
    assert (layer.weight.grad is None) == (frozen == "slopes")


def test_without_gradients_and_under_a_compiler_it_is_torchs_own(monkeypatch):
    layer, x = PReLU(4), torch.randn(2, 4, 3, 3)
    assert layer(x).grad_fn.name() == "_CPUPReLUBackward"
    with torch.no_grad():
        assert layer(x).grad_fn is None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert layer(x).grad_fn.name() != "_CPUPReLUBackward"
