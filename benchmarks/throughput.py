"""How fast: ``python -m benchmarks.throughput env|sample|update|end_to_end|all [key=value ...]``."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import env_stepping
from benchmarks.measure import Figures, gemm_rates, take_turns, with_plain_fp32
from benchmarks.textbook import TextbookReinFlow
from diffpolicy_rl import cli
from diffpolicy_rl.agents.reinflow import ReinFlow
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.build import build_env, build_policy, spec_of
from diffpolicy_rl.training.checkpoint import write_text
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.phase import Phase
from diffpolicy_rl.training.run import machine, versions
from diffpolicy_rl.training.threads import torch_threads, use_fast_fp32

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
        threads: torch threads of the update; rollouts run on one, physics on as many as torch has.
        repeats: measurements of each side, of which the median counts.
        seconds: spent on each vector environment.
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


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(ThroughputConfig, argv, _USAGE, "part")
    parts = list(PARTS) if config.part == "all" else [config.part]
    use_fast_fp32()
    report: dict[str, Any] = {"settings": asdict(config), "machine": machine(), "versions": versions()}
    report |= gemm_rates(config.threads, config.repeats)
    for part in parts:
        report[part] = PARTS[part](config)
        print(f"{part}:")
        _show(report[part], "  ")
    _show({name: value for name, value in report.items() if name.startswith("gemm")}, "")
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


def sample(config: ThroughputConfig) -> Figures:
    """Drawing chains for N observations, one thread: milliseconds, and the ratio to the textbook's."""
    agent, obs = _online(config), torch.randn(config.num_envs, 11)
    textbook = _textbook(agent)
    unit = torch.randn(len(obs), agent.policy.steps + 1, *agent.policy.action_shape)

    def calls(draw: Callable[[], object]) -> Callable[[], object]:
        return lambda: [draw() for _ in range(100)]

    with torch_threads(1), torch.inference_mode():
        seconds = take_turns(
            {
                "ours": calls(lambda: agent.policy.sample_chain(obs, generator=agent.generator)),
                "textbook": with_plain_fp32(calls(lambda: textbook.sample_chain(obs, unit))),
            },
            config.repeats,
        )
    return _ratio({name: 10 * value for name, value in seconds.items()})


def update(config: ThroughputConfig) -> Figures:
    """One update from one rollout: milliseconds, and the ratio to the textbook's (which is given the advantages)."""
    phase = _phase(config)
    agent, rollout = phase.agent, phase.rollout
    textbook = _textbook(agent)
    assert isinstance(agent, ReinFlow)
    assert rollout is not None
    buffer = rollout.collect(agent)
    prepared = agent._prepare(buffer)
    with torch_threads(config.threads):
        seconds = take_turns(
            {"ours": lambda: agent.update(buffer), "textbook": with_plain_fp32(lambda: textbook.update(prepared))},
            config.repeats,
        )
    return _ratio({name: 1e3 * value for name, value in seconds.items()})


def _ratio(milliseconds: Figures) -> Figures:
    ratio = milliseconds["textbook"] / milliseconds["ours"]
    return {f"{name}_ms": value for name, value in milliseconds.items()} | {"textbook/ours": ratio}


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
    """The online phase of a run, after a little cloning."""
    words = [f"agent={config.agent}", f"env={config.env}", f"env.num_envs={config.num_envs}"]
    words += [f"budget.decisions={config.decisions}", f"threads={config.threads}"]
    words += [f"agent.minibatch={config.batch}", f"agent.epochs={config.epochs}"]
    (run,) = compose(words, sweep=False)
    env = build_env(run, config.num_envs)
    spec = spec_of(env)
    cloning = Phase(run, "bc", build_policy(run.policy, spec, run.seed), env, spec)
    for _ in range(_CLONING):
        cloning.iterate(config.threads, {"rollout": 0.0, "update": 0.0})
    return Phase(run, "online", cloning.agent.policy, env, spec)


def _online(config: ThroughputConfig) -> ReinFlow:
    agent = _phase(config).agent
    assert isinstance(agent, ReinFlow)
    return agent


def _textbook(agent: Any) -> TextbookReinFlow:
    if not isinstance(agent, ReinFlow):
        raise UserError("the textbook implementation is of agent=reinflow; use it with sample and update")
    return TextbookReinFlow(agent)


PARTS: dict[str, Callable[[ThroughputConfig], Any]] = {
    "env": env,
    "sample": sample,
    "update": update,
    "end_to_end": end_to_end,
}

if __name__ == "__main__":
    cli.run(main)
