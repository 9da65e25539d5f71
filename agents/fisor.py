"""FISOR: reward where states can be kept safe, the least violation where they cannot (Zheng et al. 2024, 2401.10700).

Safety is a hard constraint h(s) <= 0 at all times. The feasibility value V_h(s) is the largest violation still to come
under the safest actions of the data, by Hamilton-Jacobi reachability: states with V_h <= 0 can be kept safe. One
weighted regression of the policy then does both: inside, advantages of reward count for actions that stay inside;
outside, advantages of safety count.

Differences from the public code: time limits bootstrap; one step of the policy per step of the values instead of two,
on the same batch; rewards are scaled by the span of the data's own returns; moves are DDIM's; no dropout; the learning
rate decays only with ``policy_final_lr``; ``ends_safely``, because by the public code's values nothing is safer than an
episode that has ended, be it in a fall; ``choice=best``, because among samples that can all be kept safe the one that
seems safest is the critics' error.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from diffpolicy_rl.agents._candidates import ChosenCandidate
from diffpolicy_rl.agents._implicit import ImplicitAgent, ImplicitConfig, ImplicitValues
from diffpolicy_rl.errors import UserError, require_not_negative, require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.nets.critics import CriticEnsemble
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import DeployedPolicy

Choice = Literal["safest", "best", "rewarding"]
"""Which of FISOR's samples acts; the public code has the first and the last as minqc and maxq."""


@dataclass(frozen=True)
class FISORConfig(ImplicitConfig):
    """Settings of FISOR, beside those of ``ImplicitConfig``.

    Attributes:
        violation: h of a decision that cost something; one that cost nothing has -1.
        ends_safely: whether an episode may end early at no cost; if not, as where ending is falling, what ends it has
            the violation, too.
        reward_temperature: what advantages of reward are multiplied by in the exponent; 0 to clone what can be kept
            safe alike.
        reward_after: share of the run after which they count; until then what can be kept safe is cloned alike, because
            early values do not yet know where what pays leads to.
        cost_temperature: the same of safety.
        max_reward_weight: bound on the exponential.
        max_cost_weight: the same of safety; far below 1 to clone little where states cannot be kept safe.
        candidates: M, samples to choose from when acting.
        choice: always the safest of them; the best paid of those that can be kept safe, and the safest where none can;
            or always the best paid, which leaves safety to what was cloned.
    """

    expectile: float = 0.9
    violation: float = 25.0
    ends_safely: bool = True
    reward_temperature: float = 3.0
    reward_after: float = 0.0
    cost_temperature: float = 5.0
    max_reward_weight: float = 100.0
    max_cost_weight: float = 150.0
    candidates: int = 16
    choice: Choice = "safest"

    def __post_init__(self) -> None:
        """Refuse weights that order nothing."""
        super().__post_init__()
        require_positive(violation=self.violation, candidates=self.candidates)
        require_positive(max_reward_weight=self.max_reward_weight, max_cost_weight=self.max_cost_weight)
        require_not_negative(reward_temperature=self.reward_temperature, cost_temperature=self.cost_temperature)
        if not 0 <= self.reward_after < 1:
            raise UserError(f"reward_after={self.reward_after} must lie in [0, 1): it is a share of the run")
        if self.n_step != 1:
            raise UserError(
                f"n_step={self.n_step}, but agent=fisor learns the violations of single decisions; set n_step=1"
            )


class FISOR(ImplicitAgent[FISORConfig]):
    """Feasibility-guided safe offline RL."""

    Config = FISORConfig
    phases: ClassVar[tuple[str, ...]] = ("offline",)
    _parts = (*ImplicitAgent._parts, "feasibility")

    def __init__(self, policy: GenerativePolicy, config: FISORConfig, *, iterations: int, seed: int) -> None:
        super().__init__(policy, config, iterations=iterations, seed=seed)
        # Low values are good here: the expectile is reversed, and the worse of two critics is the higher one.
        shape, expectile = policy.action_shape, 1 - config.expectile
        self.feasibility = ImplicitValues(policy.features, shape, config, policy.device, expectile, lambda q: q.amax(0))

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        """One step of both values, and one of the policy."""
        if "costs" not in batch.extras:
            raise UserError("agent=fisor learns from costs, which the data does not have; give data with costs")
        features, after = self._encode(batch)
        q, value, metrics = self._learn_values(batch, features, after)
        violation = self._violation(batch)
        q_h, value_h, of_safety = self.feasibility.learn(
            features, after, batch.action, lambda following: feasibility_target(violation, batch.discount, following)
        )
        progress = self.updates / self.iterations
        weights = fisor_weights(q, value, q_h, value_h, self.config, progress)
        metrics |= {f"safety/{name}": figure for name, figure in of_safety.items()}
        metrics["safety/feasible"] = (value_h <= 0).float().mean()
        return metrics | self._clone(batch, weights)

    def _violation(self, batch: Decisions) -> Tensor:
        """How much decisions violate, h (B,)."""
        unsafe = batch.extras["costs"].amax(-1) > 0
        if not self.config.ends_safely:
            unsafe |= batch.discount == 0
        return torch.where(unsafe, self.config.violation, -1.0)

    def _deployed(self) -> DeployedPolicy:
        reward, feasibility = self.values.critics.target, self.feasibility.critics.target
        critic, value = {
            "safest": (feasibility, safety),
            "best": (Judge(reward, feasibility), best),
            "rewarding": (reward, pay),
        }[self.config.choice]
        return ChosenCandidate(self.policy, critic, value, self.config.candidates)


class Judge(nn.Module):
    """Critics of reward and of feasibility side by side.

    Args:
        reward: critics Q(s, a), of which the lower one counts.
        feasibility: critics Q_h(s, a), of which the higher one counts.
    """

    def __init__(self, reward: CriticEnsemble, feasibility: CriticEnsemble) -> None:
        super().__init__()
        self.reward, self.feasibility = reward, feasibility

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """Map features (B, F) and actions (..., B, A, D) to Q and Q_h (2, ..., B)."""
        return torch.stack([pay(self.reward(features, action)), self.feasibility(features, action).amax(0)])


def best(values: Tensor) -> Tensor:
    """What ranks actions (...) of values Q and Q_h (2, ...): reward, above 0, if they can be kept safe, else safety."""
    reward, violation = values
    return torch.where(violation <= 0, reward.asinh().exp(), -violation)


def safety(values: Tensor) -> Tensor:
    """How safe actions are (...) by the worse of critics (E, ...); those from 0 on can be kept safe."""
    return -values.amax(0)


def pay(values: Tensor) -> Tensor:
    """How much actions are worth (...) by the lower of critics of reward (E, ...)."""
    return values.amin(0)


def feasibility_target(violation: Tensor, discount: Tensor, following: Tensor) -> Tensor:
    """(1 - gamma) h + gamma max(h, V_h(s')), and h where the episode ended (Zheng et al. 2024).

    Args:
        violation: h (B,).
        discount: gamma (B,), 0 where the episode terminated.
        following: V_h(s') (B,).
    """
    return (1 - discount) * violation + discount * torch.maximum(violation, following)


def fisor_weights(
    q: Tensor, value: Tensor, q_h: Tensor, value_h: Tensor, config: FISORConfig, progress: float = 1.0
) -> Tensor:
    """How much each action of the data counts in cloning (B,) (Zheng et al. 2024).

    Args:
        q: Q(s, a) of reward (B,).
        value: V(s) of reward (B,).
        q_h: Q_h(s, a) of feasibility (B,).
        value_h: V_h(s) of feasibility (B,).
        config: temperatures and bounds.
        progress: share of the run that is over.
    """
    temperature = config.reward_temperature if progress >= config.reward_after else 0.0
    rewarding = (temperature * (q - value)).exp().clamp(max=config.max_reward_weight)
    safer = (config.cost_temperature * (value_h - q_h)).exp().clamp(max=config.max_cost_weight)
    return torch.where(value_h > 0, safer, torch.where(q_h <= 0, rewarding, 0.0))
