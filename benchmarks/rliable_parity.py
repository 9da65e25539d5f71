"""Are our estimates rliable's? ``python -m benchmarks.rliable_parity`` in an environment that has rliable.

It wants an older pandas than the rest, so in one of its own:
``python -m venv other; other/bin/pip install rliable "pandas<3"; other/bin/python -m benchmarks.rliable_parity``.
rliable draws its resamples from numpy's global generator; the same draws are given to ours. What it prints is what
``tests/benchmarks/test_estimates.py`` holds ours to where rliable is not installed.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.estimates import Estimate, Floats, estimate, improvement, iqm, profile

RUNS, TASKS, REPS, LEVEL, SEED = 5, 3, 500, 0.95, 7
_LIMIT = 1e-12


def scores() -> tuple[Floats, Floats]:
    """Two agents' (R, T): numpy's legacy generator, whose draws never change; rounded, so that some are equal."""
    generator = np.random.RandomState(SEED)
    return generator.normal(50, 20, (RUNS, TASKS)).round(-1), generator.normal(60, 20, (RUNS, TASKS)).round(-1)


def thresholds() -> Floats:
    """Of the profile."""
    return np.array([20.0, 50.0, 80.0])


def draws(agents: int) -> list[NDArray[np.int64]]:
    """Indices (reps, R, T) of each agent as rliable draws them: by turns, one resample after the other."""
    generator = np.random.RandomState(SEED)
    drawn = [[generator.choice(RUNS, (RUNS, TASKS)) for _ in range(agents)] for _ in range(REPS)]
    return [np.stack(of_one) for of_one in zip(*drawn, strict=True)]


def ours() -> dict[str, Estimate]:
    """What this package makes of these scores and draws."""
    a, b = scores()
    return {
        "iqm": estimate(iqm, [a], draws(1), LEVEL),
        "profile": estimate(lambda x: profile(x, thresholds()), [a], draws(1), LEVEL),
        "improvement": estimate(improvement, [a, b], draws(2), LEVEL),
    }


def theirs() -> dict[str, Estimate]:
    """What rliable does."""
    from rliable import library, metrics  # type: ignore[import-not-found]

    a, b = scores()
    single: dict[str, Callable[..., Any]] = {
        "iqm": lambda x: np.array([metrics.aggregate_iqm(x)]),
        "profile": lambda x: library.score_distributions(x, thresholds()),
        "improvement": lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
    }
    found = {}
    for name, statistic in single.items():
        np.random.seed(SEED)
        given = {"it": [a, b] if name == "improvement" else a}
        value, interval = library.get_interval_estimates(given, statistic, reps=REPS, confidence_interval_size=LEVEL)
        found[name] = Estimate(value["it"], *interval["it"])
    return found


def main() -> None:
    """Compare, and print rliable's numbers."""
    expected = theirs()
    for name, mine in ours().items():
        for part in ("value", "low", "high"):
            found, known = getattr(mine, part), getattr(expected[name], part)
            error = float(np.abs(found - known).max())
            assert error < _LIMIT, f"{name}.{part}: ours {found}, rliable's {known}"
    print(json.dumps({name: [x.tolist() for x in vars(known).values()] for name, known in expected.items()}))


if __name__ == "__main__":
    main()
