"""Our own task definitions, by the id that ``make_env`` takes."""

from diffpolicy_rl.envs.tasks.ant import Ant
from diffpolicy_rl.envs.tasks.base import Physics, Task
from diffpolicy_rl.envs.tasks.half_cheetah import HalfCheetah
from diffpolicy_rl.envs.tasks.hopper import Hopper
from diffpolicy_rl.envs.tasks.peg_insertion import PegInsertion
from diffpolicy_rl.envs.tasks.point_maze import PointMaze, PointMazeMedium
from diffpolicy_rl.envs.tasks.point_robot import PointRobot
from diffpolicy_rl.envs.tasks.speed_limits import SafeHalfCheetah, SafeHopper, SafeWalker2d
from diffpolicy_rl.envs.tasks.swimmer import Swimmer
from diffpolicy_rl.envs.tasks.walker2d import Walker2d

TASKS: dict[str, type[Task]] = {
    "Hopper-v5": Hopper,
    "Walker2d-v5": Walker2d,
    "HalfCheetah-v5": HalfCheetah,
    "Swimmer-v5": Swimmer,
    "Ant-v5": Ant,
    "SafeHopper-v5": SafeHopper,
    "SafeWalker2d-v5": SafeWalker2d,
    "SafeHalfCheetah-v5": SafeHalfCheetah,
    "PegInsertion-v0": PegInsertion,
    "PointMaze-v0": PointMaze,
    "PointMazeMedium-v0": PointMazeMedium,
    "PointRobot-v0": PointRobot,
}

__all__ = ["TASKS", "Physics", "Task"]
