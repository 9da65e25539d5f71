"""Data sets on the command line: ``python -m diffpolicy_rl.data info|check|convert|download ...``."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffpolicy_rl import cli
from diffpolicy_rl.data.catalog import resolve
from diffpolicy_rl.data.files import sha256
from diffpolicy_rl.data.formats import WRITERS, open_source
from diffpolicy_rl.data.published import download
from diffpolicy_rl.data.scores import describe
from diffpolicy_rl.data.survey import Survey, survey
from diffpolicy_rl.data.transitions import ReadOptions, Source, load
from diffpolicy_rl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from diffpolicy_rl.types import VecEnv

_USAGE = "python -m diffpolicy_rl.data"
_FRAMES = 3  # images that are decoded of each camera


@dataclass(frozen=True)
class InfoConfig:
    """Print what a data set holds: shapes, episodes, returns, origin.

    Attributes:
        file: a file or folder of D4RL, DSRL, Minari, robomimic, LIBERO or LeRobot v3, or the name of a set.
        keys: names of the observations to join, where the format has several; by default the usual ones.
        mask: a subset of the episodes by the name that a robomimic file gives it, as in train.
        max_episode_steps: where episodes are cut, in files of D4RL that do not mark it.
    """

    file: str
    keys: tuple[str, ...] = ()
    mask: str | None = None
    max_episode_steps: int | None = None


@dataclass(frozen=True)
class CheckConfig(InfoConfig):
    """Read every value of a data set, hold it against its environment, and say what was checked.

    Attributes:
        file: as for info.
        keys: names of the observations to join, where the format has several; by default the usual ones.
        mask: a subset of the episodes by the name that a robomimic file gives it, as in train.
        max_episode_steps: where episodes are cut, in files of D4RL that do not mark it.
        env: the environment's id, where the file does not say it.
    """

    env: str | None = None


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(InfoConfig):
    """Write a data set anew in another format; images go along to LeRobot's.

    Attributes:
        file: as for info.
        out: the file or folder to write.
        format: d4rl, which is DSRL's where there are costs, minari, robomimic or lerobot.
        keys: names of the observations to join, where the format has several; by default the usual ones.
        mask: a subset of the episodes by the name that a robomimic file gives it, as in train.
        max_episode_steps: where episodes are cut, in files of D4RL that do not mark it.
        fps: steps per second, which LeRobot wants to know.
        task: what is done, in words, which LeRobot wants to know.
        video: whether LeRobot's images become mp4 files, smaller and less exact.
    """

    out: str
    format: str
    fps: float | None = None
    task: str | None = None
    video: bool | None = None


@dataclass(frozen=True)
class DownloadConfig:
    """Download a published data set once; from then on its name works wherever a file does.

    Attributes:
        name: as in hopper-medium-v2 (D4RL), dsrl/CarCircle, or minari/D4RL/door/human-v2.
    """

    name: str


def _open(config: InfoConfig) -> Source:
    return open_source(resolve(config.file), ReadOptions(config.keys, config.mask, config.max_episode_steps))


def _info(config: InfoConfig) -> None:
    source = _open(config)
    _describe(source, survey(source))
    for name, value in sorted(source.attributes.items()):
        # A file's own text must not look like a line of ours.
        shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value)[:200])
        print(f"{name}: {shown}")


def _describe(source: Source, found: Survey) -> None:
    print(f"{source.path.name}: {source.format}, {len(found.lengths)} episodes, {source.rows:,} transitions")
    print(f"observations {(source.rows, source.obs_dim)}, actions {(source.rows, source.action_dim)}")
    ended = f"{found.terminated} terminated" + (", the last one is not marked as ended" if found.unmarked else "")
    print(f"episodes of {min(found.lengths)} to {max(found.lengths)} steps, {ended}")
    if source.rewarded:
        costs = np.array(found.costs) if found.costs else None
        lines = describe(str(source.attributes.get("env_id", "")), np.array(found.returns), costs)
        print("\n".join([*lines, *_normalized(source, found)]))
    for camera, frames in source.images.items():
        print(f"images {camera}: {source.rows:,} of {frames.shape}")
    _tell(source)


def _tell(source: Source) -> None:
    for note in source.notes:
        print(f"note: {note}")


def _normalized(source: Source, found: Survey) -> list[str]:
    """The score by the references that Minari keeps with a data set."""
    low, high = (source.attributes.get(f"ref_{end}_score") for end in ("min", "max"))
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low == high:
        return []
    score = 100 * (np.mean(found.returns) - low) / (high - low)
    return [f"normalised score of the mean {score:.1f}, where {low} is 0 and {high} is 100"]


def _check(config: CheckConfig) -> None:
    source = _open(config)
    found = survey(source)
    _describe(source, found)
    if source.path.is_file():
        print(f"SHA-256 {sha256(source.path)}")
    print(f"checked: all {source.rows:,} rows are finite and of one shape, flags are 0 or 1")
    for camera, frames in source.images.items():
        frames.read(np.unique(np.linspace(0, source.rows - 1, _FRAMES).astype(np.int64)))
        print(f"checked: the first, middle and last image of {camera} can be decoded")
    print(f"checked: actions are {found.low.min():.4g} to {found.high.max():.4g}")
    env_id = config.env or source.attributes.get("env_id")
    if not env_id:
        print("not checked: bounds and replay, because the file does not say its environment; env=<id> does")
        return
    try:
        env = _env(str(env_id), trusted=config.env is not None)
    except UserError as error:
        if config.env is not None:
            raise
        print(f"not checked: bounds and replay, because {error}")
        return
    _check_env(source, found, env)


def _env(env_id: str, trusted: bool) -> "VecEnv":
    from diffpolicy_rl.envs.make import make_env

    if ":" in env_id and not trusted:  # a file must not choose what code is imported
        raise UserError(f"{env_id} names code of your own, which runs only if you name it with env=<id>")
    return make_env(env_id)


def _check_env(source: Source, found: Survey, env: "VecEnv") -> None:
    box, shape = env.single_action_space, env.single_observation_space.shape
    needed = (*(shape or (0,)), len(box.low))
    if (source.obs_dim, source.action_dim) != needed:
        raise UserError(
            f"{source.path} has observations and actions of width {(source.obs_dim, source.action_dim)}, "
            f"{env.spec_id} needs {needed}"
        )
    outside = np.flatnonzero((found.low < box.low - 1e-6) | (found.high > box.high + 1e-6))
    if len(outside):
        print(f"warning: actions {outside.tolist()} leave the bounds of {env.spec_id}, which will clip them")
    else:
        print(f"checked: shapes and bounds of actions are those of {env.spec_id}")
    if max(found.lengths) > env.max_episode_steps:
        print(f"warning: episodes are longer than {env.max_episode_steps} steps, the limit of {env.spec_id}")
    from diffpolicy_rl.data.parity import replay  # here, because it brings torch

    try:
        print(f"replayed: {replay(env, source)}")
    except UserError as error:
        print(f"not replayed: {error}")


def _convert(config: ConvertConfig) -> None:
    if config.format not in WRITERS:
        raise UserError(f"format={config.format} cannot be written; {did_you_mean(config.format, WRITERS)}")
    source = _open(config)
    _tell(source)
    given = _given(config, source)
    simple = {name: value for name, value in source.attributes.items() if not isinstance(value, list)}
    transitions = dataclasses.replace(load(source), attributes=simple | given)
    WRITERS[config.format](Path(config.out), transitions)
    left = ["images"] if source.images and config.format != "lerobot" else []
    left += ["costs"] if transitions.costs is not None and config.format in ("minari", "robomimic") else []
    left += ["last observations"] if transitions.finals is not None and config.format == "lerobot" else []
    without = f", without its {' and '.join(left)}" if left else ""
    written = open_source(Path(config.out))
    count = f"{written.rows:,}" if written.rows == source.rows else f"{written.rows:,} of {source.rows:,}"
    print(f"wrote {config.out}: {count} transitions of {source.path.name} as {config.format}{without}")
    if lost := sorted(source.attributes.keys() - written.attributes.keys()):
        print(f"note: not in the new file: {', '.join(lost)}")


def _given(config: ConvertConfig, source: Source) -> dict[str, Any]:
    """What the command line says about the data, for LeRobot's format alone."""
    given = {name: value for name in ("fps", "task", "video") if (value := getattr(config, name)) is not None}
    if given and config.format != "lerobot":
        raise UserError(f"{', '.join(given)} has no effect on format={config.format}; leave it out")
    if config.video and not source.images:
        raise UserError(f"{source.path} has no images to make a video of; leave out video")
    several = source.attributes.get("total_tasks", 1)
    if config.format == "lerobot" and several != 1 and config.task is None:
        raise UserError(f"{source.path} has {several} tasks, and only one can be written; name it with task='...'")
    return given


def _download(config: DownloadConfig) -> None:
    print(f"{config.name} is at {download(config.name)}")


_COMMANDS: dict[str, tuple[type, Callable[[Any], None], tuple[str, ...]]] = {
    "info": (InfoConfig, _info, ("file",)),
    "check": (CheckConfig, _check, ("file",)),
    "convert": (ConvertConfig, _convert, ("file", "out")),
    "download": (DownloadConfig, _download, ("name",)),
}
_WORDS = {"info": "FILE", "check": "FILE [env=ID]", "convert": "SRC DST format=NAME", "download": "NAME"}


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    usages = {name: f"{_USAGE} {name} {words}" for name, words in _WORDS.items()}
    if not argv or argv[0] in ("-h", "--help"):
        print("\n".join(["usage:", *(f"  {usage}" for usage in usages.values())]))
        return
    if argv[0] not in _COMMANDS:
        raise UserError(f"there is no command {argv[0]!r}; {did_you_mean(argv[0], _COMMANDS)}")
    config, command, places = _COMMANDS[argv[0]]
    bare = iter(places)
    words = []
    for word in argv[1:]:
        if (word.partition("=")[0].isidentifier() and "=" in word) or word.startswith("-"):
            words.append(word)
        elif place := next(bare, None):
            words.append(f"{place}={word}")
        else:
            raise UserError(f"{word!r} is one word too many; usage: {usages[argv[0]]}")
    command(cli.parse(config, words, usages[argv[0]]))


if __name__ == "__main__":
    cli.run(main)
