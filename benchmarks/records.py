"""What is kept of finished runs: a record per run, with all that tables, figures and their makers' questions need."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import unit_of
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.build import phases_of, read_data
from diffpolicy_rl.training.config import DataConfig, TrainConfig, to_plain
from diffpolicy_rl.training.logger import read_metrics
from diffpolicy_rl.training.run import read_config

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NUMBERS = ("mean", "std", "ci_low", "ci_high", "episodes", "success", "cost")
_CURVE = ("mean", "ci_low", "ci_high", "success", "cost")
_OWN = ("seed", "run_dir", "base", "threads", "loggers", "video")  # in which runs of one agent on one task may differ


@dataclass(frozen=True)
class Finished:
    """A finished run and its place in a comparison.

    Attributes:
        folder: the run folder.
        config: its settings.
        task: what it was trained on.
        agent: what was trained.
    """

    folder: Path
    config: TrainConfig
    task: str
    agent: str

    @property
    def settings(self) -> dict[str, Any]:
        """Those that all runs of one agent on one task share."""
        return shared_settings(self.config)


def shared_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that all runs of one agent on one task share."""
    return {key: value for key, value in to_plain(config).items() if key not in _OWN}


def find_runs(places: Iterable[Path], trust: Collection[str] = ()) -> list[Finished]:
    """Finished runs in run folders, or in folders of them.

    A task is the environment, and the data too where several sets are learned from in it; an agent is its class, or the
    run folder's name where one class was trained with several settings on one task.

    Args:
        places: the folders.
        trust: modules outside diffpolicy_rl that the runs may name.

    Raises:
        UserError: for a folder without a finished run.
    """
    configs: dict[Path, TrainConfig] = {}
    for place in places:
        folders = [summary.parent for pattern in ("", "*/") for summary in sorted(place.glob(f"{pattern}summary.json"))]
        if not folders:
            raise UserError(f"there is no finished run in {place}: neither it nor a folder in it has a summary.json")
        configs |= {folder: read_config(folder, trust) for folder in folders}
    sets: dict[str, set[str]] = defaultdict(set)
    for config in configs.values():
        sets[config.env.id] |= {_data_name(config)} - {""}
    found = [
        Finished(folder, config, _task(config, sets[config.env.id]), agent_of(config).lower())
        for folder, config in configs.items()
    ]
    variants: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in found:
        variants[run.task, run.agent].add(json.dumps(run.settings))
    several = {agent for (_, agent), settings in variants.items() if len(settings) > 1}
    return [replace(run, agent=_without_seed(run.folder.name)) if run.agent in several else run for run in found]


def agent_of(config: TrainConfig) -> str:
    """The name of a run's agent."""
    return re.split("[.:]", config.agent["_target_"])[-1]


def _task(config: TrainConfig, sets: set[str]) -> str:
    data = _data_name(config)
    return f"{config.env.id}, {data}" if data and len(sets) > 1 else config.env.id


def _data_name(config: TrainConfig) -> str:
    source = _known_source(config)
    return Path(str(source.path)).stem if source else ""


def _without_seed(name: str) -> str:
    return re.sub(r"_s\d+$", "", name)


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


def refuse_unlike(runs: Sequence[Finished]) -> None:
    """Raise UserError if runs of one agent on one task are of one seed, or differ in more than it."""
    first: dict[tuple[str, str], Finished] = {}
    seen: dict[tuple[str, str, int], Finished] = {}
    for run in runs:
        other = first.setdefault((run.task, run.agent), run)
        for name, value in run.settings.items():
            if value != other.settings[name]:
                both = f"{other.folder} and {run.folder}"
                raise UserError(f"{both} differ in {name}, not in their seed alone; train one of them anew")
        other = seen.setdefault((run.task, run.agent, run.config.seed), run)
        if other is not run:
            raise UserError(f"{other.folder} and {run.folder} are the same training with the same seed; leave one out")


def _known_source(config: TrainConfig) -> DataConfig | None:
    try:
        return source_of(config)
    except UserError:  # the base is no longer where it was
        return None


def _known_data(config: TrainConfig) -> dict[str, Any] | None:
    source = _known_source(config)
    try:
        return describe_data(source and replace(source, max_cost=None))  # some agents learn from a part of it
    except UserError:  # the file is no longer where it was
        return {"path": source.path if source else None}


def source_of(config: TrainConfig) -> DataConfig | None:
    """The data that a run, or the one it starts from, learned from; None if from none."""
    if config.base:
        return source_of(read_config(Path(config.base)))
    learns = config.agent.get("mixing", "none") != "none" or not {"bc", "offline"}.isdisjoint(phases_of(config))
    return config.data if learns and config.data.path else None


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
    """How a run was made, and what it cost."""
    manifest, summary = (json.loads((run / f"{part}.json").read_text()) for part in ("manifest", "summary"))
    kept = {key: summary[key] for key in ("env_steps", "gradient_steps", "wall_s", "seconds")}
    return {key: manifest[key] for key in ("command", "commit", "seed", "machine", "versions")} | kept


def evaluations(run: Path) -> dict[str, Any]:
    """A run's evaluations on fresh episodes: of its base if it had one, of its final and of its best policy."""
    summary = json.loads((run / "summary.json").read_text())
    parts = {part: summary[part] for part in ("base", "final", "best") if summary[part]}
    return {part: {key: result[key] for key in NUMBERS if key in result} for part, result in parts.items()}


def summarize(run: Path, config: TrainConfig) -> dict[str, Any]:
    """The record of a run: provenance, evaluations, how it samples, and its curve by column.

    A curve's ``x`` counts ``env steps``, or ``gradient steps`` where a run made no env steps.
    """
    chosen = {"steps": 1 if agent_of(config) == "FQL" else config.policy.steps}  # which acts with its one-step policy
    if config.agent.get("candidates", 1) > 1:
        chosen |= {key: config.agent[key] for key in ("candidates", "temperature") if key in config.agent}
    return provenance(run) | evaluations(run) | {"sampling": chosen, "curve": _curve(run, config)}


def _curve(run: Path, config: TrainConfig) -> dict[str, Any]:
    records = read_metrics(run / "metrics.jsonl")
    last = records[-1]
    points = [record for record in records if "eval/mean" in record and record["phase"] in (last["phase"], "base")]
    if last["env_steps"]:
        curve: dict[str, Any] = {"unit": "env steps", "x": [point["env_steps"] for point in points]}
    else:
        each = config.agent.get("steps", 1)
        curve = {"unit": "gradient steps", "x": [each * point["iteration"] for point in points]}
    for key in _CURVE:
        if points and f"eval/{key}" in points[0]:
            curve[key] = [_short(point[f"eval/{key}"]) for point in points]
    if not any(curve["x"]):
        raise UserError(f"{run} was never evaluated while it learned, so that it has no score; leave it out")
    return curve
