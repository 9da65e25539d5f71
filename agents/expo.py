"""EXPO: candidates from a cloned base and small edits of them, chosen by their values (Dong et al. 2025, 2507.07986).

The base only ever clones, demonstrations and what was done; the edit, a tanh-Gaussian in [-beta, beta], climbs the
critics; the policy that acts and that TD targets see is the best of M base samples and M edited ones.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.agents._candidates import Chooser, ClonedBase, draw
from diffpolicy_rl.agents._replay import Critics, ReplayAgent
from diffpolicy_rl.agents._sac import SoftActor, SoftConfig
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Mixing
from diffpolicy_rl.experience.selectors import argmax
from diffpolicy_rl.nets.critics import Aggregation
from diffpolicy_rl.nets.heads import TanhGaussian
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import DeployedPolicy, Extras, Obs


@dataclass(frozen=True)
class EXPOConfig(SoftConfig):
    """Settings of EXPO, beside those of ``SoftConfig``: the edit is the actor, and its steps are also the base's.

    Attributes:
        beta: bound on every element of an edit, in normalised units.
        candidates: M, base samples to choose from; as many edited ones join them.
        base_lr: learning rate of the base.
        base_tau: how far the base that acts moves to the one that learns at each of its steps.
        paper_code_entropy: whether the target entropy is meant for the edit itself, as in the authors' code, instead of
            for edit / beta. Below beta = 0.303 no edit has that much: the temperature grows without bound, and edits
            become noise that the critics choose from.
    """

    utd: float = 20.0
    actor_every: int = 20
    mixing: Mixing = "half"
    critics: int = 10
    aggregation: Aggregation = "subset_min"
    soft_backup: bool = False
    beta: float = 0.05
    candidates: int = 8
    base_lr: float = 3e-4
    base_tau: float = 0.001
    paper_code_entropy: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that EXPO does not know."""
        super().__post_init__()
        require_positive(beta=self.beta, candidates=self.candidates, base_lr=self.base_lr, base_tau=self.base_tau)
        if self.mixing == "none":
            raise UserError("mixing=none leaves EXPO without demonstrations to clone; use mixing=half or proportional")
        if self.soft_backup:
            raise UserError("soft_backup=True needs the entropy of what is chosen, which EXPO does not know; set false")


class EXPO(ReplayAgent):
    """Expressive policy optimisation: the base clones, the edit learns, the critics choose."""

    Config = EXPOConfig
    phases: ClassVar[tuple[str, ...]] = ("bc", "online")
    _parts = (*ReplayAgent._parts, "base", "critics", "edit")
    config: EXPOConfig

    def __init__(self, policy: GenerativePolicy, config: EXPOConfig, *, iterations: int, seed: int) -> None:
        self.base = ClonedBase(policy, config.base_lr, config.base_tau)
        super().__init__(self.base.average, config, iterations=iterations, seed=seed)
        shape, inputs = policy.action_shape, policy.features + policy.action_shape[0] * policy.action_shape[1]
        self.critics = Critics(policy.features, shape, config, policy.device)
        actor = TanhGaussian(inputs, shape, config.beta, config.actor_hidden).to(policy.device)
        self.edit = SoftActor(actor, config, self.generator)
        if config.paper_code_entropy:
            # The entropy of the edit itself is lower by this much. Temperature would refuse such a target.
            self.edit.temperature.target_entropy -= actor.log_volume

    def _decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        return self._choose(self.policy, self.policy.encode(obs))[0], {}

    def _first_decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        return self.policy.sample(obs, generator=self.generator), {}

    def _choose(self, base: GenerativePolicy, features: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates (B, A, D) that the target critics prefer, and which of them are edited (B,) bool."""
        config = self.config
        noise = self._noise(2 * config.candidates, len(features), *base.action_shape)
        candidates = _candidates(base, self.edit.actor, features, *noise.chunk(2))
        choice = argmax(self.critics.target_value(features, candidates, self.generator), candidates)
        return choice.actions, choice.indices >= config.candidates

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        """One step of the critics, and with every ``actor_every``-th one of base, edit and temperature."""
        config, critics = self.config, self.critics
        features = self.policy.encode(batch.obs)
        with torch.no_grad(), fixed_weights(self.base.online):
            after = self.policy.encode(batch.next_obs)
            chosen, edited = self._choose(self.base.online, after)
            future = critics.target_value(after, chosen, self.generator)
        metrics = critics.learn(features, batch.action, batch.reward + batch.discount * future)
        metrics["expo/edited"] = edited.to(future.dtype).mean()
        if self.critic_steps % config.actor_every == config.actor_every - 1:
            metrics |= self.base.learn(batch.obs, batch.action, batch.mask, self.generator)
            metrics |= self._learn_edit(features, batch.action)
            self.gradient_steps += 1
        return metrics

    def _learn_edit(self, features: Tensor, action: Tensor) -> dict[str, Tensor]:
        """One step of edit and temperature, at the actions of the batch, on the mean of all critics."""
        critics = self.critics.online
        return self.edit.learn(joined(features, action), lambda edit: critics(features, action + edit).mean(0))

    def _deployed(self) -> DeployedPolicy:
        return ChosenPolicy(self.policy, self.edit.actor, self.critics, self.config.candidates)


class ChosenPolicy(Chooser):
    """The candidate with the highest value, in env units.

    Where TD targets see a random subset of the critics, the mean of all chooses here: nothing is random but the noise.

    Args:
        policy: the base.
        edit: the edit.
        critics: whose targets choose.
        candidates: M.
    """

    def __init__(self, policy: GenerativePolicy, edit: TanhGaussian, critics: Critics, candidates: int) -> None:
        super().__init__(policy, critics.target, critics.hope, (2 * candidates, *policy.action_shape))
        self.edit = edit

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map raw observations (N, O) and noise (N, 2M, H, D) to actions (N, H, D) in env units.

        The first M parts of the noise are those of the samples, the others those of the edits.
        """
        assert noise is not None
        features = self.policy.encode(obs)
        of_samples, of_edits = noise.transpose(0, 1).chunk(2)
        candidates = _candidates(self.policy, self.edit, features, self.policy.scaled(of_samples), of_edits)
        choice = argmax(self._value(self.critic(features, candidates)), candidates)
        return self.policy.action_normalizer.inverse(choice.actions)


def joined(features: Tensor, action: Tensor) -> Tensor:
    """What the edit sees (..., F + A D) of features (B, F) and actions (..., B, A, D)."""
    leading = action.shape[:-2]
    return torch.cat([features.expand(*leading, -1), action.flatten(-2)], dim=-1)


def _candidates(
    base: GenerativePolicy, edit: TanhGaussian, features: Tensor, of_samples: Tensor, of_edits: Tensor
) -> Tensor:
    """M samples and an edited version of each (2M, B, A, D), at features (B, F), from noise (M, B, A, D) of both."""
    samples = draw(base, features, of_samples)
    return torch.cat([samples, samples + edit.sample(joined(features, samples), of_edits)[0]])
