"""Soft actor-critic parts (Haarnoja et al. 2018, arXiv 1812.05905): the actor and its temperature, and SAC itself.

SAC and RLPD differ in settings only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.agents._base import Stateful, adamw
from diffpolicy_rl.agents._replay import Critics, ReplayAgent, ReplayConfig
from diffpolicy_rl.errors import require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.nets.heads import TanhGaussian, Temperature
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import DeployedPolicy, Extras, Obs


@dataclass(frozen=True)
class SoftConfig(ReplayConfig):
    """Settings of agents with a soft actor, beside those of ``ReplayConfig``.

    Attributes:
        actor_hidden: widths of the actor.
        actor_lr: its learning rate.
        actor_every: critic steps per step of the actor and of the temperature.
        alpha: temperature at the start.
        alpha_lr: its learning rate; 0 keeps it.
        entropy_per_element: target entropy per element of what the actor draws, in the unscaled tanh space.
        soft_backup: whether TD targets hold the entropy of the next action.
    """

    actor_hidden: tuple[int, ...] = (256, 256, 256)
    actor_lr: float = 3e-4
    actor_every: int = 1
    alpha: float = 1.0
    alpha_lr: float = 3e-4
    entropy_per_element: float = -0.5
    soft_backup: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that no actor could learn with."""
        super().__post_init__()
        require_positive(actor_lr=self.actor_lr, actor_every=self.actor_every, alpha=self.alpha)


class SoftActor(Stateful):
    """A tanh-Gaussian actor, its temperature, and their optimisers.

    Args:
        actor: the actor.
        config: settings.
        generator: the agent's stream.
    """

    _parts = ("actor", "temperature", "actor_optimizer", "temperature_optimizer")

    def __init__(self, actor: TanhGaussian, config: SoftConfig, generator: torch.Generator) -> None:
        self.actor, self.config, self.generator = actor, config, generator
        device = next(actor.parameters()).device
        size = math.prod(actor.action_shape)
        self.temperature = Temperature(config.entropy_per_element * size, size, initial=config.alpha).to(device)
        self.actor_optimizer = adamw(actor, config.actor_lr)
        self.temperature_optimizer = adamw(self.temperature, config.alpha_lr)

    def sample(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (..., *action_shape) at features (..., F), and their log-probabilities (...)."""
        shape = (*features.shape[:-1], *self.actor.action_shape)
        return self.actor.sample(features, torch.randn(shape, generator=self.generator).to(features.device))

    def soft(self, value: Tensor, log_prob: Tensor) -> Tensor:
        """Values (...) to bootstrap from, with the entropy of the action if the backup is soft."""
        return value - self.temperature.alpha * log_prob if self.config.soft_backup else value

    def learn(self, features: Tensor, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """One gradient step of the actor, then one of the temperature.

        Args:
            features: (B, F).
            value: from actions (B, *action_shape) to values (B,), differentiable.
        """
        action, log_prob = self.sample(features)
        loss = (self.temperature.alpha * log_prob - value(action)).mean()
        self.actor_optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=list(self.actor.parameters()))  # the critics are not to learn from this
        self.actor_optimizer.step()
        if self.config.alpha_lr:
            self.temperature_optimizer.zero_grad(set_to_none=True)
            self.temperature.loss(log_prob).backward()
            self.temperature_optimizer.step()
        entropy = -log_prob.detach().mean()
        return {"actor/loss": loss.detach(), "actor/entropy": entropy, "actor/alpha": self.temperature.alpha}


class TanhPolicy(DeployedPolicy):
    """A tanh-Gaussian actor's mean action, in env units.

    Args:
        policy: brings the normalisers.
        actor: of normalised chunks.
    """

    noise_shape = None

    def __init__(self, policy: GenerativePolicy, actor: TanhGaussian) -> None:
        super().__init__()
        self.policy, self.actor, self.execute = policy, actor, policy.execute

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map raw observations (N, O) to actions (N, A, D) in env units."""
        return self.policy.action_normalizer.inverse(self.actor.mode(self.policy.encode(obs)))


class SoftActorCritic(ReplayAgent):
    """SAC from scratch, on chunks of A actions; of the policy it uses the normalisers and the shape of chunks."""

    phases: ClassVar[tuple[str, ...]] = ("online",)
    _parts = (*ReplayAgent._parts, "critics", "soft_actor")
    config: SoftConfig

    def __init__(self, policy: GenerativePolicy, config: SoftConfig, *, iterations: int, seed: int) -> None:
        super().__init__(policy.requires_grad_(False), config, iterations=iterations, seed=seed)
        self.action_shape = (self.chunk, policy.action_shape[-1])
        self.critics = Critics(policy.features, self.action_shape, config, policy.device)
        actor = TanhGaussian(policy.features, self.action_shape, hidden=config.actor_hidden).to(policy.device)
        self.soft_actor = SoftActor(actor, config, self.generator)

    def _decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        return self.soft_actor.sample(self.policy.encode(obs))[0], {}

    def _first_decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        return 2 * self._uniform(len(obs), *self.action_shape) - 1, {}

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        features, critics, soft_actor = self.policy.encode(batch.obs), self.critics, self.soft_actor
        with torch.no_grad():
            after = self.policy.encode(batch.next_obs)
            action, log_prob = soft_actor.sample(after)
            future = soft_actor.soft(critics.target_value(after, action, self.generator), log_prob)
        metrics = critics.learn(features, batch.action, batch.reward + batch.discount * future)
        if self.critic_steps % self.config.actor_every == self.config.actor_every - 1:
            metrics |= soft_actor.learn(features, lambda action: critics.hope(critics.online(features, action)))
            self.gradient_steps += 1
        return metrics

    def _deployed(self) -> DeployedPolicy:
        return TanhPolicy(self.policy, self.soft_actor.actor)
