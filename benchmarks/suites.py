"""Suites: which trainings belong together, and the command line of each.

A suite is a file configs/suite/<name>.yaml. Every agent is trained on every task with every seed, in the words that all
share, then those of the task, of the agent, and of the two together; a later word replaces an earlier one of its key. A
suite without tasks has one, which the shared words describe. A base is trained once per task, and all start from it.
``like`` names another suite, for what a file leaves out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError, did_you_mean, require_positive

_BASE = "base"


@dataclass(frozen=True)
class Entry:
    """Trainings that differ in task and seed alone.

    Attributes:
        words: of the command line, beside those of the suite and the task.
        seeds: one training for each: a count, or the seeds with commas between; the suite's if not given.
        variant: what sets them apart from the agent's defaults, for the table.
    """

    words: tuple[str, ...]
    seeds: str = ""
    variant: str = ""


@dataclass(frozen=True)
class Suite:
    """What a suite's file says.

    Attributes:
        about: what it compares, and under which caps.
        agents: what is trained on each task, by name.
        words: of the command line, shared by all.
        tasks: words that make each task, by name.
        overrides: words of one agent on one task, by <task>_<agent>.
        seeds: of the agents that name none: a count, or the seeds with commas between.
        base: the training that the agents start from, if they do.
        cost_limit: what an episode may cost at most to count as safe, where tasks have costs.
    """

    about: str
    agents: dict[str, Any]
    words: tuple[str, ...] = ()
    tasks: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    seeds: str = "1"
    base: Entry | None = None
    cost_limit: float | None = None


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        task: its name in the suite, empty where the suite has but one.
        agent: its name in the suite.
        seed: of everything random.
        words: of the command line, the run folder's aside.
    """

    task: str
    agent: str
    seed: int
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its run folder."""
        return self._named(str(self.seed))

    @property
    def any_seed(self) -> str:
        """A pattern of the run folders of all seeds."""
        return self._named("[0-9]*")

    def _named(self, seed: str) -> str:
        return "_".join(filter(None, (self.task, self.agent, f"s{seed}")))


def read_suite(name: str) -> Suite:
    """The suite with this name; UserError if there is none, or it says something else than a suite does."""
    suite = cli.build(Suite, _values(name), f"suite {name}: ")
    agents = {key: cli.convert(entry, Entry, f"agents.{key}") for key, entry in suite.agents.items()}
    tasks, overrides = (
        {key: cli.convert(words, tuple[str, ...], f"{part}.{key}") for key, words in getattr(suite, part).items()}
        for part in ("tasks", "overrides")
    )
    pairs = {f"{task}_{agent}" for task in tasks for agent in agents}
    for key in overrides:
        if key not in pairs:
            raise UserError(f"suite {name}: overrides.{key} is not <task>_<agent>; {did_you_mean(key, pairs)}")
    return replace(suite, agents=agents, tasks=tasks, overrides=overrides)


def _values(name: str, following: tuple[str, ...] = ()) -> dict[str, Any]:
    folder = resources.files("diffpolicy_rl.configs").joinpath("suite")
    known = {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    if name not in known:
        raise UserError(f"there is no suite {name!r}; {did_you_mean(name, known)}")
    if name in following:
        raise UserError(f"suite {name} is like itself; leave out one of {', '.join(following)}'s like")
    try:
        values = yaml.safe_load(known[name].read_text())
    except yaml.YAMLError as error:
        raise UserError(f"suite {name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"suite {name} says nothing; it needs about and agents")
    like = values.pop("like", None)
    return (_values(like, (*following, name)) if like else {}) | values


def choose(kind: str, chosen: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names among the known that were chosen, all if none was; UserError for one that is not known."""
    known = list(known)
    for name in chosen:
        if name not in known:
            raise UserError(f"the suite has no {kind} {name!r}; {did_you_mean(name, known)}")
    return [name for name in known if not chosen or name in chosen]


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds that a text stands for: 5 counts them, as in 0 to 4; 3,7 or [3] lists them."""
    seeds = (
        tuple(range(int(text))) if text.isdecimal() else cli.convert(text.replace(" ", ""), tuple[int, ...], "seeds")
    )
    require_positive(seeds=len(seeds))
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds={text} must be different whole numbers, none below 0")
    return seeds


def bases(suite: Suite) -> dict[str, Job]:
    """The training that each task's agents start from, by task; none if they start from nothing."""
    if suite.base is None:
        return {}
    seed, *others = seeds_of(suite.base.seeds or "1")
    if others:
        raise UserError(f"base.seeds={suite.base.seeds}, but a task has one base; name one seed, as in [3]")
    words = {task: merge(suite.words, words, suite.base.words) for task, words in _tasks(suite).items()}
    return {task: Job(task, _BASE, seed, (*words[task], f"seed={seed}")) for task in words}


def jobs(suite: Suite, folder: Path, seeds: str = "") -> list[Job]:
    """Every training of a suite, bases aside, one seed of all tasks and agents after the other.

    Args:
        suite: the suite.
        folder: of the run folders.
        seeds: instead of the suite's.
    """
    start, found = bases(suite), []
    for task, of_task in _tasks(suite).items():
        begin = (f"base={folder / start[task].name}",) if start else ()
        for agent, entry in suite.agents.items():
            words = merge(suite.words, begin, of_task, entry.words, suite.overrides.get(f"{task}_{agent}", ()))
            chosen = seeds_of(seeds or entry.seeds or suite.seeds)
            found += [Job(task, agent, seed, (*words, f"seed={seed}")) for seed in chosen]
    return sorted(found, key=lambda job: job.seed)


def merge(*groups: Sequence[str]) -> tuple[str, ...]:
    """Words in order, each key once, with its last value."""
    return tuple({word.partition("=")[0]: word for group in groups for word in group}.values())


def _tasks(suite: Suite) -> dict[str, tuple[str, ...]]:
    return suite.tasks or {"": ()}
