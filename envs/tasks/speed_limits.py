"""Gymnasium's runners with a limit to their speed: each step above it costs 1, and the reward stays what it was.

Limits are those of Safety-Gymnasium's velocity tasks, version 1 (Ji et al. 2023, arXiv 2310.12567).
"""

from dataclasses import dataclass

from diffpolicy_rl.envs.tasks.half_cheetah import HalfCheetah
from diffpolicy_rl.envs.tasks.hopper import Hopper
from diffpolicy_rl.envs.tasks.walker2d import Walker2d


@dataclass
class SafeHopper(Hopper):
    """Hopper-v5 with a speed limit."""

    speed_limit: float = 0.7402


@dataclass
class SafeWalker2d(Walker2d):
    """Walker2d-v5 with a speed limit."""

    speed_limit: float = 2.3415


@dataclass
class SafeHalfCheetah(HalfCheetah):
    """HalfCheetah-v5 with a speed limit."""

    speed_limit: float = 3.2096
