"""Env steps per CPU second: our batch backend against Gymnasium's vector environments, children included."""

import os
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import Figures
from diffpolicy_rl import make_env
from diffpolicy_rl.envs.batch import BatchEnv
from diffpolicy_rl.envs.quiet import quiet_mujoco
from diffpolicy_rl.envs.tasks import TASKS
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.threads import torch_threads

_COMPARED = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5")  # the last without contact forces, on all sides
_CHUNK = 4


def compare(num_envs: int, seconds: float, repeats: int) -> dict[str, Figures]:
    """For each task: env steps per CPU second of ``ours``, ``sync`` and ``async``, and the ratios ours / theirs.

    All three play random actions, resets included, on one thread; they take turns, and the median turn of each counts.

    Args:
        num_envs: N, of each side.
        seconds: spent on each side of each task, all turns together.
        repeats: turns.
    """
    with torch_threads(1):
        return {env_id: _compare_task(env_id, num_envs, seconds, repeats) for env_id in _COMPARED}


def _compare_task(env_id: str, num_envs: int, seconds: float, repeats: int) -> Figures:
    check_equal_work(env_id)
    sides = {"ours": Ours(env_id, num_envs)} | {mode: Theirs(env_id, num_envs, mode) for mode in ("sync", "async")}
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            turns[name].append(_rate(side, seconds / repeats))
    for side in sides.values():
        side.close()
    rates = {name: statistics.median(values) for name, values in turns.items()}
    return rates | {f"ours/{mode}": rates["ours"] / rates[mode] for mode in ("sync", "async")}


def _actions(box: Any, *shape: int) -> NDArray[np.float32]:
    """Sixteen batches of random actions, played in turn."""
    drawn = np.random.default_rng(0).uniform(box.low, box.high, (16, *shape, len(box.low)))
    return drawn.astype(np.float32)


class Ours:
    """The batch backend, four actions per call."""

    def __init__(self, env_id: str, num_envs: int) -> None:
        self._env = make_env(env_id, num_envs=num_envs, chunk=_CHUNK, threads=1, **TASKS[env_id].required)
        self._env.reset(seed=0)
        self._actions = torch.from_numpy(_actions(self._env.single_action_space, num_envs, _CHUNK))
        self._calls = 0

    def step(self) -> int:
        """One call; returns the env steps it made."""
        *_, info = self._env.step(self._actions[self._calls % len(self._actions)])
        self._calls += 1
        return int(info["executed"].sum())

    def cpu(self) -> float:
        """CPU seconds used so far, all threads together."""
        return time.process_time()

    def close(self) -> None:
        """Release the simulations."""
        self._env.close()


class Theirs:
    """Gymnasium's ``SyncVectorEnv`` or ``AsyncVectorEnv`` (one process per environment)."""

    def __init__(self, env_id: str, num_envs: int, mode: str) -> None:
        with quiet_mujoco():
            self._env = gymnasium.make_vec(env_id, num_envs, mode, **TASKS[env_id].required)
        self._env.reset(seed=0)
        self._actions = _actions(self._env.single_action_space, num_envs)
        self._calls, self._num_envs, self._ended = 0, num_envs, 0
        self._children = [process.pid for process in getattr(self._env, "processes", None) or ()]

    def step(self) -> int:
        """One call; returns the env steps it made."""
        *_, terminated, truncated, _ = self._env.step(self._actions[self._calls % len(self._actions)])
        self._calls += 1
        # Gymnasium's default mode: an environment that has ended is only reset by the next call.
        made, self._ended = self._num_envs - self._ended, int((terminated | truncated).sum())
        return made

    def cpu(self) -> float:
        """CPU seconds used so far by this process and the workers.

        The system counts the children's time in ``getrusage`` only once they have ended, so it is read from /proc.
        """
        return time.process_time() + sum(map(_cpu_of, self._children))

    def close(self) -> None:
        """End the workers."""
        self._env.close()


def _cpu_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise UserError("the CPU time of worker processes is read from /proc, which only Linux has") from error
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rate(side: Ours | Theirs, seconds: float) -> float:
    """Env steps per CPU second; goes on until some CPU time has been counted, however short the turn."""
    before, steps, began = side.cpu(), 0, time.perf_counter()
    while time.perf_counter() - began < seconds or side.cpu() == before:
        steps += side.step()
    return steps / (side.cpu() - before)


def check_equal_work(env_id: str) -> None:
    """Raise UserError unless both sides compute the same: rewards within 1e-12 from equal states."""
    with quiet_mujoco():
        theirs = gymnasium.make(env_id, **TASKS[env_id].required)
    ours = BatchEnv(env_id, TASKS[env_id](), dtype=torch.float64)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    state = ours.state()
    theirs.unwrapped.set_state(state["qpos"][0].numpy(), state["qvel"][0].numpy())  # pyright: ignore
    rng = np.random.default_rng(0)
    for _ in range(8):
        action = rng.uniform(-0.1, 0.1, ours.single_action_space.shape)
        reward = ours.step(torch.from_numpy(action).view(1, 1, -1))[1].item()
        if abs(reward - float(theirs.step(action)[1])) > 1e-12:
            raise UserError(f"{env_id}: the two sides do not compute the same rewards")
