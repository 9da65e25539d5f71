"""PA-RL: the base clones actions that were optimised against Cal-QL critics (Mark et al. 2024, arXiv 2412.06685).

Policy improvement is supervised learning, so the base may be of any kind. The critics learn from demonstrations first,
held down by Cal-QL (Nakamoto et al. 2023, arXiv 2303.05479); online, base and critics learn from what was done, too.
The authors draw a batch of their own for the base, with demonstrations in proportion; here both learn from one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.agents._candidates import ChosenCandidate, ClonedBase, draw
from diffpolicy_rl.agents._replay import Critics, ReplayAgent, ReplayConfig
from diffpolicy_rl.errors import UserError, require_not_negative, require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience, Mixing
from diffpolicy_rl.experience.selectors import argmax, sample_softmax, top_k
from diffpolicy_rl.nets.critics import Aggregation, CriticEnsemble, HLGauss
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import DeployedPolicy, Extras, Obs


@dataclass(frozen=True)
class PARLConfig(ReplayConfig):
    """Settings of PA-RL, beside those of ``ReplayConfig``.

    The defaults are the authors' for a large base (OpenVLA); for small ones they draw 32 candidates and keep 10.

    Attributes:
        candidates: M, base samples per observation.
        kept: how many of them, at most, are optimised further: those with the highest values.
        ascents: T, gradient steps on the value.
        ascent_lr: their step size.
        cql_alpha: weight of the conservative term.
        cql_actions: uniform actions in it; the optimised ones at s and s' count as often each.
        value_range: lowest and highest value, for critics that are histograms of 128 bins; without, they are scalars.
        base_lr: learning rate of the base.
        base_tau: how far the base that acts moves to the one that learns at each of its steps.
        distill_argmax: whether the base clones the best optimised action, or one drawn from softmax(Q).
    """

    mixing: Mixing = "half"
    critics: int = 10
    aggregation: Aggregation = "subset_min"
    prefill: int = 1
    candidates: int = 8
    kept: int = 4
    ascents: int = 10
    ascent_lr: float = 3e-4
    cql_alpha: float = 0.005
    cql_actions: int = 10
    value_range: tuple[float, ...] = ()
    base_lr: float = 5e-5
    base_tau: float = 0.002
    distill_argmax: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that PA-RL does not know."""
        super().__post_init__()
        require_positive(cql_actions=self.cql_actions, base_lr=self.base_lr, base_tau=self.base_tau)
        if self.mixing == "none":
            raise UserError("mixing=none leaves PA-RL nothing to learn from offline; use mixing=half or proportional")
        for name in ("candidates", "kept"):
            if getattr(self, name) < 2:
                raise UserError(f"{name}={getattr(self, name)} leaves nothing to choose from; use at least 2")
        require_not_negative(ascents=self.ascents, ascent_lr=self.ascent_lr, cql_alpha=self.cql_alpha)
        if self.value_range and not (len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]):
            raise UserError(f"value_range={list(self.value_range)} must be the lowest and the highest value")


class PARL(ReplayAgent):
    """Policy-agnostic RL: optimised actions act, make TD targets, and are what the base clones."""

    Config = PARLConfig
    phases: ClassVar[tuple[str, ...]] = ("bc", "offline", "online")
    _parts = (*ReplayAgent._parts, "base", "critics")
    _counters = (*ReplayAgent._counters, "online")
    config: PARLConfig

    def __init__(self, policy: GenerativePolicy, config: PARLConfig, *, iterations: int, seed: int) -> None:
        self.base = ClonedBase(policy, config.base_lr, config.base_tau)
        super().__init__(self.base.average, config, iterations=iterations, seed=seed)
        self.online = False  # whether the base learns, too
        readout = HLGauss(config.value_range[0], config.value_range[1]) if config.value_range else None
        self.critics = Critics(policy.features, policy.action_shape, config, policy.device, readout)

    def update(self, buffer: Experience) -> Mapping[str, Tensor]:
        """As ``ReplayAgent`` does, with returns to go; the critics' optimiser starts anew when experience comes in."""
        if buffer.online.added and not self.online:
            self.critics.optimizer.state.clear()
            self.online = True
        for source in (buffer.online, buffer.demonstrations):
            if source is not None:
                source.write_returns(self.config.gamma)
        return super().update(buffer)

    def _optimised(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates (k, B, A, D) at features (B, F), optimised, and their values (k, B)."""
        noise = self._noise(self.config.candidates, len(features), *self.policy.action_shape)
        return optimised(self.critics.online, self.config, features, draw(self.policy, features, noise))

    def _decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        actions, values = self._optimised(self.policy.encode(obs))
        return sample_softmax(values, actions, self._uniform(len(obs))).actions, {}

    _first_decision = _decision  # the critics have learned offline

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        """One step of the critics and, online, of the base."""
        critics = self.critics
        features = self.policy.encode(batch.obs)
        with torch.no_grad():
            after = self.policy.encode(batch.next_obs)
            actions, values = self._optimised(torch.cat([features, after]))
            best = argmax(values, actions).actions
            future = critics.target_value(after, best[len(batch) :], self.generator)
        gap = self._conservative(batch, features, best.unflatten(0, (2, len(batch))))
        target = batch.reward + batch.discount * future
        metrics = critics.learn(features, batch.action, target, penalty=self.config.cql_alpha * gap)
        metrics["critic/cql"] = gap.detach()
        if self.online:
            here = slice(len(batch))
            distilled = self._distilled(batch, features, actions[:, here], values[:, here])
            metrics |= self.base.learn(batch.obs, distilled, None, self.generator)
            self.gradient_steps += 1
        return metrics

    def _conservative(self, batch: Decisions, features: Tensor, policy: Tensor) -> Tensor:
        """Cal-QL's term (): how far values of any actions exceed those of the data's, by two random critics.

        Values of the policy's actions count as no less than the return that followed (Nakamoto et al. 2023, eq. 5.1).

        Args:
            batch: the decisions.
            features: (B, F) at them.
            policy: the optimised actions at s and at s' (2, B, A, D), which are deterministic here: copies of them
                would add no more than their number.
        """
        config, count = self.config, self.config.cql_actions
        heads = torch.randperm(config.critics, generator=self.generator)[:2].to(features.device)
        uniform = 2 * self._uniform(count, *batch.action.shape) - 1
        actions = torch.cat([uniform, policy, batch.action.unsqueeze(0)])
        values = self.critics.online.some(heads, features, actions)
        free, ours, data = values.split([count, 2, 1], dim=1)
        ours = torch.maximum(ours, batch.extras["return_to_go"]) + math.log(count)
        total = torch.cat([free, ours, data], dim=1).logsumexp(1) - math.log(3 * count + 1)
        return (total - data.squeeze(1)).mean(-1).sum()

    @torch.no_grad()
    def _distilled(self, batch: Decisions, features: Tensor, actions: Tensor, values: Tensor) -> Tensor:
        """What the base shall clone (B, A, D): out of the optimised actions, the dataset's in place of the worst."""
        worst, rows = values.argmin(0), torch.arange(len(batch), device=values.device)
        actions, values = actions.clone(), values.clone()
        actions[worst, rows] = batch.action
        values[worst, rows] = self.critics.online(features, batch.action).mean(0)
        if self.config.distill_argmax:
            return argmax(values, actions).actions
        return sample_softmax(values, actions, self._uniform(len(features))).actions

    def _deployed(self) -> DeployedPolicy:
        return OptimisedPolicy(self.policy, self.critics.online, self.config)


class OptimisedPolicy(DeployedPolicy):
    """The best optimised candidate, in env units.

    Its forward differentiates the critics, which no exported graph can: exported, it is the best candidate as the base
    draws it. The base clones what was optimised.

    Args:
        policy: the base.
        critic: what is climbed.
        config: settings.
    """

    def __init__(self, policy: GenerativePolicy, critic: CriticEnsemble, config: PARLConfig) -> None:
        super().__init__()
        self.policy, self.critic, self.config, self.execute = policy, critic, config, policy.execute
        self.noise_shape = (config.candidates, *policy.action_shape)

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map raw observations (N, O) and noise (N, M, H, D) to actions (N, H, D) in env units."""
        assert noise is not None
        features = self.policy.encode(obs)
        candidates = draw(self.policy, features, self.policy.scaled(noise.transpose(0, 1)))
        actions, values = optimised(self.critic, self.config, features, candidates)
        return self.policy.action_normalizer.inverse(argmax(values, actions).actions)

    def exportable(self) -> DeployedPolicy:
        """The best candidate, not moved."""
        return ChosenCandidate(self.policy, self.critic, lambda values: values.mean(0), self.config.candidates)


def optimised(
    critic: CriticEnsemble, config: PARLConfig, features: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """The best candidates, moved up the mean of the critics by gradient steps inside [-1, 1].

    Of each, the step with the highest value is returned, so that none gets worse. Works in inference mode, too.

    Args:
        critic: the critics.
        config: how many are kept, and how they are moved.
        features: (B, F).
        candidates: (M, B, A, D).

    Returns:
        Actions (k, B, A, D) and their values (k, B), without gradient.
    """
    with torch.inference_mode(False), torch.no_grad():
        context = critic.context(features.clone()).detach()
        action = candidates.clone()
        best = top_k(critic.values(context, action).mean(0), action, config.kept)
        action, actions, values = best.actions, best.actions, best.values
        for _ in range(config.ascents):
            value, slope = _value_and_slope(critic, context, action)
            actions, values = _better(actions, values, action, value)
            action = (action + config.ascent_lr * slope).clamp(-1, 1)
        return _better(actions, values, action, critic.values(context, action).mean(0))


def _better(actions: Tensor, values: Tensor, others: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """The better one of each pair of actions (k, B, A, D), and its value (k, B)."""
    return torch.where((theirs > values)[..., None, None], others, actions), torch.maximum(values, theirs)


@torch.enable_grad()
def _value_and_slope(critic: CriticEnsemble, context: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """The critics' mean (k, B) at actions (k, B, A, D), and its gradient with respect to each."""
    action = action.detach().requires_grad_()
    value = critic.values(context, action).mean(0)
    return value.detach(), torch.autograd.grad(value.sum(), action)[0]
