"""Acting in the envs and writing down what happened."""

from collections import deque

import torch
from torch import Tensor

from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.types import Agent, Obs, State, VecEnv


class Rollout:
    """The envs an agent learns in, and the statistics of the episodes it finishes there.

    Args:
        env: the vector env.
        seed: of its episodes.
        decisions: T, decisions per rollout.

    Attributes:
        env_steps: actions executed so far, all envs together.
    """

    def __init__(self, env: VecEnv, seed: int, decisions: int) -> None:
        self.env, self.env_steps, self._buffer = env, 0, RolloutBuffer(decisions)
        self._obs: Obs = env.reset(seed=seed)[0]
        self._score = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)
        self._finished: deque[float] = deque(maxlen=100)

    def collect(self, agent: Agent) -> RolloutBuffer:
        """T decisions of the exploring agent; the next call overwrites them."""
        buffer = self._buffer
        buffer.clear()
        with fixed_weights(agent.policy):
            for _ in range(buffer.decisions):
                self._decide(agent, buffer)
        buffer.finish(self._obs)
        self.env_steps += int(buffer.executed.sum())
        return buffer

    def _decide(self, agent: Agent, buffer: RolloutBuffer) -> None:
        action, extras = agent.act(self._obs, explore=True)
        obs, _, terminated, truncated, info = self.env.step(action)
        buffer.add(self._obs, extras, info["rewards"], info["executed"], terminated, truncated, info["final_obs"])
        self._count(info["rewards"], terminated | truncated)
        agent.reset(terminated | truncated)
        self._obs = obs

    @property
    def mean_return(self) -> float | None:
        """Mean undiscounted return of the last 100 exploring episodes; None before the first has ended."""
        return sum(self._finished) / len(self._finished) if self._finished else None

    def _count(self, rewards: Tensor, done: Tensor) -> None:
        self._score += rewards.sum(-1)
        if done.any():
            self._finished.extend(self._score[done].tolist())
            self._score[done] = 0.0

    def state_dict(self) -> State:
        """Envs and counters."""
        return {
            "env": self.env.state_dict(),
            "score": self._score,
            "finished": list(self._finished),
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where ``state_dict`` was taken; a simulator that cannot be saved starts new episodes."""
        self.env.load_state_dict(state["env"])
        self.env_steps = state["env_steps"]
        self._finished.extend(state["finished"])
        self._obs = self.env.observation()
        if not self.env.restarted_on_load:
            self._score.copy_(state["score"])
