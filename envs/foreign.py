"""Any Gymnasium environment as rows of a table: one record holds all that goes into and comes out of a row's chunk.

The table is plain memory in process and shared memory between processes; what runs a row's chunk is the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack, cast

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, flatten_space
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_rl.envs.base import ChunkedVecEnv, ChunkResult, EnvOptions
from diffpolicy_rl.envs.quiet import quiet_mujoco
from diffpolicy_rl.envs.streams import episode_seeds
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.types import State


@dataclass(frozen=True)
class Facts:
    """What the vector environment must know of a single one.

    Attributes:
        obs_dim: O, after flattening.
        action_space: Box (D,), after flattening.
        max_episode_steps: time limit, in env steps.
    """

    obs_dim: int
    action_space: Box
    max_episode_steps: int

    def row_type(self, chunk: int) -> np.dtype:
        """Type of one row's record; ``success`` is -1 where the environment does not report it."""
        obs, actions = self.obs_dim, len(self.action_space.low)
        inputs = [("action", "f8", (chunk, actions)), ("seed", "i8"), ("restart", "?")]
        flags = [("terminated", "?"), ("truncated", "?"), ("success", "i1")]
        outputs = [("obs", "f8", (chunk, obs)), ("first_obs", "f8", (obs,)), ("rewards", "f8", (chunk,))]
        return np.dtype([*inputs, *outputs, ("executed", "i8"), *flags], align=True)


class RowEnv:
    """One Gymnasium environment that runs whole chunks on its record of the table."""

    def __init__(self, env_id: str, settings: dict[str, Any]) -> None:
        """Make the environment.

        Args:
            env_id: Gymnasium id, also ``module:MyEnv-v0``.
            settings: keyword arguments of ``gymnasium.make``.

        Raises:
            UserError: if it cannot be made, has no time limit, or its spaces are no Boxes.
        """
        self._env_id = env_id
        try:
            with quiet_mujoco():
                self._env = gymnasium.make(env_id, disable_env_checker=True, **settings)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise UserError(f"{env_id} cannot be made: {str(error).splitlines()[0]}") from error
        self.facts = _facts(env_id, self._env)

    def restart(self, row: np.void) -> None:
        """Start an episode with the record's seed and write its first observation."""
        obs, _ = self._env.reset(seed=int(row["seed"]))
        row["first_obs"] = np.ravel(obs)

    def run(self, row: np.void) -> None:
        """Execute the record's actions until the episode ends, and then start the next one."""
        space = self._env.action_space
        row["rewards"], row["success"] = 0.0, -1
        for index, action in enumerate(row["action"].astype(space.dtype)):
            step = self._env.step(action.reshape(space.shape))
            row["obs"][index], row["rewards"][index] = np.ravel(step[0]), step[1]
            row["success"] = max(row["success"], _success(step[4]))
            row["executed"], row["terminated"] = index + 1, step[2]
            row["truncated"] = step[3] and not step[2]
            if step[2] or step[3]:
                self.restart(row)
                return

    def render(self) -> NDArray[np.uint8]:
        """RGB frame (height, width, 3) uint8; raises UserError if the environment gives none."""
        if self._env.render_mode != "rgb_array":
            raise UserError(f"{self._env_id} cannot be rendered; make it with render_mode='rgb_array'")
        try:
            return cast(NDArray[np.uint8], self._env.render())
        except Exception as error:  # a simulator's display may fail in any way
            raise UserError(f"{self._env_id} cannot be rendered: {error}") from error

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _facts(env_id: str, env: gymnasium.Env) -> Facts:
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(env, name), Box):
            kind = type(getattr(env, name)).__name__
            raise UserError(f"{env_id}: its {name} is a {kind}, but only a Box is supported; wrap the environment")
    limit = env.spec.max_episode_steps if env.spec else None
    if limit is None:
        raise UserError(f"{env_id} has no time limit; set max_episode_steps (env.options.max_episode_steps= in train)")
    return Facts(int(np.prod(env.observation_space.shape)), flatten_space(env.action_space), limit)  # pyright: ignore


def _success(info: dict[str, Any]) -> int:
    """1 or 0 as the environment reports it, -1 if it does not."""
    reported = info.get("success", info.get("is_success"))
    return -1 if reported is None else int(bool(reported))


def execute(command: str, envs: Sequence[RowEnv], table: NDArray[np.void]) -> None:
    """Run ``command`` on each row: "run" its chunk, or "restart" it where the record says so."""
    for env, row in zip(envs, table, strict=True):
        if command == "run":
            env.run(row)
        elif row["restart"]:
            env.restart(row)


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
        success = self._read("success")
        return ChunkResult(*outputs, info={"success": success == 1} if (success >= 0).any() else {})

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
