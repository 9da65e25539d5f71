"""Committed results: ``python -m benchmarks.report add|table|check``.

``add`` sums up finished runs in ``benchmarks/results/<name>.json`` and draws their curves beside it; ``table`` writes
the README's table from those files; ``check`` fails if the README says anything else.
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import torch
from torch import Tensor

from diffpolicy_rl import cli
from diffpolicy_rl.data.catalog import resolve as resolve_data
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.base import Context, DenoisingNet
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.training.build import phases_of
from diffpolicy_rl.training.checkpoint import write_text
from diffpolicy_rl.training.config import TrainConfig
from diffpolicy_rl.training.logger import read_metrics
from diffpolicy_rl.training.run import load, read_config
from diffpolicy_rl.types import DeployedPolicy

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
_BEGIN, _END = "<!-- results: python -m benchmarks.report table -->", "<!-- /results -->"
_USAGE = "python -m benchmarks.report add name=NAME runs=RUN,RUN,... [variant=TEXT] | table | check"
_NUMBERS = ("mean", "std", "ci_low", "ci_high", "episodes", "success")
# Two-sided 95 % quantiles of Student's t for 2 to 10 seeds.
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class ReportConfig:
    """Sum up finished runs, and keep the README's table equal to the sums.

    Attributes:
        command: add, table or check.
        name: what to call the result.
        runs: run folders that differ in their seed alone.
        variant: what sets them apart from the agent's defaults, for the table.
    """

    command: Literal["add", "table", "check"]
    name: str = ""
    runs: tuple[str, ...] = ()
    variant: str = ""


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(ReportConfig, argv, _USAGE, "command")
    if config.command == "add":
        if not config.name or not config.runs:
            raise UserError(f"name and runs must be given; usage: {_USAGE}")
        add(config.name, [Path(run) for run in config.runs], config.variant)
    text = README.read_text()
    fresh = with_table(text, tables(load_results()))
    if config.command == "check" and fresh != text:
        raise UserError("the README's table is not what benchmarks/results says; run python -m benchmarks.report table")
    if config.command == "table":
        write_text(README, fresh)


def add(name: str, runs: list[Path], variant: str = "") -> None:
    """Write ``results/<name>.json`` and ``.png``."""
    config = read_config(runs[0])
    result = {
        "name": name,
        "agent": config.agent["_target_"].rpartition(".")[2],
        "variant": variant,
        "env": config.env.id,
        "data": describe_data(config) if config.base or "bc" in phases_of(config) else None,
        "pretraining": provenance(Path(config.base)) if config.base else None,
        "seeds": [summarize_run(run) for run in runs],
    }
    write_text(RESULTS / f"{name}.json", json.dumps(result, indent=1) + "\n")
    draw(result, RESULTS / f"{name}.png")


def provenance(run: Path) -> dict[str, Any]:
    """How a run was made, and what it cost."""
    manifest, summary = (json.loads((run / f"{part}.json").read_text()) for part in ("manifest", "summary"))
    kept = {key: summary[key] for key in ("env_steps", "gradient_steps", "wall_s", "seconds")}
    return {key: manifest[key] for key in ("command", "commit", "seed", "machine", "versions")} | kept


def summarize_run(run: Path) -> dict[str, Any]:
    """A run's provenance, its evaluations before and after, and its curve of (env steps, mean, ci_low, ci_high)."""
    summary = json.loads((run / "summary.json").read_text())
    parts = {part: summary[part] for part in ("base", "final", "best")}
    evaluations = {part: {key: result[key] for key in _NUMBERS if key in result} for part, result in parts.items()}
    points = [record for record in read_metrics(run / "metrics.jsonl") if "eval/mean" in record]
    keys = ("env_steps", "eval/mean", "eval/ci_low", "eval/ci_high")
    curve = [[float(f"{point[key]:.5g}") for key in keys] for point in points if point["phase"] != "bc"]
    return provenance(run) | evaluations | {"net_evaluations": net_evaluations(load(run)), "curve": curve}


def net_evaluations(policy: DeployedPolicy) -> float:
    """How often a denoising net is evaluated for one executed action of a deployed policy."""
    counted = [0]

    def counting(denoise: Callable[[Tensor, Context], Tensor]) -> Callable[[Tensor, Context], Tensor]:
        def count(x: Tensor, context: Context) -> Tensor:
            counted[0] += math.prod(x.shape[:-2])
            return denoise(x, context)

        return count

    nets: list[Any] = [module for module in policy.modules() if isinstance(module, DenoisingNet)]
    for net in nets:
        net.denoise = counting(net.denoise)
    base = next(module for module in policy.modules() if isinstance(module, GenerativePolicy))
    width = base.obs_normalizer.shift.numel()
    stacked = torch.zeros(1, base.features // width, width)
    policy(stacked if stacked.shape[1] > 1 else stacked[:, 0], policy.sample_noise(1))
    return counted[0] / policy.execute


def describe_data(config: TrainConfig) -> dict[str, Any]:
    """Where the demonstrations came from, as their file says."""
    source = read_config(Path(config.base)) if config.base else config
    with h5py.File(resolve_data(str(source.data.path))) as file:
        attributes = {key: getattr(value, "item", lambda value=value: value)() for key, value in file.attrs.items()}
    return {key: attributes[key] for key in ("command", "episodes", "return_mean", "return_std")}


def draw(result: dict[str, Any], path: Path) -> None:
    """One curve per seed, with the interval over episodes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for run in result["seeds"]:
        steps, mean, low, high = zip(*run["curve"], strict=True)
        axes.plot(steps, mean, "o-", markersize=3, label=f"seed {run['seed']}")
        axes.fill_between(steps, low, high, alpha=0.2)
    axes.set(xlabel="env steps", ylabel="evaluated return", title=f"{result['agent']} on {result['env']}")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def load_results() -> list[dict[str, Any]]:
    """Every result of fine-tuning, by name, and then the references of ``benchmarks.sb3``."""
    loaded = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return sorted((result for result in loaded if "seeds" in result), key=lambda result: "reference" in result)


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
        before = f"{100 * statistics.fmean(run['base']['success'] for run in seeds):.0f}"
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
            before = f"{statistics.fmean(run['base']['mean'] for run in seeds):.0f}"
            each = ", ".join(f"{run['final']['mean']:.0f} ({run['best']['mean']:.0f})" for run in seeds)
        lines.append(f"| {' | '.join((task, data, before, after, each, steps, minutes))} |")
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """Mean with Student's 95 % interval over seeds."""
    mean = f"{statistics.fmean(values):.0f}"
    if len(values) not in _T95:
        return mean
    return f"{mean} ± {_T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.0f}"


def with_table(readme: str, rows: str) -> str:
    """The README's text with the table between its markers replaced."""
    before, begin, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise UserError(f"{README.name} lacks the markers {_BEGIN} and {_END}")
    return f"{before}{begin}\n{rows}\n{end}{after}"


if __name__ == "__main__":
    cli.run(main)
