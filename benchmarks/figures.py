"""Figures of a report, as SVG texts that need nothing else."""

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.comparison import Comparison
from benchmarks.protocol import UNITS, score

# Okabe and Ito's colours, which people with any colour vision tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
_DASHES = ("-", "--", ":")
_PANELS = 3


def intervals(comparison: Comparison) -> str:
    """Interquartile means with their intervals, of the last evaluations (filled) and of the best checkpoints."""
    last, best = comparison.iqms("last"), comparison.iqms("best")
    figure = _figure(7, 0.8 + 0.42 * len(last))
    axes = figure.add_subplot()
    for row, agent in enumerate(last):
        for found, offset, filled in ((last[agent], -0.12, True), (best[agent], 0.12, False)):
            colour, place = _look(comparison, agent)["color"], row + offset
            axes.plot([found.low, found.high], [place, place], color=colour, alpha=0.6, linewidth=3)
            axes.plot(found.value, place, "o", color=colour, markerfacecolor=colour if filled else "white")
    axes.set_yticks(range(len(last)), list(last))
    axes.invert_yaxis()
    axes.set_xlabel("interquartile mean of scores: last evaluations filled, best checkpoint hollow")
    return _svg(figure)


def profiles(comparison: Comparison) -> str:
    """Share of runs above a score, with pointwise bands."""
    thresholds, found = comparison.profiles()
    figure = _figure(7, 3.8)
    axes = figure.add_subplot()
    for agent, shares in found.items():
        look = _look(comparison, agent)
        axes.plot(thresholds, shares.value, label=agent, **look)
        axes.fill_between(thresholds, shares.low, shares.high, color=look["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="score", ylabel="share of runs above it", ylim=(-0.02, 1.02))
    _legend(figure, axes)
    return _svg(figure)


def curves(comparison: Comparison) -> str:
    """Evaluations during training: one panel per task; mean over seeds, from the lowest to the highest of them."""
    rows = -(-len(comparison.tasks) // _PANELS)
    figure = _figure(10 if len(comparison.tasks) > 1 else 6, 2.9 * rows + 0.4)
    columns = min(_PANELS, len(comparison.tasks))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, task in zip(panels, comparison.tasks, strict=False):
        _draw_task(axes, comparison, task)
    for axes in panels[len(comparison.tasks) :]:
        axes.remove()
    _legend(figure, panels[0])
    return _svg(figure)


def _draw_task(axes: Axes, comparison: Comparison, task: str) -> None:
    found = comparison.tasks[task]
    key = "success" if found["unit"] == "success" else "mean"
    units = {run["curve"]["unit"] for agent in comparison.agents for run in comparison.runs[task, agent]}
    for agent in comparison.agents:
        drawn = [run["curve"] for run in comparison.runs[task, agent] if run["curve"]["x"]]
        if not drawn:
            axes.plot([], [], label=agent, **_look(comparison, agent))  # so that one legend serves all panels
            continue
        count = min(len(curve["x"]) for curve in drawn)
        x = np.mean([curve["x"][:count] for curve in drawn], axis=0)
        values = np.array([[score(value, found) for value in curve[key][:count]] for curve in drawn])
        x = x / 1000 if len(units) == 1 else 100 * x / x[-1]
        look = _look(comparison, agent)
        axes.plot(x, values.mean(0), label=agent, **look)
        axes.fill_between(x, values.min(0), values.max(0), color=look["color"], alpha=0.15, linewidth=0)
    if found["data"] and "return_mean" in found["data"] and key == "mean":
        axes.axhline(score(found["data"]["return_mean"], found), color="#666666", linewidth=1, linestyle="-.")
    axes.set_title(task or found["env"], fontsize=10)
    axes.set_xlabel(f"{units.pop()}, thousands" if len(units) == 1 else "share of training, %")
    axes.set_ylabel(UNITS[found["unit"]].partition(":")[0])


def _look(comparison: Comparison, agent: str) -> dict[str, Any]:
    place = comparison.agents.index(agent)
    return {"color": _COLOURS[place % len(_COLOURS)], "linestyle": _DASHES[place // len(_COLOURS) % len(_DASHES)]}


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = int(figure.get_figwidth() / 1.4)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _svg(figure: Figure) -> str:
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):  # the same figure is the same text
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
