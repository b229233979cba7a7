"""Random numbers as functions of what they are for: no state, no order, the same on every rank.

A draw is the hash of (seed, ..., id). So sample 7 of epoch 3 is flipped, or class 12 starts at the same place,
whoever asks, and whenever.
"""

import math

import torch
from torch import Tensor

_MASK_64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(x: int) -> int:
    """The int64 that has the low 64 bits of ``x``."""
    x &= _MASK_64
    return x - (1 << 64) if x >> 63 else x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """The logical (zero-filling) right shift of int64."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Hash int64 values elementwise to int64 values that look independent and uniform; a bijection.

    Source: the finalizer of SplitMix64 (Steele et al., OOPSLA 2014).
    """
    x = x + _signed(_GOLDEN)
    x = x.bitwise_xor_(_shift_right(x, 30)).mul_(_signed(_MIX_1))
    x = x.bitwise_xor_(_shift_right(x, 27)).mul_(_signed(_MIX_2))
    return x.bitwise_xor_(_shift_right(x, 31))


def key(*parts: int) -> int:
    """One int64 from several integers, such as (seed, epoch); the order of the parts counts."""
    state = 0
    for part in parts:
        state = (state ^ (part & _MASK_64)) + _GOLDEN & _MASK_64
        state = (state ^ (state >> 30)) * _MIX_1 & _MASK_64
        state = (state ^ (state >> 27)) * _MIX_2 & _MASK_64
        state ^= state >> 31
    return _signed(state)


def uniform(key_: int, ids: Tensor) -> Tensor:
    """A number in [0, 1) for each id (int64, any shape), float32, from a :func:`key`."""
    return _shift_right(mix(ids ^ key_), 40).float().mul_(2.0**-24)


def permuted(key_: int, ids: Tensor, size: int) -> Tensor:
    """The place of each id (int64 in [0, size), any shape) in a random order of all of them, from a :func:`key`.

    A Feistel network over two digits of unlike base; the few results past ``size`` go through it again.
    """
    first = math.isqrt(size - 1) + 1
    second = -(-size // first)
    left, right = ids // second, ids % second
    for turn in range(3):
        left = _turned(left, mix(right ^ key(key_, turn, 0)), first)
        right = _turned(right, mix(left ^ key(key_, turn, 1)), second)
    places = left * second + right
    if (past := places >= size).any():
        places[past] = permuted(key_, places[past], size)
    return places


def _turned(digit: Tensor, hashed: Tensor, base: int) -> Tensor:
    """``digit`` in [0, base), moved on by a hash; base is below 2**31."""
    moved = _shift_right(hashed, 33).mul_(base).bitwise_right_shift_(31).add_(digit)
    return moved.sub_(moved.ge(base).long().mul_(base))


def normal(key_: int, ids_N: Tensor, width: int) -> Tensor:
    """A row of ``width`` standard normal numbers for each id.

    Two numbers come from each 64-bit hash by the Box-Muller transform, in float32; the largest magnitude is 5.8.

    Args:
        key_: from :func:`key`.
        ids_N: (N,) int64, at least 0.
        width: numbers for each id.

    Returns:
        (N, width) float32 on the device of ``ids_N``.
    """
    pairs = (width + 1) // 2
    counter_NP = ids_N.unsqueeze(1) * pairs + torch.arange(pairs, device=ids_N.device)
    hashed_NP = mix(counter_NP ^ key_)
    uniform_NP = _shift_right(hashed_NP, 40).float().add_(1).mul_(2.0**-24)  # in (0, 1]
    angle_NP = _shift_right(hashed_NP, 8).bitwise_and_(0xFFFFFF).float().mul_(2 * torch.pi * 2.0**-24)
    radius_NP = uniform_NP.log_().mul_(-2).sqrt_()
    out = radius_NP.new_empty((len(ids_N), 2 * pairs))
    torch.mul(radius_NP, angle_NP.cos(), out=out[:, :pairs])
    torch.mul(radius_NP, angle_NP.sin_(), out=out[:, pairs:])
    return out[:, :width]
