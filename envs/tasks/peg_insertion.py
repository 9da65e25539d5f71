"""PegInsertion-v0: a square peg goes into a square hole that is hardly wider; the task is ours, not Gymnasium's."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules come without types.)

from dataclasses import dataclass
from functools import cached_property

import mujoco
import torch
from torch import Tensor

from diffpolicy_rl.envs.tasks.base import Physics, Task
from diffpolicy_rl.errors import UserError, require_positive

_SIDE = 0.02  # width of the peg, m
_TOP = 0.04  # height of the block, m
_OUTER = 0.04  # half the width of the block, m
# Ranges of the gripper's x, y, z, yaw, and of the hole's x, y, yaw, m and rad.
_START = ((-0.06, 0.06), (-0.06, 0.06), (0.06, 0.1), (-0.5, 0.5))
_HOLE = ((-0.06, 0.06), (-0.06, 0.06), (-0.5, 0.5))

# The block's joints are its pose, which a model could not change from episode to episode; pulled with full force for a
# whole episode, their armature and damping let it move by about a micrometre. The springs' forces are limited, and the
# joints' damping is not part of them: a jammed peg presses without breaking through, and a free one never moves faster
# than force / damping, so that it cannot pass an edge between two physics steps.
_MODEL = """
<mujoco model="peg insertion">
  <option timestep="0.005" integrator="implicitfast" gravity="0 0 0"/>
  <visual><global offwidth="480" offheight="480"/></visual>
  <default>
    <geom contype="0" conaffinity="0" friction="0.4" solref="0.01 1" solimp="0.95 0.99 0.0005"/>
    <default class="wall"><geom type="box" conaffinity="1" rgba="0.3 0.5 0.8 1"/></default>
    <default class="lock"><joint armature="1e6" damping="1e8"/></default>
    <default class="finger"><geom type="box" size="0.004 0.012 0.02" rgba="0.3 0.3 0.3 1"/></default>
  </default>
  <worldbody>
    <light pos="0.2 -0.3 1" dir="-0.2 0.3 -1"/>
    <camera name="track" pos="0 -0.6 0.5" xyaxes="1 0 0 0 0.6 0.8"/>
    <geom name="table" type="plane" size="0.3 0.3 0.01" rgba="0.8 0.8 0.75 1"/>
    <body name="gripper">
      <joint name="x" type="slide" axis="1 0 0" damping="63"/>
      <joint name="y" type="slide" axis="0 1 0" damping="63"/>
      <joint name="z" type="slide" axis="0 0 1" damping="100"/>
      <joint name="yaw" type="hinge" axis="0 0 1" armature="0.01" damping="0.63"/>
      <geom name="peg" type="box" contype="1" pos="0 0 0.03" size="{peg} {peg} 0.03" mass="0.2" rgba="0.9 0.5 0.2 1"/>
      <geom name="palm" type="box" pos="0 0 0.085" size="0.02 0.012 0.01" mass="0.8" rgba="0.3 0.3 0.3 1"/>
      <geom class="finger" pos="0.014 0 0.06" mass="0"/>
      <geom class="finger" pos="-0.014 0 0.06" mass="0"/>
    </body>
    <body name="block">
      <joint class="lock" name="hole x" type="slide" axis="1 0 0"/>
      <joint class="lock" name="hole y" type="slide" axis="0 1 0"/>
      <joint class="lock" name="hole yaw" type="hinge" axis="0 0 1"/>
      <geom class="wall" pos="{middle} 0 {height}" size="{thick} {outer} {height}"/>
      <geom class="wall" pos="-{middle} 0 {height}" size="{thick} {outer} {height}"/>
      <geom class="wall" pos="0 {middle} {height}" size="{hole} {thick} {height}"/>
      <geom class="wall" pos="0 -{middle} {height}" size="{hole} {thick} {height}"/>
    </body>
  </worldbody>
  <actuator>
    <position joint="x" kp="1000" ctrlrange="-0.08 0.08" forcerange="-20 20"/>
    <position joint="y" kp="1000" ctrlrange="-0.08 0.08" forcerange="-20 20"/>
    <position joint="z" kp="1000" ctrlrange="0 0.11" forcerange="-10 10"/>
    <position joint="yaw" kp="10" ctrlrange="-0.6 0.6" forcerange="-1 1"/>
  </actuator>
</mujoco>
"""


@dataclass
class PegInsertion(Task):
    """A gripper holds a square peg, 20 mm wide, above a block with a square hole: O = 11, D = 4.

    Actions are the pose the gripper is drawn to: x, y and height of the peg's tip, m, and yaw, rad, by springs with
    limited force. Block and gripper start anywhere in their ranges. Reward is 1 in the step that puts the tip
    ``depth`` below the block's top inside the hole, which ends the episode, and 0 in all others.

    Observations are the tip's pose x, y, z, yaw (m, rad), its velocity (m/s, rad/s), and how far the hole is from it in
    x, y and yaw (m, rad).

    Attributes:
        clearance: width of the hole minus width of the peg, m.
        depth: how deep the tip must get into the hole, which is 0.04 deep, m.
    """

    frame_skip: int = 10
    max_episode_steps: int = 100
    clearance: float = 0.001
    depth: float = 0.025

    def __post_init__(self) -> None:
        """Refuse what cannot be solved."""
        require_positive(clearance=self.clearance, depth=self.depth)
        if self.depth >= _TOP:
            raise UserError(f"depth={self.depth} is deeper than the hole, {_TOP} m")

    @cached_property
    def model(self) -> mujoco.MjModel:
        """The compiled MuJoCo model; the hole has the width that ``clearance`` gives it."""
        hole = (_SIDE + self.clearance) / 2
        thick = (_OUTER - hole) / 2
        sizes = {"peg": _SIDE / 2, "hole": hole, "thick": thick, "middle": hole + thick}
        return mujoco.MjModel.from_xml_string(_MODEL.format(**sizes, outer=_OUTER, height=_TOP / 2))

    @property
    def obs_dim(self) -> int:
        """O."""
        return 11

    def observe(self, physics: Physics) -> Tensor:
        """Observation (..., O), as the class describes it."""
        to_hole = physics.qpos[..., 4:] - physics.qpos[..., [0, 1, 3]]
        return torch.cat([physics.qpos[..., :4], physics.qvel[..., :4], to_hole], dim=-1)

    def reward(self, before: Physics, after: Physics, action: Tensor) -> Tensor:
        """1 where the peg is in, else 0, (...,)."""
        return self.success(after).to(after.qpos.dtype)

    def terminated(self, physics: Physics) -> Tensor:
        """Whether the peg is in, (...,) bool."""
        return self.success(physics)

    def success(self, physics: Physics) -> Tensor:
        """Whether the tip is ``depth`` below the block's top, in the hole and not beside the block, (...,) bool."""
        inside = (_offset(physics)[..., :2].abs() < _SIDE / 2).all(dim=-1)
        return inside & (physics.qpos[..., 2] <= _TOP - self.depth)

    def initial_state(self, uniform: Tensor) -> Physics:
        """Gripper above the table and block anywhere in their ranges, (n, nq), both at rest, (n, nv)."""
        low, high = torch.tensor(_START + _HOLE, dtype=uniform.dtype, device=uniform.device).T
        poses = low + (high - low) * uniform[:, : len(low)]
        return Physics(poses, torch.zeros_like(poses))


def _offset(physics: Physics) -> Tensor:
    """The tip's x, y and yaw in the hole's frame, (..., 3)."""
    x, y, yaw = (physics.qpos[..., [0, 1, 3]] - physics.qpos[..., 4:]).unbind(-1)
    cos, sin = physics.qpos[..., 6].cos(), physics.qpos[..., 6].sin()
    return torch.stack([cos * x + sin * y, cos * y - sin * x, yaw], dim=-1)
