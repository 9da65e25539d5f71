"""Playing episodes to write them down."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffpolicy_rl.data.transitions import Transitions
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.training.driver import Driver, EpisodeStreams
from diffpolicy_rl.training.threads import torch_threads
from diffpolicy_rl.types import DeployedPolicy, VecEnv

_ACTION_NOISE = 4  # stream key


def record(
    policy: DeployedPolicy,
    env: VecEnv,
    episodes: int,
    seed: int,
    *,
    action_scale: float = 1.0,
    action_noise: float = 0.0,
    progress: Callable[[int], None] = lambda collected: None,
) -> Transitions:
    """Play episodes action by action and keep exactly the executed transitions.

    Each of the N envs contributes its first episodes, ceil or floor of episodes / N, never the quickest ones.

    Args:
        policy: a deployed policy.
        env: a vector env with chunk 1.
        episodes: how many.
        seed: of resets, of the policy's noise, and of the action noise.
        action_scale: factor on every action, before the noise.
        action_noise: std of Gaussian noise on every action, in env units; the stored action is the one executed.
        progress: called with the number of episodes kept, after every step.
    """
    quota = [episodes // env.num_envs + (row < episodes % env.num_envs) for row in range(env.num_envs)]
    kept = _Record(env.num_envs, quota)
    box = env.single_action_space
    low, high = torch.from_numpy(box.low), torch.from_numpy(box.high)
    driver, disturbance = Driver(policy, env, seed), EpisodeStreams(_ACTION_NOISE, seed, env.num_envs)
    obs, _ = env.reset(seed=seed)
    with torch_threads(1), torch.inference_mode(), fixed_weights(policy):
        while kept.collected < episodes:
            action = action_scale * driver.act(obs)
            if action_noise:
                action = action + action_noise * disturbance.normal(action.shape[1:])
            action = action.clamp(low, high)
            after, reward, terminated, truncated, info = env.step(action)
            assert isinstance(obs, Tensor)  # D4RL's layout has no other
            newest = obs if obs.ndim == 2 else obs[:, -1]
            kept.add(newest, action[:, 0], reward, info.get("cost"), terminated, truncated)
            for stateful in (driver, disturbance):
                stateful.reset(terminated | truncated)
            obs = after
            progress(kept.collected)
    return kept.transitions()


class _Record:
    """Transitions of N envs, each until its quota of episodes is full."""

    def __init__(self, num_envs: int, quota: list[int]) -> None:
        self._steps: list[tuple[Tensor, ...]] = []
        self._quota, self._ended, self._costly = quota, [0] * num_envs, False

    @property
    def collected(self) -> int:
        """Episodes that count so far."""
        return sum(map(min, self._ended, self._quota))

    def add(
        self, obs: Tensor, action: Tensor, reward: Tensor, cost: Tensor | None, terminated: Tensor, truncated: Tensor
    ) -> None:
        """Take in what happened in a step of all envs."""
        self._costly |= cost is not None
        step = (obs, action, reward, torch.zeros_like(reward) if cost is None else cost, terminated, truncated)
        self._steps.append(tuple(part.cpu().clone() for part in step))
        for row in (terminated | truncated).nonzero().flatten().tolist():
            self._ended[row] += 1

    def transitions(self) -> Transitions:
        """Episodes end to end, env by env."""
        steps = (torch.stack(part) for part in zip(*self._steps, strict=True))
        obs, action, reward, cost, terminated, truncated = steps
        finished = (terminated | truncated).long().cumsum(0) - (terminated | truncated).long()
        keep = (finished < torch.tensor(self._quota)).T  # (N, T): the env's episode number is within its quota

        def rows(part: Tensor) -> Any:
            return part.transpose(0, 1)[keep].numpy()

        costs = rows(cost) if self._costly else None
        return Transitions(rows(obs), rows(action), rows(reward), rows(terminated), rows(truncated), costs=costs)
