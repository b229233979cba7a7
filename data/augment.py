"""Random changes of training images, for a whole batch on its device: flip, crop, zoom, low resolution, blur, colour.

What happens to a sample is a function of (seed, epoch, sample id) alone. The numbers are drawn on the CPU; only the
samples that an operation changes are touched, and every operation works in whole grey levels without rounding on
the way, so that the other samples of the batch, the number of ranks and the order of additions do not matter.

Shapes: B batch of one rank, n samples that one operation changes, H height, W width.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data import resampling
from utils.device import to_device
from utils.hashing import key, uniform

_MOTION_RADIUS = 4  # pixels of the longest line to each side
_LUMA = (0.299, 0.587, 0.114)
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


class Draws:
    """The random numbers of one operation: each call gives the next one for each sample that it changes."""

    def __init__(self, ids_n: Tensor, device: torch.device, *parts: int) -> None:
        self.ids_n, self.device, self.parts, self.count = ids_n, device, parts, 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(n,) float64 in [low, high)."""
        self.count += 1
        return low + (high - low) * uniform(key(*self.parts, self.count), self.ids_n).double()

    def integer(self, low: int, high: int) -> Tensor:
        """(n,) int64 in [low, high], all equally likely."""
        return self.uniform(low, high + 1).long()


Change = Callable[[Tensor, Draws], Tensor]


@dataclass(frozen=True)
class Operation:
    """A change of images."""

    number: int  # keeps its random numbers apart from those of the others
    change: Change  # (n, 3, H, W) float32 whole numbers from 0 to 255 -> the same
    meaning: str


def crop(images_n3HW: Tensor, draws: Draws) -> Tensor:
    """Keep a random region where it is and blacken the rest.

    Source: ``crop_augment`` in AdaFace's augmenter: 20 to 100 % of the area, aspect 3/4 to 4/3.
    """
    top_n, left_n, height_n, width_n = _region(images_n3HW, draws, 0.2)
    y_H, x_W = (torch.arange(side, device=images_n3HW.device) for side in images_n3HW.shape[2:])
    in_rows_nH = (y_H >= top_n[:, None]) & (y_H < (top_n + height_n)[:, None])
    in_columns_nW = (x_W >= left_n[:, None]) & (x_W < (left_n + width_n)[:, None])
    return images_n3HW * (in_rows_nH[:, :, None] & in_columns_nW[:, None]).unsqueeze(1)


def zoom(images_n3HW: Tensor, draws: Draws) -> Tensor:
    """Enlarge a random region of 50 to 100 % of the area, aspect 3/4 to 4/3, to the whole image."""
    top_n, left_n, height_n, width_n = _region(images_n3HW, draws, 0.5)
    rows = resampling.zoom_matrix(top_n, height_n, images_n3HW.shape[2])
    return resampling.transform(images_n3HW, rows, resampling.zoom_matrix(left_n, width_n, images_n3HW.shape[3]))


def low_res(images_n3HW: Tensor, draws: Draws) -> Tensor:
    """Shrink to 20 to 100 % of the side and enlarge again, each with one of five interpolations.

    Source: ``low_res_augmentation`` in AdaFace's augmenter, with OpenCV's interpolations.
    """
    ratio_n, down_n, up_n = draws.uniform(0.2, 1.0), draws.integer(0, 4), draws.integer(0, 4)
    return _resize_there_and_back(images_n3HW, ratio_n, down_n, up_n, draws.device)


def resize(images_n3HW: Tensor, draws: Draws) -> Tensor:
    """Shrink to 50 to 80 % of the side and enlarge again, linearly, smoothed where it shrinks.

    Source: ``dali_random_resize`` of insightface's ``dali_data_iter``.
    """
    ratio_n = draws.uniform(56 / 112, 89 / 112)
    triangle_n = torch.full(ratio_n.shape, resampling.METHODS.index("triangle"))
    return _resize_there_and_back(images_n3HW, ratio_n, triangle_n, triangle_n, draws.device)


def blur(images_n3HW: Tensor, draws: Draws) -> Tensor:
    """Blur with a Gaussian in a window of 3 or 5 pixels, sigma 0.8 or 1.1.

    Source: ``dali_random_gaussian_blur`` of insightface's ``dali_data_iter``; DALI takes sigma from the window.
    """
    radius_n = to_device(draws.integer(1, 2), draws.device)
    sigma_n = 0.3 * (radius_n - 1) + 0.8
    rows, columns = (resampling.gaussian_matrix(sigma_n, radius_n, side) for side in images_n3HW.shape[2:])
    return resampling.transform(images_n3HW, rows, columns)


def motion(images_n3HW: Tensor, draws: Draws) -> Tensor:
    """Blur along a line of 3 to 9 pixels in any direction, as a moving face or camera does; edges are repeated."""
    angle_n, radius_n = draws.uniform(0, math.pi), draws.integer(1, _MOTION_RADIUS)
    samples_n, r = torch.arange(len(angle_n)), _MOTION_RADIUS
    kernels_nKK = torch.zeros(len(angle_n), 2 * r + 1, 2 * r + 1)  # how often the line meets each pixel
    for t in range(-r, r + 1):
        dy_n, dx_n = (t * angle_n.sin()).round().long(), (t * angle_n.cos()).round().long()
        kernels_nKK[samples_n, r + dy_n, r + dx_n] += radius_n >= abs(t)
    n, _, height, width = images_n3HW.shape
    padded = F.pad(images_n3HW, (r, r, r, r), mode="replicate").reshape(1, 3 * n, height + 2 * r, width + 2 * r)
    weights = to_device(kernels_nKK.repeat_interleave(3, 0)[:, None], draws.device)
    total = F.conv2d(padded, weights, groups=3 * n)
    return total.view_as(images_n3HW) / to_device(2 * radius_n + 1, draws.device)[:, None, None, None]


def colour(images_n3HW: Tensor, draws: Draws) -> Tensor:
    """Change brightness, contrast and saturation, each by a factor of 0.5 to 1.5, one after the other in any order.

    Source: ``photometric_augmentation`` in AdaFace's augmenter, which is torchvision's ``ColorJitter`` on PIL images;
    differs from it in that a step rounds, where PIL drops the fraction.
    """
    factors_n3 = to_device(torch.stack([draws.uniform(0.5, 1.5) for _ in range(3)], 1).float(), draws.device)
    orders_n3 = to_device(torch.tensor(_ORDERS)[draws.integer(0, len(_ORDERS) - 1)], draws.device)
    for step in range(3):
        which_n1 = orders_n3[:, step : step + 1]
        which_n111 = which_n1[..., None, None]
        factor_n111 = factors_n3.gather(1, which_n1)[..., None, None]
        grey_n1HW = _grey(images_n3HW)
        mean_n111 = grey_n1HW.long().sum((1, 2, 3)).double().div_(grey_n1HW[0].numel()).round_().float()
        target = torch.where(which_n111 == 2, grey_n1HW, mean_n111[:, None, None, None]) * (which_n111 > 0)
        blended = images_n3HW * factor_n111 + target * (1 - factor_n111)
        images_n3HW = blended.round_().clamp_(0, 255)
    return images_n3HW


def hsv(images_n3HW: Tensor, draws: Draws) -> Tensor:
    """Turn the hue by 0 to 20 degrees and raise the saturation by 0 to 20 %.

    Source: ``dali_random_hsv`` of insightface's ``dali_data_iter``; as DALI does it, in the plane of I and Q of YIQ.
    """
    angle_n, saturation_n = torch.deg2rad(draws.uniform(0, 20)), draws.uniform(1.0, 1.2)
    to_yiq = torch.tensor(_RGB_TO_YIQ, dtype=torch.float64)
    turn_n33 = torch.zeros(len(angle_n), 3, 3, dtype=torch.float64)
    turn_n33[:, 0, 0] = 1
    turn_n33[:, 1, 1] = turn_n33[:, 2, 2] = saturation_n * angle_n.cos()
    turn_n33[:, 1, 2] = saturation_n * angle_n.sin()
    turn_n33[:, 2, 1] = -turn_n33[:, 1, 2]
    matrix_n33 = to_device((to_yiq.inverse() @ turn_n33 @ to_yiq).float(), draws.device)
    # Three products in a fixed order: a matrix product may add in a different one for another batch.
    red, green, blue = (matrix_n33[:, :, i, None, None] * images_n3HW[:, i : i + 1] for i in range(3))
    return red + green + blue


def grey(images_n3HW: Tensor, draws: Draws) -> Tensor:
    """Remove the colour. Source: ``dali_random_gray`` of insightface's ``dali_data_iter``."""
    return _grey(images_n3HW).expand_as(images_n3HW)


# In the order in which they are applied; the flip comes last.
OPERATIONS: dict[str, Operation] = {
    "crop": Operation(2, crop, "a random region stays, the rest is black (AdaFace)"),
    "zoom": Operation(3, zoom, "a random region fills the image"),
    "low_res": Operation(4, low_res, "down to 20-100 % and up, random interpolation (AdaFace)"),
    "resize": Operation(5, resize, "down to 50-80 % and up (insightface)"),
    "blur": Operation(6, blur, "Gaussian, window 3 or 5 (insightface)"),
    "motion": Operation(7, motion, "blur along a line of 3-9 pixels"),
    "colour": Operation(8, colour, "brightness, contrast, saturation (AdaFace)"),
    "hsv": Operation(9, hsv, "hue and saturation (insightface)"),
    "grey": Operation(10, grey, "no colour (insightface)"),
}
PRESETS: dict[str, dict[str, float]] = {
    "adaface": {"crop": 0.2, "low_res": 0.2, "colour": 0.2},
    "insightface": {"resize": 0.1, "blur": 0.2, "hsv": 0.2, "grey": 0.1},
}
_FLIP = 1  # number of the flip


class Augmentation:
    """What is done to each training image before the network sees it.

    Args:
        choice: None (the flip alone), a name in ``PRESETS``, or the probability of each operation in ``OPERATIONS``
            that is wanted. The flip has the probability 0.5 unless "flip" is given too.
        seed: of the run.

    Raises:
        ValueError: an unknown name, with those known; a probability outside [0, 1].
    """

    def __init__(self, choice: str | Mapping[str, float] | None, seed: int) -> None:
        self.seed = seed
        given = {"flip": 0.5, **_probabilities(choice)}
        self.flip = given.pop("flip")
        self.probabilities = {name: given[name] for name in OPERATIONS if given.get(name)}

    def __str__(self) -> str:
        return ", ".join(f"{name} {p:g}" for name, p in (*self.probabilities.items(), ("flip", self.flip)))

    def __call__(self, images_BHW3: Tensor, sample_ids_B: Tensor, epoch: int) -> Tensor:
        """Change uint8 RGB images on their device; the input is left alone.

        Args:
            images_BHW3: (B, H, W, 3) uint8.
            sample_ids_B: each image's place in the data set; on the CPU, so that nothing waits for a GPU.
            epoch: which pass over the data this is.

        Returns:
            (B, H, W, 3) uint8 on the same device; nothing in it waits for that device.
        """
        ids_B, device, source = sample_ids_B.cpu(), images_BHW3.device, images_BHW3
        for name, probability in self.probabilities.items():
            operation = OPERATIONS[name]
            chosen_n = self._chosen(ids_B, epoch, operation.number, probability).nonzero().squeeze(1)
            if len(chosen_n) == 0:
                continue
            images_BHW3 = images_BHW3.clone() if images_BHW3 is source else images_BHW3
            draws = Draws(ids_B[chosen_n], device, self.seed, epoch, operation.number)
            at_n = to_device(chosen_n, device)
            changed = operation.change(images_BHW3[at_n].permute(0, 3, 1, 2).float(), draws)
            images_BHW3[at_n] = changed.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        flipped_B = to_device(self._chosen(ids_B, epoch, _FLIP, self.flip), device)
        return torch.where(flipped_B[:, None, None, None], images_BHW3.flip(2), images_BHW3)

    def _chosen(self, ids_B: Tensor, epoch: int, number: int, probability: float) -> Tensor:
        return uniform(key(self.seed, epoch, number), ids_B) >= 1 - probability


def _probabilities(choice: str | Mapping[str, float] | None) -> dict[str, float]:
    if isinstance(choice, str):
        if choice not in PRESETS:
            raise ValueError(
                f"augment = {choice!r} is not known; sets: {', '.join(PRESETS)}; or give probabilities such as "
                f'{{"crop": 0.2}} of {", ".join(OPERATIONS)}, flip'
            )
        return PRESETS[choice]
    for name, probability in (choice or {}).items():
        if name not in OPERATIONS and name != "flip":
            near = difflib.get_close_matches(name, (*OPERATIONS, "flip"), 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"augment has no operation {name!r}; {hint}known: {', '.join(OPERATIONS)}, flip")
        if not 0 <= probability <= 1:
            raise ValueError(f"augment: the probability of {name!r} must be in [0, 1], got {probability!r}")
    return dict(choice or {})


def _region(images_n3HW: Tensor, draws: Draws, least_area: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width, (n,) int64 each, of a random region: up to ten tries, else the whole image.

    Source: ``RandomResizedCrop.get_params`` of torchvision, with aspect 3/4 to 4/3.
    """
    H, W = images_n3HW.shape[2:]
    height_n = torch.full_like(draws.ids_n, H)
    width_n = torch.full_like(draws.ids_n, W)
    found_n = torch.zeros_like(draws.ids_n, dtype=torch.bool)
    for _ in range(10):
        area_n, aspect_n = (
            H * W * draws.uniform(least_area, 1.0),
            draws.uniform(math.log(3 / 4), math.log(4 / 3)).exp(),
        )
        w_n, h_n = (area_n * aspect_n).sqrt().round().long(), (area_n / aspect_n).sqrt().round().long()
        fits_n = ~found_n & (w_n > 0) & (w_n <= W) & (h_n > 0) & (h_n <= H)
        height_n, width_n = torch.where(fits_n, h_n, height_n), torch.where(fits_n, w_n, width_n)
        found_n |= fits_n
    top_n = (draws.uniform() * (H - height_n + 1)).long()
    left_n = (draws.uniform() * (W - width_n + 1)).long()
    return tuple(to_device(x, draws.device) for x in (top_n, left_n, height_n, width_n))  # type: ignore[return-value]


def _resize_there_and_back(
    images_n3HW: Tensor, ratio_n: Tensor, down_n: Tensor, up_n: Tensor, device: torch.device
) -> Tensor:
    """Resize to ``ratio`` of both sides with method ``down``, and back to the first size with method ``up``."""
    down, up = [], []
    for side in images_n3HW.shape[2:]:
        full_n = torch.full(ratio_n.shape, side)
        small_n = (ratio_n * side).long().clamp_(min=1)
        most = int(small_n.max())
        full_n, small_n = to_device(full_n, device), to_device(small_n, device)
        down.append(resampling.resize_matrix(full_n, small_n, to_device(down_n, device), side, most))
        up.append(resampling.resize_matrix(small_n, full_n, to_device(up_n, device), most, side))
    return resampling.transform(resampling.transform(images_n3HW, *down), *up)


def _grey(images_n3HW: Tensor) -> Tensor:
    """(n, 1, H, W) luma in whole levels, in 16-bit fixed point as PIL computes it; float32 holds it exactly."""
    red, green, blue = (round(weight * 65536) * images_n3HW[:, i : i + 1] for i, weight in enumerate(_LUMA))
    return (red + green + blue + 32768).div_(65536).floor_()
