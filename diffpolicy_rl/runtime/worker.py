"""Work off the event loop, in threads that do not hold the process back when it ends."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Worker(Generic[T]):
    """A daemon thread that does one call after the other.

    The threads of ``concurrent.futures`` are joined when the process ends, so that a call that hangs would keep it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: SimpleQueue[tuple[asyncio.Future[T], Callable[[], T]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread has not ended; after ``stop`` only a call that hangs keeps it."""
        return self._thread.is_alive()

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Its result, once it is done."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((future, call))
        return future

    def stop(self) -> None:
        """End the thread after the calls that were submitted; does not wait."""
        self._calls.put(None)

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(_settle, work[0], *_outcome(work[1]))
            del work  # or the request's bytes would stay until the next one


def _outcome(call: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What a call returns, or raises.

    A function of its own: an exception refers to the frame that caught it, and would keep that frame's variables, were
    it one of them, until the garbage collector runs.
    """
    try:
        return call(), None
    except Exception as error:
        return None, error


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():  # nobody waits any longer
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
