"""Experts written by hand, as deployed policies: they know the task and act like an unsteady human."""

from typing import ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.types import DeployedPolicy, Obs

_TOP = 0.04  # height of the block, m
_HOVER = 0.012  # gap between tip and block at which the peg is aligned, m
_CLOSE, _LOOSE = (0.0005, 0.025), (0.0015, 0.06)  # errors, m and rad, at which a careful and a hasty hand push down
_LEAD = (0.01, 0.01, 0.005, 0.03)  # how far ahead of the gripper its goal runs, m and rad
_JITTER = (0.0005, 0.0005, 0.0008, 0.008)  # std of each goal, m and rad


class PegInsertionExpert(DeployedPolicy):
    """Inserts the peg of PegInsertion-v0: approach, align above the hole, push down; lift and search when it jams.

    It remembers nothing: how long it hesitates and how it corrects follows from what it sees and from fresh noise, of
    which one row is 4 jitters of the goal, speed, haste and hesitation.

    Args:
        env_id: the task it shall act in.
        stochastic: tremble and hesitate; else act as if all noise were 0.
    """

    env_id: ClassVar[str] = "PegInsertion-v0"
    execute = 1

    def __init__(self, env_id: str, stochastic: bool) -> None:
        super().__init__()
        if env_id != self.env_id:
            raise UserError(f"this scripted expert acts in {self.env_id}, not in {env_id}; leave out env=")
        self.noise_shape = (7,) if stochastic else None

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map observations (N, 11) and noise (N, 7) to the pose the gripper is drawn to (N, 1, 4), m and rad."""
        assert isinstance(obs, Tensor)
        noise = obs.new_zeros(len(obs), 7) if noise is None else noise
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


SCRIPTED = {"scripted-peg_insertion": PegInsertionExpert}
