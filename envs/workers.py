"""Foreign environments in worker processes: a chunk costs one short message, arrays go through shared memory."""

import contextlib
import multiprocessing
import os
import signal
import warnings
import weakref
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, ClassVar, NoReturn, Unpack

import numpy as np
import torch

from diffpolicy_rl.envs.base import EnvOptions, require_positive
from diffpolicy_rl.envs.foreign import Facts, ForeignEnv, RowEnv, execute
from diffpolicy_rl.errors import UserError

_PARENT_CHECK_S = 1.0
_STOP_S = 5.0


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
            UserError: if it cannot be made, has no time limit, its spaces are no Boxes, or a count is below 1.
        """
        num_envs = options.get("num_envs", 1)
        count = min(torch.get_num_threads() if workers is None else workers, num_envs)
        require_positive(spec_id, "num_envs", num_envs)
        require_positive(spec_id, "workers", count)
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
        for crashed in [worker for worker in self._workers if not worker.wait()]:
            self._replace(crashed, command)

    def _replace(self, worker: "_Worker", command: str) -> None:
        """Start a crashed worker anew, and its rows' episodes with it."""
        self.worker_restarts += 1
        rows = worker.rows
        warnings.warn(
            f"{self.spec_id}: the worker of rows {rows.start} to {rows.stop - 1} crashed and is restarted "
            f"(restart {self.worker_restarts} of this run); its episodes are truncated.",
            RuntimeWarning,
            stacklevel=2,
        )
        if command == "run":
            self._truncate(rows)
        worker.start()
        worker.facts()
        worker.attach(self._memory, self._row_type)
        worker.send("restart")
        if not worker.wait():
            raise UserError(f"{self.spec_id}: a worker crashed again on reset; try backend='gymnasium' to see why")

    def _truncate(self, rows: slice) -> None:
        """Write what a lost chunk comes back as, and ask for new episodes."""
        lost = self._table[rows]
        lost["obs"][:, 0] = self._window[rows, -1]
        lost["rewards"], lost["executed"], lost["success"] = 0.0, 1, -1
        lost["terminated"], lost["truncated"], lost["restart"] = False, True, True

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
    """

    def __init__(self, env_id: str, settings: dict[str, Any], rows: slice) -> None:
        self.rows = rows
        self._env_id, self._settings = env_id, settings
        self.start()

    def start(self) -> None:
        """Spawn the process; it makes its environments and then tells their facts."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, self._env_id, self._settings, self.rows)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
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


def _serve(pipe: Connection, env_id: str, settings: dict[str, Any], rows: slice) -> None:
    """A worker's life: make the environments, then execute commands until the parent hangs up or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            envs = [RowEnv(env_id, settings) for _ in range(rows.stop - rows.start)]
        except UserError as error:
            return pipe.send(error)
        pipe.send(envs[0].facts)
        name, row_type = pipe.recv()
        memory = SharedMemory(name)
        table = np.ndarray(rows.stop, row_type, buffer=memory.buf)[rows]
        while command := _next_command(pipe):
            execute(command, envs, table)
            pipe.send_bytes(b"done")
        for env in envs:
            env.close()


def _next_command(pipe: Connection) -> str:
    """The parent's next command, or "" once the parent is gone."""
    parent = multiprocessing.parent_process()
    while not pipe.poll(_PARENT_CHECK_S):
        if parent is None or os.getppid() != parent.pid:
            return ""
    return pipe.recv_bytes().decode()
