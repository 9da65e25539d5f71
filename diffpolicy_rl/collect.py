"""Make data: ``python -m diffpolicy_rl.collect expert=sac-hopper episodes=40 out=demos.hdf5``, or ``recipe=NAME``."""

import dataclasses
import functools
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError

if TYPE_CHECKING:
    from diffpolicy_rl.data.transitions import Transitions
    from diffpolicy_rl.training.config import EnvConfig
    from diffpolicy_rl.training.logger import Console
    from diffpolicy_rl.types import DeployedPolicy, VecEnv

_USAGE = "python -m diffpolicy_rl.collect [RUN | expert=NAME | replay=RUN | recipe=NAME] out=FILE [key=value ...]"
_ABOUT_THE_SET = ("recipe", "out", "num_envs", "trust")  # what a recipe's parts share
_ABOUT_ACTING = ("env", "episodes", "stochastic", "action_scale", "action_noise", "which")


@dataclass(frozen=True)
class CollectConfig:
    """Write episodes in D4RL's layout: those that a run's policy or an expert plays, or that a training lived through.

    A recipe lists several such commands, one after the other in one file: ``recipe`` in configs/data/NAME.yaml.

    Attributes:
        out: the file to write; a recipe's default is the path in its own file.
        run: a run whose deployed policy acts.
        expert: a name in the catalogue, a scripted expert's name, a Stable-Baselines3 SAC or TQC zip, or its URL.
        replay: a run whose training's own episodes are written, as its replay or its diary kept them.
        recipe: a set in configs/data that says how it is made.
        env: where an expert or a run's policy acts, an id or a name in configs/env, if not where it is known from.
        episodes: how many.
        stochastic: whether an expert samples its actions, or takes their means.
        action_scale: factor on every action, before the noise.
        action_noise: std of Gaussian noise added to every action, in env units.
        num_envs: copies of the env played side by side.
        seed: of everything random; the parts of a recipe take this and the following ones.
        which: last, best, base, or a step of the run.
        train: what ``train`` needs to be told to make the run; said where the run is missing.
        trust: modules outside diffpolicy_rl that the run names and whose code may run.
    """

    out: str | None = None
    run: str | None = None
    expert: str | None = None
    replay: str | None = None
    recipe: str | None = None
    env: str | None = None
    episodes: int = 40
    stochastic: bool = True
    action_scale: float = 1.0
    action_noise: float = 0.0
    num_envs: int = 40
    seed: int = 0
    which: str = "last"
    train: str | None = None
    trust: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what names no source, or several, or asks for nothing."""
        sources = (self.run, self.expert, self.replay, self.recipe)
        if sum(source is not None for source in sources) != 1:
            raise UserError(f"name either a run or an expert, a replay or a recipe; usage: {_USAGE}")
        if self.episodes < 1:
            raise UserError(f"episodes={self.episodes} collects nothing; ask for at least 1")
        for name in _differing(self).keys() & {*_ABOUT_ACTING} if self.replay else ():
            raise UserError(f"{name} has no effect beside replay=, which writes what happened")


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(CollectConfig, argv, _USAGE, "run")
    parts = [config] if config.recipe is None else _recipe(config, argv)
    if parts[0].out is None:
        raise UserError("out must be given: the file to write")
    out = Path(parts[0].out)
    from diffpolicy_rl.data.d4rl import check_writable, write
    from diffpolicy_rl.data.scores import describe
    from diffpolicy_rl.data.transitions import concatenate
    from diffpolicy_rl.training.logger import Console
    from diffpolicy_rl.training.threads import use_fast_fp32

    for part in parts:
        _check_trained(part)
    use_fast_fp32()
    check_writable(out)
    with Console() as console:
        made = [_make(part, console) for part in parts]
    transitions = dataclasses.replace(concatenate(made), attributes=_attributes(config, parts, made, argv))
    write(out, transitions)
    returns = transitions.returns()
    print("\n".join(describe(transitions.attributes["env_id"], returns, transitions.episode_costs())))
    print(
        f"wrote {out}: {len(returns)} episodes, {len(transitions.rewards):,} transitions, return {returns.mean():.1f} "
        f"± {returns.std():.1f} ({returns.min():.1f} to {returns.max():.1f}), {out.stat().st_size / 1e6:.2f} MB"
    )


def _recipe(config: CollectConfig, argv: Sequence[str]) -> list[CollectConfig]:
    """The commands that a recipe stands for."""
    from diffpolicy_rl.training.compose import compose

    for key in (word.partition("=")[0] for word in argv):
        if key not in (*_ABOUT_THE_SET, "seed"):
            raise UserError(f"{key} has no effect beside recipe=, whose parts say it themselves")
    (run,) = compose([f"data={config.recipe}"], sweep=False)
    if not run.data.recipe:
        raise UserError(f"data={config.recipe} has no recipe: it is not made by this command")
    shared = {name: getattr(config, name) for name in _ABOUT_THE_SET} | {"recipe": None}
    shared["out"] = config.out or run.data.path
    commands = [shared | {"seed": config.seed + index} | part for index, part in enumerate(run.data.recipe)]
    return [cli.build(CollectConfig, command, f"{config.recipe}: ") for command in commands]


def _check_trained(part: CollectConfig) -> None:
    """Raise UserError if a run is missing that the part says how to make."""
    run = part.run or part.replay
    if part.train and run and not Path(run).exists():
        raise UserError(f"there is no run at {run}; make it: python -m diffpolicy_rl.train {part.train}")


def _make(config: CollectConfig, console: "Console") -> "Transitions":
    """One part of a set, with its env's id among its attributes."""
    from diffpolicy_rl.training.recording import record

    if config.replay is not None:
        return _lived_through(config.replay, config.trust)
    env, policy = _players(config)
    console.begin("episodes", 0, config.episodes)
    show = functools.partial(console.advance, note="")
    disturbed = {"action_scale": config.action_scale, "action_noise": config.action_noise}
    made = record(policy, env, config.episodes, config.seed, **disturbed, progress=show)
    return dataclasses.replace(made, attributes={"env_id": env.spec_id})


def _lived_through(run: str, trust: tuple[str, ...]) -> "Transitions":
    from diffpolicy_rl.data.replayed import episodes
    from diffpolicy_rl.training.run import read_config, read_experience

    made = episodes(*read_experience(run, trust), run)
    return dataclasses.replace(made, attributes={"env_id": read_config(Path(run), trust).env.id})


def _players(config: CollectConfig) -> "tuple[VecEnv, DeployedPolicy]":
    """The env, with chunk 1, and who acts in it."""
    from diffpolicy_rl.data.catalog import EXPERTS, fetch_expert
    from diffpolicy_rl.experts import load_expert
    from diffpolicy_rl.scripted import SCRIPTED
    from diffpolicy_rl.training.run import load, read_config

    if config.run is not None:
        own = read_config(Path(config.run), config.trust).env
        env = _env(config, own if config.env is None else _task(config.env), own.history)
        if config.env is not None:
            _check_fits(env, _env(config, own, own.history), config.run)
        return env, load(config.run, config.which, config.trust)
    assert config.expert is not None
    known = EXPERTS | SCRIPTED
    env_id = config.env or (known[config.expert].env_id if config.expert in known else None)
    if env_id is None:
        raise UserError("env=<id> must say which environment the expert is for")
    env = _env(config, _task(env_id), history=1)
    if config.expert in SCRIPTED:
        return env, SCRIPTED[config.expert](env.spec_id, config.stochastic)
    space: Any = env.single_action_space
    obs_dim = env.single_observation_space.shape[-1]
    return env, load_expert(fetch_expert(config.expert), obs_dim, space, config.stochastic)


def _task(name: str) -> "EnvConfig":
    """The task that an id, or a name in configs/env, stands for."""
    from diffpolicy_rl.training.compose import compose

    (run,) = compose([f"env={name}"], sweep=False)
    return run.env


def _env(config: CollectConfig, task: "EnvConfig", history: int) -> Any:
    from diffpolicy_rl.envs.make import make_env

    num_envs = min(config.num_envs, config.episodes)
    return make_env(task.id, num_envs=num_envs, seed=config.seed, history=history, **task.options)


def _check_fits(env: "VecEnv", own: "VecEnv", run: str) -> None:
    """Raise UserError if a run's policy, made for its own env, cannot act in another."""
    for name in ("single_observation_space", "single_action_space"):
        ours, theirs = getattr(env, name).shape, getattr(own, name).shape
        if ours != theirs:
            raise UserError(f"{env.spec_id} has a {name} of shape {ours}, the policy of {run} was made for {theirs}")


def _attributes(
    config: CollectConfig, parts: list[CollectConfig], made: "list[Transitions]", argv: Sequence[str]
) -> dict[str, Any]:
    """What the file says about itself."""
    env_ids = sorted({part.attributes["env_id"] for part in made})
    if len(env_ids) > 1:
        raise UserError(f"the parts of {config.recipe} are of several tasks: {', '.join(env_ids)}")
    first = parts[0]
    attributes: dict[str, Any] = {
        "env_id": env_ids[0],
        "source": config.recipe or first.expert or first.replay or first.run,
        "seed": config.seed,
        "command": " ".join(["python -m diffpolicy_rl.collect", *argv]),
        "mujoco": importlib.metadata.version("mujoco"),
        "gymnasium": importlib.metadata.version("gymnasium"),
    }
    if config.recipe:
        counts = [{"episodes": len(part.returns())} for part in made]
        attributes["parts"] = json.dumps([_differing(part) | count for part, count in zip(parts, counts, strict=True)])
    return attributes


def _differing(part: CollectConfig) -> dict[str, Any]:
    """What a part sets itself."""
    own = [field for field in dataclasses.fields(part) if field.name not in _ABOUT_THE_SET]
    return {field.name: value for field in own if (value := getattr(part, field.name)) != field.default}


if __name__ == "__main__":
    cli.run(main)
