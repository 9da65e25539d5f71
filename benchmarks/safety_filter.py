"""Microseconds per call of the safety filter, for two arms of seven joints."""

import statistics
import time

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Figures
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.runtime.limits import SafetyFilter
from diffpolicy_rl.runtime.manifest import Limits

_JOINTS, _DT, _CALLS = 14, 0.02, 1000
_LIMITS = Limits(
    low=(-2.8,) * _JOINTS,
    high=(2.8,) * _JOINTS,
    velocity=(2.0,) * _JOINTS,
    acceleration=(10.0,) * _JOINTS,
    jerk=(100.0,) * _JOINTS,
    workspace=None,
)


def measure(repeats: int) -> dict[str, Figures]:
    """Median and 99th percentile where every action passes, and where every call clips all joints.

    Args:
        repeats: turns of 1,000 calls each.

    Raises:
        UserError: if the actions are not what they are said to be.
    """
    times = _DT * np.arange(_CALLS)[:, None]
    smooth = 1.0 - np.cos(times * np.linspace(0.5, 1.0, _JOINTS))  # from rest
    wild = np.random.default_rng(0).normal(size=(_CALLS, _JOINTS)) * 1e3
    return {"within_limits": _timed(smooth, 0, repeats), "clipped": _timed(wild, _CALLS, repeats)}


def _timed(actions: NDArray[np.float64], flagged: int, repeats: int) -> Figures:
    safety, microseconds = SafetyFilter(_LIMITS, _DT), []
    for _ in range(repeats):
        safety.reset(np.zeros(_JOINTS))
        clips = 0
        for action in actions:
            began = time.perf_counter_ns()
            filtered = safety(action)
            microseconds.append((time.perf_counter_ns() - began) / 1e3)
            clips += bool(filtered.flags)
        if clips != flagged:
            raise UserError(f"{clips} of {len(actions)} actions were flagged, not {flagged}")
    return {"median_us": statistics.median(microseconds), "p99_us": float(np.percentile(microseconds, 99))}
