"""What a report says: the tables and texts of a comparison, in the order in which a reader wants them."""

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks import figures, protocol
from benchmarks.comparison import Comparison, Part, half_interval
from benchmarks.estimates import Estimate
from benchmarks.page import Block, Heading, Lines, Picture, Table, Text

_UNSAFE = "†"
_SAMPLING = {
    "steps": "K",
    "candidates": "candidates",
    "temperature": "temperature",
    "choice": "choice",
    "noise_scale": "noise scale",
}
_PARTS: dict[Part, str] = {"last": f"last {protocol.LAST} evaluations", "best": "best checkpoint"}


def sections(comparison: Comparison, about: str) -> list[Block]:
    """Every block of the report."""
    return [
        Text(about),
        Text(f"{protocol.STATEMENT} {protocol.PAIRED if comparison.paired else protocol.UNPAIRED}"),
        *_aggregate(comparison),
        *_per_task(comparison),
        *_extras(comparison),
        *_learning(comparison),
        *_agents(comparison),
        *_data(comparison),
        *_provenance(comparison),
    ]


def _aggregate(comparison: Comparison) -> list[Block]:
    heading = Heading("All tasks together")
    last, best = comparison.iqms("last"), comparison.iqms("best")
    if not last:
        reason = "returns of different tasks have no common scale" if not comparison.comparable else "no agent has all"
        return [heading, Text(f"Nothing is summed up over tasks: {reason}.")]
    left_out = [agent for agent in comparison.agents if agent not in last]
    matrices = comparison.matrices("last")
    rows = [
        [agent, _bracket(last[agent]), _bracket(best[agent]), str(len(matrices[agent])), str(len(comparison.tasks))]
        for agent in last
    ]
    found: list[Block] = [
        heading,
        Text("Interquartile mean of the scores of all seeds on all tasks."),
        Table(["agent", *_PARTS.values(), "seeds", "tasks"], rows),
        Picture(figures.intervals(comparison), "Interquartile means with their intervals"),
        Text("Performance profiles: the share of runs above a score; bands are pointwise."),
        Picture(figures.profiles(comparison), "Performance profiles"),
    ]
    if left_out:
        found.insert(1, Text(f"Without {', '.join(left_out)}, for lack of a seed that is finished on every task."))
    return found + _improvement(comparison, list(last))


def _improvement(comparison: Comparison, agents: list[str]) -> list[Block]:
    if len(agents) < 2:
        return []
    pairs = comparison.improvements()
    rows = [
        [ours, *("-" if ours == theirs else _bracket(pairs[ours, theirs], 2) for theirs in agents)] for ours in agents
    ]
    text = "Probability of improvement: that a run of the row's agent scores above one of the column's on a random task"
    return [Text(f"{text} (last {protocol.LAST} evaluations)."), Table(["", *agents], rows)]


def _per_task(comparison: Comparison) -> list[Block]:
    units = {task["unit"] for task in comparison.tasks.values()}
    found: list[Block] = [
        Heading("Task by task"),
        Text(f"Scores: {'; '.join(protocol.UNITS[unit] for unit in sorted(units))}."),
    ]
    if _shows_data(comparison):
        found.append(Text("data: mean [lower, upper quartile] of the set's episodes, in the same unit."))
    if "reference" in units:
        found.append(Text(protocol.CAUTION))
    if comparison.cost_limit is not None:
        found.append(Text(f"{_UNSAFE}: unsafe, an episode costs more than {comparison.cost_limit:g} on average."))
    for part, title in _PARTS.items():
        found += [Text(f"**{title.capitalize()}**, mean over seeds:"), task_table(comparison, part)]
    return found


def task_table(comparison: Comparison, part: Part) -> Table:
    """Tasks by agents, the highest mean of a task's safe agents emphasised, with the interquartile mean over tasks."""
    rows, shown = [], _shows_data(comparison)
    for name, task in comparison.tasks.items():
        rows.append([name or task["env"], *([_data_cell(task)] * shown), *_score_cells(comparison, name, part)])
    found = comparison.iqms(part)
    if found:
        cells = [_bracket(found[agent]) if agent in found else "-" for agent in comparison.agents]
        rows.append(["interquartile mean", *([""] * shown), *cells])
    return Table(["task", *(["data"] * shown), *comparison.agents], rows)


def _score_cells(comparison: Comparison, task: str, part: Part) -> list[str]:
    scores = {agent: list(comparison.scores(task, agent, part).values()) for agent in comparison.agents}
    safe = {agent: not _is_unsafe(comparison, task, agent, part) for agent in scores}
    top = max((statistics.fmean(values) for agent, values in scores.items() if values and safe[agent]), default=None)
    cells = []
    for agent, values in scores.items():
        cell = _plus(values) if safe[agent] else f"{_plus(values)} {_UNSAFE}"
        cells.append(f"**{cell}**" if values and safe[agent] and statistics.fmean(values) == top else cell)
    return cells


def _is_unsafe(comparison: Comparison, task: str, agent: str, part: Part) -> bool:
    costs = _plain(comparison.runs[task, agent], "cost", part)
    return bool(costs) and comparison.cost_limit is not None and statistics.fmean(costs) > comparison.cost_limit


def _shows_data(comparison: Comparison) -> bool:
    return any(_data_cell(task) != "-" for task in comparison.tasks.values())


def _data_cell(task: dict[str, Any]) -> str:
    data = task["data"]
    if task["unit"] == "success" or not data or "return_mean" not in data:
        return "-"
    _, lower, _, upper, _ = data["return_quartiles"]
    mean, lower, upper = (protocol.score(value, task) for value in (data["return_mean"], lower, upper))
    return f"{mean:.1f} [{lower:.1f}, {upper:.1f}]"


def _extras(comparison: Comparison) -> list[Block]:
    """Costs, and returns beside scores that are something else."""
    extras: tuple[tuple[str, str, Part], ...] = (
        ("cost", "Cost of an episode", "last"),
        ("cost", "Cost of an episode", "best"),
        ("mean", "Undiscounted return", "last"),
    )
    found: list[Block] = []
    for key, title, part in extras:
        rows = []
        for name, task in comparison.tasks.items():
            cells = [_plus(_plain(comparison.runs[name, agent], key, part)) for agent in comparison.agents]
            rows.append([name or task["env"], *cells])
        if any(cell != "-" for row in rows for cell in row[1:]):
            found += [Text(f"**{title}**, {_PARTS[part]}:"), Table(["task", *comparison.agents], rows)]
    return found


def _plain(runs: list[dict[str, Any]], key: str, part: Part) -> list[float]:
    """What runs say as it is, where they say it."""
    if part == "best":
        return [run["best"][key] for run in runs if key in run["best"]]
    return [protocol.last_mean(run["curve"], key) for run in runs if key in run["curve"]]


def _learning(comparison: Comparison) -> list[Block]:
    text = (
        "Evaluations during training: mean over seeds, from the lowest to the highest of them; dash-dotted, the data."
    )
    return [Heading("Learning curves"), Text(text), Picture(figures.curves(comparison), "Learning curves")]


def _agents(comparison: Comparison) -> list[Block]:
    known = {key for agent in comparison.agents for run in comparison.of_agent(agent) for key in run["sampling"]}
    rows, shown = [], [key for key in _SAMPLING if key in known]
    for agent in comparison.agents:
        runs = comparison.of_agent(agent)
        counts = _values(len(protocol.last(run["curve"], "mean")) for run in runs)
        sampling = [_values(run["sampling"].get(key) for run in runs) for key in shown]
        spent = {part: [run["seconds"][part] for run in runs] for part in ("update", "evaluation")}
        minutes = [statistics.fmean(run["wall_s"] for run in runs), *map(statistics.fmean, spent.values())]
        core_minutes = [run["cpu_s"] / 60 for run in runs if "cpu_s" in run]
        rate = sum(run["gradient_steps"] for run in runs) / max(sum(spent["update"]), 1e-9)
        times = [*(f"{value / 60:.1f}" for value in minutes), f"{max(core_minutes):.1f}" if core_minutes else "-"]
        rows.append([agent, counts, *sampling, *times, f"{rate:.0f}"])
    text = (
        f"Evaluations: how many of the last {protocol.LAST} there were. K: sampling steps. Candidates: samples among "
        "which an agent chooses when it acts, at which temperature or by which rule; agents that do not choose have "
        "none. Noise scale: of what is sampled from when acting, if not 1. Minutes: of a run, wall-clock, on a machine "
        "that may have been shared; then those of updates and of evaluations. Core-minutes: how long cores worked for "
        "a run that kept count, at most. Then gradient steps of the policy per second of updates."
    )
    header = ["evaluations", *(_SAMPLING[key] for key in shown), "minutes", "updates", "evaluating"]
    header += ["core-minutes", "policy steps/s"]
    return [Heading("Agents: how they sample, how long they take"), Text(text), Table(["agent", *header], rows)]


def _values(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values) if value is not None) or "-"


def _data(comparison: Comparison) -> list[Block]:
    sets = {name: task["data"] for name, task in comparison.tasks.items() if task["data"]}
    if not sets:
        return []
    rows, made = [], {}
    for name, data in sets.items():
        known = "return_mean" in data
        spread = [f"{value:.4g}" for value in data["return_quartiles"]] if known else ["-"] * 5
        mean = f"{data['return_mean']:.4g} ± {data['return_std']:.2g}" if known else "-"
        cost = f"{data['cost_mean']:.1f}" if "cost_mean" in data else "-"
        rows.append([name or comparison.tasks[name]["env"], str(data.get("episodes", "-")), mean, *spread, cost])
        made[data["path"]] = data.get("command") or "made elsewhere"
    header = ["task", "episodes", "return, mean ± std", "lowest", "25 %", "median", "75 %", "highest", "cost"]
    lines = [f"{path}: {command}" for path, command in made.items()]
    return [Heading("Data"), Table(header, rows), Lines("How it was made", lines)]


def _provenance(comparison: Comparison) -> list[Block]:
    runs = [run for of_pair in comparison.runs.values() for run in of_pair]
    made = [sitting for run in runs for sitting in (run, *run.get("resumed", ()))]
    machines = _values(f"{m['processor']}, {m['cores']} cores, {m['system']}" for m in (run["machine"] for run in made))
    versions = _values(" ".join(f"{k} {v}" for k, v in run["versions"].items() if v is not None) for run in made)
    return [
        Heading("Provenance"),
        Text(f"Commits: {_values(run['commit'] for run in made)}."),
        Text(f"Machines: {machines}."),
        Text(f"Versions: {versions}."),
        Lines(f"Commands of all {len(runs)} runs", [run["command"] for run in runs]),
    ]


def _plus(values: list[float]) -> str:
    if not values:
        return "-"
    half = half_interval(values)
    mean = f"{statistics.fmean(values):.1f}"
    return mean if half is None else f"{mean} ± {half:.1f}"


def _bracket(found: Estimate, digits: int = 1) -> str:
    value, low, high = (f"{float(part):.{digits}f}" for part in (found.value, found.low, found.high))
    # Where every resample is the same, as with one seed, an interval would say nothing.
    return value if found.low == found.high else f"{value} [{low}, {high}]"
