"""Where the trainings of a suite run: side by side on this machine (joblib), or as Slurm jobs (submitit).

Each is a process of its own with one thread. Trainings that are finished are left alone, interrupted ones are resumed.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.signals import StopSignals

_POLL_SECONDS = 0.5


def finished(run: Path) -> bool:
    """Whether a training came to its end."""
    return (run / "summary.json").exists()


def log_of(run: Path) -> Path:
    """Where a training's output goes."""
    return run.with_name(f"{run.name}.log")


def command(run: Path, words: Sequence[str]) -> list[str]:
    """What starts a training, or goes on with one that was interrupted."""
    begun = (run / "checkpoints" / "last").exists()
    limits = [word for word in words if word.partition("=")[0] in ("iterations", "max_minutes")]
    arguments = [f"resume={run}", *limits] if begun else [*words, "threads=1", "video=false", f"run_dir={run}"]
    return [sys.executable, "-m", "diffpolicy_rl.train", *arguments]


def train(run: Path, words: Sequence[str], signals: StopSignals | None = None) -> None:
    """Train to the end, or until a signal comes, and then until the training has saved itself.

    Args:
        run: the run folder.
        words: of the command line.
        signals: those that this process received; a Slurm job's training receives them itself.
    """
    signals = signals or StopSignals()
    if signals.received:
        return
    _say(f"training {run}")
    run.parent.mkdir(parents=True, exist_ok=True)
    with log_of(run).open("ab") as log:
        process = subprocess.Popen(command(run, words), stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None and not signals.received:
            time.sleep(_POLL_SECONDS)
        if process.returncode is None:
            process.terminate()
            process.wait()
    if not signals.received:
        _say(_outcome(run))


def _say(line: str) -> None:
    """Print a line in one piece, because others train beside this one."""
    print(f"{line}\n", end="", flush=True)


def _outcome(run: Path) -> str:
    if not finished(run):
        return f"failed   {run}: see {log_of(run)}"
    summary = json.loads((run / "summary.json").read_text())
    return f"finished {run}: {summary['final']['mean']:.2f} in {summary['wall_s'] / 60:.1f} min"


def run_local(jobs: dict[Path, Sequence[str]], workers: int) -> list[Path]:
    """Train what is left, several side by side.

    Args:
        jobs: words of the command line by run folder.
        workers: how many at a time.

    Returns:
        The logs of those that failed.

    Raises:
        KeyboardInterrupt: after a signal, once every training has saved itself.
        UserError: if joblib is missing.
    """
    joblib = _extra("joblib", "bench")
    with StopSignals() as signals:
        pool = joblib.Parallel(n_jobs=workers, backend="threading", batch_size=1)
        pool(joblib.delayed(train)(run, words, signals) for run, words in jobs.items() if not finished(run))
        if signals.received:
            raise KeyboardInterrupt
    return [log_of(run) for run in jobs if not finished(run)]


def run_slurm(jobs: dict[Path, Sequence[str]], workers: int, minutes: int, partition: str | None) -> list[Path]:
    """The same as one array of Slurm jobs, which go on if this process is stopped.

    Args:
        jobs: words of the command line by run folder, which all nodes must see.
        workers: how many at a time.
        minutes: the limit of each.
        partition: of the cluster; its default if not given.

    Returns:
        The logs of those that failed, or ran into their limit.

    Raises:
        UserError: if submitit or Slurm is missing.
    """
    submitit = _extra("submitit", "slurm")
    if shutil.which("sbatch") is None:
        raise UserError("there is no Slurm here, sbatch is not on the PATH; use launcher=joblib")
    left = {run: words for run, words in jobs.items() if not finished(run)}
    if left:
        executor = submitit.AutoExecutor(next(iter(left)).parent / "slurm", cluster="slurm")
        chosen = {"slurm_partition": partition} if partition else {}
        executor.update_parameters(timeout_min=minutes, cpus_per_task=1, slurm_array_parallelism=workers, **chosen)
        for job in executor.map_array(train, list(left), list(left.values())):
            job.wait()
    return [log_of(run) for run in left if not finished(run)]


def _extra(name: str, extra: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"{name} is not installed: pip install 'diffpolicy_rl[{extra}]'") from None
