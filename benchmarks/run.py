"""Run a suite of trainings: ``python -m benchmarks.run suite=peg_insertion``. Run it again to go on where it stopped.

A suite is a file configs/suite/<name>.yaml: the words that all its runs share, the base that they start from, and for
each row the words and seeds of its runs. Every run is a training of its own in <folder>/<row>_s<seed>; finished ones
are left alone, interrupted ones are resumed, and what is finished becomes benchmarks/results/<suite>_<row>.json.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from benchmarks import report
from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError, did_you_mean, require_positive
from diffpolicy_rl.training.signals import StopSignals
from diffpolicy_rl.training.threads import available_cores

_USAGE = "python -m benchmarks.run suite=NAME [rows=ROW,...] [workers=N] [folder=FOLDER]"
_BASE = "base"


@dataclass(frozen=True)
class RunConfig:
    """Run what is left of a suite, and sum up what is finished.

    Attributes:
        suite: a name in configs/suite.
        rows: only these rows; all if not given.
        workers: trainings side by side; as many as there are cores, one thread each, if not given.
        folder: where the run folders go; runs/<suite> if not given.
    """

    suite: str
    rows: tuple[str, ...] = ()
    workers: int | None = None
    folder: str | None = None


@dataclass(frozen=True)
class Row:
    """Trainings that differ in their seed alone.

    Attributes:
        words: of the command line, beside those that the suite's runs share.
        seeds: one training for each.
        variant: what sets them apart from the agent's defaults, for the table.
    """

    words: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    variant: str = ""


@dataclass(frozen=True)
class Suite:
    """What a suite's file says.

    Attributes:
        about: what it compares, and under which caps.
        words: of the command line, shared by all runs.
        base: the training that the others start from.
        rows: the others, by name.
    """

    about: str
    words: tuple[str, ...]
    base: Row
    rows: dict[str, Any] = field(default_factory=dict)


def read_suite(name: str) -> Suite:
    """The suite with this name; UserError if there is none, or it says something else than a suite does."""
    folder = resources.files("diffpolicy_rl.configs").joinpath("suite")
    known = {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    if name not in known:
        raise UserError(f"there is no suite {name!r}; {did_you_mean(name, known)}")
    suite = cli.build(Suite, yaml.safe_load(known[name].read_text()))
    rows = {key: cli.convert(row, Row, f"rows.{key}") for key, row in suite.rows.items()}
    return Suite(suite.about, suite.words, suite.base, rows)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(RunConfig, argv, _USAGE, "suite")
    suite, workers = read_suite(config.suite), config.workers or available_cores()
    require_positive(workers=workers)
    for row in config.rows:
        if row not in suite.rows:
            raise UserError(f"the suite {config.suite} has no row {row!r}; {did_you_mean(row, suite.rows)}")
    folder = Path(config.folder or f"runs/{config.suite}")
    rows = {name: row for name, row in suite.rows.items() if not config.rows or name in config.rows}
    base = folder / f"{_BASE}_s{suite.base.seeds[0]}"
    failed = work_off({base: [*suite.words, *suite.base.words]}, 1)
    jobs = {
        folder / f"{name}_s{seed}": [*suite.words, f"base={base}", *row.words, f"seed={seed}"]
        for name, row in rows.items()
        for seed in row.seeds
    }
    failed = failed or work_off(jobs, workers)
    for name, row in rows.items():
        runs = [run for seed in row.seeds if finished(run := folder / f"{name}_s{seed}")]
        if len(runs) == len(row.seeds):
            report.add(f"{config.suite}_{name}", runs, row.variant)
    if failed:
        raise UserError(f"{len(failed)} of the suite's trainings failed; see {', '.join(map(str, failed))}")


def finished(run: Path) -> bool:
    """Whether a training came to its end."""
    return (run / "summary.json").exists()


def command(run: Path, words: Sequence[str]) -> list[str]:
    """What starts a training, or goes on with one that was interrupted."""
    begun = (run / "checkpoints" / "last").exists()
    arguments = [f"resume={run}"] if begun else [*words, "threads=1", "video=false", f"run_dir={run}"]
    return [sys.executable, "-m", "diffpolicy_rl.train", *arguments]


def work_off(jobs: dict[Path, list[str]], workers: int) -> list[Path]:
    """Train what is left, several side by side; returns the logs of those that failed.

    Raises:
        KeyboardInterrupt: after a signal, once every training has saved itself.
    """
    waiting = [run for run in jobs if not finished(run)]
    running: dict[Path, subprocess.Popen[bytes]] = {}
    failed: list[Path] = []
    with StopSignals() as signals:
        while waiting or running:
            while waiting and len(running) < workers and not signals.received:
                run = waiting.pop(0)
                running[run] = _start(run, jobs[run])
            for run in [run for run, process in running.items() if process.poll() is not None]:
                failed += _ended(run, running.pop(run))
            if signals.received:
                for process in running.values():
                    process.terminate()
                for process in running.values():
                    process.wait()
                raise KeyboardInterrupt
            time.sleep(0.5)
    return failed


def _start(run: Path, words: list[str]) -> "subprocess.Popen[bytes]":
    run.parent.mkdir(parents=True, exist_ok=True)
    print(f"training {run}", flush=True)
    with _log(run).open("ab") as log:
        return subprocess.Popen(command(run, words), stdout=log, stderr=log, start_new_session=True)


def _ended(run: Path, process: "subprocess.Popen[bytes]") -> list[Path]:
    if process.returncode:
        print(f"failed   {run}: see {_log(run)}", flush=True)
        return [_log(run)]
    summary = json.loads((run / "summary.json").read_text())
    print(f"finished {run}: {summary['final']['mean']:.2f} in {summary['wall_s'] / 60:.1f} min", flush=True)
    return []


def _log(run: Path) -> Path:
    return run.with_name(f"{run.name}.log")


if __name__ == "__main__":
    cli.run(main)
