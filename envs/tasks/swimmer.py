"""Swimmer-v5: three links that swim in the plane; episodes end at the time limit only."""

from dataclasses import dataclass
from typing import ClassVar

from diffpolicy_rl.envs.tasks.locomotion import Locomotion


@dataclass
class Swimmer(Locomotion):
    """Gymnasium's Swimmer-v5: O = 8, D = 2; both plane coordinates are hidden."""

    ctrl_cost_weight: float = 1e-4
    reset_noise_scale: float = 0.1

    model_file: ClassVar[str] = "swimmer.xml"
    absolute_positions: ClassVar[int] = 2
