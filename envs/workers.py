"""Foreign environments in worker processes: a chunk costs one short message, arrays go through shared memory."""

import multiprocessing
import signal
import sys
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from diffpolicy_rl.envs.foreign import Facts, ForeignEnv, RowEnv, execute
from diffpolicy_rl.errors import UserError


class WorkersEnv(ForeignEnv):
    """N copies of a Gymnasium environment in worker processes, each holding a group of rows.

    Results equal ``GymnasiumEnv``'s bit for bit. Workers end with this process. One that crashes is started anew: its
    rows come back truncated, with no reward, and in a new episode.

    Attributes:
        worker_restarts: how many workers crashed so far.
    """

    backend: ClassVar[str] = "workers"

    def __init__(
        self,
        spec_id: str,
        settings: dict[str, Any] | None = None,
        *,
        num_envs: int = 1,
        chunk: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        history: int = 1,
        dtype: torch.dtype = torch.float32,
        workers: int | None = None,
    ) -> None:
        """Start the workers and make the copies in them.

        Args:
            spec_id: Gymnasium id; a worker imports ``module`` of ``module:MyEnv-v0`` itself.
            settings: keyword arguments of ``gymnasium.make``.
            num_envs: N.
            chunk: A.
            device: where returned tensors lie.
            seed: seed of the rows' random streams.
            history: To.
            dtype: floating type of what is returned.
            workers: how many processes; as many as torch uses threads if not given.

        Raises:
            UserError: if it cannot be made, has no time limit, or its spaces are no Boxes.
        """
        self.worker_restarts = 0
        groups = np.array_split(np.arange(num_envs), min(workers or torch.get_num_threads(), max(num_envs, 1)))
        self._workers = [_Worker(spec_id, settings or {}, slice(rows[0], rows[-1] + 1)) for rows in groups]
        try:
            facts = [worker.facts() for worker in self._workers][0]
            super().__init__(
                spec_id, facts.action_space, facts.obs_dim, facts.max_episode_steps,
                num_envs=num_envs, chunk=chunk, device=device, seed=seed, history=history, dtype=dtype,
            )  # fmt: skip
        except BaseException:
            self._stop_workers()
            raise
        self._share_table(facts.row_type(chunk))
