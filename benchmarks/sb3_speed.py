"""PPO from scratch, ours against Stable-Baselines3's, each in the settings it is trained in here, on one thread."""

from benchmarks.measure import Figures, take_turns, with_plain_fp32
from benchmarks.sb3 import SB3Config, untrained
from diffpolicy_rl.training.build import build_env, build_policy, spec_of
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.phase import Phase
from diffpolicy_rl.training.threads import torch_threads

_THEIRS = 2048  # env steps of their turn: four of their rollouts


def compare(env: str, turns: int) -> Figures:
    """Env steps per second, rollouts and updates together; a turn is an iteration of ours, four rollouts of theirs."""
    (run,) = compose([f"env={env}", "agent=ppo", "threads=1"], sweep=False)
    vec = build_env(run, run.env.num_envs)
    spec = spec_of(vec)
    phase = Phase(run, "online", build_policy(run.policy, spec, run.seed), vec, spec)
    ours = run.budget.decisions * run.env.num_envs
    model = untrained(SB3Config("ppo", env, vec="dummy"), run.env, run.seed)
    with torch_threads(1):
        seconds = take_turns(
            {
                "ours": lambda: phase.iterate(1, {"rollout": 0.0, "update": 0.0}),
                "stable_baselines3": with_plain_fp32(lambda: model.learn(_THEIRS, reset_num_timesteps=False)),
            },
            turns,
        )
    rates = {"ours": ours / seconds["ours"], "stable_baselines3": _THEIRS / seconds["stable_baselines3"]}
    ratio = rates["ours"] / rates["stable_baselines3"]
    return {f"{name}_env_steps_per_s": rate for name, rate in rates.items()} | {"ours/stable_baselines3": ratio}
