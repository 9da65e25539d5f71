"""Foreign environments in worker processes: a chunk costs one short message, arrays go through shared memory."""

import contextlib
import multiprocessing
import warnings
import weakref
from itertools import pairwise
from multiprocessing.shared_memory import SharedMemory
from typing import Any, ClassVar, NoReturn, Unpack

import numpy as np
import torch

from diffpolicy_rl.envs.base import EnvOptions
from diffpolicy_rl.envs.foreign import ForeignEnv
from diffpolicy_rl.envs.rows import Facts, serve
from diffpolicy_rl.errors import UserError, require_positive

_STOP_S = 5.0
_MAX_CRASHES = 3  # of one worker in a row


class WorkersEnv(ForeignEnv):
    """N copies of a Gymnasium environment in worker processes, each holding a group of rows.

    Results equal ``GymnasiumEnv``'s bit for bit. Workers end with this process. One that crashes is started anew: its
    rows come back truncated after one action without reward, at their last observation, and start new episodes.

    Attributes:
        worker_restarts: how many times a worker crashed.
    """

    backend: ClassVar[str] = "workers"

    def __init__(
        self,
        spec_id: str,
        settings: dict[str, Any] | None = None,
        *,
        workers: int | None = None,
        **options: Unpack[EnvOptions],
    ) -> None:
        """Start the workers and make the copies in them.

        Args:
            spec_id: Gymnasium id; a worker imports ``module`` of ``module:MyEnv-v0`` itself.
            settings: keyword arguments of ``gymnasium.make``.
            workers: how many processes; as many as torch uses threads if not given.
            **options: see ``EnvOptions``.

        Raises:
            UserError: if it cannot be made, has no time limit, its spaces hold more than Boxes, or a count is below 1.
        """
        num_envs = options.get("num_envs", 1)
        count = min(torch.get_num_threads() if workers is None else workers, num_envs)
        require_positive(num_envs=num_envs, workers=count)
        bounds = [num_envs * index // count for index in range(count + 1)]
        self._workers = [_Worker(spec_id, settings or {}, slice(*pair)) for pair in pairwise(bounds)]
        self.worker_restarts = 0
        super().__init__(spec_id, self._gather_facts(), **options)
        memory = SharedMemory(create=True, size=num_envs * self._row_type.itemsize)
        self._table = np.ndarray(num_envs, self._row_type, buffer=memory.buf)
        self._memory = memory  # after the table, which must be freed first
        self._release = weakref.finalize(self, _release, self._workers, memory)
        for worker in self._workers:
            worker.attach(memory, self._row_type)

    def _gather_facts(self) -> Facts:
        """What the workers' environments are like; if one cannot make them, none stays behind."""
        try:
            return [worker.facts() for worker in self._workers][-1]
        except UserError:
            for worker in self._workers:
                worker.stop()
            raise

    def _execute(self, command: str) -> None:
        for worker in self._workers:
            worker.send(command)
        for worker, lived in [(worker, worker.wait()) for worker in self._workers]:
            worker.crashes = 0 if lived else worker.crashes + 1
            if not lived:
                self._replace(worker, command)

    def _replace(self, worker: "_Worker", command: str) -> None:
        """Start a crashed worker anew and repeat the command, by which it truncates the episodes it does not have."""
        self.worker_restarts += 1
        rows = worker.rows
        if worker.crashes == _MAX_CRASHES:
            raise UserError(
                f"{self.spec_id}: the worker of rows {rows.start} to {rows.stop - 1} crashed {worker.crashes} times "
                "in a row; try backend='gymnasium' to see why"
            )
        warnings.warn(
            f"{self.spec_id}: the worker of rows {rows.start} to {rows.stop - 1} crashed and is restarted "
            f"(restart {self.worker_restarts} of this run); its episodes are truncated",
            RuntimeWarning,
            stacklevel=2,
        )
        self._table[rows]["obs"][:, 0] = self._window[rows, -1]  # where its episodes come back truncated
        worker.start()
        worker.facts()
        worker.attach(self._memory, self._row_type)
        worker.send(command)
        if not worker.wait():
            raise UserError(f"{self.spec_id}: a worker crashed again on reset; try backend='gymnasium' to see why")

    def render(self) -> NoReturn:
        """Refuse: frames are large, and rendering is for looking at one environment."""
        raise UserError(f"{self.spec_id} cannot be rendered from workers; use backend='gymnasium'")

    def close_extras(self) -> None:
        """Stop the workers and free the shared memory."""
        del self._table
        self._release()
        self._memory.close()


def _release(workers: list["_Worker"], memory: SharedMemory) -> None:
    for worker in workers:
        worker.stop()
    memory.unlink()


class _Worker:
    """This process's end of a worker.

    Attributes:
        rows: the rows of the table it holds.
        crashes: how many times it crashed since it last finished a command.
    """

    def __init__(self, env_id: str, settings: dict[str, Any], rows: slice) -> None:
        self.rows, self.crashes = rows, 0
        self._env_id, self._settings = env_id, settings
        self.start()

    def start(self) -> None:
        """Spawn the process; it makes its environments and then tells their facts."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, self._env_id, self._settings, self.rows)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        # Only the worker may hold its end: then its death, however it comes, ends our wait.
        theirs.close()

    def facts(self) -> Facts:
        """What the environments are like; raises UserError if they cannot be made."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            answer = UserError(f"{self._env_id}: a worker crashed on start; try backend='gymnasium' to see why")
        if isinstance(answer, UserError):
            raise answer
        return answer

    def attach(self, memory: SharedMemory, row_type: np.dtype) -> None:
        """Tell the worker where the table is."""
        self._pipe.send((memory.name, row_type))

    def send(self, command: str) -> None:
        """Start a command; a worker that has died shows in ``wait``."""
        with contextlib.suppress(ConnectionError):
            self._pipe.send_bytes(command.encode())

    def wait(self) -> bool:
        """Whether the command was finished; False if the worker died."""
        try:
            return bool(self._pipe.recv_bytes())
        except (EOFError, ConnectionError):
            return False

    def stop(self) -> None:
        """Hang up, upon which the worker ends by itself; kill it if it does not."""
        self._pipe.close()
        self._process.join(_STOP_S)
        self._process.kill()
        self._process.join()
