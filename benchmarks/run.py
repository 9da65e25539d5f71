"""Run a suite of trainings: ``python -m benchmarks.run suite=d4rl_locomotion agents=bc,dql seeds=5``.

Run it again to go on where it stopped: finished trainings are left alone, and so are those of a suite with tasks that
its results have, wherever they were made; interrupted ones are resumed. Every training has a folder of its own,
<folder>/<task>_<agent>_s<seed>.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks import report
from benchmarks.finished import Finished, shared_settings
from benchmarks.launchers import finished, run_local, run_slurm
from benchmarks.ledger import on_record, unlike, write_results
from benchmarks.records import evaluated, scored
from benchmarks.suites import Job, Suite, bases, choose, jobs, read_suite
from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.training.machine import available_cores
from diffpolicy_rl.training.run import read_config

_USAGE = "python -m benchmarks.run suite=NAME [agents=NAME,...] [tasks=NAME,...] [seeds=N] [workers=N] [folder=FOLDER]"


@dataclass(frozen=True)
class RunConfig:
    """Run what is left of a suite, and sum up what is finished.

    Attributes:
        suite: a name in configs/suite.
        agents: only these; all if not given.
        tasks: only these; all if not given.
        seeds: how many, or which with commas between; as the suite says if not given.
        workers: trainings side by side; as many as there are cores, one thread each, if not given.
        folder: where the run folders go; runs/<suite> if not given.
        launcher: joblib for this machine, slurm for a cluster.
        minutes: time limit of a Slurm job.
        partition: Slurm's, its default if not given.
    """

    suite: str
    agents: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: str = ""
    workers: int | None = None
    folder: str | None = None
    launcher: Literal["joblib", "slurm"] = "joblib"
    minutes: int = 240
    partition: str | None = None


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(RunConfig, argv, _USAGE, "suite")
    require_positive(workers=1 if config.workers is None else config.workers, minutes=config.minutes)
    suite, folder = read_suite(config.suite), Path(config.folder or f"runs/{config.suite}")
    agents = choose("agent", config.agents, suite.agents)
    tasks = choose("task", config.tasks, suite.tasks or [""])
    chosen = [job for job in jobs(suite, folder, config.seeds) if job.agent in agents and job.task in tasks]
    left = chosen
    _refuse_unlike(suite, folder)
    if suite.tasks:
        recorded = on_record(config.suite, chosen)
        print(f"{len(recorded)} of {len(chosen)} trainings are on record", flush=True)
        left = [job for job in chosen if job not in recorded]
    needed = {job.task for job in left}
    failed = _launch(config, folder, [base for task, base in bases(suite).items() if task in needed])
    failed = failed or _launch(config, folder, left)
    unscored = sum_up(config.suite, suite, folder, chosen)
    if failed:
        raise UserError(f"{len(failed)} of the suite's trainings failed; see {', '.join(map(str, failed))}")
    if unscored:
        raise UserError(f"not on record, for they were never evaluated while they learned: {', '.join(unscored)}")


def _finished_runs(suite: Suite, folder: Path) -> list[Finished]:
    """All runs of a suite in a folder that came to their end."""
    trust = _trusted(suite, folder)
    return [
        Finished(summary.parent, read_config(summary.parent, trust), task, agent)
        for task, agent in itertools.product(suite.tasks, suite.agents)
        for summary in sorted(folder.glob(f"{task}_{agent}_s[0-9]*/summary.json"))
    ]


def _trusted(suite: Suite, folder: Path) -> set[str]:
    """Modules that the suite's own words name, which are trusted as on a command line."""
    words = (word for job in jobs(suite, folder) for word in job.words if ":" in word)
    return {word.partition("=")[2].partition(":")[0] for word in words}


def _refuse_unlike(suite: Suite, folder: Path) -> None:
    """Raise UserError for a run, finished or interrupted, that was begun otherwise than the suite asks for today."""
    trust = _trusted(suite, folder)
    asked = {job.any_seed: job for job in [*bases(suite).values(), *jobs(suite, folder)]}
    for pattern, job in asked.items():
        for config in sorted(folder.glob(f"{pattern}/config.yaml")):
            for key, ours, theirs in unlike(job, shared_settings(read_config(config.parent, trust))):
                raise UserError(f"{config.parent} has {key}={theirs}, but the suite says {ours}; move it elsewhere")


def _launch(config: RunConfig, folder: Path, chosen: list[Job]) -> list[Path]:
    """Train what is left of the jobs; returns the logs of those that failed."""
    left: dict[Path, Sequence[str]] = {folder / job.name: job.words for job in chosen}
    workers = available_cores() if config.workers is None else config.workers
    if config.launcher == "slurm":
        return run_slurm(left, workers, config.minutes, config.partition)
    return run_local(left, workers)


def sum_up(name: str, suite: Suite, folder: Path, chosen: list[Job]) -> list[str]:
    """Write what is finished to benchmarks/results: one file, or, of a suite without tasks, one per complete agent.

    Returns:
        The finished runs of a suite with tasks that have no score, which are left out.
    """
    if suite.tasks:
        found = _finished_runs(suite, folder)
        if runs := [run for run in found if scored(evaluated(run.folder))]:
            order = list(itertools.product(suite.tasks, suite.agents))
            print(f"wrote {write_results(name, suite.about, runs, order, suite.cost_limit)}", flush=True)
        return [str(run.folder) for run in found if run not in runs]
    for agent in dict.fromkeys(job.agent for job in chosen):
        # With all of the suite's seeds, also where some were not chosen now.
        runs = list(dict.fromkeys(folder / job.name for job in [*jobs(suite, folder), *chosen] if job.agent == agent))
        if all(map(finished, runs)):
            report.add(f"{name}_{agent}", runs, suite.agents[agent].variant)
    return []


if __name__ == "__main__":
    cli.run(main)
