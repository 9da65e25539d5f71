"""A whole run small enough for a test."""

from pathlib import Path
from typing import Any

from diffpolicy_rl.training.config import TrainConfig, resolve

PPO = {"minibatch": 16, "critic_hidden": [8]}
REPLAY = {"utd": 0.25, "batch": 8, "prefill": 20, "critic_hidden": [8]}
SOFT = {"actor_hidden": [8], **REPLAY}
MLP = {"_target_": "diffpolicy_rl.nets.mlp.DenoisingMLP", "hidden": [16, 16, 16]}
BC = {"_target_": "diffpolicy_rl.agents.bc.BC", "steps": 3, "batch": 16}
AGENTS: dict[str, dict[str, Any]] = {
    "bc": BC,
    "reinflow": {"_target_": "diffpolicy_rl.agents.reinflow.ReinFlow", "std_hidden": [8]} | PPO,
    "dppo": {"_target_": "diffpolicy_rl.agents.dppo.DPPO", "trained_moves": 2, "bc_weight": 0.1} | PPO,
    "ppo": {"_target_": "diffpolicy_rl.agents.ppo.PPO"} | PPO,
    "sac": {"_target_": "diffpolicy_rl.agents.sac.SAC"} | SOFT,
    "rlpd": {"_target_": "diffpolicy_rl.agents.rlpd.RLPD", "actor_every": 2} | SOFT,
    "dsrl": {"_target_": "diffpolicy_rl.agents.dsrl.DSRL", "mixing": "half"} | SOFT,
    "dsrl-sac": {"_target_": "diffpolicy_rl.agents.dsrl.DSRL", "variant": "sac", "deploy_stochastic": True} | SOFT,
    "expo": {"_target_": "diffpolicy_rl.agents.expo.EXPO", "actor_every": 2} | SOFT,
    "pa_rl": {"_target_": "diffpolicy_rl.agents.pa_rl.PARL", "steps": 3, "value_range": [-10, 400]} | REPLAY,
    "residual_sac": {"_target_": "diffpolicy_rl.agents.residual_sac.ResidualSAC", "critics": 2} | SOFT,
    "resip": {"_target_": "diffpolicy_rl.agents.resip.ResiP", "hidden": [8]} | PPO,
}
POLICIES: dict[str, dict[str, Any]] = {
    "dppo": {"process": {"_target_": "diffpolicy_rl.policies.ddpm.DDPM", "levels": 4}, "net": MLP},
    "ppo": {
        "process": {"_target_": "diffpolicy_rl.policies.gaussian.Gaussian"},
        "net": {"_target_": "diffpolicy_rl.nets.mlp.ConditionMLP", "hidden": [16]},
        "steps": 1,
    },
}


def tiny(folder: Path, agent: str = "reinflow", **changes: Any) -> TrainConfig:
    """A run of seconds: 3 iterations of cloning where there are any, 4 online, in which an untrained hopper falls."""
    values = {
        "agent": AGENTS[agent],
        "bc": BC,
        "env": {"id": "Hopper-v5", "num_envs": 3},
        "data": {"path": "hopper"},
        "policy": POLICIES.get(agent, {"net": MLP}),
        "budget": {
            "bc_steps": 9,
            "offline_steps": 6,
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
