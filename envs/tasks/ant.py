"""Ant-v5 without contact forces: a body on four legs that runs without falling or rolling over."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.envs.tasks.base import Physics
from diffpolicy_rl.envs.tasks.locomotion import FallingTask


@dataclass
class Ant(FallingTask):
    """Gymnasium's Ant-v5 where contact forces are neither observed nor paid for: O = 27, D = 8.

    MuJoCo's batch does not compute those forces.

    Attributes:
        healthy_z_range: closed interval of healthy torso heights, m.
    """

    ctrl_cost_weight: float = 0.5
    reset_noise_scale: float = 0.1
    frame_skip: int = 5
    healthy_z_range: tuple[float, float] = (0.2, 1.0)

    model_file: ClassVar[str] = "ant.xml"
    absolute_positions: ClassVar[int] = 2
    tracked_bodies: ClassVar[slice] = slice(1, 2)  # the torso
    required: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}
    )

    def healthy(self, physics: Physics) -> Tensor:
        """Whether the torso's height is in its range and the state is finite, (...,) bool."""
        height, (low, high) = physics.qpos[..., 2], self.healthy_z_range
        finite = torch.cat([physics.qpos, physics.qvel], dim=-1).isfinite().all(dim=-1)
        return (low <= height) & (height <= high) & finite

    def _place(self, physics: Physics) -> Tensor:
        # Gymnasium measures progress by the torso's place in the world, which lags behind qpos.
        return physics.xpos[..., 0, 0]

    def _velocity(self, uniform: Tensor) -> Tensor:
        return self._normal(uniform)
