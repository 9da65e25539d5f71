"""The contracts every part is written against, and the letters every shape is written in.

Letters
-------
N envs · T rollout decisions · B batch · H predicted chunk length · A executed actions (A <= H) · D action dimension ·
O observation dimension · To observation history · K sampling steps · M candidates.

Public time runs t = 0 (noise) to t = 1 (action) for every process. Angles are rad, rates Hz, names ending ``_s``
seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import gymnasium
import torch
from torch import Tensor, nn

Obs = Tensor | dict[str, Tensor]
"""Observations: a tensor (N, O), or (N, To, O) with history, where the space is a Box; else a dict of tensors."""

Extras = dict[str, Tensor]
"""What an agent wants back from the buffer, leading dimension N; reserved: chain, value, log_prob, w, base_action,
costs, return_to_go."""

State = dict[str, Any]
"""A tree of dicts whose leaves are tensors or JSON values: all that a checkpoint may hold."""


@dataclass(frozen=True)
class Spec:
    """What a policy must know of its task; saved with every checkpoint, so that a run loads without its simulator.

    Attributes:
        env_id: the id that ``make_env`` takes.
        obs_shape: shape of one observation, (O,) or (To, O).
        action_dim: D.
    """

    env_id: str
    obs_shape: tuple[int, ...]
    action_dim: int


class Chain(NamedTuple):
    """Part of a sampling chain: the moves start, start + 1, ... of a K-step grid.

    Attributes:
        states: (B, K'+1, H, D); states[:, 0] is the input of move ``start``.
        start: index of the first move in the policy's grid.
    """

    states: Tensor
    start: int = 0


class VecEnv(Protocol):
    """N copies of one task, stepped by action chunks; arrays are torch tensors on ``device``.

    It follows ``gymnasium.vector.VectorEnv``: same names, spaces, 5-tuple, and ``metadata["autoreset_mode"]``
    SAME_STEP.

    A chunk of A actions is executed inside ``step``; a row freezes as soon as its episode ends, and is then reset in
    the same call, so the returned observation is always one to act on. Actions are clipped to the Box here and nowhere
    else.

    ``step(action (N, A, D))`` returns ``obs, reward (N,), terminated (N,) bool, truncated (N,) bool, info``; reward is
    the plain sum over the executed actions; terminated and truncated are never both set for one row. ``info`` holds

    - ``rewards`` (N, A): the single rewards, 0 where the row was frozen;
    - ``executed`` (N,) int64: how many actions ran, 1 to A;
    - ``final_obs``: like obs, what was seen after the last executed action, before any reset;
    - ``_final_obs`` (N,) bool: terminated | truncated, where it is the episode's last and obs the next one's first;
    - ``costs`` (N, A), like rewards, and ``cost`` (N,), their sum, only if the task has costs;
    - ``success`` (N,) bool, only if the task can be solved.
    """

    num_envs: int
    chunk: int
    device: torch.device
    spec_id: str
    max_episode_steps: int
    restarted_on_load: bool
    metadata: dict[str, Any]

    @property
    def single_observation_space(self) -> gymnasium.Space:
        """Space of one observation."""
        ...

    @property
    def single_action_space(self) -> gymnasium.spaces.Box:
        """Box (D,) of one action."""
        ...

    def reset(self, *, seed: int | None = None, mask: Tensor | None = None) -> tuple[Obs, dict[str, Any]]:
        """Start new episodes, in the rows of ``mask`` (N,) bool if given; a seed restarts every row's random stream."""
        ...

    def step(self, action: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Execute a chunk (N, A, D) in env units."""
        ...

    def observation(self) -> Obs:
        """The observation to act on next, as the last ``reset``, ``step`` or ``load_state_dict`` left it."""
        ...

    def state_dict(self) -> State:
        """All that continuing needs: physics, elapsed steps, random streams, history."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Continue where ``state_dict`` was taken."""
        ...

    def render(self) -> Any:
        """RGB frame (height, width, 3) uint8 of the first row; raises UserError where nothing can be rendered."""
        ...

    def close(self) -> None:
        """Release threads, processes and windows."""
        ...


class DeployedPolicy(nn.Module):
    """A stateless policy as a robot runs it: what evaluation runs, distillation teaches from and export exports.

    Attributes:
        execute: A, how many of the H rows to execute before the next call.
        noise_shape: shape of one row's noise, or None for a deterministic policy. Noise is everything that is random.
        per_step: whether every single action passes through ``correct`` before it is executed.
        scores: whether ``score`` says how good an action is.
    """

    execute: int
    noise_shape: tuple[int, ...] | None
    per_step: bool = False
    scores: bool = False

    def correct(self, obs: Obs, action: Tensor) -> Tensor:
        """What is executed in place of a planned action (N, D), in env units, now that obs (N, O) is seen.

        Only called if ``per_step``.
        """
        return action

    def score(self, obs: Obs, action: Tensor) -> Tensor:
        """What the critics that choose think of chunks (N, H, D) in env units: (N,), higher where they are better.

        Only called if ``scores``.
        """
        raise NotImplementedError

    def planner(self) -> "DeployedPolicy":
        """What plans the chunks: this policy, or the base of one that corrects every action of them."""
        return self

    def exportable(self) -> "DeployedPolicy":
        """What an exported graph computes: this policy, or what stands in for it where no graph could."""
        return self

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map raw observations and standard-normal noise (N, *noise_shape) to actions (N, H, D) in env units."""
        raise NotImplementedError

    def sample_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Standard-normal noise for n rows, drawn on the CPU so that it is the same on every device."""
        if self.noise_shape is None:
            return None
        return torch.randn((n, *self.noise_shape), generator=generator)


@runtime_checkable
class Agent(Protocol):
    """A learning rule around a policy. The loop knows agents by this alone.

    Attributes:
        data: what ``update`` is given online: a rollout that every iteration overwrites, or all experience so far.
        per_step: whether the agent decides in every env step, so that chunk is 1 although its policy's is not.
        phases: the phases a run of this agent goes through, in order, out of ``bc``, ``offline`` and ``online``.
        chunk: A, the number of actions the agent wants executed per decision.
        policy: the policy as it stands; the next phase starts from it.
        gradient_steps: optimiser steps of the policy so far.
    """

    data: ClassVar[Literal["rollout", "replay"]]
    phases: ClassVar[tuple[str, ...]]
    per_step: ClassVar[bool]
    chunk: int
    policy: Any
    gradient_steps: int

    def act(self, obs: Obs, *, explore: bool) -> tuple[Tensor, Extras]:
        """Actions (N, A, D) in env units, and what the buffer shall keep beside them."""
        ...

    def reset(self, done: Tensor) -> None:
        """Forget what is held per env (chunk queues) in the rows of done (N,) bool."""
        ...

    def update(self, buffer: Any) -> Mapping[str, Tensor]:
        """One iteration of learning from the buffer; returns 0-d metrics, still on the device."""
        ...

    def deploy(self) -> DeployedPolicy:
        """The policy as it would be shipped, sharing this agent's weights."""
        ...

    def state_dict(self) -> State:
        """Weights, EMA, optimisers, scalers, random generators, counters."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Continue bit for bit where ``state_dict`` was taken."""
        ...


@runtime_checkable
class Student(Protocol):
    """An agent that learns from what another run deploys."""

    def learn_from(self, teacher: DeployedPolicy) -> None:
        """Take the teacher; UserError if it cannot be learned from."""
        ...
