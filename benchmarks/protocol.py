"""How runs are scored and compared: the one place that fixes it.

A run's score is the mean of its last evaluations during training; beside it stands its best checkpoint, which those
evaluations selected and which was then evaluated again on fresh episodes, because the largest of many noisy figures is
too large. Agents are compared over all tasks with the estimators of Agarwal et al. 2021 (arXiv 2108.13264).
"""

import statistics
from typing import Any

from diffpolicy_rl.data.scores import normalized_score

LAST = 10
"""Evaluations at the end of training whose mean is a run's score."""

LEVEL = 0.95
"""Of every interval."""

REPS = 10_000
"""Bootstrap resamples."""

BOOTSTRAP_SEED = 0
"""Of the resamples, so that a report made again says the same."""

THRESHOLDS = 101
"""Scores at which performance profiles are drawn, from the lowest of all runs to the highest."""

STATEMENT = (
    f"last {LAST}: the mean of a run's last {LAST} evaluations during training, of all if there are fewer. "
    "best: the checkpoint that all evaluations during training put first, evaluated again on fresh episodes; it takes "
    "a simulator to select, so read it as an upper bound. ± is Student's 95 % interval over seeds; brackets are "
    f"{100 * LEVEL:.0f} % percentile intervals of {REPS:,} bootstrap resamples, stratified by task."
)
PAIRED = "Seeds are paired: every agent has the same ones on a task."
UNPAIRED = "Seeds are not paired: agents have different ones on a task."

UNITS = {
    "success": "success, %",
    "reference": "normalised score by references: 0 and 100 are D4RL's random policy and its expert, and where tasks "
    "have costs the lowest and the highest return of DSRL's data",
    "data": "normalised return: 0 the lowest and 100 the highest in the data",
    "return": "undiscounted return",
}
CAUTION = (
    "The references are of other simulators than the current MuJoCo, and published tables of other data: these scores "
    "compare the runs here with each other alone."
)


def unit_of(task: dict[str, Any], run: dict[str, Any]) -> str:
    """What a task is scored in: a key of ``UNITS``.

    Args:
        task: its ``env``, and its ``data`` as ``records.describe_data`` says it, if it has any.
        run: a record of one of its runs.
    """
    if "success" in run["final"]:
        return "success"
    if normalized_score(task["env"], 0) is not None:
        return "reference"
    quartiles = (task["data"] or {}).get("return_quartiles", [0])
    return "data" if quartiles[-1] > quartiles[0] else "return"


def score(value: float, task: dict[str, Any]) -> float:
    """An undiscounted return, or a share of successes, in the unit of its task."""
    if task["unit"] == "success":
        return 100 * value
    if task["unit"] == "reference":
        normalized = normalized_score(task["env"], value)
        assert normalized is not None
        return normalized
    if task["unit"] == "data":
        low, *_, high = task["data"]["return_quartiles"]
        return 100 * (value - low) / (high - low)
    return value


def last(curve: dict[str, Any], key: str) -> list[float]:
    """What the last evaluations of a run's curve say; what it started from is none of them."""
    return [value for x, value in zip(curve["x"], curve[key], strict=True) if x > 0][-LAST:]


def last_mean(curve: dict[str, Any], key: str) -> float:
    """Mean of the last evaluations."""
    return statistics.fmean(last(curve, key))
