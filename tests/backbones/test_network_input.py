import pytest
import torch

from backbones.base import to_network_input

pytestmark = pytest.mark.numeric


class TestNetworkInput:
    def test_formula(self):
        x_BHW3 = torch.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3).mul(2).to(torch.uint8)
        out = to_network_input(x_BHW3)
        assert out.shape == (2, 3, 4, 5)
        assert out.dtype == torch.float32
        expected = ((x_BHW3.double() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
        assert (out.double() - expected).abs().max() < 1e-6

    def test_range_layout_and_input_untouched(self):
        x_BHW3 = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 2, 1).repeat(1, 2, 1, 3)
        before = x_BHW3.clone()
        out = to_network_input(x_BHW3)
        assert (out.min().item(), out.max().item()) == (-1.0, 1.0)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x_BHW3, before)
