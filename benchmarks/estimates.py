"""Estimates over runs and tasks, with stratified bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).

Scores are (R, T): R runs, one per seed, of T tasks. Statistics take any leading axes, so that one call serves all
resamples; R and T are always the last two. Numpy alone, so that ``benchmarks.rliable_parity`` runs anywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[..., Floats]


@dataclass(frozen=True)
class Estimate:
    """A statistic and its interval; arrays of one shape.

    Attributes:
        value: of the scores themselves.
        low: lower end.
        high: upper end.
    """

    value: Floats
    low: Floats
    high: Floats


def iqm(scores: Floats) -> Floats:
    """Interquartile mean: the mean of what is left of all R·T scores without the lowest and highest quarter.

    Args:
        scores: (..., R, T).

    Returns:
        (...); a quarter is rounded down to whole scores, as scipy's and rliable's is.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def profile(scores: Floats, thresholds: Floats) -> Floats:
    """Performance profile: the share of runs above each threshold.

    Args:
        scores: (..., R, T).
        thresholds: (X,).

    Returns:
        (..., X).
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    return np.stack([(flat > threshold).mean(axis=-1) for threshold in thresholds], axis=-1)


def improvement(ours: Floats, theirs: Floats) -> Floats:
    """Probability that a run of one agent scores above one of another on the same task, ties counted as half.

    The Mann-Whitney statistic over its largest value, averaged over tasks.

    Args:
        ours: (..., R, T).
        theirs: (..., R', T).

    Returns:
        (...).
    """
    difference = ours[..., :, None, :] - theirs[..., None, :, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-3, -2, -1))


def resamples(shape: tuple[int, int], reps: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Which runs each resample draws, with replacement and for every task apart: (reps, R, T), from 0 to R - 1."""
    return generator.integers(shape[0], size=(reps, *shape))


def estimate(
    statistic: Statistic, scores: Sequence[Floats], indices: Sequence[NDArray[np.int64]], level: float
) -> Estimate:
    """A statistic with its percentile interval over resamples.

    Args:
        statistic: of one or several (..., R, T).
        scores: its arguments, (R, T) each.
        indices: runs that the resamples of each argument draw, (reps, R, T) each.
        level: of the interval.
    """
    drawn = [of_one[rows, np.arange(of_one.shape[1])] for of_one, rows in zip(scores, indices, strict=True)]
    tails = 50 * (1 - level), 50 * (1 + level)
    low, high = np.percentile(statistic(*drawn), tails, axis=0)
    return Estimate(statistic(*scores), low, high)
