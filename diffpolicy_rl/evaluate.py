"""Evaluate a run: ``python -m diffpolicy_rl.evaluate runs/<run>``."""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffpolicy_rl import cli


@dataclass(frozen=True)
class EvaluateConfig:
    """Play episodes with a run's deployed policy: the same evaluation that training reports.

    Attributes:
        run: the run folder.
        which: last, best, base, or a checkpoint's step.
        episodes: at least this many; rounded up to a multiple of the envs.
        seed: of resets and noise; the seed that training logged repeats its evaluation.
        trust: modules outside diffpolicy_rl that the run names and whose code may run.
        out: where the result goes, by default evaluation-<which>-s<seed>.json in the run folder.
    """

    run: str
    which: str = "last"
    episodes: int = 100
    seed: int = 0
    trust: tuple[str, ...] = ()
    out: str | None = None


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(EvaluateConfig, argv, "python -m diffpolicy_rl.evaluate RUN [key=value ...]", "run")
    from diffpolicy_rl.training.build import build_env, pick_device
    from diffpolicy_rl.training.checkpoint import write_text
    from diffpolicy_rl.training.evaluation import MAX_ENVS, describe, evaluate_policy
    from diffpolicy_rl.training.logger import Console
    from diffpolicy_rl.training.run import load, read_config

    folder = Path(config.run)
    settings = read_config(folder, config.trust)
    policy = load(folder, config.which, config.trust, pick_device(settings.device))
    env = build_env(settings, min(MAX_ENVS, config.episodes))
    with Console() as console:
        console.begin("episodes", 0, math.ceil(config.episodes / env.num_envs) * env.num_envs)
        show = functools.partial(console.advance, note="")
        result = evaluate_policy(policy, env, config.episodes, config.seed, show)
    out = Path(config.out) if config.out else folder / f"evaluation-{config.which}-s{config.seed}.json"
    write_text(out, json.dumps({"which": config.which} | result, indent=2))
    print(f"{describe(result)}; wrote {out}")


if __name__ == "__main__":
    cli.run(main)
