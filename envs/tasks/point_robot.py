"""PointRobot-v0: a vehicle steers between two hazards to a goal, as in FISOR (Zheng et al. 2024, arXiv 2401.10700).

Its kinematics are integrated by Euler's rule, as published: MuJoCo carries joints on at the speeds the task sets.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules come without types.)

from dataclasses import dataclass
from functools import cached_property

import mujoco
import torch
from torch import Tensor

from diffpolicy_rl.envs.tasks.base import Physics, Task

HAZARDS = ((0.4, -1.2), (-0.4, 1.2))  # centres, m
HAZARD_RADIUS = 0.8  # m
GOAL, GOAL_RADIUS = (2.2, 2.2), 0.3  # m
EDGE = 3.0  # where the arena ends in x and y, m
_START = (-1.8, 0.0, 2.0, torch.pi / 4)  # x, y, speed and heading of the published test, m, m/s and rad
_ANYWHERE = ((-EDGE, EDGE), (-EDGE, EDGE), (0.5, 2.0), (torch.pi / 4, 3 * torch.pi / 4))

# The bodies hold the four numbers of the state. Nothing pulls at them: the motors, which have no gear, say how many
# actions there are, and their range.
_MODEL = f"""
<mujoco model="point robot">
  <option timestep="0.05" gravity="0 0 0"><flag contact="disable"/></option>
  <visual><global offwidth="480" offheight="480"/></visual>
  <worldbody>
    <light pos="0 0 6"/>
    <camera name="track" pos="0 0 8.5"/>
    <geom type="plane" size="{EDGE} {EDGE} 0.1" rgba="0.8 0.8 0.75 1"/>
    <geom type="cylinder" size="{HAZARD_RADIUS} 0.02" pos="{HAZARDS[0][0]} {HAZARDS[0][1]} 0" rgba="0.8 0.3 0.3 1"/>
    <geom type="cylinder" size="{HAZARD_RADIUS} 0.02" pos="{HAZARDS[1][0]} {HAZARDS[1][1]} 0" rgba="0.8 0.3 0.3 1"/>
    <geom type="cylinder" size="{GOAL_RADIUS} 0.02" pos="{GOAL[0]} {GOAL[1]} 0" rgba="0.3 0.7 0.3 1"/>
    <body name="robot">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom type="sphere" size="0.08" mass="1" rgba="0.2 0.3 0.8 1"/>
    </body>
    <body name="speed" pos="0 0 -1">
      <joint name="speed" type="slide" axis="1 0 0"/>
      <geom type="sphere" size="0.01" mass="1"/>
    </body>
    <body name="heading" pos="0 0 -1">
      <joint name="heading" type="hinge" axis="0 0 1"/>
      <geom type="sphere" size="0.01" mass="1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="speed" gear="0" ctrlrange="-1 1"/>
    <motor joint="heading" gear="0" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""


@dataclass
class PointRobot(Task):
    """A point with a speed and a heading: O = 11, D = 2; being inside a hazard costs 1 per step.

    Actions are acceleration, m/s^2, and turn rate, rad/s, both within 1. Reward is by how much the goal came nearer, m,
    and 1 more for reaching it, which ends the episode, as leaving the arena does.

    Observations are x, y (m), speed (m/s), cosine and sine of the heading, and for each hazard the distance of its
    centre (m), and cosine and sine of its bearing as seen from the vehicle.

    Attributes:
        anywhere: start anywhere, be it in a hazard, as for the published training data, and not in the test's state.
    """

    frame_skip: int = 1
    max_episode_steps: int = 300
    anywhere: bool = False

    @cached_property
    def model(self) -> mujoco.MjModel:
        """The compiled MuJoCo model."""
        return mujoco.MjModel.from_xml_string(_MODEL)

    @property
    def obs_dim(self) -> int:
        """O."""
        return 11

    def drive(self, physics: Physics, action: Tensor) -> Tensor:
        """Set the speeds (N, 4) at which x, y, speed and heading change during the step."""
        _, _, speed, heading = physics.qpos.unbind(-1)
        physics.qvel.copy_(torch.stack([speed * heading.cos(), speed * heading.sin(), *action.unbind(-1)], dim=-1))
        return action

    def observe(self, physics: Physics) -> Tensor:
        """Observation (..., O), as the class describes it."""
        heading = physics.qpos[..., 3]
        cos, sin = heading.cos(), heading.sin()
        parts = [*physics.qpos[..., :3].unbind(-1), cos, sin]
        for x, y in (_to(physics, centre).unbind(-1) for centre in HAZARDS):
            distance = torch.hypot(x, y)
            bearing = torch.atan2(cos * y - sin * x, cos * x + sin * y)
            parts += [distance, bearing.cos(), bearing.sin()]
        return torch.stack(parts, dim=-1)

    def reward(self, before: Physics, after: Physics, action: Tensor) -> Tensor:
        """By how much the goal came nearer, and 1 more for reaching it, (...,)."""
        nearer = _to(before, GOAL).norm(dim=-1) - _to(after, GOAL).norm(dim=-1)
        return nearer + self.success(after).to(nearer.dtype)

    def cost(self, before: Physics, after: Physics, action: Tensor) -> Tensor:
        """1 inside a hazard, else 0, (...,)."""
        distance = torch.stack([_to(after, centre).norm(dim=-1) for centre in HAZARDS])
        return (distance.amin(0) < HAZARD_RADIUS).to(distance.dtype)

    def terminated(self, physics: Physics) -> Tensor:
        """Whether the goal is reached or the arena is left, (...,) bool."""
        return self.success(physics) | (physics.qpos[..., :2].abs() > EDGE).any(dim=-1)

    def success(self, physics: Physics) -> Tensor:
        """Whether the goal is reached, (...,) bool."""
        return _to(physics, GOAL).norm(dim=-1) <= GOAL_RADIUS

    def initial_state(self, uniform: Tensor) -> Physics:
        """The test's state, or one anywhere, (n, 4), and no speeds (n, 4): the first step sets them."""
        low, high = torch.tensor(_ANYWHERE, dtype=uniform.dtype, device=uniform.device).T
        test = torch.tensor(_START, dtype=uniform.dtype, device=uniform.device).expand(len(uniform), 4)
        state = low + (high - low) * uniform[:, :4] if self.anywhere else test
        return Physics(state, torch.zeros_like(state))


def _to(physics: Physics, place: tuple[float, float]) -> Tensor:
    """From the robot to a place in the arena, (..., 2) m."""
    return physics.qpos.new_tensor(place) - physics.qpos[..., :2]
