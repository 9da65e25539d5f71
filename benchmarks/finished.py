"""Finished runs, and their places in a comparison: the task, and the agent."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.build import phases_of
from diffpolicy_rl.training.config import DataConfig, TrainConfig, to_plain
from diffpolicy_rl.training.run import differences, read_config

_OWN = ("seed", "run_dir", "base", "threads", "loggers", "video")  # in which runs of one agent on one task may differ
_OF_TASK = {"env": ("id",), "data": ("path", "recipe")}  # what names a task


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

    A task is the environment, and the data too where several sets are learned from in it. An agent is its class. Where
    one class was trained with several settings on one task, it is the run folders' name without the seed, if that tells
    the settings apart, and else the class and the settings that differ.

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
    names: dict[Path, str] = {}
    for agent in {run.agent for run in found}:
        names |= _names([run for run in found if run.agent == agent])
    return [replace(run, agent=names[run.folder]) for run in found]


def agent_of(config: TrainConfig) -> str:
    """The name of a run's agent."""
    return re.split("[.:]", config.agent["_target_"])[-1]


def _task(config: TrainConfig, sets: set[str]) -> str:
    data = _data_name(config)
    return f"{config.env.id}, {data}" if data and len(sets) > 1 else config.env.id


def _data_name(config: TrainConfig) -> str:
    source = known_source(config)
    return Path(str(source.path)).stem if source else ""


def _names(runs: Sequence[Finished]) -> dict[Path, str]:
    """What to call the agent of each run of one class, by folder."""
    on_task: dict[str, set[str]] = defaultdict(set)
    groups: dict[str, list[Finished]] = defaultdict(list)
    for run in runs:
        on_task[run.task].add(json.dumps(run.settings))
        groups[json.dumps(_apart_from_task(run))].append(run)
    if all(len(settings) == 1 for settings in on_task.values()):
        return {run.folder: run.agent for run in runs}
    stems = [{re.sub(r"[_-]s\d+$", "", run.folder.name) for run in group} for group in groups.values()]
    if len(set.union(*stems)) == len(stems) == sum(map(len, stems)):
        names = [stem for (stem,) in stems]
    else:
        names = _by_settings(runs[0].agent, [json.loads(settings) for settings in groups])
    return {run.folder: name for name, group in zip(names, groups.values(), strict=True) for run in group}


def _apart_from_task(run: Finished) -> dict[str, Any]:
    """A run's settings without what names its task."""
    settings = run.settings
    named = {part: {k: v for k, v in settings[part].items() if k not in keys} for part, keys in _OF_TASK.items()}
    return settings | named


def _by_settings(agent: str, variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each of several settings, with all in which any two differ."""
    first = variants[0]
    keys: dict[str, None] = {}
    for other in variants[1:]:
        # ``differences`` knows only what the second has, and either may have more.
        for pair in ((first, other), (other, first)):
            keys |= dict.fromkeys(key for key, _, _ in differences(*pair))
    return [
        " ".join([agent, *(f"{key.rpartition('.')[2]}={_at(variant, key)}" for key in keys)]) for variant in variants
    ]


def _at(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


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


def known_source(config: TrainConfig) -> DataConfig | None:
    """The same as ``source_of``, and None where the base is not known any more."""
    try:
        return source_of(config)
    except UserError:  # the base is no longer where it was
        return None


def source_of(config: TrainConfig) -> DataConfig | None:
    """The data that a run, or the one it starts from, learned from; None if from none."""
    if config.base:
        return source_of(read_config(Path(config.base)))
    learns = config.agent.get("mixing", "none") != "none" or not {"bc", "offline"}.isdisjoint(phases_of(config))
    return config.data if learns and config.data.path else None
