"""A task is an MJCF model and pure batched functions of its physics; a backend brings the simulator.

Every function takes tensors with any leading dimensions, so one call serves a whole chunk (N, A, ...) on any device.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules come without types.)

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import mujoco
import torch
from torch import Tensor

from diffpolicy_rl.errors import UserError, did_you_mean


class Physics(NamedTuple):
    """The part of a simulation's state that tasks read.

    Attributes:
        qpos: (..., nq) generalised positions, m and rad.
        qvel: (..., nv) generalised velocities, m/s and rad/s.
        xpos: (..., bodies, 3) places of the task's ``tracked_bodies`` in the world, m, as MuJoCo leaves them after a
            step: one physics step behind ``qpos``.
    """

    qpos: Tensor
    qvel: Tensor
    xpos: Tensor = torch.empty(0, 3)


@dataclass
class Task(ABC):
    """A model, what is seen of it and rewarded, and when and how an episode ends and starts.

    Attributes:
        frame_skip: physics steps per env step.
        max_episode_steps: time limit, in env steps.
    """

    frame_skip: int = 4
    max_episode_steps: int = 1000

    tracked_bodies: ClassVar[slice] = slice(0)
    """The bodies whose places the task reads, by their numbers in the model."""
    required: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Settings with which alone Gymnasium's task is this one."""

    @classmethod
    def missing(cls, settings: Mapping[str, Any]) -> list[str]:
        """Required settings, as ``name=value``, that are not among these."""
        return [f"{name}={value}" for name, value in cls.required.items() if settings.get(name, ...) != value]

    @classmethod
    def from_settings(cls, env_id: str, settings: Mapping[str, Any]) -> Self:
        """Build the task of ``env_id``; raises UserError for a setting it does not have, or lacks."""
        if missing := cls.missing(settings):
            raise UserError(f"{env_id} needs {' and '.join(missing)} on the batch backend; or use backend=gymnasium")
        settings = {name: value for name, value in settings.items() if name not in cls.required}
        known = {field.name: field.default for field in fields(cls)}
        for name, value in settings.items():
            if name not in known:
                raise UserError(f"{env_id} has no setting {name!r}; {did_you_mean(name, known)}")
            if isinstance(value, str) or isinstance(value, list | tuple) != isinstance(known[name], tuple):
                raise UserError(f"{env_id}: {name}={value} is not of the kind of its default {known[name]}")
        return cls(**settings)

    @property
    @abstractmethod
    def model(self) -> mujoco.MjModel:
        """The compiled MuJoCo model."""

    @cached_property
    def dt(self) -> float:
        """Seconds per env step."""
        return self.model.opt.timestep * self.frame_skip

    @property
    @abstractmethod
    def obs_dim(self) -> int:
        """O."""

    @abstractmethod
    def observe(self, physics: Physics) -> Tensor:
        """Observation (..., O)."""

    @abstractmethod
    def reward(self, before: Physics, after: Physics, action: Tensor) -> Tensor:
        """Reward (...,) of the env step from ``before`` to ``after`` under ``action`` (..., D)."""

    def cost(self, before: Physics, after: Physics, action: Tensor) -> Tensor | None:
        """What the same env step costs (...,), where that is not to be weighed against reward; None, the default."""
        return None

    @abstractmethod
    def initial_state(self, uniform: Tensor) -> Physics:
        """State an episode starts from.

        Args:
            uniform: (n, nq + nv) numbers in (0, 1), all the randomness there is.

        Returns:
            Positions (n, nq) and velocities (n, nv).
        """

    def terminated(self, physics: Physics) -> Tensor:
        """Whether the episode ends in this state, (...,) bool; by default it never does."""
        return torch.zeros(physics.qpos.shape[:-1], dtype=torch.bool, device=physics.qpos.device)

    def drive(self, physics: Physics, action: Tensor) -> Tensor:
        """Controls (N, nu) of the next env step; by default the action.

        The only function that may change the state it is given, which is the simulation's own.
        """
        return action

    def success(self, physics: Physics) -> Tensor | None:
        """Whether the task is solved in this state, (...,) bool; None, the default, if it cannot be solved."""
        return None
