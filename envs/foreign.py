"""The contract over a table of Gymnasium environments' rows."""

from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_rl.envs.base import ChunkedVecEnv, ChunkResult, EnvOptions
from diffpolicy_rl.envs.rows import Facts
from diffpolicy_rl.envs.streams import episode_seeds
from diffpolicy_rl.types import State


class ForeignEnv(ChunkedVecEnv):
    """The contract over a table of rows; a subclass says where the rows live.

    A foreign simulator cannot be saved exactly: ``load_state_dict`` starts new episodes in all rows.
    """

    restarted_on_load = True
    _table: NDArray[np.void]

    def __init__(self, spec_id: str, facts: Facts, **options: Unpack[EnvOptions]) -> None:
        """Take up the facts of the environment; a subclass then sets ``_table``."""
        super().__init__(spec_id, facts.action_space, facts.obs_dim, facts.max_episode_steps, **options)
        self._row_type = facts.row_type(self.chunk)

    def _execute(self, command: str) -> None:
        """Run ``command`` on all rows of the table."""
        raise NotImplementedError

    def _advance(self, action: Tensor) -> ChunkResult:
        self._table["action"] = action.numpy()
        self._set_seeds()
        self._execute("run")
        outputs = (self._read(name) for name in ("obs", "rewards", "executed", "terminated", "truncated", "first_obs"))
        success, costs = self._read("success"), self._read("costs")
        info = {"success": success == 1} if (success >= 0).any() else {}
        return ChunkResult(*outputs, costs=None if costs.isnan().all() else costs.nan_to_num(0.0), info=info)

    def _restart(self, rows: Tensor) -> Tensor:
        self._table["restart"] = rows.numpy()
        self._set_seeds()
        self._execute("restart")
        return self._read("first_obs")

    def _set_seeds(self) -> None:
        """Give each row the seed of its next episode, should one start."""
        self._table["seed"] = episode_seeds(self._seed, self._rows, self._episode).numpy()

    def _read(self, name: str) -> Tensor:
        return torch.from_numpy(self._table[name].copy())

    def load_state_dict(self, state: State) -> None:
        """Take up counters and random streams, and start a new episode in every row."""
        super().load_state_dict(state)
        everyone = torch.ones(self.num_envs, dtype=torch.bool)
        self._begin(everyone, self._restart(everyone), self._window)
