"""One stretch of learning: an agent, where its experience comes from, and how far it has come."""

import time

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.training.build import build_agent, build_dataset, phase_component
from diffpolicy_rl.training.config import TrainConfig
from diffpolicy_rl.training.rollout import Rollout
from diffpolicy_rl.training.threads import torch_threads
from diffpolicy_rl.types import Agent, Spec, State, VecEnv


class Phase:
    """A phase of a run: ``bc`` learns from demonstrations, ``online`` from rollouts.

    Args:
        config: the run's settings.
        name: bc or online.
        policy: the policy to learn with; changed in place.
        env: the envs of an online phase.
        spec: what the env is like; the demonstrations of any other phase must fit it.

    Attributes:
        agent: the learning rule at work.
        iterations: how many there are.
        iteration: how many are done.
        evaluate_every: iterations between evaluations.
    """

    def __init__(self, config: TrainConfig, name: str, policy: GenerativePolicy, env: VecEnv, spec: Spec) -> None:
        budget, component = config.budget, phase_component(config, name)
        self.name, self.iteration = name, 0
        if name == "online":
            work, portion = budget.env_steps, budget.decisions * env.num_envs * policy.execute
            self.rollout = Rollout(env, config.seed, budget.decisions)
            self.evaluate_every = budget.eval_every
        else:
            work, portion = budget.bc_steps, component.get("steps", 1)
            self.rollout, self.dataset = None, build_dataset(config, spec, policy)
            self.evaluate_every = budget.bc_eval_every
        self.iterations = max(1, work // portion)
        self.agent: Agent = build_agent(component, policy, self.iterations, config.seed)
        if name == "online" and self.agent.data != "rollout":
            raise UserError(f"{component['_target_']} learns online from a replay buffer, which does not exist yet")

    @property
    def done(self) -> bool:
        """Whether every iteration is done."""
        return self.iteration >= self.iterations

    @property
    def env_steps(self) -> int:
        """Env steps of learning so far."""
        return self.rollout.env_steps if self.rollout else 0

    def iterate(self, threads: int, seconds: dict[str, float]) -> dict[str, float]:
        """Gather experience (online) and learn from it, once.

        Args:
            threads: torch threads of the update; rollouts run on one.
            seconds: the time spent is added to its ``rollout`` and ``update``.

        Returns:
            The agent's metrics and, once an episode has ended, the mean return of the exploring agent.
        """
        began = time.monotonic()
        with torch_threads(1):
            buffer = self.rollout.collect(self.agent) if self.rollout else self.dataset
        gathered = time.monotonic()
        with torch_threads(threads):
            metrics = {name: value.item() for name, value in self.agent.update(buffer).items()}
        seconds["rollout"] += gathered - began
        seconds["update"] += time.monotonic() - gathered
        self.iteration += 1
        if self.rollout is not None and self.rollout.mean_return is not None:
            metrics["rollout/return"] = self.rollout.mean_return
        return metrics

    def state_dict(self) -> State:
        """Agent, envs, counter."""
        rollout = self.rollout.state_dict() if self.rollout else None
        return {"phase": self.name, "iteration": self.iteration, "agent": self.agent.state_dict(), "rollout": rollout}

    def load_state_dict(self, state: State) -> None:
        """Continue bit for bit where ``state_dict`` was taken."""
        self.iteration = state["iteration"]
        self.agent.load_state_dict(state["agent"])
        if self.rollout is not None:
            self.rollout.load_state_dict(state["rollout"])
