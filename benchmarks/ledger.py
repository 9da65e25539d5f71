"""The results of a suite, results/<suite>.json: what is finished anywhere is kept there, and need not be trained again.

Run folders stay on the machine that trained them. Records of other machines' runs stay in the file, as long as their
data and settings are those of what is added.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, Finished, collect, fingerprint
from benchmarks.suites import Job
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.checkpoint import write_text
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.run import adopt_base

Training = tuple[str, str, int]
"""Task, agent and seed."""


def read_results(name: str) -> dict[str, Any]:
    """The results of a suite, as ``write_results`` wrote them; UserError if there are none."""
    results = _kept(name)
    if not results["runs"]:
        raise UserError(f"there are no results of the suite {name}; run python -m benchmarks.run suite={name}")
    return results


def on_record(name: str, jobs: Sequence[Job]) -> list[Job]:
    """Those of a suite's trainings that are in its results, with the settings that their words stand for today."""
    known = {_training(record): record["settings"] for record in _kept(name)["runs"]}
    asked = [job for job in jobs if (job.task, job.agent, job.seed) in known]
    return [job for job in asked if _fingerprint(job) == known[job.task, job.agent, job.seed]]


def write_results(name: str, about: str, runs: Sequence[Finished], order: Sequence[tuple[str, str]]) -> Path:
    """Add runs to the results of a suite, one record on each line; a run replaces the record of the same training.

    Args:
        name: of the suite.
        about: what it compares.
        runs: to add.
        order: of the records, by task and agent.

    Returns:
        The file's path.

    Raises:
        UserError: if runs of one agent on one task differ, among themselves or from those on record, in more than their
            seeds.
    """
    kept, found = _kept(name), json.loads(json.dumps(collect(runs)))
    tasks = kept["tasks"] | {
        task: made for task, made in found["tasks"].items() if _is_described(made) or task not in kept["tasks"]
    }
    records = {_training(record): record for record in [*kept["runs"], *found["runs"]]}
    _refuse_unlike(_path(name), records, kept["tasks"], tasks)
    places = {place: index for index, place in enumerate(order)}
    ordered = sorted(records, key=lambda training: (places.get(training[:2], len(places)), training))
    lines = ",\n".join(json.dumps(records[training]) for training in ordered)
    described = {task: tasks[task] for task, *_ in ordered}
    head = json.dumps({"suite": name, "about": about, "tasks": described}, indent=1).removesuffix("\n}")
    write_text(_path(name), f'{head},\n "runs": [\n{lines}\n]}}\n')
    return _path(name)


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def _kept(name: str) -> dict[str, Any]:
    results = json.loads(_path(name).read_text()) if _path(name).exists() else {}
    return results if "suite" in results else {"tasks": {}, "runs": []}


def _training(record: dict[str, Any]) -> Training:
    return record["task"], record["agent"], record["seed"]


def _is_described(task: dict[str, Any]) -> bool:
    """Whether its data, if it has any, was still here when its runs were summed up."""
    return task["data"] is None or "episodes" in task["data"]


def _fingerprint(job: Job) -> str:
    (config,) = compose(job.words, sweep=False)
    return fingerprint(adopt_base(config))


def _refuse_unlike(
    path: Path, records: Mapping[Training, dict[str, Any]], kept: dict[str, Any], tasks: dict[str, Any]
) -> None:
    remedy = f"take the old records out of {path}, or train as they were"
    for task, described in kept.items():
        if described != tasks[task]:
            raise UserError(f"the records of {task} are of other data than these runs; {remedy}")
    first: dict[tuple[str, str], str] = {}
    for (task, agent, seed), record in records.items():
        if first.setdefault((task, agent), record["settings"]) != record["settings"]:
            raise UserError(f"{task}_{agent}_s{seed} has other settings than the seeds on record; {remedy}")
