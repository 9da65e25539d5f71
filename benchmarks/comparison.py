"""Results as scores: what every table and figure of a report is made of."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from benchmarks import protocol
from benchmarks.estimates import Estimate, Floats, estimate, improvement, iqm, profile, resamples

Part = Literal["last", "best"]

# Two-sided 95 % quantiles of Student's t for 2 to 10 seeds.
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
_Z95 = statistics.NormalDist().inv_cdf(0.975)


def half_interval(values: Sequence[float]) -> float | None:
    """Half of Student's 95 % interval of a mean; None for a single seed."""
    if len(values) < 2:
        return None
    return _t95(len(values)) * statistics.stdev(values) / math.sqrt(len(values))


def _t95(seeds: int) -> float:
    """Student's quantile: tabled, or by its expansion in 1 / (seeds - 1) (Abramowitz & Stegun 1964, eq. 26.7.5)."""
    if seeds in _T95:
        return _T95[seeds]
    z, inverse = _Z95, 1 / (seeds - 1)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + inverse * first + inverse**2 * second + inverse**3 * third


class Comparison:
    """Agents on tasks.

    Args:
        results: ``tasks`` and ``runs``, as ``records.collect`` makes them.

    Attributes:
        tasks: by name.
        runs: records by (task, agent), in the order of their seeds.
        agents: names, in the order of the results.
        cost_limit: what an episode may cost at most to count as safe, if anything.
    """

    def __init__(self, results: dict[str, Any]) -> None:
        self.tasks: dict[str, dict[str, Any]] = results["tasks"]
        self.cost_limit: float | None = results.get("cost_limit")
        self.runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for run in sorted(results["runs"], key=lambda run: run["seed"]):
            self.runs[run["task"], run["agent"]].append(run)
        self.agents = list(dict.fromkeys(run["agent"] for run in results["runs"]))

    def scores(self, task: str, agent: str, part: Part) -> dict[int, float]:
        """A score per seed, in the unit of the task."""
        found = self.tasks[task]
        key = "success" if found["unit"] == "success" else "mean"
        values: Callable[[dict[str, Any]], float] = (
            (lambda run: protocol.last_mean(run["curve"], key)) if part == "last" else (lambda run: run["best"][key])
        )
        return {run["seed"]: protocol.score(values(run), found) for run in self.runs[task, agent]}

    @cached_property
    def comparable(self) -> bool:
        """Whether scores of different tasks can be put together: there is but one, or none is a plain return."""
        return len(self.tasks) == 1 or all(task["unit"] != "return" for task in self.tasks.values())

    @cached_property
    def paired(self) -> bool:
        """Whether every agent has the same seeds on a task, where it has any."""
        seeds: dict[str, set[tuple[int, ...]]] = defaultdict(set)
        for (task, _), runs in self.runs.items():
            seeds[task].add(tuple(run["seed"] for run in runs))
        return all(len(found - {()}) == 1 for found in seeds.values())

    def matrices(self, part: Part) -> dict[str, Floats]:
        """(R, T) by agent, of the seeds finished on every task; agents without one are left out."""
        found: dict[str, Floats] = {}
        for agent in self.agents if self.comparable else ():
            columns = [self.scores(task, agent, part) for task in self.tasks]
            seeds = sorted(set.intersection(*map(set, columns)))
            if seeds:
                found[agent] = np.array([[column[seed] for column in columns] for seed in seeds])
        return found

    def iqms(self, part: Part) -> dict[str, Estimate]:
        """Interquartile mean over all tasks by agent."""
        return {agent: _estimate(iqm, scores) for agent, scores in self.matrices(part).items()}

    def profiles(self) -> tuple[Floats, dict[str, Estimate]]:
        """Thresholds (X,), and the share of runs above each (X,) by agent."""
        matrices = self.matrices("last")
        every = np.concatenate([scores.ravel() for scores in matrices.values()])
        thresholds = np.linspace(every.min(), every.max(), protocol.THRESHOLDS)
        return thresholds, {a: _estimate(lambda x: profile(x, thresholds), x) for a, x in matrices.items()}

    def improvements(self) -> dict[tuple[str, str], Estimate]:
        """Probability that the first agent scores above the second, of every two."""
        found = self.matrices("last")
        pairs = [(ours, theirs) for ours in found for theirs in found if ours != theirs]
        return {pair: _estimate(improvement, *(found[agent] for agent in pair)) for pair in pairs}

    def of_agent(self, agent: str) -> list[dict[str, Any]]:
        """All its runs."""
        return [run for (_, name), runs in self.runs.items() if name == agent for run in runs]


def _estimate(statistic: Callable[..., Floats], *scores: Floats) -> Estimate:
    generator = np.random.default_rng(protocol.BOOTSTRAP_SEED)
    indices = [resamples((len(x), x.shape[1]), protocol.REPS, generator) for x in scores]
    return estimate(statistic, scores, indices, protocol.LEVEL)
