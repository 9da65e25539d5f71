"""Simulators that come as extras of this package, and the ids that are theirs."""

import importlib
from dataclasses import dataclass

import gymnasium

from diffpolicy_rl.errors import UserError


@dataclass(frozen=True)
class Family:
    """A package whose import tells Gymnasium its environments.

    Attributes:
        module: what to import.
        extra: what to install, as ``diffpolicy_rl[<extra>]``.
        prefixes: how the ids begin that run with the MuJoCo we need.
    """

    module: str
    extra: str
    prefixes: tuple[str, ...]


_FAMILIES = (Family("gymnasium_robotics", "robotics", ("PointMaze_", "AntMaze_", "AdroitHand")),)


def register(env_id: str) -> None:
    """Make an id known to Gymnasium if it is of one of the families.

    Raises:
        UserError: if its package is not installed, or cannot be imported.
    """
    for family in _FAMILIES:
        if env_id.startswith(family.prefixes) and env_id not in gymnasium.registry:
            try:
                importlib.import_module(family.module)
            except ImportError as error:
                remedy = f"pip install 'diffpolicy_rl[{family.extra}]'"
                raise UserError(f"{env_id} needs an extra package: {remedy} ({error})") from error
