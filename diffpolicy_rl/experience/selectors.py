"""Choosing among M candidate actions by their values."""

from typing import NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """Chosen candidates, where k is absent when one was chosen.

    Attributes:
        actions: (k, B, ...).
        values: theirs (k, B).
        indices: which of the M candidates they are (k, B) int64.
    """

    actions: Tensor
    values: Tensor
    indices: Tensor


def argmax(values: Tensor, candidates: Tensor) -> Choice:
    """The best candidate of each row.

    Args:
        values: (M, B).
        candidates: (M, B, ...).
    """
    return _take(values, candidates, values.argmax(0))


def top_k(values: Tensor, candidates: Tensor, k: int) -> Choice:
    """The k best candidates of each row, best first; all of them, sorted, if there are fewer.

    Args:
        values: (M, B).
        candidates: (M, B, ...).
        k: how many.
    """
    return _take(values, candidates, values.topk(min(k, len(values)), dim=0).indices)


def sample_softmax(values: Tensor, candidates: Tensor, draws: Tensor) -> Choice:
    """One candidate per row with probability proportional to exp(value), as PA-RL does (Mark et al. 2024).

    Args:
        values: (M, B); divide them by a temperature for another one than 1.
        candidates: (M, B, ...).
        draws: (B,) uniform in [0, 1), which decide.
    """
    below = values.softmax(0).cumsum(0) <= draws
    return _take(values, candidates, below[:-1].sum(0))  # the last sum is 1, though it may not round to it


def gumbel(normal: Tensor) -> Tensor:
    """Standard Gumbel numbers (...) made of standard normal ones.

    With such numbers on top, the highest of some values is one with probability proportional to exp(value) (Gumbel
    1954): what ``sample_softmax`` draws, but without a sum over values that cannot win.
    """
    uniform = torch.special.ndtr(normal).clamp(1e-30, 1 - 1e-7)
    return -(-uniform.log()).log()


def _take(values: Tensor, candidates: Tensor, indices: Tensor) -> Choice:
    rows = torch.arange(values.shape[1], device=values.device)
    return Choice(candidates[indices, rows], values[indices, rows], indices)
