"""What is kept of finished runs: a record per run, with all that tables, figures and their makers' questions need."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finished import Finished, agent_of, known_source, refuse_unlike
from benchmarks.protocol import unit_of
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.build import read_data
from diffpolicy_rl.training.config import DataConfig, TrainConfig
from diffpolicy_rl.training.logger import read_metrics

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NUMBERS = ("mean", "std", "ci_low", "ci_high", "episodes", "success", "cost")
_CURVE = ("mean", "ci_low", "ci_high", "success", "cost")
_MADE_WITH = ("commit", "machine", "versions")


def collect(runs: Sequence[Finished]) -> dict[str, Any]:
    """Tasks by name, and the record of every run.

    Raises:
        UserError: if runs of one agent on one task are of one seed, or differ in more than it.
    """
    refuse_unlike(runs)
    tasks: dict[str, Any] = {}
    records = []
    for run in runs:
        record = {"task": run.task, "agent": run.agent} | summarize(run.folder, run.config)
        if run.task not in tasks:
            task = {"env": run.config.env.id, "data": _known_data(run.config)}
            tasks[run.task] = task | {"unit": unit_of(task, record)}
        records.append(record)
    return {"tasks": tasks, "runs": records}


def _known_data(config: TrainConfig) -> dict[str, Any] | None:
    source = known_source(config)
    try:
        return describe_data(source and replace(source, max_cost=None))  # some agents learn from a part of it
    except UserError:  # the file is no longer where it was
        return {"path": source.path if source else None}


def describe_data(source: DataConfig | None) -> dict[str, Any] | None:
    """Where data comes from and how well it does: returns of its episodes, and what they cost if they do."""
    if source is None:
        return None
    data = read_data(source)
    returns = data.returns()[: source.episodes]
    described = {
        "path": source.path,
        "command": data.attributes.get("command"),
        "episodes": len(returns),
        "return_mean": _short(returns.mean()),
        "return_std": _short(returns.std()),
        "return_quartiles": [_short(value) for value in np.quantile(returns, (0, 0.25, 0.5, 0.75, 1))],
    }
    costs = data.episode_costs()
    if costs is not None:
        described["cost_mean"] = _short(costs[: len(returns)].mean())
    return described


def _short(value: float) -> float:
    """Six digits: what machines agree on."""
    return float(f"{value:.6g}")


def provenance(run: Path) -> dict[str, Any]:
    """How a run was made, with what it was resumed if it was, and what it cost."""
    manifest, summary = _read(run, "manifest"), _read(run, "summary")
    made = {key: manifest[key] for key in ("command", "seed", *_MADE_WITH)}
    resumed = [{key: again[key] for key in _MADE_WITH} for again in manifest.get("resumed", ())]
    cost = {key: summary[key] for key in ("env_steps", "gradient_steps", "wall_s", "seconds")}
    if "cpu_s" in summary:  # earlier runs did not keep count
        cost["cpu_s"] = summary["cpu_s"]
    return made | ({"resumed": resumed} if resumed else {}) | cost


def _read(run: Path, part: str) -> dict[str, Any]:
    try:
        return json.loads((run / f"{part}.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{run} has no sound {part}.json; leave it out, or train it anew") from None


def evaluations(run: Path) -> dict[str, Any]:
    """A run's evaluations on fresh episodes: of its base if it had one, of its final and of its best policy."""
    summary = _read(run, "summary")
    parts = {part: summary[part] for part in ("base", "final", "best") if summary[part]}
    return {part: {key: result[key] for key in NUMBERS if key in result} for part, result in parts.items()}


def summarize(run: Path, config: TrainConfig) -> dict[str, Any]:
    """The record of a run: provenance, evaluations, how it samples, and its curve by column.

    A curve's ``x`` counts ``env steps``, or ``gradient steps`` where a run made no env steps.
    """
    steps = 1 if agent_of(config) == "FQL" else config.policy.steps  # FQL acts with its one-step policy
    chosen: dict[str, Any] = {"steps": steps}
    if config.agent.get("candidates", 1) > 1:
        chosen |= {key: config.agent[key] for key in ("candidates", "temperature", "choice") if key in config.agent}
    if config.policy.noise_scale != 1:
        chosen["noise_scale"] = config.policy.noise_scale
    return provenance(run) | evaluations(run) | {"sampling": chosen, "curve": _curve(run, config)}


def scored(points: Sequence[dict[str, Any]]) -> bool:
    """Whether any of a run's evaluations was made while it learned."""
    return any(point["iteration"] for point in points)


def evaluated(run: Path) -> list[dict[str, Any]]:
    """The evaluations of a run's last phase, and of its base."""
    records = read_metrics(run / "metrics.jsonl")
    return [record for record in records if "eval/mean" in record and record["phase"] in (records[-1]["phase"], "base")]


def _curve(run: Path, config: TrainConfig) -> dict[str, Any]:
    points = evaluated(run)
    if not scored(points):
        raise UserError(f"{run} was never evaluated while it learned, so that it has no score; leave it out")
    if points[-1]["env_steps"]:
        curve: dict[str, Any] = {"unit": "env steps", "x": [point["env_steps"] for point in points]}
    else:
        each = config.agent.get("steps", 1)
        curve = {"unit": "gradient steps", "x": [each * point["iteration"] for point in points]}
    for key in _CURVE:
        if f"eval/{key}" in points[0]:
            curve[key] = [_short(point[f"eval/{key}"]) for point in points]
    return curve
