"""Hopper-v5: a planar leg that hops forward without falling."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.envs.tasks.base import Physics
from diffpolicy_rl.envs.tasks.locomotion import UprightTask, within


@dataclass
class Hopper(UprightTask):
    """Gymnasium's Hopper-v5: O = 11, D = 3.

    Attributes:
        healthy_state_range: open interval that every joint angle and velocity must stay in.
    """

    healthy_state_range: tuple[float, float] = (-100.0, 100.0)

    model_file: ClassVar[str] = "hopper.xml"

    def healthy(self, physics: Physics) -> Tensor:
        """Whether torso height, pitch, and every angle and velocity are inside their ranges, (...,) bool."""
        state = torch.cat([physics.qpos[..., 2:], physics.qvel], dim=-1)
        return super().healthy(physics) & within(state, self.healthy_state_range).all(dim=-1)
