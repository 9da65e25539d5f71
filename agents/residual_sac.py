"""Residual SAC: off-policy per-step residuals of a frozen chunk policy, after ResFiT (Ankile et al. 2025, 2509.19301).

The critics see the sum a_b + scale * u that is executed, the actor the base's action a_b that it corrects. As in
ResFiT: three-step returns, LayerNorm in all nets, targets from a random pair of critics, an actor that maximises the
mean of all, half of every batch from demonstrations, and a start with uniform residuals. Other than there, the actor is
SAC's instead of TD3's.

TD targets need the base's next action: the one that was executed next; where nothing was, the first of a new chunk. It
also stands for the base in demonstrations, once for each of their observations.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_rl.agents._replay import Critics, ReplayAgent
from diffpolicy_rl.agents._residual import BasePlan, ResidualPolicy, residual_input
from diffpolicy_rl.agents._sac import SoftActor, SoftConfig
from diffpolicy_rl.errors import require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience, Mixing
from diffpolicy_rl.nets.critics import Aggregation
from diffpolicy_rl.nets.heads import TanhGaussian
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.streams import stream
from diffpolicy_rl.types import DeployedPolicy, Extras, Obs

_SHOWN = 5  # stream key


@dataclass(frozen=True)
class ResidualSACConfig(SoftConfig):
    """Settings of residual SAC, beside those of ``SoftConfig``.

    Attributes:
        scale: bound of what is added to an action, in normalised action units.
    """

    prefill: int = 2000
    mixing: Mixing = "half"
    n_step: int = 3
    critics: int = 5
    critic_hidden: tuple[int, ...] = (256, 256)
    actor_hidden: tuple[int, ...] = (256, 256)
    aggregation: Aggregation = "subset_min"
    actor_every: int = 2
    alpha: float = 0.1
    entropy_per_element: float = -1.0
    soft_backup: bool = False
    scale: float = 0.1

    def __post_init__(self) -> None:
        """Refuse residuals that cannot be."""
        super().__post_init__()
        require_positive(scale=self.scale)


class ResidualSAC(ReplayAgent):
    """SAC on a bounded residual; the base stays as it is."""

    Config = ResidualSACConfig
    per_step = True
    _parts = (*ReplayAgent._parts, "plan", "critics", "soft_actor")
    config: ResidualSACConfig

    def __init__(self, policy: GenerativePolicy, config: ResidualSACConfig, *, iterations: int, seed: int) -> None:
        super().__init__(policy.requires_grad_(False), config, iterations=iterations, seed=seed)
        self.seed, shape = seed, policy.action_shape[1:]
        self.plan = BasePlan(policy, self.generator)
        self.critics = Critics(policy.features, shape, config, policy.device)
        actor = TanhGaussian(
            policy.features + shape[0], shape, hidden=config.actor_hidden, layer_norm=True, last_scale=0.01
        )
        self.soft_actor = SoftActor(actor.to(policy.device), config, self.generator)

    @torch.inference_mode()
    def act(self, obs: Obs, *, explore: bool) -> tuple[Tensor, Extras]:
        """The base's next actions (N, 1, D), corrected, in env units."""
        if explore:
            return super().act(obs, explore=True)
        action = self.policy.action_normalizer.inverse(self.plan.pop(obs))
        return self.deploy().correct(obs, action).unsqueeze(1), {}

    def reset(self, done: Tensor) -> None:
        """Forget the chunks of finished envs."""
        self.plan.reset(done)

    def update(self, buffer: Experience) -> Mapping[str, Tensor]:
        """As every agent with replay, after the base has been asked, once, what it would do in the demonstrations."""
        if buffer.demonstrations is not None:
            draw = stream(_SHOWN, self.seed)  # a resumed run finds the same
            buffer.demonstrations.annotate("base_action", lambda obs: self.policy.sample(obs, generator=draw)[:, 0])
        return super().update(buffer)

    def _decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        base_action = self.plan.pop(obs)
        return self._corrected(base_action, self.soft_actor.sample(residual_input(self.policy, obs, base_action))[0])

    def _first_decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        base_action = self.plan.pop(obs)
        return self._corrected(base_action, 2 * self._uniform(*base_action.shape) - 1)

    def _corrected(self, base_action: Tensor, u: Tensor) -> tuple[Tensor, Extras]:
        return (base_action + self.config.scale * u).unsqueeze(1), {"base_action": base_action}

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        policy, critics, soft_actor, scale = self.policy, self.critics, self.soft_actor, self.config.scale
        features = policy.encode(batch.obs)
        metrics = critics.learn(features, batch.action.squeeze(1), self._targets(batch))
        if self.critic_steps % self.config.actor_every == self.config.actor_every - 1:
            base_action = batch.extras["base_action"]

            def value(u: Tensor) -> Tensor:
                return critics.hope(critics.online(features, base_action + scale * u))

            metrics |= soft_actor.learn(residual_input(policy, batch.obs, base_action), value)
            self.gradient_steps += 1
        return metrics

    @torch.no_grad()
    def _targets(self, batch: Decisions) -> Tensor:
        """TD targets (B,)."""
        known = batch.followed | (batch.discount == 0)  # what follows a termination does not count
        base_action = self.plan.follow(batch.next_obs, batch.next_extras["base_action"], known)
        u, log_prob = self.soft_actor.sample(residual_input(self.policy, batch.next_obs, base_action))
        action = base_action + self.config.scale * u
        values = self.critics.target(self.policy.encode(batch.next_obs), action)
        future = self.soft_actor.soft(self.critics.value(values, self.generator), log_prob)
        return batch.reward + batch.discount * future

    def _deployed(self) -> DeployedPolicy:
        return ResidualPolicy(self.policy, self.soft_actor.actor, self.config.scale)
