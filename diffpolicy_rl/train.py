"""Train an agent: ``python -m diffpolicy_rl.train agent=reinflow env=hopper``."""

import dataclasses
import os
import re
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from diffpolicy_rl.training.config import TrainConfig

_USAGE = "python -m diffpolicy_rl.train [agent=NAME] [env=NAME] [data=FILE] [key=value ...]"
_GROUPS = ("agent", "env", "data", "policy", "budget")


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    """Continue a run with its own settings.

    Attributes:
        resume: the run folder.
        agent: a class outside diffpolicy_rl, as module:Class, that the run may use.
        iterations: stop after so many loop iterations over all phases.
        max_minutes: stop after so many minutes.
    """

    resume: str
    agent: str | None = None
    iterations: int | None = None
    max_minutes: float | None = None


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    if {"-h", "--help"} & set(argv):
        print(help_text())
    elif any(word.startswith("resume=") for word in argv):
        resume(argv)
    else:
        compose(argv)


def help_text() -> str:
    """Usage, and every agent, env, data set, policy and budget; reads file names only, so that it is fast."""
    rows = [
        f"usage: {_USAGE}\n",
        "Pretrain a policy on demonstrations, improve it by reinforcement learning, evaluate it.\n",
    ]
    for group in _GROUPS:
        rows.append(f"{group}:")
        rows += [f"  {name:14} {text}" for name, text in options(group).items()]
    rows += [
        "\nAny setting can be given as key=value, as in agent.lr=3e-4 env.num_envs=80 seed=1 run_dir=runs/mine;",
        "--cfg job prints them all. resume=<run> continues a run; base=<run> starts from its pretrained policy;",
        "iterations=N and max_minutes=M stop early; --multirun seed=0,1,2 sweeps.",
    ]
    return "\n".join(rows)


def options(group: str) -> dict[str, str]:
    """Name and first comment line of every option of a config group."""
    found = {}
    for entry in resources.files("diffpolicy_rl.configs").joinpath(group).iterdir():
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = entry.read_text().partition("\n")[0].removeprefix("# ")
    return dict(sorted(found.items()))


def compose(argv: Sequence[str]) -> None:
    """Hand the settings to Hydra, and every composed configuration to ``train``."""
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    keys = [word.partition("=")[0].lstrip("+") for word in argv if "=" in word]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key} is given twice")
    words = [word for given in argv for word in translate(given)]
    flags = {word for word in words if word.startswith("-")}
    show = bool({"--cfg", "-c"} & flags)
    sys.argv[1:] = [word for word in words if word not in ("--cfg", "-c", "job")] if show else words

    def job(composed: "DictConfig") -> None:
        sys.argv[1:] = argv  # Hydra has read its words; the manifest shows the user's
        cli.run(lambda _: start(composed, show))

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us as they are, not as Hydra's summary of them
    try:
        overrides = [word for word in words if word not in flags | {"job"}]
        for override in OverridesParser.create().parse_overrides(overrides):
            if override.is_sweep_override() and not {"--multirun", "-m"} & flags:
                raise UserError(
                    f"{str(override.input_line).lstrip('+')} lists several values; add --multirun to run all"
                )
        hydra.main(version_base="1.3", config_path="pkg://diffpolicy_rl.configs", config_name="train")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"cannot read the command line: {str(error).splitlines()[0]}") from None


def translate(word: str) -> list[str]:
    """A word of the command line as Hydra overrides: groups by name, own code and files by place, keys as they are."""
    key, equals, value = word.partition("=")
    if word.startswith("-") or word == "job":
        return [word]
    if not equals:
        raise UserError(f"{word!r} is not of the form key=value; usage: {_USAGE}")
    if key not in _GROUPS:
        return [f"++{word.lstrip('+')}"]
    known = options(key)
    if value in known or "," in value:
        return [word]
    if key == "agent" and re.fullmatch(r"\w[\w.]*:\w+", value):
        return ["agent=custom", f"++agent._target_={_quoted(value)}"]
    if key == "env" and (":" in value or re.search(r"-v\d+$", value)):
        return ["env=gymnasium", f"++env.id={_quoted(value)}"]
    if key == "data" and (Path(value).suffix or Path(value).exists()):
        return ["data=file", f"++data.path={_quoted(value)}"]
    raise UserError(f"there is no {key} {value!r}; {did_you_mean(value, known)}")


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def start(composed: "DictConfig", show: bool) -> None:
    """Train with a composed configuration, or only print it."""
    import yaml
    from omegaconf import OmegaConf

    from diffpolicy_rl.training.config import resolve, to_plain

    for key in sorted(OmegaConf.missing_keys(composed)):
        raise UserError(f"{key} has no value; choose one with {key.partition('.')[0]}=")
    values: Any = OmegaConf.to_container(composed, resolve=True)
    config = resolve(values)
    if show:
        print(yaml.safe_dump(to_plain(config), sort_keys=False), end="")
    else:
        train(config)


def resume(argv: Sequence[str]) -> None:
    """Continue a run with its own settings."""
    from diffpolicy_rl.training.config import resolve
    from diffpolicy_rl.training.run import read_config

    for word in argv:
        key = word.partition("=")[0]
        if key not in cli.field_docs(ResumeConfig):
            raise UserError(f"{key} cannot change when a run is resumed; only iterations and max_minutes can")
    given = cli.parse(ResumeConfig, argv, "python -m diffpolicy_rl.train resume=RUN [iterations=N] [max_minutes=M]")
    config = resolve(read_config(Path(given.resume), given.agent))
    train(
        dataclasses.replace(config, run_dir=given.resume, iterations=given.iterations, max_minutes=given.max_minutes),
        resumed=True,
    )


def train(config: "TrainConfig", resumed: bool = False) -> dict[str, Any]:
    """Train, plot, film; returns the summary."""
    from diffpolicy_rl.training.build import build_env
    from diffpolicy_rl.training.evaluation import describe
    from diffpolicy_rl.training.loop import Trainer
    from diffpolicy_rl.training.plots import plot_curve, record_video
    from diffpolicy_rl.training.run import adopt_base, write_config, write_manifest
    from diffpolicy_rl.training.signals import Interrupted

    if not resumed:
        config = adopt_base(config)
    folder = Path(config.run_dir or _default_folder(config))
    if not resumed and (folder / "checkpoints").exists():
        raise UserError(f"{folder} already holds a run; continue it with resume={folder}, or choose another run_dir")
    trainer = Trainer(config, folder, resumed)
    if not resumed:
        write_config(folder, config)
        write_manifest(folder, config)
    print(f"{'continuing' if resumed else 'writing to'} {folder}", flush=True)
    try:
        summary = trainer.run()
    except Interrupted as stop:
        print(f"stopped by a signal; continue with: python -m diffpolicy_rl.train resume={folder}", file=sys.stderr)
        sys.exit(stop.exit_status)
    plot_curve(folder)
    if config.video:
        print(record_video(folder / "video.mp4", trainer.phase.agent.deploy(), build_env(config, 1), config.seed))
    for name in ("base", "final", "best"):
        if summary[name]:
            print(f"{name:5}  {describe(summary[name])}")
    print(f"wrote {folder} in {summary['wall_s']:.0f} s of work ({summary['env_steps']:,} env steps)")
    return summary


def _default_folder(config: "TrainConfig") -> str:
    agent = re.split(r"[.:]", config.agent["_target_"])[-1].lower()
    task = re.split(r"[:/]", config.env.id)[-1].lower()
    return f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{agent}-{task}-s{config.seed}"


if __name__ == "__main__":
    cli.run(main)
