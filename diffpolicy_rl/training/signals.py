"""Being told to stop: the first signal asks for a checkpoint and an end, the second one ends at once."""

import signal
import sys
from types import FrameType, TracebackType
from typing import Self


class Interrupted(Exception):
    """A signal asked the run to stop; its state has been saved.

    Attributes:
        exit_status: what the process shall exit with, 128 plus the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


class StopSignals:
    """Notes SIGTERM and SIGINT inside a ``with`` block.

    Attributes:
        received: number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            sys.exit(128 + number)
        self.received = number
