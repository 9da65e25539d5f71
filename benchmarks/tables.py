"""The README's tables, made from what ``benchmarks/results`` holds."""

import math
import statistics
from typing import Any

from benchmarks.comparison import half_interval


def tables(results: list[dict[str, Any]]) -> str:
    """Markdown: returns, and success where the task has any."""
    solved = [result for result in results if "success" in result["seeds"][0]["final"]]
    parts = [return_table([result for result in results if result not in solved])]
    return "\n\n".join([*parts, success_table(solved)] if solved else parts)


def success_table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row per result, the most successful first."""
    lines = [
        "| agent, task | before, % | success, %, of all seeds | seeds | env steps | minutes | net evaluations |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda result: -mean_of(result, "success")):
        seeds = result["seeds"]
        task = f"[{result['agent']}, {result['env']}](benchmarks/results/{result['name']}.png)"
        before = f"{100 * statistics.fmean(run['base']['success'] for run in seeds):.0f}" if "base" in seeds[0] else "-"
        episodes = sum(run["final"]["episodes"] for run in seeds)
        low, high = wilson(mean_of(result, "success"), episodes)
        after = f"{100 * mean_of(result, 'success'):.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        each = ", ".join(f"{100 * run['final']['success']:.1f}" for run in seeds)
        steps = f"{statistics.fmean(run['env_steps'] for run in seeds) / 1e3:.0f} k"
        minutes = f"{statistics.fmean(run['wall_s'] for run in seeds) / 60:.1f}"
        evaluations = f"{seeds[0]['net_evaluations']:.3g}"
        lines.append(f"| {' | '.join((task, before, after, each, steps, minutes, evaluations))} |")
    return "\n".join(lines)


def mean_of(result: dict[str, Any], key: str) -> float:
    """Mean over seeds of what the final evaluations say."""
    return statistics.fmean(run["final"][key] for run in result["seeds"])


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a probability, from the share of successes among so many trials (Wilson 1927)."""
    square = 1.959964**2 / count
    center, half = share + square / 2, math.sqrt(square * (share * (1 - share) + square / 4))
    return (center - half) / (1 + square), (center + half) / (1 + square)


def return_table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row per result."""
    lines = [
        "| agent, task | demonstrations | before | after, mean of seeds | seeds: final (best) | env steps | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        seeds, place = result["seeds"], f"benchmarks/results/{result['name']}"
        agent = f"{result['agent']} ({result['variant']})" if result.get("variant") else result["agent"]
        title, data = f"{agent}, {result['env']}", "none"
        steps = f"{statistics.fmean(run['env_steps'] for run in seeds) / 1e6:.2f} M"
        minutes = f"{statistics.fmean(run['wall_s'] for run in seeds) / 60:.1f}"
        after = interval([run["final"]["mean"] for run in seeds])
        if "reference" in result:
            task, before = f"*reference, {result['reference']}:* [{title}]({place}.json)", "-"
            each = ", ".join(f"{run['final']['mean']:.0f}" for run in seeds)
        else:
            task = f"[{title}]({place}.png)"
            if result["data"]:
                data = f"{result['data']['episodes']} episodes, {result['data']['return_mean']:.0f}"
            before = f"{statistics.fmean(run['base']['mean'] for run in seeds):.0f}" if "base" in seeds[0] else "-"
            each = ", ".join(f"{run['final']['mean']:.0f} ({run['best']['mean']:.0f})" for run in seeds)
        lines.append(f"| {' | '.join((task, data, before, after, each, steps, minutes))} |")
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """Mean with Student's 95 % interval over seeds."""
    half, mean = half_interval(values), f"{statistics.fmean(values):.0f}"
    return mean if half is None else f"{mean} ± {half:.0f}"
