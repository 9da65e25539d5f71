"""Acting in the envs and writing down what happened."""

import contextlib
from collections import deque
from typing import Protocol

import torch
from torch import Tensor

from diffpolicy_rl.experience.replay import ReplayBuffer
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.types import Agent, Extras, Obs, State, VecEnv


class Buffer(Protocol):
    """Where decisions are written down."""

    def add(
        self,
        obs: Obs,
        extras: Extras,
        rewards: Tensor,
        executed: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        final_obs: Obs,
    ) -> None:
        """Store one decision of all envs, after which they saw ``final_obs``."""
        ...


class Rollout:
    """The envs an agent learns in, and the statistics of the episodes it finishes there.

    Args:
        env: the vector env.
        seed: of its episodes.
        decisions: T, decisions per rollout.
        buffer: where they are written down.
        diary: where they are written down as well, with the actions that were executed, and stay.

    Attributes:
        env_steps: actions executed so far, all envs together.
    """

    def __init__(
        self, env: VecEnv, seed: int, decisions: int, buffer: Buffer, diary: ReplayBuffer | None = None
    ) -> None:
        self.env, self.decisions, self.buffer, self.diary, self.env_steps = env, decisions, buffer, diary, 0
        box = env.single_action_space
        self._low, self._high = (torch.from_numpy(bound).to(env.device) for bound in (box.low, box.high))
        self._obs: Obs = env.reset(seed=seed)[0]
        self._score = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)
        self._finished: deque[float] = deque(maxlen=100)

    def collect(self, agent: Agent) -> None:
        """T decisions of the exploring agent."""
        # Who learns between any two decisions would arrange the weights anew for each.
        with fixed_weights(agent.policy) if agent.data == "rollout" else contextlib.nullcontext():
            for _ in range(self.decisions):
                action, extras = agent.act(self._obs, explore=True)
                obs, _, terminated, truncated, info = self.env.step(action)
                rewards, executed, done = info["rewards"], info["executed"], terminated | truncated
                costs = {"costs": info["costs"]} if "costs" in info else {}
                outcome = rewards, executed, terminated, truncated, info["final_obs"]
                self.buffer.add(self._obs, extras | costs, *outcome)
                if self.diary is not None:
                    self.diary.add(self._obs, {"action": action.clamp(self._low, self._high), **costs}, *outcome)
                self.env_steps += int(executed.sum())
                self._count(rewards, done)
                agent.reset(done)
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
        } | ({} if self.diary is None else {"diary": self.diary.state_dict()})

    def load_state_dict(self, state: State) -> None:
        """Continue where ``state_dict`` was taken; a simulator that cannot be saved starts new episodes."""
        self.env.load_state_dict(state["env"])
        self.env_steps = state["env_steps"]
        self._finished.extend(state["finished"])
        self._obs = self.env.observation()
        if self.diary is not None:
            self.diary.load_state_dict(state["diary"])
            if self.env.restarted_on_load:
                self.diary.cut()
        if not self.env.restarted_on_load:
            self._score.copy_(state["score"])
