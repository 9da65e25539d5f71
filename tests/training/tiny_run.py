"""A whole run small enough for a test."""

from pathlib import Path

from diffpolicy_rl.training.config import TrainConfig, resolve

AGENTS = "diffpolicy_rl.agents"


def tiny(folder: Path, agent: str = "reinflow", **changes) -> TrainConfig:
    """A run of seconds: 3 iterations of cloning, 4 of ReinFlow, in which episodes end (an untrained hopper falls)."""
    bc = {"_target_": f"{AGENTS}.bc.BC", "steps": 3, "batch": 16}
    reinflow = {
        "_target_": f"{AGENTS}.reinflow.ReinFlow",
        "minibatch": 16,
        "critic_hidden": [8],
        "std_hidden": [8],
    }
    values = {
        "agent": bc if agent == "bc" else reinflow,
        "bc": bc,
        "env": {"id": "Hopper-v5", "num_envs": 3},
        "data": {"path": "hopper"},
        "policy": {"net": {"_target_": "diffpolicy_rl.nets.mlp.DenoisingMLP", "hidden": [16, 16, 16]}},
        "budget": {
            "bc_steps": 9,
            "env_steps": 4 * 10 * 3 * 4,
            "decisions": 10,
            "bc_eval_every": 2,
            "eval_every": 2,
            "eval_episodes": 3,
            "final_episodes": 6,
        },
        "threads": 1,
        "video": False,
        "run_dir": str(folder),
    }
    return resolve(values | changes)
