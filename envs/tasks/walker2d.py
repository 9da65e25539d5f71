"""Walker2d-v5: a planar pair of legs that walks forward without falling."""

from dataclasses import dataclass
from typing import ClassVar

from diffpolicy_rl.envs.tasks.locomotion import UprightTask


@dataclass
class Walker2d(UprightTask):
    """Gymnasium's Walker2d-v5: O = 17, D = 6."""

    healthy_z_range: tuple[float, float] = (0.8, 2.0)
    healthy_angle_range: tuple[float, float] = (-1.0, 1.0)

    model_file: ClassVar[str] = "walker2d_v5.xml"
