"""Normalised scores as D4RL has them (Fu et al. 2020, arXiv 2004.07219): 0 is a random policy, 100 an expert.

The references are those of D4RL's own simulator. Gymnasium's v5 tasks have nearly the same rewards but not the same
physics, so that scores on them compare runs with each other, not with published tables.
"""

_REFERENCES = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}


def normalized_score(env_id: str, value: float) -> float | None:
    """100 (value - random) / (expert - random) of an undiscounted return; None for a task without references."""
    reference = _REFERENCES.get(env_id.partition("-")[0])
    if reference is None:
        return None
    low, high = reference
    return 100 * (value - low) / (high - low)
