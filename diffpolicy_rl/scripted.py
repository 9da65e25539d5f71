"""Experts written by hand, as deployed policies: they know the task and act like an unsteady human."""

from collections import deque
from typing import ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.envs.tasks.point_maze import PointMaze, PointMazeMedium
from diffpolicy_rl.envs.tasks.point_robot import EDGE, GOAL, HAZARD_RADIUS, HAZARDS
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.types import DeployedPolicy, Obs

_TOP = 0.04  # height of the block, m
_HOVER = 0.012  # gap between tip and block at which the peg is aligned, m
_CLOSE, _LOOSE = (0.0005, 0.025), (0.0015, 0.06)  # errors, m and rad, at which a careful and a hasty hand push down
_LEAD = (0.01, 0.01, 0.005, 0.03)  # how far ahead of the gripper its goal runs, m and rad
_AHEAD, _STEP_S = 20, 0.1  # how far the robot's driver looks ahead, in steps and s per step
_JITTER = (0.0005, 0.0005, 0.0008, 0.008)  # std of each goal, m and rad


class ScriptedExpert(DeployedPolicy):
    """What scripted experts share.

    Args:
        env_id: the task it shall act in.
        stochastic: tremble and hesitate; else act as if all noise were 0.

    Attributes:
        env_id: the task it can act in.
        noise_dim: how many numbers one row of noise has.
    """

    env_id: ClassVar[str]
    noise_dim: ClassVar[int] = 2
    execute = 1

    def __init__(self, env_id: str, stochastic: bool) -> None:
        super().__init__()
        if env_id != self.env_id:
            raise UserError(f"this scripted expert acts in {self.env_id}, not in {env_id}; leave out env=")
        self.noise_shape = (self.noise_dim,) if stochastic else None

    def _noise(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        return obs.new_zeros(len(obs), self.noise_dim) if noise is None else noise


class PegInsertionExpert(ScriptedExpert):
    """Inserts the peg of PegInsertion-v0: approach, align above the hole, push down; lift and search when it jams.

    It remembers nothing: how long it hesitates and how it corrects follows from what it sees and from fresh noise, of
    which one row is 4 jitters of the goal, speed, haste and hesitation.
    """

    env_id: ClassVar[str] = "PegInsertion-v0"
    noise_dim: ClassVar[int] = 7

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map observations (N, 11) and noise (N, 7) to the pose the gripper is drawn to (N, 1, 4), m and rad."""
        assert isinstance(obs, Tensor)
        noise = self._noise(obs, noise)
        pose, speed, to_hole = obs.split([4, 4, 3], dim=-1)
        hole = pose[:, [0, 1, 3]] + to_hole
        jitter, pace, haste, doubt = noise.split([4, 1, 1, 1], dim=-1)
        goal = torch.cat([hole[:, :2], self._height(pose, speed, to_hole, haste), hole[:, 2:]], dim=-1)
        goal = goal + obs.new_tensor(_JITTER) * jitter
        lead = obs.new_tensor(_LEAD) * (0.4 * pace).exp()
        target = pose + (goal - pose).clamp(-lead, lead)
        # A hand at rest is slow to start, one on the move rarely stops.
        resting = speed[:, :3].norm(dim=-1, keepdim=True) < 0.01
        waits = doubt > torch.where(resting, 0.7, 2.0)
        return torch.where(waits, pose, target).unsqueeze(1)

    def _height(self, pose: Tensor, speed: Tensor, to_hole: Tensor, haste: Tensor) -> Tensor:
        """Where the tip shall go, (N, 1) m: down when aligned or inside, up when it jams, else to the hover height."""
        gap = pose[:, 2:3] - _TOP
        lateral, yaw = to_hole[:, :2].norm(dim=-1, keepdim=True), to_hole[:, 2:].abs()
        aligned = (lateral < _CLOSE[0]) & (yaw < _CLOSE[1])
        hasty = (lateral < _LOOSE[0]) & (yaw < _LOOSE[1]) & (haste > 1.5)
        inside = gap < -0.001
        jammed = ~inside & (gap < 0.001) & (speed[:, 2:3].abs() < 0.01)
        down = inside | ((aligned | hasty | (gap < _HOVER / 2)) & ~jammed)
        far = (lateral / 2).clamp(max=0.03)
        return torch.where(down, 0.0, _TOP + _HOVER + far)


class PointMazeExpert(ScriptedExpert):
    """Leads the ball through PointMaze-v0: the shortest way over cells, found in advance, and a PD controller.

    It aims at the centre of the way's next cell, and in the goal's cell at the goal.
    """

    env_id: ClassVar[str] = "PointMaze-v0"
    maze: ClassVar[type[PointMaze]] = PointMaze

    def __init__(self, env_id: str, stochastic: bool) -> None:
        super().__init__(env_id, stochastic)
        self.centres = self.maze.centres().float()
        self.next_cell = _shortest_ways(self.centres)

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map observations (N, 6) and noise (N, 2) to forces (N, 1, 2), in units of 100 N."""
        assert isinstance(obs, Tensor)
        place, velocity, goal = obs.split(2, dim=-1)
        here, there = (torch.cdist(at, self.centres.to(at)).argmin(1) for at in (place, goal))
        way = self.centres.to(obs)[self.next_cell.to(obs.device)[here, there]]
        target = torch.where((here == there)[:, None], goal, way)
        force = 2.0 * (target - place) - 0.6 * velocity + 0.3 * self._noise(obs, noise)
        return force.clamp(-1, 1).unsqueeze(1)


class PointMazeMediumExpert(PointMazeExpert):
    """The same in PointMazeMedium-v0."""

    env_id: ClassVar[str] = "PointMazeMedium-v0"
    maze: ClassVar[type[PointMaze]] = PointMazeMedium


def _shortest_ways(centres: Tensor) -> Tensor:
    """The next cell of a shortest way from each cell to each other (cells, cells), searched breadth-first."""
    touching = (torch.cdist(centres, centres) - 1).abs() < 0.1  # side by side
    ways = torch.zeros(touching.shape, dtype=torch.long)
    for end in range(len(centres)):
        reached, queue = {end}, deque([end])
        while queue:
            cell = queue.popleft()
            for before in touching[cell].nonzero().flatten().tolist():
                if before not in reached:
                    ways[before, end] = cell
                    reached.add(before)
                    queue.append(before)
    return ways


class PointRobotExpert(ScriptedExpert):
    """Drives PointRobot-v0 to its goal: of a grid of constant actions it takes the one with the best short future.

    A future is good that ends near the goal and stays out of hazards and inside the arena.
    """

    env_id: ClassVar[str] = "PointRobot-v0"
    care: ClassVar[float] = 10.0
    """What a step inside a hazard weighs, in m of distance to the goal."""
    margin: ClassVar[float] = 0.1
    """How far from hazards it stays, m."""

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map observations (N, 11) and noise (N, 2) to acceleration and turn rate (N, 1, 2), m/s^2 and rad/s."""
        assert isinstance(obs, Tensor)
        choices = torch.cartesian_prod(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 9)).to(obs)
        best = choices[self._badness(obs, choices).argmin(1)]
        return (best + 0.3 * self._noise(obs, noise)).clamp(-1, 1).unsqueeze(1)

    def _badness(self, obs: Tensor, choices: Tensor) -> Tensor:
        """How bad the future is, (N, choices)."""
        x, y, speed, cos, sin = (part.unsqueeze(1) for part in obs[:, :5].unbind(1))
        heading, (push, turn) = torch.atan2(sin, cos), choices.unbind(1)
        bad = torch.zeros(len(obs), len(choices), device=obs.device)
        for _ in range(_AHEAD):
            x, y = x + _STEP_S * speed * heading.cos(), y + _STEP_S * speed * heading.sin()
            speed, heading = (speed + _STEP_S * push).clamp(0, 1.5), heading + _STEP_S * turn
            for hazard in HAZARDS:
                bad = bad + self.care * (torch.hypot(x - hazard[0], y - hazard[1]) < HAZARD_RADIUS + self.margin)
            bad = bad + 10 * (torch.maximum(x.abs(), y.abs()) > EDGE - 0.1)
            bad = bad + torch.hypot(x - GOAL[0], y - GOAL[1]) / _AHEAD
        return bad


class HastyPointRobot(PointRobotExpert):
    """The same, but hazards hardly matter."""

    care: ClassVar[float] = 0.02
    margin: ClassVar[float] = -0.2


SCRIPTED: dict[str, type[ScriptedExpert]] = {
    "scripted-peg_insertion": PegInsertionExpert,
    "scripted-point_maze": PointMazeExpert,
    "scripted-point_maze_medium": PointMazeMediumExpert,
    "scripted-point_robot": PointRobotExpert,
    "scripted-point_robot_hasty": HastyPointRobot,
}
