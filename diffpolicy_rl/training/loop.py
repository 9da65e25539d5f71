"""The one training loop: phases of iterations, each of which gathers experience (online) and learns from it."""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.training.build import (
    build_agent,
    build_dataset,
    build_env,
    build_policy,
    phase_component,
    phases_of,
    pick_device,
    spec_of,
)
from diffpolicy_rl.training.checkpoint import Checkpoints, read_state, write_text
from diffpolicy_rl.training.config import TrainConfig, arguments, resolve, to_plain
from diffpolicy_rl.training.evaluation import MAX_ENVS, describe, evaluate_policy
from diffpolicy_rl.training.logger import Console, Logger
from diffpolicy_rl.training.rollout import Rollout
from diffpolicy_rl.training.run import checkpoint_state, load_agent
from diffpolicy_rl.training.threads import available_cores, torch_threads, use_fast_fp32
from diffpolicy_rl.types import Agent, DeployedPolicy, State, VecEnv

_CHECKPOINT_SECONDS = 120.0
_FINAL_SEEDS = 1_000_003  # evaluations in the summary use seeds that no evaluation during training has seen


class Interrupted(Exception):
    """A signal asked the run to stop; its state has been saved."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


class Trainer:
    """One run, from wherever its folder left off.

    Args:
        config: resolved settings.
        folder: the run folder.
        resume: continue from the folder's last checkpoint.
    """

    def __init__(self, config: TrainConfig, folder: Path, resume: bool) -> None:
        use_fast_fp32()
        self.config, self.folder = config, folder
        self.threads = config.threads or available_cores()
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.env = build_env(config, config.env.num_envs)
        self.eval_envs: dict[int, VecEnv] = {}
        self.spec = spec_of(self.env)
        self.phases = phases_of(config)
        self.phase_index = self.phase_iteration = self.iteration = self.earlier_gradient_steps = 0
        self.seconds = {"rollout": 0.0, "update": 0.0, "evaluation": 0.0}
        self.results: dict[str, Any] = {}
        self.rollout: Rollout | None = None
        saved = read_state(self.checkpoints.find("last")) if resume else None
        self._enter(saved["phase_index"] if saved else 0, self._starting_policy(), saved)
        self._signal: int | None = None

    def run(self) -> dict[str, Any]:
        """Train to the end of the last phase, or until told to stop; returns the summary."""
        began = time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            self.console = stack.enter_context(Console())
            plain = to_plain(self.config)
            self.logger = Logger(self.folder, self.config.loggers, plain, self.iteration)
            stack.callback(self.logger.close)
            while not self._stop_early(began) and self._advance_phase():
                self._run_phase(began)
            self._save()
            return self._finish()

    # ---------------------------------------------------------------- phases

    def _enter(self, index: int, policy: GenerativePolicy, saved: State | None) -> None:
        """Set up a phase around a policy, or as a checkpoint left it."""
        self.phase_index, self.phase_iteration = index, 0
        name, budget = self.phases[index], self.config.budget
        component = phase_component(self.config, name)
        per_iteration = budget.decisions * self.config.env.num_envs * policy.execute
        steps = arguments(component).get("steps", 1)
        work, size = (budget.env_steps, per_iteration) if name == "online" else (budget.bc_steps, steps)
        self.phase_iterations = max(1, math.ceil(work / size))
        self.agent: Agent = build_agent(component, policy, self.phase_iterations, self.config.seed)
        if name == "online":
            self.rollout = Rollout(self.env, self.config.seed)
            self.buffer: Any = RolloutBuffer(budget.decisions)
        else:
            self.buffer = self.dataset
        if saved:
            self._restore(saved)

    def _advance_phase(self) -> bool:
        """Move on if the phase is complete; False when there is no further one."""
        if self.phase_iteration < self.phase_iterations:
            return True
        if self.phase_index + 1 == len(self.phases):
            return False
        self.earlier_gradient_steps += self.agent.gradient_steps
        self._enter(self.phase_index + 1, self.agent.policy, None)
        return True

    def _run_phase(self, began: float) -> None:
        name, online = self.phases[self.phase_index], self.rollout is not None
        every = self.config.budget.eval_every if online else self.config.budget.bc_eval_every
        if online and "base" not in self.results:
            self._evaluate_base()
        self.console.begin(name, self.phase_iteration, self.phase_iterations)
        saved_at = time.monotonic()
        while self.phase_iteration < self.phase_iterations and not self._stop_early(began):
            record = self._iterate()
            last = self.phase_iteration == self.phase_iterations
            final_phase = self.phase_index + 1 == len(self.phases)
            evaluate = self.phase_iteration % every == 0 or (last and final_phase)
            better = evaluate and self._evaluate(record)
            self.logger.write(record)
            if evaluate or self._signal or time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                self._save(*(["best"] if better else []), *(["base"] if last and name == "bc" else []))
                saved_at = time.monotonic()
            self.console.advance(self.phase_iteration, self._note(record))
            if self._signal:
                raise Interrupted(self._signal)

    def _iterate(self) -> dict[str, Any]:
        """Gather and learn once; returns the record to log."""
        began = time.monotonic()
        if self.rollout is not None:
            with torch_threads(1):
                self.rollout.collect(self.agent, self.buffer)
        gathered = time.monotonic()
        with torch_threads(self.threads):
            metrics = {name: value.item() for name, value in self.agent.update(self.buffer).items()}
        self.seconds["rollout"] += gathered - began
        self.seconds["update"] += time.monotonic() - gathered
        self.iteration += 1
        self.phase_iteration += 1
        self._refuse_nan(metrics)
        record = {"iteration": self.iteration, "phase": self.phases[self.phase_index], "env_steps": self.env_steps}
        if self.rollout is not None:
            record["rollout/return"] = self.rollout.mean_return
        return record | metrics | {f"seconds/{part}": round(value, 3) for part, value in self.seconds.items()}

    # ---------------------------------------------------------------- evaluation

    def _evaluate(self, record: dict[str, Any]) -> bool:
        """Evaluate into the record; True if no earlier evaluation of this phase was as good."""
        result = self._play(self.agent.deploy(), self.config.budget.eval_episodes, self.config.seed)
        record |= {f"eval/{key}": result[key] for key in ("mean", "std", "ci_low", "ci_high", "episodes", "seed")}
        if "success" in result:
            record["eval/success"] = result["success"]
        best = self.results.get("selected")
        if best is None or result["mean"] > best["mean"]:
            self.results["selected"] = {"mean": result["mean"], "iteration": self.iteration, "env_steps": self.env_steps}
            return True
        return False

    def _evaluate_base(self) -> None:
        """Measure what fine-tuning starts from, and keep it as the checkpoint ``base``."""
        self.results.pop("selected", None)
        base = self._final_evaluation(self.agent.deploy())
        self.results["base"] = base
        self._save("base")
        record = {f"eval/{key}": base[key] for key in ("mean", "std", "ci_low", "ci_high", "episodes", "seed")}
        self.logger.write({"iteration": self.iteration, "phase": "base", "env_steps": self.env_steps} | record)
        self.console.line(f"base: {describe(base)}")

    def _final_evaluation(self, policy: DeployedPolicy) -> dict[str, Any]:
        return self._play(policy, self.config.budget.final_episodes, self.config.seed + _FINAL_SEEDS)

    def _play(self, policy: DeployedPolicy, episodes: int, seed: int) -> dict[str, Any]:
        began = time.monotonic()
        num_envs = min(MAX_ENVS, episodes)
        if num_envs not in self.eval_envs:
            self.eval_envs[num_envs] = build_env(self.config, num_envs)
        result = evaluate_policy(policy, self.eval_envs[num_envs], episodes, seed)
        self.seconds["evaluation"] += time.monotonic() - began
        return result

    def _finish(self) -> dict[str, Any]:
        """Evaluate the final and the best policy on fresh seeds and write ``summary.json``."""
        final = self._final_evaluation(self.agent.deploy())
        summary = {"base": self.results.get("base"), "final": final, "best": final}
        selected = self.results.get("selected")
        if selected and selected["iteration"] != self.iteration:
            best = load_agent(self.folder, "best", self.config.agent["_target_"])
            summary["best"] = self._final_evaluation(best.deploy()) | {"iteration": selected["iteration"]}
        summary |= {
            "env_steps": self.env_steps,
            "iterations": self.iteration,
            "gradient_steps": self.earlier_gradient_steps + self.agent.gradient_steps,
            "seconds": {part: round(value, 2) for part, value in self.seconds.items()},
            "wall_s": round(sum(self.seconds.values()), 2),
        }
        write_text(self.folder / "summary.json", json.dumps(summary, indent=2))
        return summary

    # ---------------------------------------------------------------- state

    @property
    def env_steps(self) -> int:
        """Env steps of learning so far, evaluation not counted."""
        return self.rollout.env_steps if self.rollout else 0

    def _save(self, *names: str) -> None:
        state = checkpoint_state(self.config, self.spec, self.phases[self.phase_index], self.agent) | {
            "phase_index": self.phase_index,
            "phase_iteration": self.phase_iteration,
            "iteration": self.iteration,
            "earlier_gradient_steps": self.earlier_gradient_steps,
            "seconds": self.seconds,
            "results": self.results,
            "rollout": self.rollout.state_dict() if self.rollout else None,
        }
        self.checkpoints.save(self.iteration, state, *names)

    def _restore(self, saved: State) -> None:
        ours, theirs = phase_component(self.config, self.phases[self.phase_index]), saved["config"]
        name = phase_component(resolve(theirs), saved["phase"])["_target_"]
        if name != ours["_target_"]:
            raise UserError(f"the checkpoint in {self.folder} is of {name}, the run is of {ours['_target_']}")
        self.agent.load_state_dict(saved["agent"])
        self.phase_iteration, self.iteration = saved["phase_iteration"], saved["iteration"]
        self.earlier_gradient_steps = saved["earlier_gradient_steps"]
        self.seconds, self.results = saved["seconds"], saved["results"]
        if self.rollout:
            self.rollout.load_state_dict(saved["rollout"])

    def _starting_policy(self) -> GenerativePolicy:
        """The policy the first phase starts from, its normalisers fitted on the demonstrations."""
        if self.config.base:
            policy = load_agent(self.config.base, "base").policy
            return policy.requires_grad_(True)
        policy = build_policy(self.config.policy, self.spec, self.config.seed).to(pick_device(self.config.device))
        self.dataset = build_dataset(self.config, self.spec, policy)
        return policy

    # ---------------------------------------------------------------- the rest

    def _stop_early(self, began: float) -> bool:
        limit, minutes = self.config.iterations, self.config.max_minutes
        out_of_time = minutes is not None and time.monotonic() - began > 60 * minutes
        return out_of_time or (limit is not None and self.iteration >= limit)

    def _refuse_nan(self, metrics: dict[str, float]) -> None:
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            last = self.checkpoints.folder / "last"
            good = f"the last good checkpoint is {last.resolve()}" if last.exists() else "no checkpoint was written yet"
            raise UserError(f"{broken[0]} is not finite after iteration {self.iteration}; {good}")

    def _note(self, record: dict[str, Any]) -> str:
        exploring, loss = record.get("rollout/return"), record.get("bc/loss")
        parts = [f"loss {loss:.4f}"] if loss is not None else [f"{record['env_steps']:,} env steps"]
        if exploring is not None:
            parts.append(f"exploring {exploring:.0f}")
        if "eval/mean" in record:
            self._shown = f"evaluated {record['eval/mean']:.0f} ± {record['eval/ci_high'] - record['eval/mean']:.0f}"
        return "  ".join([*parts, getattr(self, "_shown", "")])

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a checkpoint and an end; a second one ends at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self._signal:
                sys.exit(128 + number)
            self._signal = number

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
