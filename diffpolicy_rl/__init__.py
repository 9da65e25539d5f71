"""Diffusion and flow-matching robot policies: from demonstrations, through reinforcement learning, to a robot."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffpolicy_rl.envs.make import make_env
    from diffpolicy_rl.training.evaluation import evaluate_policy
    from diffpolicy_rl.training.run import load

__all__ = ["evaluate_policy", "load", "make_env"]

_PLACES = {
    "make_env": "diffpolicy_rl.envs.make",
    "load": "diffpolicy_rl.training.run",
    "evaluate_policy": "diffpolicy_rl.training.evaluation",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that ``--help`` and the robot side stay free of torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'diffpolicy_rl' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
