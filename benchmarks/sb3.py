"""Reference results: ``python -m benchmarks.sb3 algorithm=ppo|sac env=hopper [key=value ...]``.

Stable-Baselines3 trains from scratch, without demonstrations, on our environments or on Gymnasium's as its users run
them; its policy is then evaluated as every other here. With ``out=benchmarks/results/<name>.json`` the result becomes a
row of the README's table.

Hyper-parameters are those of RL Baselines3 Zoo (https://github.com/DLR-RM/rl-baselines3-zoo, MIT): for PPO the tuned
ones of hyperparams/ppo.yml at commit 208b6fd, for the v4 tasks, with running normalisation of observations and rewards;
for SAC those of hyperparams/sac.yml at commit c94924e, for the v3 tasks: Stable-Baselines3's own defaults after 10,000
random steps. The Zoo trains on one environment; with more, a rollout keeps its 512 steps, and SAC its one gradient step
per env step.
"""

import dataclasses
import importlib.metadata
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from benchmarks.measure import with_plain_fp32
from diffpolicy_rl import cli
from diffpolicy_rl.envs.make import make_env
from diffpolicy_rl.envs.quiet import quiet_mujoco
from diffpolicy_rl.errors import UserError, did_you_mean, require_positive
from diffpolicy_rl.training.checkpoint import write_text
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.config import EnvConfig
from diffpolicy_rl.training.evaluation import MAX_ENVS, describe, evaluate_policy
from diffpolicy_rl.training.loop import FINAL_SEEDS
from diffpolicy_rl.training.run import commit, machine, versions
from diffpolicy_rl.training.threads import torch_threads
from diffpolicy_rl.types import DeployedPolicy, Obs

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.running_mean_std import RunningMeanStd
    from stable_baselines3.common.vec_env import VecEnv

_USAGE = "python -m benchmarks.sb3 algorithm=ppo|sac [key=value ...]"
_ROLLOUT = 512  # env steps of one PPO rollout, for each of the tasks
_WIDE = {"log_std_init": -2, "ortho_init": False, "activation_fn": nn.ReLU, "net_arch": [256, 256]}
_PPO: dict[str, dict[str, Any]] = {
    "Hopper-v5": {
        "batch_size": 32,
        "gamma": 0.999,
        "learning_rate": 9.80828e-5,
        "ent_coef": 0.00229519,
        "clip_range": 0.2,
        "n_epochs": 5,
        "gae_lambda": 0.99,
        "max_grad_norm": 0.7,
        "vf_coef": 0.835671,
        "policy_kwargs": _WIDE,
    },
    "HalfCheetah-v5": {
        "batch_size": 64,
        "gamma": 0.98,
        "learning_rate": 2.0633e-5,
        "ent_coef": 0.000401762,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.92,
        "max_grad_norm": 0.8,
        "vf_coef": 0.58096,
        "policy_kwargs": _WIDE,
    },
    "Walker2d-v5": {
        "batch_size": 32,
        "gamma": 0.99,
        "learning_rate": 5.05041e-5,
        "ent_coef": 0.000585045,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.95,
        "max_grad_norm": 1,
        "vf_coef": 0.871923,
    },
}
_SAC: dict[str, dict[str, Any]] = {env_id: {"learning_starts": 10_000, "gradient_steps": -1} for env_id in _PPO}


@dataclass(frozen=True)
class SB3Config:
    """Train Stable-Baselines3 from scratch on one torch thread, and evaluate it as everything else.

    Attributes:
        algorithm: ppo or sac.
        env: hopper, halfcheetah or walker2d.
        env_steps: env steps of each training; PPO completes its last rollout.
        seed: one or several, as in 0,1,2, trained one after the other.
        num_envs: N; the hyper-parameters were tuned for one.
        vec: ours, through the adapter, or dummy, Stable-Baselines3's DummyVecEnv of Gymnasium's environments.
        episodes: of the evaluation.
        out: a JSON file for the result.
    """

    algorithm: Literal["ppo", "sac"]
    env: str = "hopper"
    env_steps: int = 1_000_000
    seed: tuple[int, ...] = (0,)
    num_envs: int = 1
    vec: Literal["ours", "dummy"] = "ours"
    episodes: int = 80
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuse a training of nothing."""
        require_positive(env_steps=self.env_steps, num_envs=self.num_envs, episodes=self.episodes, seed=len(self.seed))


class SB3Policy(DeployedPolicy):
    """A trained actor and its normaliser of observations, acting without noise, as its ``predict`` does.

    Args:
        model: the agent; actions outside the Box are left to the env to clip.
    """

    execute = 1
    noise_shape = None
    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, model: "BaseAlgorithm") -> None:
        super().__init__()
        self.actor, statistics = model.policy, model.get_vec_normalize_env()
        shape, space = model.observation_space.shape or (), cast(Box, model.action_space)
        mean, scale, self.limit = torch.zeros(shape), torch.ones(shape), math.inf
        if statistics is not None:
            running = cast("RunningMeanStd", statistics.obs_rms)
            mean, scale = torch.from_numpy(running.mean), torch.from_numpy(running.var + statistics.epsilon).sqrt()
            self.limit = statistics.clip_obs
        numbers = {"mean": mean, "scale": scale, "low": torch.tensor(space.low), "high": torch.tensor(space.high)}
        for name, value in numbers.items():
            self.register_buffer(name, value)

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map raw observations (N, O) to actions (N, 1, D) in env units."""
        assert isinstance(obs, Tensor)
        normalized = ((obs - self.mean) / self.scale).clamp(-self.limit, self.limit).float()
        action = self.actor._predict(normalized, deterministic=True)
        if self.actor.squash_output:
            action = self.low + (action + 1) / 2 * (self.high - self.low)
        return action.unsqueeze(1)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(SB3Config, argv, _USAGE)
    (run,) = compose([f"env={config.env}"], sweep=False)
    result = {
        "name": Path(config.out).stem if config.out else "",
        "reference": "from scratch",
        "agent": f"Stable-Baselines3 {config.algorithm.upper()}{'' if config.vec == 'ours' else ' in its DummyVecEnv'}",
        "env": run.env.id,
        "settings": dataclasses.asdict(config),
        "hyperparameters": hyperparameters(config, run.env.id),
        "seeds": [train_and_evaluate(config, run.env, seed) for seed in config.seed],
    }
    if config.out:
        write_text(Path(config.out), json.dumps(result, indent=1, default=_name) + "\n")
        print(f"wrote {config.out}")


def _name(kind: type) -> str:
    return kind.__name__


def hyperparameters(config: SB3Config, env_id: str) -> dict[str, Any]:
    """What the agent's constructor takes; UserError if the task has none that were tuned."""
    tuned = {"ppo": _PPO, "sac": _SAC}[config.algorithm]
    if env_id not in tuned:
        raise UserError(f"there are no tuned hyper-parameters for env={env_id}; {did_you_mean(env_id, tuned)}")
    per_env = {"n_steps": math.ceil(_ROLLOUT / config.num_envs)} if config.algorithm == "ppo" else {}
    return tuned[env_id] | per_env


def train_and_evaluate(config: SB3Config, task: EnvConfig, seed: int) -> dict[str, Any]:
    """One training: how it was made, what it cost, and the return of its final policy."""
    began = time.perf_counter()
    model = learn(config, task, seed)
    trained = time.perf_counter()
    envs = min(MAX_ENVS, config.episodes)
    env = make_env(task.id, num_envs=envs, threads=1, **task.options)
    final = evaluate_policy(SB3Policy(model), env, config.episodes, seed + FINAL_SEEDS)
    env.close()
    ended = time.perf_counter()
    print(f"seed {seed}: {model.num_timesteps} env steps in {trained - began:.0f} s, {describe(final)}", flush=True)
    return {
        "command": shlex.join(["python", "-m", "benchmarks.sb3", *sys.argv[1:]]),
        "commit": commit(),
        "seed": seed,
        "machine": machine(),
        "versions": versions() | {"stable_baselines3": importlib.metadata.version("stable_baselines3")},
        "env_steps": model.num_timesteps,
        "wall_s": round(ended - began, 2),
        "seconds": {"training": round(trained - began, 2), "evaluation": round(ended - trained, 2)},
        "final": {key: final[key] for key in ("mean", "std", "ci_low", "ci_high", "episodes", "seed")},
    }


def learn(config: SB3Config, task: EnvConfig, seed: int) -> "BaseAlgorithm":
    """Train on one torch thread, with torch's own choice of kernels."""
    model = untrained(config, task, seed)
    with torch_threads(1):
        with_plain_fp32(lambda: model.learn(config.env_steps))()
    assert model.env is not None
    model.env.close()
    model.policy.set_training_mode(False)
    return model


def untrained(config: SB3Config, task: EnvConfig, seed: int) -> "BaseAlgorithm":
    """The agent in its envs, before it learns."""
    vec = vec_env(config, task, seed)
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common.vec_env import VecNormalize

    options = hyperparameters(config, task.id)
    if config.algorithm == "ppo":
        vec = VecNormalize(vec, gamma=options["gamma"])
    kind = {"ppo": PPO, "sac": SAC}[config.algorithm]
    return kind("MlpPolicy", vec, seed=seed, device="cpu", **options)


def vec_env(config: SB3Config, task: EnvConfig, seed: int) -> "VecEnv":
    """What the agent trains on; UserError if Stable-Baselines3 is not installed."""
    from diffpolicy_rl.envs.sb3 import SB3VecEnv  # says what to install

    if config.vec == "ours":
        return SB3VecEnv(make_env(task.id, num_envs=config.num_envs, threads=1, seed=seed, **task.options))
    from stable_baselines3.common.env_util import make_vec_env

    with quiet_mujoco():
        return make_vec_env(task.id, n_envs=config.num_envs, seed=seed, env_kwargs=task.options)


if __name__ == "__main__":
    cli.run(main)
