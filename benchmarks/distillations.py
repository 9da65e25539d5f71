"""What distillations came to: a record of each student beside its teacher, and the README's table of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.finished import agent_of
from benchmarks.records import NUMBERS, provenance
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.config import TrainConfig
from diffpolicy_rl.training.run import read_config
from diffpolicy_rl.training.verdict import SPREAD_LIMIT

NAME = "distillations"
_KIND = ("agent", "env", "steps", "method", "value_weight")


def records(runs: Sequence[Path], kept: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """One record per student, those of the same kind of teacher and student as a kept one in its place.

    Args:
        runs: the students' run folders.
        kept: records of others, whose runs may be elsewhere.

    Raises:
        UserError: if a student was not compared with its teacher.
    """
    students = [*kept, *map(_record, runs)]
    return [*{tuple(student[key] for key in _KIND): student for student in students}.values()]


def _record(run: Path) -> dict[str, Any]:
    if not (run / "distillation.json").exists():
        raise UserError(f"{run} is no student that was compared with its teacher; use diffpolicy_rl.distill")
    report, config = json.loads((run / "distillation.json").read_text()), read_config(run)
    assert config.teacher is not None
    teaching = read_config(Path(config.teacher))
    sides = {side: report[side] for side in ("teacher", "student")}
    played = {side: {key: result[key] for key in NUMBERS if key in result} for side, result in sides.items()}
    spread = {key: value for key, value in (report["spread"] or {}).items() if key != "by_state"}
    about = {"agent": agent_of(teaching), "env": config.env.id, "steps": teaching.policy.steps}
    about |= {"method": _method(config), "value_weight": config.agent.get("value_weight", 0.0)}
    return about | played | {"verdict": report["verdict"], "spread": spread, "cost": report["cost"]} | provenance(run)


def _method(config: TrainConfig) -> str:
    """The student's agent, and what it makes of the policy where that is open."""
    process = config.policy.process["_target_"].rpartition(".")[2]
    return f"{agent_of(config)} ({process})" if config.agent["_target_"].endswith("Reflow") else agent_of(config)


def table(students: Sequence[dict[str, Any]]) -> str:
    """Markdown: one row per student."""
    lines = [
        "| teacher, task | K | student | teacher's | student's | difference, 95 % CI | margin | not inferior "
        f"| spread, {SPREAD_LIMIT} at most to be alike "
        "| minutes | of the teacher's |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for student in students:
        verdict, cost = student["verdict"], student["cost"]
        success = verdict["measure"] == "success"
        shown = (lambda value: f"{100 * value:.1f} %") if success else (lambda value: f"{value:.0f}")
        key = "success" if success else "mean"
        name = student["method"] + (f", values {student['value_weight']:g}" if student["value_weight"] else "")
        difference = f"{shown(verdict['difference'])} [{shown(verdict['ci_low'])}, {shown(verdict['ci_high'])}]"
        row = [f"{student['agent']}, {student['env']}", str(student["steps"]), name]
        row += [*(shown(student[side][key]) for side in ("teacher", "student")), difference, shown(verdict["margin"])]
        row += ["yes" if verdict["passed"] else "**no**"]
        row += [f"{student['spread']['ratio']:.2f}" if student["spread"] else "-"]
        row += [f"{cost['student_s'] / 60:.0f}", f"{cost['share']:.0%}" if cost["share"] else "-"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
