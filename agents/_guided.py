"""A policy that clones replay and climbs critics: what TD3+BC, Diffusion-QL and OFQL have in common.

They differ in the policy, and in settings. Its loss is L = L_BC - eta E[Q(s, a)] / E|Q(s, a)|, with actions a that are
drawn from the policy and differentiated through all its moves (Wang et al. 2022, arXiv 2208.06193).
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from diffpolicy_rl.agents._base import climbing, compiled
from diffpolicy_rl.agents._candidates import ChosenCandidate, ClonedBase, LeastValueCandidate, draw
from diffpolicy_rl.agents._offline import OfflineAgent, OfflineConfig
from diffpolicy_rl.agents._replay import Critics
from diffpolicy_rl.errors import require_not_negative, require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience
from diffpolicy_rl.nets.critics import CriticEnsemble
from diffpolicy_rl.nets.linear import plain_fp32
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.process import Drawn
from diffpolicy_rl.types import DeployedPolicy


@dataclass(frozen=True)
class GuidedConfig(OfflineConfig):
    """Settings of policies that clone and climb, beside those of ``OfflineConfig``.

    Attributes:
        eta: weight of the values, which are divided by their mean size.
        policy_tau: how far the policy that acts, and that TD targets see, moves to the one that learns at its steps.
        policy_every: critic steps per step of the policy.
        candidates: M, samples to choose from when acting.
        temperature: T, one is taken with probability proportional to exp(Q / T); 0 for the one with the highest value.
        max_backup: samples at the next observation, of which the best counts in TD targets.
    """

    eta: float = 1.0
    policy_tau: float = 0.005
    policy_every: int = 1
    candidates: int = 16
    temperature: float = 1.0
    max_backup: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that no policy could learn with."""
        super().__post_init__()
        require_positive(policy_tau=self.policy_tau, policy_every=self.policy_every)
        require_positive(candidates=self.candidates, max_backup=self.max_backup)
        require_not_negative(eta=self.eta, temperature=self.temperature)


Settings = TypeVar("Settings", bound=GuidedConfig)


class Guided(OfflineAgent[Settings]):
    """Regression on replay, with the gradient of the critics on top.

    Raises:
        UserError: if the policy predicts more actions than are executed.
    """

    _parts = (*OfflineAgent._parts, "base", "critics")

    def __init__(self, policy: GenerativePolicy, config: Settings, *, iterations: int, seed: int) -> None:
        self.base = ClonedBase(policy, config.policy_lr, config.policy_tau)
        super().__init__(self.base.average, config, iterations=iterations, seed=seed)
        self.critics = Critics(policy.features, policy.action_shape, config, policy.device)
        self._objective = compiled(self._objective, config.compile)
        self._sample = compiled(self.policy.sample, config.compile)

    @property
    def _policy_optimizer(self) -> torch.optim.Optimizer:
        return self.base.optimizer

    def update(self, buffer: Experience) -> Mapping[str, Tensor]:
        """As ``OfflineAgent`` does, by the kernels that take least time for it."""
        # What oneDNN does before each product, threads do not share, and a chain has many small products.
        with plain_fp32() if torch.get_num_threads() > 1 else nullcontext():
            return super().update(buffer)

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        """One step of the critics, and with every ``policy_every``-th one of the policy."""
        features, after = self._encode(batch)
        with torch.no_grad():
            target = batch.reward + batch.discount * self._future(after)
        metrics = self.critics.learn(features, batch.action, target)
        if self.critic_steps % self.config.policy_every == self.config.policy_every - 1:
            metrics |= self._improve(batch, features)
            self.gradient_steps += 1
        return metrics

    def _future(self, features: Tensor) -> Tensor:
        """Values (B,) to bootstrap from at features (B, F)."""
        if self.config.max_backup == 1:
            return self.critics.target_value(features, self._next_action(features), self.generator)
        noise = self._noise(self.config.max_backup, len(features), *self.policy.action_shape)
        values = self.critics.target(features, draw(self.policy, features, noise))
        return self.critics.value(values.amax(1), self.generator)

    def _next_action(self, features: Tensor) -> Tensor:
        """What TD targets take to be done (B, A, D) at features (B, F)."""
        return self._sample(features, self._noise(len(features), *self.policy.action_shape), features=features)

    def _improve(self, batch: Decisions, features: Tensor) -> dict[str, Tensor]:
        """One step of the policy, against one critic drawn at random: it cannot settle on the errors of either."""
        noise, drawn = self._noise(*batch.action.shape), self._drawn(batch.action)
        head = int(torch.randint(self.config.critics, (1,), generator=self.generator))
        critic = self.critics.online.frozen_view(slice(head, head + 1))
        loss, cloning, value = self._objective(batch, features, noise, drawn, critic)
        self.base.step(loss)
        return {"policy/cloning": cloning.detach(), "policy/value": value.detach()}

    def _drawn(self, action: Tensor) -> Drawn:
        """What the cloning loss of actions (B, A, D) would draw."""
        noise = self._noise(*action.shape)
        t, s = self.policy.process.sample_times(len(action), self.generator)
        return Drawn(noise=noise, t=t.to(action.device), s=s.to(action.device))

    def _objective(
        self, batch: Decisions, features: Tensor, noise: Tensor, drawn: Drawn, critic: CriticEnsemble
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The policy's loss (), and of that the cloning loss () and the mean value ()."""
        cloning, action = self._proposal(batch, features, noise, drawn)
        value = critic(features, action)
        return cloning + self.config.eta * climbing(value), cloning, value.mean()

    def _proposal(self, batch: Decisions, features: Tensor, noise: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The cloning loss (), and actions (B, A, D) from noise that carry the policy's gradient."""
        loss, action = self.base.online.loss_and_sample(
            batch.obs, batch.action, noise, drawn=drawn, features=features, mask=batch.mask
        )
        return loss.mean(), action

    def _deployed(self) -> DeployedPolicy:
        config, critics = self.config, self.critics
        if config.candidates == 1:
            return self.policy.deploy()
        how = config.candidates, config.temperature
        if config.aggregation == "min":
            return LeastValueCandidate(self.policy, critics.target, *how)
        return ChosenCandidate(self.policy, critics.target, critics.hope, *how)
