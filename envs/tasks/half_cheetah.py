"""HalfCheetah-v5: a planar runner; episodes end at the time limit only."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffpolicy_rl.envs.tasks.locomotion import Locomotion


@dataclass
class HalfCheetah(Locomotion):
    """Gymnasium's HalfCheetah-v5: O = 17, D = 6; it starts with normal velocity noise, as Ant does."""

    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 0.1
    frame_skip: int = 5

    model_file: ClassVar[str] = "half_cheetah.xml"

    def _velocity(self, uniform: Tensor) -> Tensor:
        return self._normal(uniform)
