"""How fast: ``python -m benchmarks.throughput PART [key=value ...]``; the parts are listed at the end."""

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

from benchmarks import deployment as exported_policy
from benchmarks import ensemble as critic_ensemble
from benchmarks import env_stepping, expo_update, offline_update, safety_filter, sb3_speed
from benchmarks import replay_update as replay_agents
from benchmarks import serving as policy_server
from benchmarks.equal_work import check_equal_gradients, check_equal_samples
from benchmarks.measure import Figures, against_textbook, gemm_floor, gemm_rates
from benchmarks.textbook import Textbook, TextbookDPPO, TextbookReinFlow
from diffpolicy_rl import cli
from diffpolicy_rl.agents._ppo import ChainPPO
from diffpolicy_rl.agents.dppo import DPPO
from diffpolicy_rl.agents.reinflow import ReinFlow
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.training.build import build_env, build_policy, spec_of
from diffpolicy_rl.training.checkpoint import write_text
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.phase import Phase
from diffpolicy_rl.training.run import machine, versions
from diffpolicy_rl.training.threads import keep_freed_memory, torch_threads, use_fast_fp32

_PARTS = "env|sb3|sample|update|end_to_end|ensemble|replay_update|offline|deployment|safety|serving|all"
_USAGE = f"python -m benchmarks.throughput {_PARTS} [key=value ...]"
_CLONING = 3  # iterations of behaviour cloning before the measurement, so that the policy does not fall at once


@dataclass(frozen=True)
class ThroughputConfig:
    """Measure the hot paths, each against a plain alternative in the same run.

    Attributes:
        part: env, sb3, sample, update, end_to_end, ensemble, replay_update, offline, deployment, safety, serving, all.
        agent: a name in configs/agent; sample and update know reinflow and dppo.
        env: a name in configs/env.
        precision: fp32 or bf16, of our side; the textbook's is fp32.
        num_envs: N.
        decisions: T, decisions of each env per iteration.
        batch: PPO samples per gradient step.
        epochs: passes over a rollout.
        repeats: how often each pass counts a decision.
        trained_moves: K' of dppo.
        threads: torch threads of the update and physics threads; torch itself rolls out on one.
        turns: measurements of each side, of which the median counts.
        seconds: spent on each vector environment of each task.
        out: a JSON file for the figures.
    """

    part: Literal[
        "env",
        "sb3",
        "sample",
        "update",
        "end_to_end",
        "ensemble",
        "replay_update",
        "offline",
        "deployment",
        "safety",
        "serving",
        "all",
    ]
    agent: str = "reinflow"
    env: str = "hopper"
    precision: Literal["fp32", "bf16"] = "fp32"
    num_envs: int = 40
    decisions: int = 50
    batch: int = 5000
    epochs: int = 5
    repeats: int = 1
    trained_moves: int = 10
    threads: int = 2
    turns: int = 7
    seconds: float = 6.0
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuse counts that nothing could be measured with."""
        counts = ("num_envs", "decisions", "batch", "epochs", "repeats", "trained_moves", "threads", "turns", "seconds")
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
    report |= {"machine": machine(), "versions": versions()} | gemm_rates(config.threads, config.turns)
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
    return env_stepping.compare(config.num_envs, config.seconds, config.turns)


def sb3(config: ThroughputConfig) -> Figures:
    """Env steps per second of PPO from scratch, against Stable-Baselines3's."""
    return sb3_speed.compare(config.env, config.turns)


def sample(config: ThroughputConfig) -> dict[str, Figures]:
    """Drawing for N observations on one thread, against the textbook: chains, and samples without exploration."""
    agent, textbook, phase = _sides(config)
    assert phase.rollout is not None
    obs, _ = phase.rollout.env.reset(seed=0)
    assert isinstance(obs, Tensor)
    shape = (len(obs), agent.policy.steps + 1, *agent.policy.action_shape)
    noise = torch.randn(len(obs), *agent.policy.action_shape)

    def chain() -> object:
        with agent._precision():
            return agent.policy.sample_chain(obs, generator=agent.generator)

    def noise_free() -> object:
        with agent._precision():
            return agent.policy.sample(obs, noise)

    def measured(ours: Callable[[], object], theirs: Callable[[], object]) -> Figures:
        figures = against_textbook(ours, theirs, config.turns, calls=30)
        return figures | gemm_floor(ours, len(obs), config.precision, turns=30 * config.turns)

    with torch_threads(1), torch.inference_mode(), fixed_weights(agent.policy):
        check_equal_samples(agent, textbook, obs)
        return {
            "chain": measured(chain, lambda: textbook.sample_chain(obs, torch.randn(shape))),
            "noise_free": measured(noise_free, lambda: textbook.sample(obs, noise)),
        }


def update(config: ThroughputConfig) -> Figures:
    """One update from one rollout, against the textbook's, which is given the advantages."""
    agent, textbook, phase = _sides(config)
    assert phase.rollout is not None
    with torch_threads(1):
        phase.rollout.collect(agent)
    buffer = phase.experience
    # The same rollout is learned from again and again: no side may stop early because of how far it has come.
    agent.config = dataclasses.replace(agent.config, target_kl=math.inf)
    prepared = agent._prepare(buffer)
    with torch_threads(config.threads):
        ours = agent.config
        agent.config = dataclasses.replace(ours, precision="fp32")
        check_equal_gradients(agent, textbook, {name: field[:500] for name, field in prepared.items()})
        agent.config = ours
        figures = against_textbook(lambda: agent.update(buffer), lambda: textbook.update(prepared), config.turns)
        return figures | gemm_floor(lambda: agent.update(buffer), config.batch, config.precision)


def end_to_end(config: ThroughputConfig) -> Figures:
    """Env steps per second of rollouts and updates together, and what the time went into."""
    phase, seconds = _phase(config), {"rollout": 0.0, "update": 0.0}
    assert phase.rollout is not None
    acting = _timed(phase.agent, "act")
    stepping = _timed(phase.rollout.env, "step")
    phase.iterate(config.threads, dict(seconds))
    before = phase.env_steps, acting[0], stepping[0]
    for _ in range(config.turns):
        phase.iterate(config.threads, seconds)
    total = sum(seconds.values())
    return {
        "env_steps_per_s": (phase.env_steps - before[0]) / total,
        "share_sampling": (acting[0] - before[1]) / total,
        "share_env": (stepping[0] - before[2]) / total,
        "share_update": seconds["update"] / total,
    }


def ensemble(config: ThroughputConfig) -> dict[str, Figures]:
    """A gradient step of ten critics, against one network after another."""
    return critic_ensemble.compare(config.threads, config.turns)


def replay_update(config: ThroughputConfig) -> dict[str, Figures]:
    """An update of each agent that learns from replay, against a plain implementation of it."""
    figures = replay_agents.compare(config.threads, config.turns)
    return figures | {"expo": expo_update.compare(config.threads, config.turns)}


def offline(config: ThroughputConfig) -> dict[str, Figures]:
    """Updates of DQL against its public code's way, of OFQL against DQL, and decisions of both."""
    return offline_update.compare(config.threads, config.turns)


def deployment(config: ThroughputConfig) -> Figures:
    """A decision of an exported one-step policy, against a textbook's of one step and of ten."""
    return exported_policy.compare(config.turns)


def safety(config: ThroughputConfig) -> dict[str, Figures]:
    """Microseconds per call of the safety filter."""
    return safety_filter.measure(config.turns)


def serving(config: ThroughputConfig) -> dict[str, Figures]:
    """Round trips to a policy server over loopback, and what of them is not inference."""
    return policy_server.compare(config.turns)


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
    words += [f"agent.repeats={config.repeats}", f"agent.precision={config.precision}"]
    words += [f"agent.trained_moves={config.trained_moves}"] if config.agent == "dppo" else []
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


def _sides(config: ThroughputConfig) -> tuple[ChainPPO, Textbook, Phase]:
    """An agent about to learn, the textbook's with its weights, and the phase it is in."""
    phase = _phase(config)
    agent: object = phase.agent
    if isinstance(agent, ReinFlow):
        return agent, TextbookReinFlow(agent), phase
    if isinstance(agent, DPPO):
        return agent, TextbookDPPO(agent), phase
    raise UserError(f"there is no textbook implementation of agent={config.agent}; sample and update need one")


PARTS: dict[str, Callable[[ThroughputConfig], Any]] = {
    "env": env,
    "sb3": sb3,
    "sample": sample,
    "update": update,
    "end_to_end": end_to_end,
    "ensemble": ensemble,
    "replay_update": replay_update,
    "offline": offline,
    "deployment": deployment,
    "safety": safety,
    "serving": serving,
}

if __name__ == "__main__":
    cli.run(main)
