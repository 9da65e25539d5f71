"""The one evaluation: what training reports while it runs is what ``evaluate`` reports afterwards."""

import math
from collections.abc import Callable
from typing import Any

import torch

from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.training.driver import Driver
from diffpolicy_rl.training.threads import torch_threads, use_fast_fp32
from diffpolicy_rl.types import DeployedPolicy, VecEnv

MAX_ENVS = 40
"""Envs an evaluation runs side by side; part of the protocol, because it decides which episodes are played."""


def evaluate_policy(
    policy: DeployedPolicy,
    env: VecEnv,
    episodes: int,
    seed: int,
    progress: Callable[[int], None] = lambda finished: None,
) -> dict[str, Any]:
    """Play episodes and report undiscounted returns.

    The first ceil(episodes / N) episodes of each env count, so quick failures are not over-represented. The noise of
    each episode comes from a stream of its own, so results do not depend on what the other rows do. Runs on one torch
    thread.

    Args:
        policy: a deployed module.
        env: a vector env of its own; its chunk must be the policy's ``execute``, or 1.
        episodes: at least this many; rounded up to a multiple of N.
        seed: of resets and noise.
        progress: called with the number of finished episodes after every step.

    Returns:
        mean, std, ci_low, ci_high (95 % of the mean), episodes, seed, returns, lengths, and success, the share of
        episodes that the task reported as won at any time, where it does.
    """
    use_fast_fp32()
    per_env = math.ceil(episodes / env.num_envs)
    driver = Driver(policy, env, seed)
    obs, _ = env.reset(seed=seed)
    score, length = torch.zeros(env.num_envs, dtype=torch.float64), torch.zeros(env.num_envs, dtype=torch.long)
    won, reported = torch.zeros(env.num_envs, dtype=torch.bool), False
    results: list[list[tuple[float, int, bool | None]]] = [[] for _ in range(env.num_envs)]
    with torch_threads(1), torch.inference_mode(), fixed_weights(policy):
        while any(len(rows) < per_env for rows in results):
            obs, _, terminated, truncated, info = env.step(driver.act(obs))
            score += info["rewards"].double().sum(-1).cpu()
            length += info["executed"].cpu()
            done = (terminated | truncated).cpu()
            if "success" in info:
                reported = True
                won |= info["success"].cpu()
            for row in done.nonzero().flatten().tolist():
                if len(results[row]) < per_env:
                    results[row].append((score[row].item(), int(length[row]), bool(won[row]) if reported else None))
            score[done], length[done], won[done] = 0.0, 0, False
            driver.reset(done)
            progress(sum(map(len, results)))
    return summarize([episode for rows in results for episode in rows], seed)


def summarize(episodes: list[tuple[float, int, bool | None]], seed: int) -> dict[str, Any]:
    """Statistics of (return, length, success) triples; the interval is the normal one, 1.96 standard errors wide."""
    returns = torch.tensor([episode[0] for episode in episodes], dtype=torch.float64)
    std = returns.std().item() if len(returns) > 1 else 0.0
    mean, half = returns.mean().item(), 1.96 * std / math.sqrt(len(returns))
    result: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "ci_low": mean - half,
        "ci_high": mean + half,
        "episodes": len(returns),
        "seed": seed,
        "returns": returns.tolist(),
        "lengths": [episode[1] for episode in episodes],
    }
    if any(won is not None for _, _, won in episodes):
        result["success"] = sum(bool(episode[2]) for episode in episodes) / len(episodes)
    return result


def describe(result: dict[str, Any]) -> str:
    """One line about an evaluation."""
    digits = 1 if abs(result["mean"]) >= 10 else 3  # sparse rewards sum up to 0 or 1
    low, mean, high = (f"{result[name]:.{digits}f}" for name in ("ci_low", "mean", "ci_high"))
    text = f"return {mean}, 95 % CI [{low}, {high}]"
    success = f", success {result['success']:.1%}" if "success" in result else ""
    return f"{text}{success}, {result['episodes']} episodes"
