"""One training as a command makes it: its folder, what is printed, and what is left beside the checkpoints."""

import re
import sys
import time
from pathlib import Path
from typing import Any

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.build import build_env
from diffpolicy_rl.training.config import TrainConfig
from diffpolicy_rl.training.evaluation import describe
from diffpolicy_rl.training.loop import Trainer
from diffpolicy_rl.training.plots import plot_curve, record_video
from diffpolicy_rl.training.run import adopt_base, claim, write_config, write_manifest
from diffpolicy_rl.training.signals import Interrupted
from diffpolicy_rl.training.threads import outpaced_by_one
from diffpolicy_rl.types import DeployedPolicy


def train(config: TrainConfig, resumed: bool = False) -> dict[str, Any]:
    """Train, report, plot, film; returns the summary.

    Args:
        config: settings.
        resumed: go on with the run in ``config.run_dir``.
    """
    if not resumed:
        config = adopt_base(config)
    folder = Path(config.run_dir or _default_folder(config))
    trainer = Trainer(config, folder, resumed)
    with claim(folder):
        if not resumed:
            _refuse_finished(folder)
            write_config(folder, config)
        write_manifest(folder, config, resumed)
        print(f"{'continuing' if resumed else 'writing to'} {folder}", flush=True)
        if trainer.threads > 1 and outpaced_by_one(trainer.threads):
            slow = f"{trainer.threads} threads are slower than threads=1"
            print(f"note: {slow}, because other programs take the cores", flush=True)
        try:
            summary = trainer.run()
        except Interrupted as stop:
            print(f"stopped by a signal; continue with: python -m diffpolicy_rl.train resume={folder}", file=sys.stderr)
            sys.exit(stop.exit_status)
        _report(config, folder, trainer.phase.agent.deploy(), summary)
    return summary


def _refuse_finished(folder: Path) -> None:
    if (folder / "checkpoints").exists():
        raise UserError(f"{folder} already holds a run; continue it with resume={folder}, or choose another run_dir")


def _report(config: TrainConfig, folder: Path, policy: DeployedPolicy, summary: dict[str, Any]) -> None:
    """Print what was reached; draw its curve and film its policy."""
    for name in ("base", "final", "best"):
        if summary[name]:
            print(f"{name:5}  {describe(summary[name])}")
    plot_curve(folder)
    if config.video:
        print(record_video(folder / "video.mp4", policy, lambda: build_env(config, 1, render=True), config.seed))
    print(f"wrote {folder} in {summary['wall_s']:.0f} s of work ({summary['env_steps']:,} env steps)", flush=True)


def _default_folder(config: TrainConfig) -> str:
    agent = re.split(r"[.:]", config.agent["_target_"])[-1].lower()
    task = re.split(r"[:/]", config.env.id)[-1].lower()
    return f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{agent}-{task}-s{config.seed}"
