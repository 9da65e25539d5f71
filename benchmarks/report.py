"""Compare runs: ``python -m benchmarks.report runs/a runs/b``, or ``suite=NAME`` for the results of a suite.

Writes one HTML page that needs nothing else, and the same as Markdown. What the README says about results comes from
``benchmarks/results``: ``add`` sums up runs of one agent there, ``distilled`` students beside their teachers, ``table``
writes the README's tables from what is there, and ``check`` fails if the README or a suite's page says anything else.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from benchmarks import distillations, speeds
from benchmarks.comparison import Comparison
from benchmarks.finished import Finished, agent_of, find_runs, refuse_unlike, source_of
from benchmarks.ledger import read_results
from benchmarks.page import Block, markdown_table, to_html, to_markdown
from benchmarks.records import RESULTS, ROOT, collect, describe_data, evaluated, evaluations, provenance
from benchmarks.sections import sections, task_table
from benchmarks.tables import tables
from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.base import Context, DenoisingNet
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.training.checkpoint import write_text
from diffpolicy_rl.training.run import load, read_config
from diffpolicy_rl.types import DeployedPolicy

README = ROOT / "README.md"
_TABLE = re.compile(r"(<!-- results: (.+?) -->\n).*?(<!-- /results -->)", re.DOTALL)
_ROWS, _SUITE = "python -m benchmarks.report table", "suite "
# Tables made from a part of one file in benchmarks/results, by its name.
_OF_ONE_FILE: dict[str, tuple[Callable[[Any], str], str]] = {
    distillations.NAME: (distillations.table, "students"),
    speeds.NAME: (speeds.table, "offline"),
}
_USAGE = (
    "python -m benchmarks.report RUN RUN ... [out=PAGE] | suite=NAME [out=PAGE] "
    "| add name=NAME runs=RUN,RUN,... [variant=TEXT] | distilled RUN RUN ... | table | check"
)
Command = Literal["page", "add", "distilled", "table", "check"]


@dataclass(frozen=True)
class ReportConfig:
    """Compare finished runs on a page, or sum them up and keep the README's tables equal to the sums.

    Attributes:
        command: page, add, distilled, table or check.
        runs: run folders, or folders of them; for add, runs that differ in their seed alone.
        suite: the suite whose results to compare.
        out: the page without its suffix; report, or the suite's name in benchmarks/results, if not given.
        trust: modules outside diffpolicy_rl that the runs may name.
        name: what to call the result that is added.
        variant: what sets it apart from the agent's defaults, for the table.
    """

    command: Command = "page"
    runs: tuple[str, ...] = ()
    suite: str = ""
    out: str = ""
    trust: tuple[str, ...] = ()
    name: str = ""
    variant: str = ""


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    plain = [word for word in argv if "=" not in word and not word.startswith("-")]
    command = plain.pop(0) if plain and plain[0] in get_args(Command) else "page"
    rest = [word for word in argv if "=" in word or word.startswith("-")]
    runs = [f"runs={','.join(plain)}"] if plain else []
    config = cli.parse(ReportConfig, [f"command={command}", *runs, *rest], _USAGE)
    if config.command == "page":
        compare(config)
    else:
        maintain(config)


def compare(config: ReportConfig) -> None:
    """Write the page."""
    if bool(config.runs) == bool(config.suite):
        raise UserError(f"name either run folders or a suite; usage: {_USAGE}")
    if config.suite:
        results, title, place = read_results(config.suite), config.suite, RESULTS / config.suite
    else:
        results = collect(find_runs(map(Path, config.runs), config.trust))
        title, place = " and ".join(config.runs) if len(config.runs) < 4 else f"{len(config.runs)} runs", Path("report")
    place, blocks = Path(config.out or place), _blocks(results)
    for suffix, render in ((".html", to_html), (".md", to_markdown)):
        path = place.with_name(place.name + suffix)
        write_text(path, render(title, blocks))
        print(f"wrote {path}", flush=True)


def maintain(config: ReportConfig) -> None:
    """Add a result, write the README's tables, or check them."""
    if config.command == "add":
        if not config.name or not config.runs:
            raise UserError(f"name and runs must be given; usage: {_USAGE}")
        add(config.name, [Path(run) for run in config.runs], config.variant)
    if config.command == "distilled":
        path = RESULTS / f"{distillations.NAME}.json"
        kept = json.loads(path.read_text())["students"] if path.exists() else []
        students = distillations.records([Path(run) for run in config.runs], kept)
        write_text(path, json.dumps({"students": students}, indent=1) + "\n")
    if config.command == "check":
        check()
    if config.command == "table":
        write_text(README, with_tables(README.read_text()))


def check() -> None:
    """Raise UserError if the README or a suite's page says anything else than the results."""
    text = README.read_text()
    if with_tables(text) != text:
        raise UserError("the README's table is not what benchmarks/results says; run python -m benchmarks.report table")
    for path in sorted(RESULTS.glob("*.md")):
        if path.read_text() != to_markdown(path.stem, _blocks(read_results(path.stem))):
            raise UserError(f"{path} is not what its results say; run python -m benchmarks.report suite={path.stem}")


def _blocks(results: dict[str, Any]) -> list[Block]:
    """What a page says of results."""
    return sections(Comparison(results), results.get("about", "Finished runs."))


def with_tables(readme: str) -> str:
    """The README's text with every table between markers made anew."""

    def fresh(found: re.Match[str]) -> str:
        begin, what, end = found.groups()
        if what == _ROWS:
            return f"{begin}{tables(load_results())}\n{end}"
        if what in _OF_ONE_FILE:
            table, part = _OF_ONE_FILE[what]
            return f"{begin}{table(json.loads((RESULTS / f'{what}.json').read_text())[part])}\n{end}"
        results = read_results(what.removeprefix(_SUITE))
        return f"{begin}{markdown_table(task_table(Comparison(results), 'last'))}\n{end}"

    text, count = _TABLE.subn(fresh, readme)
    if not count:
        raise UserError(f"{README.name} lacks the markers <!-- results: {_ROWS} --> and <!-- /results -->")
    return text


def add(name: str, runs: list[Path], variant: str = "") -> None:
    """Write ``results/<name>.json`` and ``.png``."""
    config = read_config(runs[0])
    refuse_unlike([Finished(run, read_config(run), config.env.id, name) for run in runs])
    result = {
        "name": name,
        "agent": agent_of(config),
        "variant": variant,
        "env": config.env.id,
        "data": describe_data(source_of(config)),
        "pretraining": provenance(Path(config.base)) if config.base else None,
        "seeds": [summarize_run(run) for run in runs],
    }
    write_text(RESULTS / f"{name}.json", json.dumps(result, indent=1) + "\n")
    draw(result, RESULTS / f"{name}.png")


def summarize_run(run: Path) -> dict[str, Any]:
    """A run's provenance, its evaluations before and after, and its curve of (x, mean, ci_low, ci_high).

    x counts env steps, or iterations where a run made no env steps.
    """
    points = evaluated(run)
    x = "env_steps" if points and points[-1]["env_steps"] else "iteration"
    curve = [
        [float(f"{point[key]:.5g}") for key in (x, "eval/mean", "eval/ci_low", "eval/ci_high")] for point in points
    ]
    return provenance(run) | evaluations(run) | {"net_evaluations": net_evaluations(load(run)), "curve": curve}


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


def draw(result: dict[str, Any], path: Path) -> None:
    """One curve per seed, with the interval over episodes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for run in result["seeds"]:
        steps, mean, low, high = zip(*run["curve"], strict=True) if run["curve"] else ((), (), (), ())
        axes.plot(steps, mean, "o-", markersize=3, label=f"seed {run['seed']}")
        axes.fill_between(steps, low, high, alpha=0.2)
    axes.set(
        xlabel="env steps" if result["seeds"][0]["env_steps"] else "iterations",
        ylabel="evaluated return",
        title=f"{result['agent']} on {result['env']}",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def load_results() -> list[dict[str, Any]]:
    """Every result of fine-tuning, by name, and then the references of ``benchmarks.sb3``."""
    loaded = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return sorted((result for result in loaded if "seeds" in result), key=lambda result: "reference" in result)


if __name__ == "__main__":
    cli.run(main)
