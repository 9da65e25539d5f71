"""Where the numbers of a run go: ``metrics.jsonl`` and TensorBoard always, trackers on request, and the screen."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffpolicy_rl.errors import UserError, did_you_mean
from diffpolicy_rl.training.checkpoint import write_text

_TRACKERS = ("wandb", "trackio")
_PLAIN_SECONDS = 10.0


class Logger:
    """Appends one record per iteration to every sink.

    Args:
        folder: the run folder.
        trackers: additional trackers by name.
        config: settings shown in the trackers.
        iteration: records after this one, left by a run that was killed, are dropped.
    """

    def __init__(self, folder: Path, trackers: tuple[str, ...], config: dict[str, Any], iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(self.path) if record["iteration"] <= iteration]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        try:
            self._file = self.path.open("a", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration + 1)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        self._trackers = [_start_tracker(name, folder, config) for name in trackers]

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; ``iteration`` is its step, numbers become curves."""
        try:
            self._file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
        for key, value in numbers.items():
            self._board.add_scalar(key, value, record["iteration"])
        for tracker in self._trackers:
            tracker.log(numbers, step=record["iteration"])

    def close(self) -> None:
        """Flush and close every sink."""
        self._file.close()
        self._board.close()
        for tracker in self._trackers:
            tracker.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a last line cut short by a kill is dropped."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _start_tracker(name: str, folder: Path, config: dict[str, Any]) -> Any:
    if name not in _TRACKERS:
        raise UserError(f"there is no logger {name!r}; {did_you_mean(name, _TRACKERS)}")
    try:
        module = __import__(name)
    except ImportError:
        raise UserError(f'loggers={name} needs the package {name}: pip install "diffpolicy_rl[{name}]"') from None
    module.init(project="diffpolicy_rl", name=folder.name, config=config)
    return module


class Console:
    """A progress bar with ETA on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            disable=not self._terminal,
        )
        self._printed = self._begun = time.monotonic()
        self._start = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, name: str, done: int, total: int) -> None:
        """Start the bar of a phase of ``total`` iterations, ``done`` of which lie behind."""
        for task in self._bar.task_ids:
            self._bar.update(task, visible=False)
        self._task = self._bar.add_task(name, total=total, completed=done, note="")
        self._name, self._total, self._start = name, total, done
        self._begun = self._printed = time.monotonic()

    def advance(self, done: int, note: str) -> None:
        """Show the state after an iteration."""
        self._bar.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if not self._terminal and (now - self._printed >= _PLAIN_SECONDS or done == self._total):
            self._printed = now
            eta = (now - self._begun) / max(done - self._start, 1) * (self._total - done)
            print(f"{self._name} {done}/{self._total}  ETA {eta:.0f} s  {note}".rstrip(), flush=True)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._terminal:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)
