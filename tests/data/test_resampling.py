"""The matrices that resize: exact sums, the identity, and images of several sizes in one batch."""

import numpy as np
import pytest
import torch

from data import resampling

pytestmark = pytest.mark.numeric
LANCZOS = resampling.METHODS.index("lanczos4")


def test_float32_adds_without_rounding():
    """So neither the batch nor the order in which a library adds can change a pixel."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.choice([0, 255], (3, 3, 112, 112))).float()
    size_in, size_out, method = torch.full((3,), 112), torch.tensor([30, 111, 112]), torch.full((3,), LANCZOS)
    down = resampling.resize_matrix(size_in, size_out, method, 112, 112)
    assert (down * 2**11 == (down * 2**11).round()).all()
    assert (down.sum(-1) == 1).all()
    assert down.abs().sum(-1).max() < 2
    assert torch.equal(
        resampling.transform(images, down, down),
        resampling.transform(images.double(), down.double(), down.double()).float(),
    )


@pytest.mark.parametrize("method", range(len(resampling.METHODS)))
def test_same_size_is_identity(method):
    size = torch.tensor([40])
    matrix = resampling.resize_matrix(size, size, torch.tensor([method]), 40, 40)
    assert torch.equal(matrix[0], torch.eye(40))


def test_what_lies_behind_an_image_is_left_out():
    matrix = resampling.resize_matrix(torch.tensor([10, 20]), torch.tensor([7, 15]), torch.tensor([3, 4]), 20, 15)
    assert (matrix[0, :, 10:] == 0).all()
    assert (matrix[0, 7:] == matrix[0, 6]).all()
