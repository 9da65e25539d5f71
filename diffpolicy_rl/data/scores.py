"""Normalised scores as D4RL has them (Fu et al. 2020, arXiv 2004.07219): 0 is a random policy, 100 an expert.

The references are those of D4RL's own simulator. Gymnasium's v5 tasks have nearly the same rewards but not the same
physics, so that scores on them compare runs with each other, not with published tables. Tasks with costs have
DSRL's references, the lowest and highest returns of its sets, and its normalised cost (Liu et al. 2023, arXiv
2306.09303).
"""

import numpy as np
from numpy.typing import NDArray

_REFERENCES = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
    "SafeHopper": (37.05154800415039, 1911.396728515625),
    "SafeWalker2d": (18.668498992919922, 3418.223876953125),
    "SafeHalfCheetah": (5.7509765625, 2806.93310546875),
}


def normalized_score(env_id: str, value: float) -> float | None:
    """100 (value - random) / (expert - random) of an undiscounted return; None for a task without references."""
    reference = _REFERENCES.get(env_id.partition("-")[0])
    if reference is None:
        return None
    low, high = reference
    return 100 * (value - low) / (high - low)


def normalized_cost(cost: float, limit: float) -> float:
    """(cost + eps) / (limit + eps) of an episode's cost, with eps = 1 only where nothing may cost; safe is below 1."""
    eps = 1.0 if limit == 0 else 0.0
    return (cost + eps) / (limit + eps)


def describe(env_id: str, returns: NDArray[np.float64], costs: NDArray[np.float64] | None = None) -> list[str]:
    """Lines on how a set's episodes are distributed: what a result on it must be compared with.

    Args:
        env_id: the task.
        returns: undiscounted return of each episode.
        costs: summed cost of each, if the set has costs.
    """
    lines = [f"return {_distribution(returns)}"]
    if costs is not None:
        lines.append(f"cost {_distribution(costs)}; {(costs == 0).mean():.0%} of the episodes cost nothing")
    score = normalized_score(env_id, returns.mean())
    if score is not None:
        owner = "DSRL" if env_id.startswith("Safe") else "D4RL"
        lines.append(
            f"normalised score of the mean {score:.1f}, by {owner}'s references: Gymnasium's v5 physics is not "
            f"{owner}'s, so compare it with scores on this very set, not with published tables"
        )
    return lines


def _distribution(values: NDArray[np.float64]) -> str:
    quantiles = np.quantile(values, (0.1, 0.25, 0.5, 0.75, 0.9))
    middle = " ".join(f"{value:.1f}" for value in quantiles)
    spread = f"{values.min():.1f} to {values.max():.1f}"
    return f"{values.mean():.1f} ± {values.std():.1f}, {spread}, 10/25/50/75/90 %: {middle}"
