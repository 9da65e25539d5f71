"""The one evaluation: what training reports while it runs is what ``evaluate`` reports afterwards."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.training.driver import Driver
from diffpolicy_rl.training.threads import torch_threads, use_fast_fp32
from diffpolicy_rl.types import DeployedPolicy, VecEnv

MAX_ENVS = 40
"""Envs an evaluation runs side by side; part of the protocol, because it decides which episodes are played."""


class Episode(NamedTuple):
    """What is kept of an episode.

    Attributes:
        score: its undiscounted return.
        length: its env steps.
        success: whether the task reported it as won at any time; None where it reports nothing of the kind.
        cost: what its steps cost; None where nothing does.
    """

    score: float
    length: int
    success: bool | None = None
    cost: float | None = None


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
        mean, std, ci_low, ci_high (95 % of the mean), episodes, seed, returns, lengths; where the task reports it,
        success, the share of episodes won at any time, and wins, which ones; where it has costs, cost, the mean per
        episode, cost_ci_low, cost_ci_high, and costs, those of the single episodes.
    """
    use_fast_fp32()
    per_env = math.ceil(episodes / env.num_envs)
    driver = Driver(policy, env, seed)
    obs, _ = env.reset(seed=seed)
    score, length = torch.zeros(env.num_envs, dtype=torch.float64), torch.zeros(env.num_envs, dtype=torch.long)
    won, cost = torch.zeros(env.num_envs, dtype=torch.bool), torch.zeros(env.num_envs, dtype=torch.float64)
    results: list[list[Episode]] = [[] for _ in range(env.num_envs)]
    reported: set[str] = set()
    with torch_threads(1), torch.inference_mode(), fixed_weights(policy):
        while any(len(rows) < per_env for rows in results):
            obs, _, terminated, truncated, info = env.step(driver.act(obs))
            score += info["rewards"].double().sum(-1).cpu()
            length += info["executed"].cpu()
            done = (terminated | truncated).cpu()
            reported |= info.keys()
            won |= info["success"].cpu() if "success" in info else False
            cost += info["cost"].double().cpu() if "cost" in info else 0.0
            for row in done.nonzero().flatten().tolist():
                if len(results[row]) < per_env:
                    success = bool(won[row]) if "success" in reported else None
                    spent = cost[row].item() if "cost" in reported else None
                    results[row].append(Episode(score[row].item(), int(length[row]), success, spent))
            score[done], length[done], won[done], cost[done] = 0.0, 0, False, 0.0
            driver.reset(done)
            progress(sum(map(len, results)))
    return summarize([episode for rows in results for episode in rows], seed)


def summarize(episodes: list[Episode], seed: int) -> dict[str, Any]:
    """Statistics of episodes; intervals are the normal ones, 1.96 standard errors wide."""
    returns = [episode.score for episode in episodes]
    mean, std, half = moments(returns)
    result: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "ci_low": mean - half,
        "ci_high": mean + half,
        "episodes": len(returns),
        "seed": seed,
        "returns": returns,
        "lengths": [episode.length for episode in episodes],
    }
    if any(episode.success is not None for episode in episodes):
        result["wins"] = [bool(episode.success) for episode in episodes]
        result["success"] = sum(result["wins"]) / len(episodes)
    costs = [episode.cost for episode in episodes if episode.cost is not None]
    if costs:
        cost, _, half = moments(costs)
        result |= {"cost": cost, "cost_ci_low": cost - half, "cost_ci_high": cost + half, "costs": costs}
    return result


def moments(values: list[float]) -> tuple[float, float, float]:
    """Mean, std, and half the width of the mean's 95 % interval, of single episodes' numbers."""
    numbers = torch.tensor(values, dtype=torch.float64)
    std = numbers.std().item() if len(numbers) > 1 else 0.0
    return numbers.mean().item(), std, 1.96 * std / math.sqrt(len(numbers))


def describe(result: dict[str, Any]) -> str:
    """One line about an evaluation."""
    digits = 1 if abs(result["mean"]) >= 10 else 3  # sparse rewards sum up to 0 or 1
    low, mean, high = (f"{result[name]:.{digits}f}" for name in ("ci_low", "mean", "ci_high"))
    text = f"return {mean}, 95 % CI [{low}, {high}]"
    success = f", success {result['success']:.1%}" if "success" in result else ""
    cost = ""
    if "cost" in result:
        cost = f", cost {result['cost']:.1f} [{result['cost_ci_low']:.1f}, {result['cost_ci_high']:.1f}]"
    return f"{text}{success}{cost}, {result['episodes']} episodes"
