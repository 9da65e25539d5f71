"""One stretch of learning: an agent, where its experience comes from, and how far it has come."""

import time
from typing import Any

import torch

from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.training.build import build_agent, build_dataset, phase_component
from diffpolicy_rl.training.config import TrainConfig
from diffpolicy_rl.training.rollout import Rollout
from diffpolicy_rl.training.threads import torch_threads
from diffpolicy_rl.types import Agent, Spec, State, VecEnv


class Phase:
    """A phase of a run: ``bc`` and ``offline`` learn from demonstrations, ``online`` from what the agent lives through.

    Args:
        config: the run's settings.
        name: bc, offline or online.
        policy: the policy to learn with; changed in place.
        env: the envs of an online phase.
        spec: what the env is like; demonstrations must fit it.
        agent: one that goes on from the phase before; made anew if not given.

    Attributes:
        agent: the learning rule at work.
        experience: what it learns from.
        rollout: the envs it acts in, if it does.
        iterations: how many there are.
        iteration: how many are done.
        evaluate_every: iterations between evaluations.

    Raises:
        UserError: if there are no demonstrations to learn from.
    """

    rollout: Rollout | None = None

    def __init__(
        self,
        config: TrainConfig,
        name: str,
        policy: GenerativePolicy,
        env: VecEnv,
        spec: Spec,
        agent: Agent | None = None,
    ) -> None:
        budget, component = config.budget, phase_component(config, name)
        self.name, self.iteration, steps = name, 0, component.get("steps", 1)
        self.iterations, self.evaluate_every = {
            "bc": (budget.bc_steps // steps, budget.bc_eval_every),
            "offline": (budget.offline_steps // steps, budget.offline_eval_every),
            "online": (budget.env_steps // (budget.decisions * env.num_envs * env.chunk), budget.eval_every),
        }[name]
        self.iterations = max(self.iterations, 1)
        # Agents copy the policy: its normalisers must be fitted before there is one.
        cloning, shown = name == "bc", component.get("mixing", "none") != "none"
        dataset = build_dataset(config, spec, policy) if cloning or shown else None
        if not policy.action_normalizer.fitted:  # from scratch, without demonstrations
            policy.action_normalizer.fit_box(env.single_action_space)
        self.agent = agent or build_agent(component, policy, self.iterations, config.seed)
        if cloning:
            self.experience: Any = dataset
        elif self.agent.data == "rollout":
            self.experience = RolloutBuffer(budget.decisions)
        else:
            demonstrations = None if dataset is None else dataset.decisions(self.agent.chunk)
            self.experience = Experience(ReplayBuffer(budget.replay, policy.device), demonstrations)
        if name == "online":
            written = self.experience.online if self.agent.data == "replay" else self.experience
            diary = ReplayBuffer(budget.replay, policy.device) if config.diary else None
            self.rollout = Rollout(env, config.seed, budget.decisions, written, diary)

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
            if self.rollout:
                self.rollout.collect(self.agent)
        gathered = time.monotonic()
        with torch_threads(threads):
            metrics = {name: value.item() for name, value in self.agent.update(self.experience).items()}
        seconds["rollout"] += gathered - began
        seconds["update"] += time.monotonic() - gathered
        self.iteration += 1
        if self.rollout is not None and self.rollout.mean_return is not None:
            metrics["rollout/return"] = self.rollout.mean_return
        return metrics

    def state_dict(self) -> State:
        """Agent, envs, replay, counter."""
        state = {"phase": self.name, "iteration": self.iteration, "agent": self.agent.state_dict()}
        if self.rollout is not None:
            state["rollout"] = self.rollout.state_dict()
        if isinstance(self.experience, Experience):
            state["replay"] = self.experience.online.state_dict()
        return state

    def load_state_dict(self, state: State) -> None:
        """Continue bit for bit where ``state_dict`` was taken."""
        self.iteration = state["iteration"]
        self.agent.load_state_dict(state["agent"])
        if isinstance(self.experience, Experience):
            self.experience.online.load_state_dict(state["replay"])
        if self.rollout is not None:
            self.rollout.load_state_dict(state["rollout"])
            if self.rollout.env.restarted_on_load:
                self._forget_episodes(self.rollout.env.num_envs)

    def _forget_episodes(self, num_envs: int) -> None:
        """The envs have started new ones: nothing goes on from what was."""
        self.agent.reset(torch.ones(num_envs, dtype=torch.bool))
        if isinstance(self.experience, Experience):
            self.experience.online.cut()
