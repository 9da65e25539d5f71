"""Train an agent: ``python -m diffpolicy_rl.train agent=reinflow env=hopper``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError, did_you_mean
from diffpolicy_rl.training.compose import GROUPS, compose, options

if TYPE_CHECKING:
    from diffpolicy_rl.training.config import TrainConfig

_USAGE = "python -m diffpolicy_rl.train [agent=NAME] [env=NAME] [data=FILE] [key=value ...]"
_FLAGS = ("--cfg", "-c", "--multirun", "-m")


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    """Continue a run with its own settings.

    Attributes:
        resume: the run folder.
        trust: modules outside diffpolicy_rl that the run names and whose code may run.
        iterations: stop after so many loop iterations over all phases.
        max_minutes: stop after so many minutes.
    """

    resume: str
    trust: tuple[str, ...] = ()
    iterations: int | None = None
    max_minutes: float | None = None


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    if {"-h", "--help"} & set(argv):
        print(help_text())
    elif any(word.startswith("resume=") for word in argv):
        resume(argv)
    else:
        start(argv)


def help_text() -> str:
    """Usage, and every agent, env, data set, policy, net and budget; reads file names only, so that it is fast."""
    rows = [
        f"usage: {_USAGE}\n",
        "Pretrain a policy on demonstrations, improve it by reinforcement learning, evaluate it.\n",
    ]
    for group in GROUPS:
        rows.append(f"{group}:")
        rows += [f"  {name:14} {text}" for name, text in options(group).items()]
    rows += [
        "\nAny setting can be given as key=value, as in agent.lr=3e-4 env.num_envs=80 seed=1 run_dir=runs/mine;",
        "--cfg job prints them all. resume=<run> continues a run; base=<run> starts from its pretrained policy;",
        "iterations=N and max_minutes=M stop early; --multirun seed=0,1,2 sweeps.",
    ]
    return "\n".join(rows)


def start(argv: Sequence[str]) -> None:
    """Train what the command line describes, or with ``--cfg job`` only print it."""
    import yaml

    from diffpolicy_rl.training.config import to_plain

    flags = [word for word in argv if word.startswith("-")]
    show = "--cfg" in flags or "-c" in flags
    for flag in flags:
        if flag not in _FLAGS:
            raise UserError(f"there is no option {flag}; {did_you_mean(flag, _FLAGS)}")
    words = [word for word in argv if word not in flags and not (show and word == "job")]
    configs = compose(words, sweep="--multirun" in flags or "-m" in flags)
    if len(configs) > 1 and configs[0].run_dir:
        raise UserError("run_dir cannot be given to several runs; each makes its own folder under runs/")
    for config in configs:
        if show:
            print(yaml.safe_dump(to_plain(config), sort_keys=False), end="")
        else:
            train(config)


def resume(argv: Sequence[str]) -> None:
    """Continue a run with its own settings."""
    from diffpolicy_rl.training.run import read_config

    for word in argv:
        key = word.partition("=")[0]
        if key not in cli.field_docs(ResumeConfig):
            raise UserError(f"{key} cannot change when a run is resumed; only iterations and max_minutes can")
    given = cli.parse(ResumeConfig, argv, "python -m diffpolicy_rl.train resume=RUN [iterations=N] [max_minutes=M]")
    config = read_config(Path(given.resume), given.trust)
    train(
        dataclasses.replace(config, run_dir=given.resume, iterations=given.iterations, max_minutes=given.max_minutes),
        resumed=True,
    )


def train(config: "TrainConfig", resumed: bool = False) -> dict[str, Any]:
    """Train, report, plot, film; returns the summary."""
    from diffpolicy_rl.training.session import train

    return train(config, resumed)


if __name__ == "__main__":
    cli.run(main)
