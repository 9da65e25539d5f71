"""Per-step residuals on a frozen base policy: the base's plan, what a residual sees, and the two of them deployed.

In every env step the base's next action a_b, planned open loop as a part of a chunk, is corrected by scale * u, where
u was chosen now that the env is seen (ResiP: Ankile et al. 2024, arXiv 2407.16677; ResFiT: Ankile et al. 2025, arXiv
2509.19301).
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from diffpolicy_rl.experience.chunk_queue import ChunkQueue
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import DeployedPolicy, Obs, State

_OBS_CLIP = 3.0  # ResiP's, in normalised units


def residual_input(policy: GenerativePolicy, obs: Obs, base_action: Tensor) -> Tensor:
    """What a residual sees (B, F + D): clipped condition features of raw obs (B, O), and base actions (B, D)."""
    return torch.cat([policy.encode(obs).clamp(-_OBS_CLIP, _OBS_CLIP), base_action], dim=-1)


class BasePlan:
    """The base's actions one by one: a queue per env, filled by a new chunk whenever it has run empty.

    Args:
        policy: the base.
        generator: stream of its noise.
    """

    def __init__(self, policy: GenerativePolicy, generator: torch.Generator) -> None:
        self.policy, self.generator = policy, generator
        self._queue: ChunkQueue | None = None  # once the number of envs is known

    def pop(self, obs: Obs) -> Tensor:
        """The normalised actions (N, D) to execute now, of chunks that are drawn at obs (N, O) where none is left."""
        assert isinstance(obs, Tensor)
        if self._queue is None:
            self._queue = ChunkQueue(self.policy.execute, len(obs))
        needs = self._queue.needs()
        if needs.any():
            self._queue.put(needs, self.policy.sample(obs[needs.to(obs.device)], generator=self.generator))
        return self._queue.pop()

    def peek(self) -> tuple[Tensor, Tensor]:
        """The actions (N, D) planned next, and in which envs (N,) bool there are any."""
        assert self._queue is not None
        return self._queue.peek()

    def follow(self, obs: Tensor, planned: Tensor, going_on: Tensor) -> Tensor:
        """Base actions (B, D) at obs (B, O): those planned where chunks are going_on (B,), else of new chunks."""
        if going_on.all():
            return planned
        actions = planned.clone()
        actions[~going_on] = self.policy.sample(obs[~going_on], generator=self.generator)[:, 0]
        return actions

    def reset(self, done: Tensor) -> None:
        """Forget the chunks of the envs in done (N,) bool."""
        if self._queue is not None:
            self._queue.reset(done)

    def state_dict(self) -> State:
        """The queues, once there are any."""
        return {} if self._queue is None else self._queue.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Continue where ``state_dict`` was taken."""
        self._queue = None
        if state:
            self._queue = ChunkQueue(self.policy.execute, len(state["next"]))
            self._queue.load_state_dict(state | {"chunks": state["chunks"].to(self.policy.device)})


class Residual(Protocol):
    """A distribution of residuals."""

    def mode(self, features: Tensor) -> Tensor:
        """The residuals (B, D) to act with, without exploration, at ``residual_input``'s (B, F + D)."""
        ...


class ResidualPolicy(DeployedPolicy):
    """A base policy whose every action is corrected by a residual.

    Args:
        policy: the base.
        residual: a module that has a mode.
        scale: what residuals are multiplied by, in normalised action units.
    """

    per_step = True

    def __init__(self, policy: GenerativePolicy, residual: nn.Module, scale: float) -> None:
        super().__init__()
        self.base, self.residual, self.scale = policy.deploy(), residual, scale
        self.execute, self.noise_shape = self.base.execute, self.base.noise_shape

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """The base's chunks (N, H, D) in env units."""
        return self.base(obs, noise)

    def planner(self) -> DeployedPolicy:
        """The base."""
        return self.base

    def correct(self, obs: Obs, action: Tensor) -> Tensor:
        """Unnormalised a_b + scale u (N, D), written such that a residual of zero leaves every bit of action (N, D)."""
        policy = self.base.policy
        residual: Residual = self.residual  # pyright: ignore[reportAssignmentType]
        u = residual.mode(residual_input(policy, obs, policy.action_normalizer(action)))
        return action + policy.action_normalizer.scale * (self.scale * u)
