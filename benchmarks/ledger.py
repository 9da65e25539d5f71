"""The results of a suite with tasks, results/<suite>.json, to which every machine adds what it finished.

Run folders stay where they were made. Records of other machines' runs stay in the file and count as finished, as long
as their settings are those that the suite asks for; their data is compared when runs are added.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.finished import Finished, shared_settings
from benchmarks.records import RESULTS, collect
from benchmarks.suites import Job, read_suite
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.checkpoint import write_text
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.run import differences

Place = tuple[str, str]
"""Task and agent."""


def read_results(name: str) -> dict[str, Any]:
    """The results of a suite, as ``write_results`` wrote them; UserError if there are none."""
    results = _kept(name)
    if not results["runs"]:
        read_suite(name)  # which says so where there is no such suite
        raise UserError(f"there are no results of the suite {name}; run python -m benchmarks.run suite={name}")
    return results


def on_record(name: str, jobs: Sequence[Job]) -> list[Job]:
    """Those of a suite's trainings that are in its results.

    Raises:
        UserError: if others were made with settings that the suite does not ask for today.
    """
    kept = _kept(name)
    known = set(map(_training, kept["runs"]))
    asked = {_label(job.task, job.agent): job for job in jobs}
    for label in [label for label in asked if label in kept["settings"]]:
        for key, ours, theirs in unlike(asked[label], kept["settings"][label]):
            raise UserError(
                f"{_path(name)} has {label} with {key}={theirs}, but the suite says {ours}; "
                "take its records out of the file to train it anew"
            )
    return [job for job in jobs if (job.task, job.agent, job.seed) in known]


def unlike(job: Job, settings: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What runs that share ``settings`` have otherwise than a job: the setting's name, the job's value and theirs."""
    (config,) = compose(job.words, sweep=False)
    ours = _as_stored(shared_settings(config))
    if config.base is not None:  # which brings the policy
        ours["policy"] = settings.get("policy")
    return differences(ours, settings)


def write_results(
    name: str, about: str, runs: Sequence[Finished], order: Sequence[Place], cost_limit: float | None = None
) -> Path:
    """Add runs to the results of a suite, one record on each line; a run replaces the record of the same training.

    Args:
        name: of the suite.
        about: what it compares.
        runs: to add.
        order: of the records, by task and agent.
        cost_limit: what an episode may cost at most to count as safe, if anything.

    Returns:
        The file's path.

    Raises:
        UserError: if runs of one agent on one task differ in more than their seeds, or learned from other data than
            those on record.
    """
    kept, found = _kept(name), _as_stored(collect(runs))
    added = {_training(record): record for record in found["runs"]}
    stay = [record for record in kept["runs"] if _training(record) not in added]
    _refuse_other_settings(_path(name), runs, {label: kept["settings"][label] for label in map(_label_of, stay)})
    tasks = _tasks(_path(name), kept["tasks"], found["tasks"], {record["task"] for record in stay})
    settings = kept["settings"] | {_label(run.task, run.agent): run.settings for run in runs}
    index = {place: number for number, place in enumerate(order)}
    records = sorted(
        [*stay, *added.values()], key=lambda r: (index.get((r["task"], r["agent"]), len(index)), r["seed"])
    )
    labels = dict.fromkeys(map(_label_of, records))
    described = {task: tasks[task] for task in dict.fromkeys(record["task"] for record in records)}
    limit = {} if cost_limit is None else {"cost_limit": cost_limit}
    head = json.dumps({"suite": name, "about": about, **limit, "tasks": described}, indent=1).removesuffix("\n}")
    shared = ",\n".join(f"{json.dumps(label)}: {json.dumps(settings[label])}" for label in labels)
    lines = ",\n".join(map(json.dumps, records))
    write_text(_path(name), f'{head},\n "settings": {{\n{shared}\n}},\n "runs": [\n{lines}\n]}}\n')
    return _path(name)


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def _training(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["task"], record["agent"], record["seed"]


def _label(task: str, agent: str) -> str:
    return f"{task}_{agent}"


def _label_of(record: dict[str, Any]) -> str:
    return _label(record["task"], record["agent"])


def _as_stored(value: Any) -> Any:
    """What JSON makes of a value, to compare with what a file holds."""
    return json.loads(json.dumps(value))


def _refuse_other_settings(path: Path, runs: Sequence[Finished], staying: dict[str, dict[str, Any]]) -> None:
    """Raise UserError for a run that was trained otherwise than the records of its agent and task that stay."""
    for run in runs:
        label = _label(run.task, run.agent)
        if label not in staying:
            continue
        for key, ours, theirs in differences(_as_stored(run.settings), staying[label]):
            raise UserError(
                f"{run.folder} has {key}={ours}, but {path} has {label} with {theirs}; train one of them anew"
            )


def _kept(name: str) -> dict[str, Any]:
    """What the file holds, with the keys that a suite's results have."""
    path = _path(name)
    try:
        results = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path} is not valid JSON; restore it, or delete it to begin anew") from None
    empty = {"tasks": {}, "settings": {}, "runs": []}
    kept = empty | results if "suite" in results else empty
    for label in map(_label_of, kept["runs"]):
        if label not in kept["settings"]:
            raise UserError(f"{path} does not say how {label} was trained; take its records out of the file")
    return kept


def _tasks(path: Path, kept: dict[str, Any], found: dict[str, Any], stay: set[str]) -> dict[str, Any]:
    """Descriptions of all tasks; UserError if one that keeps records is about other data now."""
    tasks = kept | {task: made for task, made in found.items() if _is_described(made) or task not in kept}
    for task in stay:
        if _is_described(kept[task]) and kept[task] != tasks[task]:
            raise UserError(
                f"the records of {task} are of other data than these runs; take them out of {path}, or train on theirs"
            )
    return tasks


def _is_described(task: dict[str, Any]) -> bool:
    """Whether its data, if it has any, was there when its runs were summed up."""
    return task["data"] is None or "episodes" in task["data"]
