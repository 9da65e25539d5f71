"""How fast: ``python -m benchmarks.throughput env|sample|update|end_to_end|all [key=value ...]``."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import env_stepping
from benchmarks.measure import Figures, against_textbook, gemm_rates
from benchmarks.textbook import TextbookReinFlow, check_equal_gradients, check_equal_samples
from diffpolicy_rl import cli
from diffpolicy_rl.agents.reinflow import ReinFlow
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.training.build import build_env, build_policy, spec_of
from diffpolicy_rl.training.checkpoint import write_text
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.phase import Phase
from diffpolicy_rl.training.run import machine, versions
from diffpolicy_rl.training.threads import keep_freed_memory, torch_threads, use_fast_fp32

_USAGE = "python -m benchmarks.throughput env|sample|update|end_to_end|all [key=value ...]"
_CLONING = 3  # iterations of behaviour cloning before the measurement, so that the policy does not fall at once


@dataclass(frozen=True)
class ThroughputConfig:
    """Measure the hot paths, each against a plain alternative in the same run.

    Attributes:
        part: env, sample, update, end_to_end or all.
        agent: a name in configs/agent.
        env: a name in configs/env.
        num_envs: N.
        decisions: T, decisions of each env per iteration.
        batch: PPO samples per gradient step.
        epochs: passes over a rollout.
        threads: torch threads of the update and physics threads; torch itself rolls out on one.
        repeats: measurements of each side, of which the median counts.
        seconds: spent on each vector environment of each task.
        out: a JSON file for the figures.
    """

    part: Literal["env", "sample", "update", "end_to_end", "all"]
    agent: str = "reinflow"
    env: str = "hopper"
    num_envs: int = 40
    decisions: int = 50
    batch: int = 5000
    epochs: int = 5
    threads: int = 2
    repeats: int = 7
    seconds: float = 6.0
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuse counts that nothing could be measured with."""
        counts = ("num_envs", "decisions", "batch", "epochs", "threads", "repeats", "seconds")
        require_positive(**{name: getattr(self, name) for name in counts})


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(ThroughputConfig, argv, _USAGE, "part")
    parts = list(PARTS) if config.part == "all" else [config.part]
    report: dict[str, Any] = {
        "fast_fp32": use_fast_fp32(),
        "keeps_memory": keep_freed_memory(),
        "settings": dataclasses.asdict(config),
    }
    report |= {"machine": machine(), "versions": versions()} | gemm_rates(config.threads, config.repeats)
    for part in parts:
        report[part] = PARTS[part](config)
        print(f"{part}:")
        _show(report[part], "  ")
    _show({name: value for name, value in report.items() if name.startswith("gemm")}, "")
    print(f"threads {config.threads} of {report['machine']['cores']} cores, torch {torch.__version__}")
    if config.out:
        write_text(Path(config.out), json.dumps(report, indent=1) + "\n")


def _show(figures: dict[str, Any], indent: str) -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _show(value, indent + "  ")
        else:
            print(f"{indent}{name} {value:.4g}" if value < 1000 else f"{indent}{name} {value:.0f}", flush=True)


def env(config: ThroughputConfig) -> dict[str, Figures]:
    """Env steps per CPU second against Gymnasium's vector environments, one physics thread."""
    return env_stepping.compare(config.num_envs, config.seconds, config.repeats)


def sample(config: ThroughputConfig) -> dict[str, Figures]:
    """Drawing for N observations on one thread, against the textbook: chains, and samples without exploration."""
    phase = _phase(config)
    agent, textbook = _sides(phase)
    assert phase.rollout is not None
    obs, _ = phase.rollout.env.reset(seed=0)
    assert isinstance(obs, Tensor)
    shape = (len(obs), agent.policy.steps + 1, *agent.policy.action_shape)
    noise = torch.randn(len(obs), *agent.policy.action_shape)
    with torch_threads(1), torch.inference_mode():
        check_equal_samples(agent, textbook, obs)
        return {
            "chain": against_textbook(
                lambda: agent.policy.sample_chain(obs, generator=agent.generator),
                lambda: textbook.sample_chain(obs, torch.randn(shape)),
                config.repeats,
                calls=100,
            ),
            "noise_free": against_textbook(
                lambda: agent.policy.sample(obs, noise),
                lambda: textbook.sample(obs, noise),
                config.repeats,
                calls=100,
            ),
        }


def update(config: ThroughputConfig) -> Figures:
    """One update from one rollout, against the textbook's, which is given the advantages."""
    phase = _phase(config)
    agent, textbook = _sides(phase)
    assert phase.rollout is not None
    with torch_threads(1):
        buffer = phase.rollout.collect(agent)
    # The same rollout is learned from again and again: no side may stop early because of how far it has come.
    agent.config = dataclasses.replace(agent.config, target_kl=math.inf)
    prepared = agent._prepare(buffer)
    with torch_threads(config.threads):
        first = {name: field[: config.batch] for name, field in prepared.items()}
        check_equal_gradients(agent, textbook, first)
        return against_textbook(lambda: agent.update(buffer), lambda: textbook.update(prepared), config.repeats)


def end_to_end(config: ThroughputConfig) -> Figures:
    """Env steps per second of rollouts and updates together, and what the time went into."""
    phase, seconds = _phase(config), {"rollout": 0.0, "update": 0.0}
    assert phase.rollout is not None
    acting = _timed(phase.agent, "act")
    stepping = _timed(phase.rollout.env, "step")
    phase.iterate(config.threads, dict(seconds))
    before = phase.env_steps, acting[0], stepping[0]
    for _ in range(config.repeats):
        phase.iterate(config.threads, seconds)
    total = sum(seconds.values())
    return {
        "env_steps_per_s": (phase.env_steps - before[0]) / total,
        "share_sampling": (acting[0] - before[1]) / total,
        "share_env": (stepping[0] - before[2]) / total,
        "share_update": seconds["update"] / total,
    }


def _timed(owner: Any, method: str) -> list[float]:
    """Replace a method by one that adds its seconds to the returned cell."""
    spent, run = [0.0], getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return run(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - began

    setattr(owner, method, timed)
    return spent


def _phase(config: ThroughputConfig) -> Phase:
    """The online phase of a run, after a little cloning where there are demonstrations."""
    words = [f"agent={config.agent}", f"env={config.env}", f"env.num_envs={config.num_envs}"]
    words += [f"budget.decisions={config.decisions}", f"threads={config.threads}"]
    words += [f"agent.minibatch={config.batch}", f"agent.epochs={config.epochs}"]
    (run,) = compose(words, sweep=False)
    env = build_env(run, config.num_envs)
    spec = spec_of(env)
    policy = build_policy(run.policy, spec, run.seed)
    if run.data.path is not None:
        cloning = Phase(run, "bc", policy, env, spec)
        for _ in range(_CLONING):
            cloning.iterate(config.threads, {"rollout": 0.0, "update": 0.0})
        policy = cloning.agent.policy
    return Phase(run, "online", policy, env, spec)


def _sides(phase: Phase) -> tuple[ReinFlow, TextbookReinFlow]:
    agent: object = phase.agent
    if not isinstance(agent, ReinFlow):
        raise UserError("the textbook implementation is of agent=reinflow; use it with sample and update")
    return agent, TextbookReinFlow(agent)


PARTS: dict[str, Callable[[ThroughputConfig], Any]] = {
    "env": env,
    "sample": sample,
    "update": update,
    "end_to_end": end_to_end,
}

if __name__ == "__main__":
    cli.run(main)
