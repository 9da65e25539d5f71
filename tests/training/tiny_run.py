"""A whole run small enough for a test."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy_rl import train
from diffpolicy_rl.data.catalog import resolve as resolve_data
from diffpolicy_rl.data.d4rl import read, write
from diffpolicy_rl.training.config import TrainConfig, resolve

PPO = {"minibatch": 16, "critic_hidden": [8]}
REPLAY = {"utd": 0.25, "batch": 8, "prefill": 20, "critic_hidden": [8]}
SOFT = {"actor_hidden": [8], **REPLAY}
OFFLINE = {"steps": 3} | REPLAY
MLP = {"_target_": "diffpolicy_rl.nets.mlp.DenoisingMLP", "hidden": [16, 16, 16]}
BC = {"_target_": "diffpolicy_rl.agents.bc.BC", "steps": 3, "batch": 16}
STUDENT = {"steps": 3, "batch": 16}
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
    "dql": {"_target_": "diffpolicy_rl.agents.dql.DQL"} | OFFLINE,
    "edp": {"_target_": "diffpolicy_rl.agents.dql.DQL", "one_pass": True, "max_backup": 2} | OFFLINE,
    "ofql": {"_target_": "diffpolicy_rl.agents.ofql.OFQL"} | OFFLINE,
    "fql": {"_target_": "diffpolicy_rl.agents.fql.FQL"} | OFFLINE,
    "idql": {"_target_": "diffpolicy_rl.agents.idql.IDQL"} | OFFLINE,
    "iql": {"_target_": "diffpolicy_rl.agents.iql.IQL"} | OFFLINE,
    "td3_bc": {"_target_": "diffpolicy_rl.agents.td3_bc.TD3BC"} | OFFLINE,
    "fisor": {"_target_": "diffpolicy_rl.agents.fisor.FISOR"} | OFFLINE,
    "regress": {"_target_": "diffpolicy_rl.agents.regress.Regress"} | STUDENT,
    "reflow": {"_target_": "diffpolicy_rl.agents.reflow.Reflow"} | STUDENT,
    "onedp": {"_target_": "diffpolicy_rl.agents.onedp.OneDP"} | STUDENT,
}
POLICIES: dict[str, dict[str, Any]] = {
    "dppo": {"process": {"_target_": "diffpolicy_rl.policies.ddpm.DDPM", "levels": 4}, "net": MLP},
    "ppo": {
        "process": {"_target_": "diffpolicy_rl.policies.gaussian.Gaussian"},
        "net": {"_target_": "diffpolicy_rl.nets.mlp.ConditionMLP", "hidden": [16]},
        "steps": 1,
    },
    "ofql": {"process": {"_target_": "diffpolicy_rl.policies.meanflow.MeanFlow"}, "net": MLP, "steps": 1},
    "fql": {"process": {"_target_": "diffpolicy_rl.policies.flow.RectifiedFlow", "clip": None}, "net": MLP},
}
POLICIES["reflow"] = POLICIES["ofql"]
POLICIES["td3_bc"] = POLICIES["ppo"]
POLICIES["regress"] = POLICIES["onedp"] = {"net": MLP, "steps": 1}


@functools.cache
def costly_data() -> str:
    """The packaged hopper's file with costs: of every step above a speed."""
    shown = read(resolve_data("hopper"))
    path = Path(tempfile.mkdtemp()) / "costly.hdf5"
    write(path, dataclasses.replace(shown, costs=(shown.observations[:, 5] > 1).astype(np.float32)))
    return str(path)


@functools.cache
def teacher() -> str:
    """A run that others learn from."""
    folder = Path(tempfile.mkdtemp()) / "teacher"
    train.train(tiny(folder, "bc"))
    return str(folder)


def tiny(folder: Path, agent: str = "reinflow", **changes: Any) -> TrainConfig:
    """A run of seconds: 3 iterations of cloning where there are any, 4 online, in which an untrained hopper falls."""
    values = {
        "agent": AGENTS[agent],
        "bc": BC,
        "env": {"id": "Hopper-v5", "num_envs": 3},
        "data": {"path": costly_data() if agent == "fisor" else "hopper"},
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
        "teacher": teacher() if agent in ("regress", "reflow", "onedp") else None,
        "threads": 1,
        "video": False,
        "run_dir": str(folder),
    }
    return resolve(values | changes)
