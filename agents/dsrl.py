"""DSRL: steering a frozen policy through the noise it starts from (Wagenmaker et al. 2025, arXiv 2506.15799).

The policy's sampler G(s, w) is a deterministic map from noise to a chunk, so choosing w is choosing among the chunks
the policy can make: soft actor-critic over w in [-b, b] needs no gradient of the policy, and cannot leave its support.

- ``variant="na"`` (noise aliasing): Q^A learns by TD from executed actions, whoever made them; Q^W(s, w) is distilled
  from Q^A(s, G(s, w)) at noise w ~ N(0, I) of the prior, not of the actor; the actor maximises Q^W.
- ``variant="sac"``: Q learns by TD over w itself, which replay keeps.

Values over noise see w / b, the scale of the actor before its bound, in both variants.

Differences from the public code: its noise-aliased variant has b = 1 whatever its settings say, here both have the same
b; targets hold no entropy unless asked to, since alpha's start at 1 lifts values far above any return; truncated
episodes bootstrap; gamma counts env steps; activations are ReLU; distillation follows every step of TD, on its
minibatch, instead of a loop of 20, so that the policy is run once for both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffpolicy_rl.agents._base import adamw
from diffpolicy_rl.agents._replay import Critics, ReplayAgent
from diffpolicy_rl.agents._sac import SoftActor, SoftConfig
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience
from diffpolicy_rl.nets.critics import CriticEnsemble
from diffpolicy_rl.nets.heads import TanhGaussian
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import DeployedPolicy, Extras, Obs


@dataclass(frozen=True)
class DSRLConfig(SoftConfig):
    """Settings of DSRL beside those of ``SoftConfig``, which have the defaults of its Hopper runs.

    Attributes:
        variant: na learns values of actions and distils those of noise from them; sac learns those of noise alone.
        bound: b, half the side of the box that the noise is chosen from; the paper's tasks have 1 to 2.5.
        tied: whether one noise vector (D,) is repeated over the chunk.
        distill: gradient steps of Q^W per critic step, in variant=na; with the public code's 0.5 (10 after every 20)
            Q^W lags far behind values that grow.
        deploy_stochastic: whether the deployed policy draws its noise from the actor, or takes the mean's.
    """

    gamma: float = 0.9975
    utd: float = 2.5
    prefill: int = 8000
    critic_hidden: tuple[int, ...] = (128, 128, 128)
    actor_hidden: tuple[int, ...] = (128, 128, 128)
    entropy_per_element: float = 0.0
    soft_backup: bool = False
    variant: Literal["na", "sac"] = "na"
    bound: float = 1.5
    tied: bool = False
    distill: float = 1.0
    deploy_stochastic: bool = False

    def __post_init__(self) -> None:
        """Refuse noise that is none, and demonstrations where only noise can be learned from."""
        super().__post_init__()
        require_positive(bound=self.bound, distill=self.distill)
        if self.variant == "sac" and self.mixing != "none":
            raise UserError(
                f"mixing={self.mixing}, but variant=sac learns from the noise behind an action, which demonstrations "
                "do not have; set variant=na or mixing=none"
            )


class DSRL(ReplayAgent):
    """Soft actor-critic over the initial noise of a frozen policy.

    Raises:
        UserError: if the policy's actions do not depend on its noise.
    """

    Config = DSRLConfig
    _parts = (*ReplayAgent._parts, "critics", "soft_actor")
    config: DSRLConfig

    def __init__(self, policy: GenerativePolicy, config: DSRLConfig, *, iterations: int, seed: int) -> None:
        if isinstance(policy.process, Gaussian):
            raise UserError(
                "agent=dsrl chooses the noise that a policy starts from, and a Gaussian policy's action does not "
                "depend on it; start from policy=flow or another one that denoises"
            )
        super().__init__(policy.requires_grad_(False), config, iterations=iterations, seed=seed)
        horizon, dim = policy.action_shape
        features, device = policy.features, policy.device
        self.aliased, self.noise_shape = config.variant == "na", (1 if config.tied else horizon, dim)
        self.critics = Critics(features, (self.chunk, dim) if self.aliased else self.noise_shape, config, device)
        self.noise_critic = self.critics.online
        if self.aliased:
            heads, hidden, norm = config.critics, config.critic_hidden, config.layer_norm
            self.noise_critic = CriticEnsemble(features, self.noise_shape, heads, hidden, layer_norm=norm).to(device)
            self.noise_optimizer = adamw(self.noise_critic, config.critic_lr)
            self._parts = (*self._parts, "noise_critic", "noise_optimizer")
        actor = TanhGaussian(features, self.noise_shape, config.bound, config.actor_hidden).to(device)
        self.soft_actor = SoftActor(actor, config, self.generator)

    def update(self, buffer: Experience) -> Mapping[str, Tensor]:
        """See ``ReplayAgent.update``; the frozen policy's weights are arranged once for all its steps."""
        with fixed_weights(self.policy):
            return super().update(buffer)

    def _decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        features = self.policy.encode(obs)
        return self._steered(features, self.soft_actor.sample(features)[0])

    def _first_decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        noise = self._noise(len(obs), *self.noise_shape)
        if not self.aliased:  # values over noise are never asked about any outside the box
            noise = noise.clamp(-self.config.bound, self.config.bound)
        return self._steered(self.policy.encode(obs), noise)

    def _steered(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Extras]:
        return self._executed(features, noise), {} if self.aliased else {"w": noise}

    def _executed(self, features: Tensor, noise: Tensor) -> Tensor:
        """The actions (B, A, D) that the policy makes of noise (B, *noise_shape)."""
        return steer(self.policy, features, noise)[:, : self.chunk]

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        features, after = self._encode(batch)
        metrics = self._aliased_step(batch, features, after) if self.aliased else self._step(batch, features, after)
        if self.critic_steps % self.config.actor_every == self.config.actor_every - 1:
            metrics |= self.soft_actor.learn(features, lambda noise: self.critics.hope(self._values(features, noise)))
            self.gradient_steps += 1
        return metrics

    def _values(self, features: Tensor, noise: Tensor) -> Tensor:
        """Values (E, B) of noise (B, *noise_shape)."""
        return self.noise_critic(features, noise / self.config.bound)

    def _step(self, batch: Decisions, features: Tensor, after: Tensor) -> dict[str, Tensor]:
        """TD over noise."""
        with torch.no_grad():
            noise, log_prob = self.soft_actor.sample(after)
            target = self._target(batch, after, noise / self.config.bound, log_prob)
        return self.critics.learn(features, batch.extras["w"] / self.config.bound, target)

    def _aliased_step(self, batch: Decisions, features: Tensor, after: Tensor) -> dict[str, Tensor]:
        """TD over actions, and the distillation that is due: the policy is run once for both."""
        due = int((self.critic_steps + 1) * self.config.distill) - int(self.critic_steps * self.config.distill)
        with torch.no_grad():
            noise, log_prob = self.soft_actor.sample(after)
            prior = self._noise(due * len(batch), *self.noise_shape)
            conditions = torch.cat([after, *[features] * due])
            following, *drawn = self._executed(conditions, torch.cat([noise, prior])).split(len(batch))
            target = self._target(batch, after, following, log_prob)
        metrics = self.critics.learn(features, batch.action, target)
        for noise, action in zip(prior.split(len(batch)), drawn, strict=False):
            metrics |= self._distill(features, noise, action)
        return metrics

    def _target(self, batch: Decisions, after: Tensor, action: Tensor, log_prob: Tensor) -> Tensor:
        """TD targets (B,) when what the critics judge at features (B, F) afterwards is ``action``."""
        future = self.critics.value(self.critics.target(after, action), self.generator)
        return batch.reward + batch.discount * self.soft_actor.soft(future, log_prob)

    def _distill(self, features: Tensor, noise: Tensor, action: Tensor) -> dict[str, Tensor]:
        """One gradient step of every head of Q^W at noise (B, *noise_shape) towards its twin of Q^A at its action."""
        with torch.no_grad():
            target = self.critics.online(features, action)
        error = self._values(features, noise) - target
        loss = error.square().mean(-1)
        self.noise_optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()  # a head learns as it would alone
        self.noise_optimizer.step()
        return {"noise_critic/loss": loss.detach().mean()}

    def _deployed(self) -> DeployedPolicy:
        return SteeredPolicy(self.policy, self.soft_actor.actor, self.config.deploy_stochastic)


class SteeredPolicy(DeployedPolicy):
    """A frozen policy that starts from an actor's noise.

    Args:
        policy: the policy; its weights are shared.
        actor: of noise (H, D), or (1, D) for all of a chunk.
        stochastic: whether the noise is drawn from the actor, by what is given to ``forward``, or is its mean's.
    """

    def __init__(self, policy: GenerativePolicy, actor: TanhGaussian, stochastic: bool) -> None:
        super().__init__()
        self.policy, self.actor, self.execute = policy, actor, policy.execute
        self.noise_shape = actor.action_shape if stochastic else None

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map raw observations (N, O) and standard-normal noise (N, *noise_shape) to actions (N, H, D) in env units."""
        features = self.policy.encode(obs)
        chosen = self.actor.mode(features) if noise is None else self.actor.sample(features, noise)[0]
        return self.policy.action_normalizer.inverse(steer(self.policy, features, chosen))


def steer(policy: GenerativePolicy, features: Tensor, noise: Tensor) -> Tensor:
    """Chunks (B, H, D) that a policy makes at features (B, F) of noise (B, H, D), or of (B, 1, D) repeated."""
    return policy.sample(features, noise.expand(-1, policy.horizon, -1), features=features)
