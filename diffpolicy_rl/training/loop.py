"""The one training loop: phases of iterations, evaluated as they go, saved so that nothing is lost."""

import copy
import json
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.training.build import (
    build_agent,
    build_env,
    build_policy,
    phase_component,
    phases_of,
    pick_device,
    spec_of,
)
from diffpolicy_rl.training.checkpoint import Checkpoints, read_state, write_text
from diffpolicy_rl.training.config import TrainConfig, modules_of, to_plain
from diffpolicy_rl.training.evaluation import MAX_ENVS, describe, evaluate_policy
from diffpolicy_rl.training.logger import Console, Logger
from diffpolicy_rl.training.machine import available_cores
from diffpolicy_rl.training.phase import Phase
from diffpolicy_rl.training.run import check_same_run, checkpoint_state, load_agent, load_base
from diffpolicy_rl.training.signals import Interrupted, StopSignals
from diffpolicy_rl.training.students import load_teacher, starting_student
from diffpolicy_rl.training.threads import keep_freed_memory, use_fast_fp32
from diffpolicy_rl.types import Agent, DeployedPolicy, State, Student, VecEnv

_CHECKPOINT_SECONDS = 120.0
# Training, the evaluations during it, which select the best checkpoint, and those in the summary use different seeds.
_EVAL_SEEDS, FINAL_SEEDS = 500_009, 1_000_003
_LOGGED = ("mean", "std", "ci_low", "ci_high", "episodes", "seed", "success", "cost", "cost_ci_low", "cost_ci_high")


class Trainer:
    """One run, from wherever its folder left off.

    Args:
        config: resolved settings.
        folder: the run folder.
        resume: continue from the folder's last checkpoint.

    Attributes:
        phase: what the run is at.
        iteration: loop iterations so far, all phases together.
        seconds: spent in rollout, update and evaluation.
        earlier_cpu_s: seconds that cores worked for this run before it was resumed.
        results: evaluation of the ``base``, and of the best checkpoint ``selected`` so far in the last phase.
    """

    def __init__(self, config: TrainConfig, folder: Path, resume: bool) -> None:
        use_fast_fp32()
        keep_freed_memory()
        self.config, self.folder = config, folder
        self.threads = config.threads or available_cores()
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.env = build_env(config, config.env.num_envs)
        self.eval_envs: dict[int, VecEnv] = {}
        self.spec = spec_of(self.env)
        self.iteration = self.phase_index = self.earlier_gradient_steps = 0
        self.seconds = {"rollout": 0.0, "update": 0.0, "evaluation": 0.0}
        self.earlier_cpu_s, self.began_cpu_s = 0.0, time.process_time()
        self.results: dict[str, Any] = {}
        self.last_evaluation = ""
        if resume:
            self._restore(read_state(self.checkpoints.find("last")))
        else:
            policy = self._starting_policy()
            if phase_component(config, phases_of(config)[0]) != config.agent:
                build_agent(config.agent, copy.deepcopy(policy), 1, config.seed)  # refuses now, not once it has cloned
            self.phase = self._phase(0, policy)

    def run(self) -> dict[str, Any]:
        """Train to the end of the last phase, or until told to stop; returns the summary.

        Raises:
            Interrupted: by a signal, after saving.
            UserError: if a loss is not finite, or nothing can be written.
        """
        minutes = self.config.max_minutes
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        with ExitStack() as stack:
            self.signals = stack.enter_context(StopSignals())
            self.console = stack.enter_context(Console())
            self.logger = Logger(self.folder, self.config.loggers, to_plain(self.config), self.iteration)
            stack.callback(self.logger.close)
            if not self.checkpoints.folder.exists():
                self._save()
            self._run_phase()
            while not self._out_of_budget() and not self._last_phase():
                self._next_phase()
                self._run_phase()
            due = {"best": "selected" not in self.results, "base": self.phase.name == "bc"}
            self._save(*(name for name in due if due[name]))
            summary = self._finish()
            if self.signals.received:
                raise Interrupted(self.signals.received)
            return summary

    # ---------------------------------------------------------------- phases

    def _starting_policy(self) -> GenerativePolicy:
        if self.config.teacher:
            return starting_student(self.config, self.spec)
        if self.config.base:
            return load_base(self.config, self.spec)
        return build_policy(self.config.policy, self.spec, self.config.seed)

    def _phase(self, index: int, policy: GenerativePolicy, agent: Agent | None = None) -> Phase:
        self.phase_index = index
        policy.to(pick_device(self.config.device))
        phase = Phase(self.config, phases_of(self.config)[index], policy, self.env, self.spec, agent)
        if isinstance(phase.agent, Student):
            phase.agent.learn_from(load_teacher(self.config))
        return phase

    def _next_phase(self) -> None:
        """Go on with the agent if it is the one to, else with a new one around its policy."""
        agent, phases, index = self.phase.agent, phases_of(self.config), self.phase_index + 1
        same = phase_component(self.config, phases[index]) == phase_component(self.config, self.phase.name)
        if not same:
            self.earlier_gradient_steps += agent.gradient_steps
        self.phase = self._phase(index, agent.policy, agent if same else None)

    def _last_phase(self) -> bool:
        return self.phase_index + 1 == len(phases_of(self.config))

    def _out_of_budget(self) -> bool:
        """Whether ``iterations=`` or ``max_minutes=`` ends the run early."""
        limit = self.config.iterations
        return time.monotonic() > self.deadline or (limit is not None and self.iteration >= limit)

    def _run_phase(self) -> None:
        phase = self.phase
        if phase.name == "online" and "base" not in self.results and not self._out_of_budget():
            self._evaluate_base()
        self.console.begin(phase.name, phase.iteration, phase.iterations)
        saved_at = time.monotonic()
        while not phase.done and not self._out_of_budget():
            record = self._iterate()
            evaluate = phase.iteration % phase.evaluate_every == 0 or (phase.done and self._last_phase())
            names = self._evaluate(record) if evaluate else []
            self.logger.write(record)
            told_to_stop = self.signals.received  # read once: what ends the run must have saved it
            if names or told_to_stop or time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                self._save(*names)
                saved_at = time.monotonic()
            self.console.advance(phase.iteration, self._note(record))
            if told_to_stop:
                raise Interrupted(told_to_stop)

    def _iterate(self) -> dict[str, Any]:
        """Learn once; returns the record to log."""
        try:
            metrics = self.phase.iterate(self.threads, self.seconds)
        except UserError as error:  # physics that diverged, actions that are no numbers
            raise UserError(f"{error}; {self._last_good()}") from error
        self.iteration += 1
        self._refuse_nan(metrics)
        seconds = {f"seconds/{part}": round(value, 3) for part, value in self.seconds.items()}
        place = {"iteration": self.iteration, "phase": self.phase.name, "env_steps": self.phase.env_steps}
        return place | metrics | seconds

    # ---------------------------------------------------------------- evaluation

    def _evaluate(self, record: dict[str, Any]) -> list[str]:
        """Evaluate into the record; returns the names to save the agent under."""
        result = self._play(self.phase.agent.deploy(), self.config.budget.eval_episodes, self.config.seed + _EVAL_SEEDS)
        record |= {f"eval/{key}": result[key] for key in _LOGGED if key in result}
        score = f"{result['mean']:.4g} ± {result['ci_high'] - result['mean']:.2g}"
        success = f", success {result['success']:.0%}" if "success" in result else ""
        cost = f", cost {result['cost']:.4g}" if "cost" in result else ""
        self.last_evaluation = f"evaluated {score}{success}{cost}"
        names, selected = ["last"], self.results.get("selected")
        if selected is None or result["mean"] > selected["mean"]:
            self.results["selected"] = {"mean": result["mean"], "iteration": self.iteration}
            names.append("best")
        return names

    def _evaluate_base(self) -> None:
        """Measure what fine-tuning starts from, and keep it as the checkpoint ``base``."""
        base = self._final_evaluation(self.phase.agent.deploy())
        self.results = {"base": base, "selected": {"mean": base["mean"], "iteration": self.iteration}}
        self._save("base", "best")
        place = {"iteration": self.iteration, "phase": "base", "env_steps": 0}
        self.logger.write(place | {f"eval/{key}": base[key] for key in _LOGGED if key in base})
        self.console.line(f"base: {describe(base)}")
        if self.signals.received:
            raise Interrupted(self.signals.received)

    def _final_evaluation(self, policy: DeployedPolicy) -> dict[str, Any]:
        return self._play(policy, self.config.budget.final_episodes, self.config.seed + FINAL_SEEDS)

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
        final = self._final_evaluation(self.phase.agent.deploy())
        summary = {"base": self.results.get("base"), "final": final, "best": final}
        selected = self.results.get("selected")
        if selected and selected["iteration"] != self.iteration:
            trust = modules_of(to_plain(self.config))
            best = load_agent(self.folder, "best", trust, pick_device(self.config.device))
            summary["best"] = self._final_evaluation(best.deploy()) | {"iteration": selected["iteration"]}
        summary |= {
            "env_steps": self.phase.env_steps,
            "iterations": self.iteration,
            "gradient_steps": self.earlier_gradient_steps + self.phase.agent.gradient_steps,
            "seconds": {part: round(value, 2) for part, value in self.seconds.items()},
            "wall_s": round(sum(self.seconds.values()), 2),
            "cpu_s": round(self._cpu_s(), 2),
        }
        write_text(self.folder / "summary.json", json.dumps(summary, indent=2))
        return summary

    def _cpu_s(self) -> float:
        """What the run cost in seconds of cores, which, unlike those of the clock, other programs hardly lengthen."""
        return self.earlier_cpu_s + time.process_time() - self.began_cpu_s

    # ---------------------------------------------------------------- state

    def _save(self, *names: str) -> None:
        counters = {
            "phase_index": self.phase_index,
            "total_iterations": self.iteration,
            "earlier_gradient_steps": self.earlier_gradient_steps,
            "seconds": self.seconds,
            "cpu_s": self._cpu_s(),
            "results": self.results,
        }
        state = checkpoint_state(self.config, self.spec) | self.phase.state_dict() | counters
        self.checkpoints.save(self.iteration, state, *names)

    def _restore(self, saved: State) -> None:
        check_same_run(self.config, saved["config"], self.folder)
        policy = build_policy(self.config.policy, self.spec, self.config.seed)
        # Demonstrations that the phase reads are normalised as before, whatever data fitted the normalisers.
        normalizers = {name: value for name, value in saved["agent"]["policy"].items() if "_normalizer." in name}
        policy.load_state_dict(normalizers, strict=False)
        self.phase = self._phase(saved["phase_index"], policy)
        self.phase.load_state_dict(saved)
        self.iteration, self.earlier_gradient_steps = saved["total_iterations"], saved["earlier_gradient_steps"]
        self.seconds, self.results = saved["seconds"], saved["results"]
        self.earlier_cpu_s = saved.get("cpu_s", 0.0)  # runs begun before it was kept count from here on
        if self.phase.rollout is not None and self.env.restarted_on_load:
            print(f"the state of {self.spec.env_id} cannot be saved, so its episodes start anew", flush=True)

    def _refuse_nan(self, metrics: dict[str, float]) -> None:
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise UserError(f"{broken[0]} is not finite after iteration {self.iteration}; {self._last_good()}")

    def _last_good(self) -> str:
        return f"the last good checkpoint is {self.checkpoints.find('last')}"

    def _note(self, record: dict[str, Any]) -> str:
        """What to show beside the progress bar."""
        if "bc/loss" in record:
            return f"loss {record['bc/loss']:.4f}  {self.last_evaluation}"
        exploring = f"exploring {record['rollout/return']:.4g}" if "rollout/return" in record else ""
        return f"{record['env_steps']:,} env steps  {exploring}  {self.last_evaluation}"
