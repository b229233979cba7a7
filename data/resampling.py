"""Resizing and blurring of image batches as products with small matrices, one pair of matrices per image.

Every image of a batch may have its own size and its own interpolation. The weights are multiples of 2^-11 and the
values multiples of 2^-3, so float32 adds them without rounding: an image comes out the same, whichever images are
in the batch with it and in whatever order a library adds.

Shapes: n images, H height, W width, I and O the sizes before and after along one axis, T = 8 taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

METHODS = ("nearest", "linear", "area", "cubic", "lanczos4", "triangle")  # all but the last are OpenCV's
_TAPS = range(-3, 5)  # source pixels around the one that an output pixel falls on
_WEIGHT_STEP, _VALUE_STEP = 2.0**-11, 2.0**-3


def transform(images_n3HW: Tensor, rows_nOH: Tensor, columns_nOW: Tensor) -> Tensor:
    """Apply a matrix along the height and another along the width.

    Args:
        images_n3HW: float32 whole numbers from 0 to 255.
        rows_nOH: from one of the functions below, or another with weights that are multiples of 2^-11 and rows whose
            magnitudes sum to less than 2.
        columns_nOW: the same for the width.

    Returns:
        (n, 3, O, O'), rounded to whole numbers from 0 to 255.
    """
    half = torch.matmul(rows_nOH.unsqueeze(1), images_n3HW)
    half = half.div_(_VALUE_STEP).round_().mul_(_VALUE_STEP)
    return torch.matmul(half, columns_nOW.transpose(1, 2).unsqueeze(1)).round_().clamp_(0, 255)


def resize_matrix(size_in_n: Tensor, size_out_n: Tensor, method_n: Tensor, most_in: int, most_out: int) -> Tensor:
    """Weights that resize one axis, each image by its own sizes and method.

    The methods are OpenCV's: only "area" averages when the image shrinks. "triangle" is "linear" widened when the
    image shrinks (by 3 at most), as in PIL and DALI. "area" shrinks by 7 at most.

    Args:
        size_in_n: pixels before; what lies beyond them is left out.
        size_out_n: pixels after; rows beyond them repeat the last one.
        method_n: indices into ``METHODS``.
        most_in: I.
        most_out: O.

    Returns:
        (n, O, I) float32, each row with sum 1.
    """
    scale_n1 = (size_in_n.double() / size_out_n)[:, None]
    place_nO = torch.minimum(_counted(most_out, size_in_n), size_out_n[:, None] - 1)
    edge_nO = place_nO * size_in_n[:, None] / size_out_n[:, None]  # where the output pixel starts
    centre_nO = edge_nO + 0.5 * scale_n1 - 0.5
    method_n1 = method_n[:, None]
    is_nearest, is_area = method_n1 == METHODS.index("nearest"), method_n1 == METHODS.index("area")
    base_nO = torch.where(is_nearest, edge_nO, torch.where(is_area, edge_nO + 3, centre_nO)).floor()
    taps_nOT = base_nO[..., None] + torch.arange(_TAPS.start, _TAPS.stop, device=base_nO.device)
    distance_nOT = centre_nO[..., None] - taps_nOT
    start_nO1, end_nO1 = edge_nO[..., None], (edge_nO + scale_n1)[..., None]
    weights = {
        "nearest": (taps_nOT == base_nO[..., None]).double(),
        "linear": (1 - distance_nOT.abs()).clamp(min=0),
        "area": (torch.minimum(taps_nOT + 1, end_nO1) - torch.maximum(taps_nOT, start_nO1)).clamp(min=0),
        "cubic": _cubic(distance_nOT.abs()),
        "lanczos4": torch.sinc(distance_nOT) * torch.sinc(distance_nOT / 4) * (distance_nOT.abs() < 4),
        "triangle": (1 - distance_nOT.abs() / scale_n1[..., None].clamp(min=1)).clamp(min=0),
    }
    chosen_nOT = torch.stack([weights[name] for name in METHODS])[
        method_n, torch.arange(len(method_n), device=method_n.device)
    ]
    last_n11 = (size_in_n - 1)[:, None, None]
    return _from_taps(torch.minimum(taps_nOT.clamp(min=0), last_n11), chosen_nOT, most_in)


def zoom_matrix(start_n: Tensor, length_n: Tensor, size: int) -> Tensor:
    """Weights that enlarge pixels [start, start + length) of an axis to all of its ``size``, linearly.

    Returns:
        (n, size, size) float32, each row with sum 1.
    """
    start_n1, length_n1 = start_n[:, None].double(), length_n[:, None].double()
    centre_nO = start_n1 + (_counted(size, start_n) + 0.5) * length_n1 / size - 0.5
    taps_nOT = centre_nO.floor()[..., None] + torch.arange(2, device=start_n.device)
    weights_nOT = 1 - (centre_nO[..., None] - taps_nOT).abs()
    inside_nOT = taps_nOT.clamp(start_n1[..., None], (start_n1 + length_n1 - 1)[..., None])
    return _from_taps(inside_nOT, weights_nOT, size)


def gaussian_matrix(sigma_n: Tensor, radius_n: Tensor, size: int) -> Tensor:
    """Weights that blur an axis with a Gaussian cut off at ``radius`` pixels (at most 4), mirrored at the edges.

    Returns:
        (n, size, size) float32, each row with sum 1.
    """
    offsets_T = torch.arange(-4, 5, device=sigma_n.device)
    weights_nT = torch.exp(-0.5 * (offsets_T / sigma_n.double()[:, None]) ** 2) * (
        offsets_T.abs() <= radius_n[:, None]
    )
    taps_nOT = (_counted(size, sigma_n)[..., None] + offsets_T).abs()
    mirrored_nOT = (size - 1) - ((size - 1) - taps_nOT).abs()
    return _from_taps(mirrored_nOT, weights_nT[:, None].expand_as(mirrored_nOT), size)


def _counted(size: int, like_n: Tensor) -> Tensor:
    """0 .. size - 1 for each of n images, (n, size) float64."""
    return torch.arange(size, device=like_n.device, dtype=torch.float64).expand(len(like_n), size)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.75, as in OpenCV."""
    near = (1.25 * distance - 2.25) * distance * distance + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def _from_taps(taps_nOT: Tensor, weights_nOT: Tensor, size: int) -> Tensor:
    """The (n, O, size) matrix of these weights at these source pixels, in steps of 2^-11, rows of sum 1."""
    weights_nOT = weights_nOT / weights_nOT.sum(-1, keepdim=True)
    steps_nOT = (weights_nOT / _WEIGHT_STEP).round_()
    rest_nO1 = 1 / _WEIGHT_STEP - steps_nOT.sum(-1, keepdim=True)
    steps_nOT.scatter_add_(-1, steps_nOT.argmax(-1, keepdim=True), rest_nO1)
    matrix = steps_nOT.new_zeros(*steps_nOT.shape[:2], size)
    return matrix.scatter_add_(-1, taps_nOT.long(), steps_nOT).mul_(_WEIGHT_STEP).float()
