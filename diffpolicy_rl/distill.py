"""Distil a run to one step: ``python -m diffpolicy_rl.distill runs/<run>``."""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError, require_positive

if TYPE_CHECKING:
    from diffpolicy_rl.training.config import TrainConfig
    from diffpolicy_rl.types import DeployedPolicy

_VERDICT_SEEDS = 1_500_007
_DECISIONS = 100  # of each env, where the spread of samples is measured


@dataclass(frozen=True)
class DistillConfig:
    """Train a one-step student of what a run deploys, and compare the two over the same episodes.

    Attributes:
        run: the teacher's run folder.
        method: regress, onedp, shortcut, meanflow or consistency.
        which: last, best, base, or a step of the teacher's checkpoints.
        out: the student's run folder, by default <run>-<method>; one that is there already is gone on with.
        env_steps: env steps in which the student meets its observations.
        num_envs: N.
        value_weight: with method=regress, of the critics that the teacher selects by; 0 for its samples alone.
        episodes: of each, in the comparison.
        seed: of everything random.
        threads: cores to use, all by default.
        trust: modules outside diffpolicy_rl that the run names and whose code may run.
    """

    run: str
    method: Literal["regress", "onedp", "shortcut", "meanflow", "consistency"] = "regress"
    which: str = "last"
    out: str | None = None
    env_steps: int = 100_000
    num_envs: int = 40
    value_weight: float = 0.0
    episodes: int = 1000
    seed: int = 0
    threads: int | None = None
    trust: tuple[str, ...] = ()


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(DistillConfig, argv, "python -m diffpolicy_rl.distill RUN [key=value ...]", "run")
    require_positive(env_steps=config.env_steps, num_envs=config.num_envs, episodes=config.episodes)
    from diffpolicy_rl.training.run import load, read_config

    run, out = Path(config.run), Path(config.out or f"{config.run.rstrip('/')}-{config.method}")
    teaching, teacher = read_config(run, config.trust), load(run, config.which, config.trust)
    if teacher.per_step:
        print(f"{run} corrects every action of a base policy's chunks; the student is one of the base")
        teacher = teacher.planner()
    _train(config, teaching, teacher, out)
    report = _compare(config, teaching, teacher, load(out, trust=config.trust)) | _cost(run, out)
    _write(out, report)


def _train(config: DistillConfig, teaching: "TrainConfig", teacher: "DeployedPolicy", out: Path) -> None:
    """Train the student, or go on where that stopped.

    Raises:
        UserError: if ``out`` holds another run.
    """
    from diffpolicy_rl.training.config import to_plain
    from diffpolicy_rl.training.run import differences, read_config
    from diffpolicy_rl.training.session import train
    from diffpolicy_rl.training.students import student_config

    student = student_config(
        config.run,
        config.which,
        config.method,
        teaching,
        teacher,
        config.env_steps,
        config.num_envs,
        config.value_weight,
    )
    student = dataclasses.replace(student, run_dir=str(out), seed=config.seed, threads=config.threads)
    begun, finished = (out / "checkpoints" / "last").exists(), (out / "summary.json").exists()
    if begun or finished:
        there = dataclasses.replace(read_config(out, config.trust), run_dir=str(out), threads=config.threads)
        for name, ours, theirs in differences(to_plain(student), to_plain(there)):
            raise UserError(f"{out} holds a run with {name}={theirs}, not {ours}; choose another out")
    if finished:
        print(f"{out} is trained already, so that only the comparison is made anew")
    else:
        train(student, resumed=begun)


def _compare(
    config: DistillConfig, teaching: "TrainConfig", teacher: "DeployedPolicy", student: "DeployedPolicy"
) -> dict[str, Any]:
    """Play the same episodes with both, and measure how their samples spread."""
    from diffpolicy_rl.training.build import build_env
    from diffpolicy_rl.training.evaluation import MAX_ENVS
    from diffpolicy_rl.training.logger import Console
    from diffpolicy_rl.training.verdict import compare, spread, visited

    env, seed = build_env(teaching, min(MAX_ENVS, config.episodes)), config.seed + _VERDICT_SEEDS
    with Console() as console:
        console.begin("episodes", 0, 2 * math.ceil(config.episodes / env.num_envs) * env.num_envs)
        report = compare(teacher, student, env, config.episodes, seed, functools.partial(console.advance, note=""))
    return report | {"spread": spread(teacher, student, visited(teacher, env, _DECISIONS, seed), seed=seed)}


def _cost(run: Path, out: Path) -> dict[str, Any]:
    """How long the student took to train, and what share of its teacher's training that is, if that is known."""
    teacher, student = _seconds(run), _seconds(out)
    share = student / teacher if student and teacher else None
    return {"cost": {"teacher_s": teacher, "student_s": student, "share": share}}


def _seconds(run: Path) -> float | None:
    summary = run / "summary.json"
    return json.loads(summary.read_text())["wall_s"] if summary.exists() else None


def _write(out: Path, report: dict[str, Any]) -> None:
    """Write and draw what came out, and say it."""
    from diffpolicy_rl.training.checkpoint import write_text
    from diffpolicy_rl.training.evaluation import describe
    from diffpolicy_rl.training.plots import plot_spread
    from diffpolicy_rl.training.verdict import SPREAD_LIMIT, verdict_line

    write_text(out / "distillation.json", json.dumps(report, indent=2))
    for name in ("teacher", "student"):
        print(f"{name}  {describe(report[name])}")
    print(verdict_line(report["verdict"]))
    if report["spread"]:
        plot_spread(out / "spread.png", report["spread"]["by_state"])
        print(
            "energy distance to the teacher {to_teacher:.4f}, of the teacher to itself {teacher_to_itself:.4f}: "
            f"{{ratio:.2f}} times, {SPREAD_LIMIT} at most to be alike".format_map(report["spread"])
        )
    if report["cost"]["share"] is not None:
        print("training took {student_s:.0f} s, {share:.1%} of the teacher's".format_map(report["cost"]))
    print(f"wrote {out}")


if __name__ == "__main__":
    cli.run(main)
