"""Every setting of a run, with its default; YAML and command line hold only what differs.

Agents, policies and envs never see these classes: they receive plain typed arguments.
"""

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from diffpolicy_rl.cli import build, convert
from diffpolicy_rl.errors import UserError, did_you_mean, require_not_negative, require_positive

Component = dict[str, Any]
"""A class by name under ``_target_``, and its arguments."""


@dataclass(frozen=True)
class EnvConfig:
    """The task.

    Attributes:
        id: what ``make_env`` takes, as Hopper-v5 or my_module:MyEnv-v0.
        num_envs: N, copies stepped together.
        backend: batch, gymnasium or workers; by default the fastest that fits.
        history: To, observations the policy sees.
        options: keyword arguments of the task.
    """

    id: str
    num_envs: int = 40
    backend: str | None = None
    history: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """The demonstrations.

    Attributes:
        path: a file or folder of any format that diffpolicy_rl.data reads, or the name of a packaged or downloaded set.
        episodes: use only the first so many.
        keys: names of the observations to join, where the format has several; by default the usual ones.
        mask: a subset of the episodes by the name that a robomimic file gives it, as in train.
        max_episode_steps: where episodes are cut, in files of D4RL that do not mark it.
        max_cost: leave out episodes that cost more.
        recipe: how ``collect`` makes the file, one command's settings per part.
    """

    path: str | None = None
    episodes: int | None = None
    keys: tuple[str, ...] = ()
    mask: str | None = None
    max_episode_steps: int | None = None
    max_cost: float | None = None
    recipe: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class PolicyConfig:
    """The generative policy.

    Attributes:
        process: noise process.
        net: denoising net.
        steps: K, sampling steps.
        horizon: H, actions predicted.
        execute: A, actions executed.
        noise_scale: what the noise is multiplied by that acting samples from.
        obs_norm: normalisation of observations.
        action_norm: normalisation of actions.
    """

    process: Component = field(default_factory=lambda: {"_target_": "diffpolicy_rl.policies.flow.RectifiedFlow"})
    net: Component = field(default_factory=lambda: {"_target_": "diffpolicy_rl.nets.mlp.DenoisingMLP"})
    steps: int = 4
    horizon: int = 4
    execute: int = 4
    noise_scale: float = 1.0
    obs_norm: Literal["min_max", "z_score"] = "z_score"
    action_norm: Literal["min_max", "z_score"] = "min_max"

    def __post_init__(self) -> None:
        """Refuse a policy of no steps or no actions."""
        require_positive(steps=self.steps, horizon=self.horizon, execute=self.execute)
        require_not_negative(noise_scale=self.noise_scale)


@dataclass(frozen=True)
class BudgetConfig:
    """How much of everything; schedules take their horizon from here.

    Attributes:
        bc_steps: gradient steps of behaviour cloning.
        offline_steps: gradient steps on demonstrations by agents that learn offline before they act.
        env_steps: env steps of online learning, at most, but one iteration; 0 for none.
        decisions: T, decisions of each env per iteration.
        replay: decisions that agents which learn from replay, and diaries, keep; the oldest go first.
        bc_eval_every: behaviour-cloning iterations between evaluations.
        offline_eval_every: offline iterations between evaluations.
        eval_every: online iterations between evaluations.
        eval_episodes: episodes of an evaluation during training.
        final_episodes: episodes of the evaluations in ``summary.json``.
    """

    bc_steps: int = 4000
    offline_steps: int = 50_000
    env_steps: int = 480_000
    decisions: int = 100
    replay: int = 1_000_000
    bc_eval_every: int = 1000
    offline_eval_every: int = 25
    eval_every: int = 5
    eval_episodes: int = 40
    final_episodes: int = 80

    def __post_init__(self) -> None:
        """Refuse a budget of nothing."""
        require_positive(**{name: value for name, value in dataclasses.asdict(self).items() if name != "env_steps"})
        if self.env_steps < 0:
            raise UserError(f"budget.env_steps={self.env_steps} must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a run.

    Attributes:
        agent: the learning rule.
        env: the task.
        bc: behaviour cloning, where it precedes the agent.
        policy: the generative policy.
        data: the demonstrations.
        budget: how much of everything.
        base: a run whose pretrained policy to start from, instead of behaviour cloning.
        teacher: a run whose deployed policy to learn from, for agents that distil.
        teacher_which: last, best, base, or a step of the teacher's checkpoints.
        seed: of everything random.
        device: auto, cpu or cuda.
        threads: cores to use, all by default.
        loggers: trackers besides JSONL and TensorBoard, out of wandb and trackio.
        video: write a video of the final policy where rendering works.
        diary: keep what the agent lives through online, the last ``budget.replay`` decisions, for ``collect replay=``.
        run_dir: where the run goes; by default a new folder under runs/.
        iterations: stop after so many loop iterations over all phases.
        max_minutes: stop after so many minutes.
    """

    agent: Component
    env: EnvConfig
    bc: Component = field(default_factory=lambda: {"_target_": "diffpolicy_rl.agents.bc.BC"})
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    base: str | None = None
    teacher: str | None = None
    teacher_which: str = "last"
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    loggers: tuple[str, ...] = ()
    video: bool = True
    diary: bool = False
    run_dir: str | None = None
    iterations: int | None = None
    max_minutes: float | None = None


def resolve(values: dict[str, Any]) -> TrainConfig:
    """Check names and types of every setting and fill in the defaults, those of the components' classes included."""
    config = build(TrainConfig, values)
    policy = dataclasses.replace(
        config.policy,
        process=complete(config.policy.process, "policy.process."),
        net=complete(config.policy.net, "policy.net."),
    )
    agent, bc = complete(config.agent, "agent."), complete(config.bc, "bc.")
    return dataclasses.replace(config, agent=agent, bc=bc, policy=policy)


def modules_of(tree: dict[str, Any]) -> set[str]:
    """Modules outside diffpolicy_rl that a tree of settings names, as classes or as ``module:MyEnv-v0``."""
    names = [*_targets(tree), str(tree.get("env", {}).get("id", ""))]
    modules = {name.partition(":")[0] if ":" in name else name.rpartition(".")[0] for name in names}
    return {module for module in modules if module and not module.startswith("diffpolicy_rl.")}


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)


def refuse_foreign_code(tree: dict[str, Any], trusted: Collection[str]) -> None:
    """Raise UserError if settings read from a file name a module that the user does not trust."""
    for module in sorted(modules_of(tree) - set(trusted)):
        raise UserError(f"the run uses code of the module {module}; if you trust it, add trust={module}")


def target(name: str) -> type:
    """The class that a dotted path, or module:Class, names."""
    if not re.fullmatch(r"\w[\w.]*[.:]\w+", name):
        raise UserError(f"{name!r} does not name a class; write it as module:Class")
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot find {name}: {error}") from error


def settings(cls: type) -> dict[str, inspect.Parameter]:
    """What a component's class can be told: its ``Config``'s fields, else its constructor's defaulted arguments."""
    signature = inspect.signature(getattr(cls, "Config", cls))
    configurable = hasattr(cls, "Config")
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if configurable or parameter.default is not inspect.Parameter.empty
    }


def complete(component: Component, where: str) -> Component:
    """The component with every setting checked and every default filled in."""
    cls = target(component["_target_"])
    known = settings(cls)
    for name in component:
        if name != "_target_" and name not in known:
            raise UserError(f"there is no setting {where}{name}; {did_you_mean(name, known)}")
    source = cls.Config if hasattr(cls, "Config") else cls.__init__
    hints = typing.get_type_hints(source)
    given = {name: component.get(name, parameter.default) for name, parameter in known.items()}
    chosen = {name: convert(value, hints[name], where + name) for name, value in given.items()}
    if hasattr(cls, "Config"):
        cls.Config(**chosen)  # refuses now what would otherwise be refused when the phase begins
    return {"_target_": component["_target_"]} | chosen


def arguments(component: Component) -> dict[str, Any]:
    """A component's settings without its name."""
    return {name: value for name, value in component.items() if name != "_target_"}


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """The settings as a tree of plain values that YAML and JSON can hold."""
    return _plain(dataclasses.asdict(config))


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return list(node) if isinstance(node, tuple) else node
