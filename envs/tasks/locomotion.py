"""What Gymnasium's moving bodies have in common: reward for moving along x, a cost of acting, noise at the start.

Semantics are Gymnasium's v5 environments, whose model files are used as they are shipped.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules come without types.)

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import ClassVar

import gymnasium
import mujoco
import torch
from torch import Tensor

from diffpolicy_rl.envs.quiet import quiet_mujoco
from diffpolicy_rl.envs.tasks.base import Physics, Task

_MODELS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


@dataclass
class Locomotion(Task):
    """A body that is rewarded for moving along x, and pays for its actions.

    Attributes:
        forward_reward_weight: reward per m/s of x velocity.
        ctrl_cost_weight: cost per squared unit of action.
        reset_noise_scale: size of the noise on the initial state.
        exclude_current_positions_from_observation: hide the absolute position, which the reward does not depend on.
        speed_limit: x velocity, m/s, above which a step costs 1; by default there is neither limit nor cost.
        penalty: reward lost per m/s above it, for agents that know of no costs.
    """

    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    reset_noise_scale: float = 5e-3
    exclude_current_positions_from_observation: bool = True
    speed_limit: float = inf
    penalty: float = 0.0

    model_file: ClassVar[str]
    absolute_positions: ClassVar[int] = 1
    """How many leading entries of qpos are the absolute position."""

    @cached_property
    def model(self) -> mujoco.MjModel:
        """The compiled MuJoCo model."""
        with quiet_mujoco():
            return mujoco.MjModel.from_xml_path(str(_MODELS / self.model_file))

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
        reward = self._gain(before, after) - self.ctrl_cost_weight * action.square().sum(dim=-1)
        if self.penalty:
            reward = reward - self.penalty * (self._velocity_x(before, after) - self.speed_limit).clamp(min=0)
        return reward

    def cost(self, before: Physics, after: Physics, action: Tensor) -> Tensor | None:
        """1 where the body was faster than its limit, else 0, (...,); None without a limit."""
        if self.speed_limit == inf:
            return None
        return (self._velocity_x(before, after) > self.speed_limit).to(after.qpos.dtype)

    def _gain(self, before: Physics, after: Physics) -> Tensor:
        """What the reward is before the cost of acting."""
        return self.forward_reward_weight * self._velocity_x(before, after)

    def _velocity_x(self, before: Physics, after: Physics) -> Tensor:
        """Mean x velocity of the env step, m/s."""
        return (self._place(after) - self._place(before)) / self.dt

    def _place(self, physics: Physics) -> Tensor:
        """Where the body is along x, m."""
        return physics.qpos[..., 0]

    def initial_state(self, uniform: Tensor) -> Physics:
        """The model's rest state plus noise, (n, nq) and (n, nv), from ``uniform`` (n, nq + nv)."""
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
class FallingTask(Locomotion):
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
        """As ``Locomotion.observe``, with clipped velocities."""
        limit = self.velocity_limit
        return super().observe(Physics(physics.qpos, physics.qvel.clamp(-limit, limit)))


def within(value: Tensor, interval: tuple[float, float]) -> Tensor:
    """Whether each value lies inside the open interval."""
    return (interval[0] < value) & (value < interval[1])
