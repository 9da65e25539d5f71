"""Any Gymnasium environment as rows of a table: one record holds all that goes into and comes out of a row's chunk.

The table is plain memory in process and shared memory between processes; what runs a row's chunk is the same code. It
needs no torch, so that a worker process starts quickly and stays small.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space, flatdim, flatten_space
from numpy.typing import NDArray

from diffpolicy_rl.envs.families import register
from diffpolicy_rl.envs.quiet import quiet_mujoco
from diffpolicy_rl.errors import UserError

_PARENT_CHECK_S = 1.0


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
        """Type of one row's record; ``success`` is -1, and ``costs`` NaN, where the environment does not report it."""
        obs, actions = self.obs_dim, len(self.action_space.low)
        inputs = [("action", "f8", (chunk, actions)), ("seed", "i8"), ("restart", "?")]
        flags = [("terminated", "?"), ("truncated", "?"), ("success", "i1")]
        outputs = [("obs", "f8", (chunk, obs)), ("first_obs", "f8", (obs,)), ("rewards", "f8", (chunk,))]
        return np.dtype([*inputs, *outputs, ("costs", "f8", (chunk,)), ("executed", "i8"), *flags], align=True)


class RowEnv:
    """One Gymnasium environment that runs whole chunks on its record of the table."""

    def __init__(self, env_id: str, settings: dict[str, Any]) -> None:
        """Make the environment.

        Args:
            env_id: Gymnasium id, also ``module:MyEnv-v0``.
            settings: keyword arguments of ``gymnasium.make``.

        Raises:
            UserError: if it cannot be made, has no time limit, or its spaces hold more than Boxes.
        """
        self._env_id = env_id
        register(env_id)
        try:
            with quiet_mujoco():
                self._env = gymnasium.make(env_id, disable_env_checker=True, **settings)
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UserError(f"{env_id} cannot be made: {reason}") from error
        self.facts = _facts(env_id, self._env)
        self._started = False

    def restart(self, row: np.void) -> None:
        """Start an episode with the record's seed and write its first observation."""
        obs, _ = self._env.reset(seed=int(row["seed"]))
        row["first_obs"] = _flat(self._env.observation_space, obs)
        self._started = True

    def run(self, row: np.void) -> None:
        """Execute the record's actions until the episode ends, and then start the next one.

        An episode that was started in another process is lost: it is truncated after one action without reward, at the
        observation that the record holds.
        """
        row["rewards"], row["costs"], row["success"] = 0.0, np.nan, -1
        if not self._started:
            row["executed"], row["terminated"], row["truncated"] = 1, False, True
            return self.restart(row)
        space = self._env.action_space
        for index, action in enumerate(row["action"].astype(space.dtype)):
            step = self._env.step(action.reshape(space.shape))
            row["obs"][index], row["rewards"][index] = _flat(self._env.observation_space, step[0]), step[1]
            row["costs"][index] = step[4].get("cost", np.nan)
            row["success"] = max(row["success"], _success(step[4]))
            row["executed"], row["terminated"] = index + 1, step[2]
            row["truncated"] = step[3] and not step[2]
            if step[2] or step[3]:
                return self.restart(row)

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
    leaves = {"observation_space": _leaves(env.observation_space), "action_space": [env.action_space]}
    for name, spaces in leaves.items():
        for kind in (type(space).__name__ for space in spaces if not isinstance(space, Box)):
            raise UserError(f"{env_id}: its {name} holds a {kind}, but only a Box is supported; wrap the environment")
    limit = env.spec.max_episode_steps if env.spec else None
    if limit is None:
        raise UserError(f"{env_id} has no time limit; set max_episode_steps (env.options.max_episode_steps= in train)")
    return Facts(flatdim(env.observation_space), cast(Box, flatten_space(env.action_space)), limit)


def _leaves(space: Space) -> list[Space]:
    """The spaces that a tree of Dict spaces is made of, in Gymnasium's order."""
    return [leaf for part in space.values() for leaf in _leaves(part)] if isinstance(space, Dict) else [space]


def _flat(space: Space, obs: Any) -> NDArray[Any]:
    """One vector, in the order of Gymnasium's ``FlattenObservation``; numbers as the environment gave them."""
    if not isinstance(space, Dict):
        return np.ravel(obs)
    return np.concatenate([_flat(part, obs[name]) for name, part in space.items()])


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


def serve(pipe: Connection, env_id: str, settings: dict[str, Any], rows: slice) -> None:
    """A worker's life: make the environments, then execute commands until the parent hangs up or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group, but the parent's to handle
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
