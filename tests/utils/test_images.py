import cv2
import numpy as np
import pytest
import torch

from utils.images import decode_rgb, to_network_input

RED = np.zeros((5, 7, 3), np.uint8)
RED[..., 0] = 255  # RGB


def encode(image, suffix):
    return cv2.imencode(suffix, image)[1].tobytes()


class TestDecode:
    def test_png_is_exact_and_rgb(self):
        image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
        out = decode_rgb(encode(image[..., ::-1], ".png"))
        assert out.dtype == np.uint8
        assert (out == image).all()

    def test_jpeg_is_rgb(self):
        out = decode_rgb(encode(RED[..., ::-1], ".jpg")).astype(int)
        assert abs(out - RED).max() < 8

    def test_grey_is_repeated(self):
        grey = np.arange(30, dtype=np.uint8).reshape(5, 6)
        assert (decode_rgb(encode(grey, ".png")) == grey[..., None].repeat(3, 2)).all()

    @pytest.mark.parametrize("wrap", [bytes, memoryview, lambda data: np.frombuffer(data, np.uint8)])
    def test_takes_any_buffer(self, wrap):
        assert decode_rgb(wrap(encode(RED, ".png"))).shape == (5, 7, 3)

    @pytest.mark.parametrize("data", [b"", b"no image", encode(RED, ".png")[:20]])
    def test_damaged(self, data):
        with pytest.raises(ValueError, match=f"not a decodable image: {len(data)} bytes"):
            decode_rgb(data)


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
