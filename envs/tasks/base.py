"""A task is an MJCF model and pure batched functions of its physics; a backend brings the simulator.

Every function takes tensors with any leading dimensions, so one call serves a whole chunk (N, A, ...) on any device.
Semantics are Gymnasium's v5 environments, whose model files are used as they are shipped.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules come without types.)

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import gymnasium
import mujoco
import torch
from torch import Tensor

from diffpolicy_rl.envs.quiet import quiet_mujoco
from diffpolicy_rl.errors import UserError, did_you_mean

_MODELS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


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
    """A body that is rewarded for moving along x, and pays for its actions.

    Attributes:
        forward_reward_weight: reward per m/s of x velocity.
        ctrl_cost_weight: cost per squared unit of action.
        reset_noise_scale: size of the noise on the initial state.
        exclude_current_positions_from_observation: hide the absolute position, which the reward does not depend on.
        frame_skip: physics steps per env step.
        max_episode_steps: time limit, in env steps.
    """

    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    reset_noise_scale: float = 5e-3
    exclude_current_positions_from_observation: bool = True
    frame_skip: int = 4
    max_episode_steps: int = 1000

    model_file: ClassVar[str]
    absolute_positions: ClassVar[int] = 1
    """How many leading entries of qpos are the absolute position."""
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

    @cached_property
    def model(self) -> mujoco.MjModel:
        """The compiled MuJoCo model."""
        with quiet_mujoco():
            return mujoco.MjModel.from_xml_path(str(_MODELS / self.model_file))

    @cached_property
    def dt(self) -> float:
        """Seconds per env step."""
        return self.model.opt.timestep * self.frame_skip

    @cached_property
    def obs_dim(self) -> int:
        """O."""
        return self.model.nq + self.model.nv - self._hidden

    @property
    def _hidden(self) -> int:
        return self.absolute_positions if self.exclude_current_positions_from_observation else 0

    def observe(self, physics: Physics) -> Tensor:
        """Observation (..., O): positions, without the absolute ones, then velocities."""
        return torch.cat([physics.qpos[..., self._hidden :], physics.qvel], dim=-1)

    def reward(self, before: Physics, after: Physics, action: Tensor) -> Tensor:
        """Reward (...,) of the env step from ``before`` to ``after`` under ``action`` (..., D)."""
        return self._gain(before, after) - self.ctrl_cost_weight * action.square().sum(dim=-1)

    def _gain(self, before: Physics, after: Physics) -> Tensor:
        """What the reward is before the cost of acting."""
        return self.forward_reward_weight * ((self._place(after) - self._place(before)) / self.dt)

    def _place(self, physics: Physics) -> Tensor:
        """Where the body is along x, m."""
        return physics.qpos[..., 0]

    def terminated(self, physics: Physics) -> Tensor:
        """Whether the episode ends in this state, (...,) bool; by default it never does."""
        return torch.zeros(physics.qpos.shape[:-1], dtype=torch.bool, device=physics.qpos.device)

    def initial_state(self, uniform: Tensor) -> Physics:
        """State an episode starts from.

        Args:
            uniform: (n, nq + nv) numbers in (0, 1), all the randomness there is.

        Returns:
            The model's rest state plus noise, (n, nq) and (n, nv).
        """
        position_noise, velocity_noise = uniform.split([self.model.nq, self.model.nv], dim=-1)
        rest = torch.as_tensor(self.model.qpos0, dtype=uniform.dtype, device=uniform.device)
        return Physics(rest + self._symmetric(position_noise), self._velocity(velocity_noise))

    def _symmetric(self, uniform: Tensor) -> Tensor:
        """Noise that is uniform in +-reset_noise_scale."""
        return self.reset_noise_scale * (2 * uniform - 1)

    def _normal(self, uniform: Tensor) -> Tensor:
        """Normal noise with standard deviation reset_noise_scale."""
        return self.reset_noise_scale * torch.special.ndtri(uniform)

    def _velocity(self, uniform: Tensor) -> Tensor:
        return self._symmetric(uniform)


@dataclass
class FallingTask(Task):
    """A task whose episode ends when the body falls; each step on its feet is rewarded.

    Attributes:
        healthy_reward: reward per step in a healthy state.
        terminate_when_unhealthy: end the episode at the first unhealthy state.
    """

    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True

    @abstractmethod
    def healthy(self, physics: Physics) -> Tensor:
        """Whether the body is on its feet, (...,) bool."""

    def terminated(self, physics: Physics) -> Tensor:
        """Whether the body fell, (...,) bool."""
        return ~self.healthy(physics) if self.terminate_when_unhealthy else super().terminated(physics)

    def _gain(self, before: Physics, after: Physics) -> Tensor:
        # A number times a bool would be rounded to torch's default type.
        return super()._gain(before, after) + self.healthy_reward * self.healthy(after).to(after.qpos.dtype)


@dataclass
class UprightTask(FallingTask):
    """A planar body that stays healthy at the right height and pitch.

    Attributes:
        healthy_z_range: open interval of healthy torso heights, m.
        healthy_angle_range: open interval of healthy torso pitch, rad.
    """

    healthy_z_range: tuple[float, float] = (0.7, float("inf"))
    healthy_angle_range: tuple[float, float] = (-0.2, 0.2)

    velocity_limit: ClassVar[float] = 10.0
    """Observed velocities are clipped to this, m/s and rad/s."""

    def healthy(self, physics: Physics) -> Tensor:
        """Whether height and pitch of the torso are inside their ranges, (...,) bool."""
        height, pitch = physics.qpos[..., 1], physics.qpos[..., 2]
        return within(height, self.healthy_z_range) & within(pitch, self.healthy_angle_range)

    def observe(self, physics: Physics) -> Tensor:
        """As ``Task.observe``, with clipped velocities."""
        limit = self.velocity_limit
        return super().observe(Physics(physics.qpos, physics.qvel.clamp(-limit, limit)))


def within(value: Tensor, interval: tuple[float, float]) -> Tensor:
    """Whether each value lies inside the open interval."""
    return (interval[0] < value) & (value < interval[1])
