"""A ball is pushed through a maze to a goal; dynamics are those of Gymnasium-Robotics' PointMaze (D4RL's maze2d)."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules come without types.)

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from diffpolicy_rl.envs.tasks.base import Physics, Task

_REACH = 0.45  # distance at which the goal counts as reached, m
_SPREAD = 0.25  # how far start and goal may lie from their cells' centres, m
_MAX_SPEED = 5.0  # m/s, per axis

# The goal's joints are its place, which a model could not change from episode to episode; nothing touches it.
_MODEL = """
<mujoco model="point maze">
  <option timestep="0.01" gravity="0 0 0" iterations="20"/>
  <visual><global offwidth="480" offheight="480"/></visual>
  <default>
    <joint damping="1"/>
    <geom friction="0.5 0.1 0.1" density="1000" margin="0.002" condim="1" contype="0" conaffinity="1"/>
    <default class="wall"><geom type="box" contype="1" size="0.5 0.5 0.2" rgba="0.7 0.5 0.3 1"/></default>
  </default>
  <worldbody>
    <light pos="0 0 10"/>
    <camera name="track" pos="0 0 {height}"/>
    <geom type="plane" conaffinity="0" pos="0 0 -0.1" size="{height} {height} 0.1" rgba="0.8 0.8 0.75 1"/>
    {walls}
    <body name="ball">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom type="sphere" size="0.1" contype="1" rgba="0.2 0.3 0.8 1"/>
    </body>
    <body name="goal">
      <joint name="goal x" type="slide" axis="1 0 0"/>
      <joint name="goal y" type="slide" axis="0 1 0"/>
      <geom type="sphere" size="0.15" conaffinity="0" rgba="0.3 0.7 0.3 1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="100" ctrlrange="-1 1"/>
    <motor joint="y" gear="100" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""


@dataclass
class PointMaze(Task):
    """A ball in a maze of cells 1 m wide: O = 6, D = 2.

    Actions are forces in x and y, in units of 100 N. Ball and goal start in two different cells. Reward is 1 in the
    step that comes within 0.45 m of the goal, which ends the episode, and 0 in all others; D4RL's maze2d goes on with
    a new goal instead.

    Observations are the ball's place (m) and velocity (m/s), and the goal's place (m).
    """

    frame_skip: int = 1
    max_episode_steps: int = 300

    layout: ClassVar[tuple[str, ...]] = ("#####", "#   #", "### #", "#   #", "#####")
    """Rows of cells from the largest y to the smallest; # is a wall."""

    @classmethod
    def centres(cls, mark: str = " ") -> Tensor:
        """Places (cells, 2) of the cells with this mark, m; the maze's middle is 0."""
        rows, columns = len(cls.layout), len(cls.layout[0])
        cells = [(i, j) for i, row in enumerate(cls.layout) for j, found in enumerate(row) if found == mark]
        return torch.tensor([(j + 0.5 - columns / 2, rows / 2 - i - 0.5) for i, j in cells], dtype=torch.float64)

    @cached_property
    def model(self) -> mujoco.MjModel:
        """The compiled MuJoCo model."""
        walls = "\n    ".join(f'<geom class="wall" pos="{x} {y} 0.2"/>' for x, y in self.centres("#").tolist())
        return mujoco.MjModel.from_xml_string(_MODEL.format(walls=walls, height=1.3 * len(self.layout)))

    @property
    def obs_dim(self) -> int:
        """O."""
        return 6

    def drive(self, physics: Physics, action: Tensor) -> Tensor:
        """The action; the ball, which is pushed without end, is slowed down to its limit first."""
        physics.qvel[..., :2].clamp_(-_MAX_SPEED, _MAX_SPEED)
        return action

    def observe(self, physics: Physics) -> Tensor:
        """Observation (..., O), as the class describes it."""
        return torch.cat([physics.qpos[..., :2], physics.qvel[..., :2], physics.qpos[..., 2:]], dim=-1)

    def reward(self, before: Physics, after: Physics, action: Tensor) -> Tensor:
        """1 where the goal is reached, else 0, (...,)."""
        return self.success(after).to(after.qpos.dtype)

    def terminated(self, physics: Physics) -> Tensor:
        """Whether the goal is reached, (...,) bool."""
        return self.success(physics)

    def success(self, physics: Physics) -> Tensor:
        """Whether the goal is reached, (...,) bool."""
        return (physics.qpos[..., :2] - physics.qpos[..., 2:]).norm(dim=-1) <= _REACH

    def initial_state(self, uniform: Tensor) -> Physics:
        """Ball and goal near the centres of two cells, (n, 4), at rest, (n, 4)."""
        centres = self.centres().to(uniform)
        start = (uniform[:, 0] * len(centres)).long()
        goal = (start + 1 + (uniform[:, 1] * (len(centres) - 1)).long()) % len(centres)
        places = torch.cat([centres[start], centres[goal]], dim=-1) + _SPREAD * (2 * uniform[:, 2:6] - 1)
        return Physics(places, torch.zeros_like(places))


@dataclass
class PointMazeMedium(PointMaze):
    """The same in D4RL's medium maze."""

    max_episode_steps: int = 600

    layout: ClassVar[tuple[str, ...]] = (
        "########",
        "#  ##  #",
        "#  #   #",
        "##   ###",
        "#  #   #",
        "# #  # #",
        "#   #  #",
        "########",
    )
