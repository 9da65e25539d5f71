"""Random numbers as a pure function of (seed, row, episode, index), so that a stream's whole state is a counter.

The function is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) written in
wrapping int64 tensor arithmetic: rows are drawn together, on any device, and a row's numbers do not depend on how many
other rows there are.
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shift(x: Tensor, places: int) -> Tensor:
    """Logical right shift; the one torch has keeps the sign."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output function: a bijection that spreads every input bit over the whole word."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _bits(seed: int, row: Tensor, episode: Tensor, n: int) -> Tensor:
    """Random words (len(row), n) int64."""
    key = torch.full_like(row, seed % 2**63)
    for part in (row, episode):
        key = _mix(_mix(key) + part * _GOLDEN)
    index = torch.arange(1, n + 1, device=row.device)
    return _mix(key[:, None] + index * _GOLDEN)


def uniform(seed: int, row: Tensor, episode: Tensor, n: int) -> Tensor:
    """Uniform numbers in the open interval (0, 1).

    Args:
        seed: the environment's seed.
        row: row indices (R,) int64.
        episode: episode numbers (R,) int64.
        n: how many numbers per row.

    Returns:
        (R, n) float64; neither 0 nor 1 occurs, so a normal quantile of it is finite.
    """
    # 52 bits and a half fill a double's mantissa exactly; one bit more would round up to 1.
    return (_shift(_bits(seed, row, episode, n), 12).double() + 0.5) * 2.0**-52


def episode_seeds(seed: int, row: Tensor, episode: Tensor) -> Tensor:
    """Seeds (R,) int64 in [0, 2**31) for simulators that bring their own generator; arguments as in ``uniform``."""
    return _shift(_bits(seed, row, episode, 1)[:, 0], 33)
