"""ReinFlow: PPO fine-tuning of a flow policy with learned noise (Zhang et al. 2025, arXiv 2505.22094).

Every Euler move of the flow gets Gaussian noise whose std a small net chooses between two bounds; the noise net is
dropped when the policy is deployed. Differences from the public code: one time grid k / K for sampling and likelihood;
truncated episodes bootstrap; the initial noise, which cancels in the ratio, is not counted in its mean; mean
log-densities are not clamped, because between these bounds they cannot reach the clamp.
"""

from dataclasses import dataclass

import torch

from diffpolicy_rl.agents._base import cosine
from diffpolicy_rl.agents._ppo import ChainPPO, PPOConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.std import LearnedStd


@dataclass(frozen=True)
class ReinFlowConfig(PPOConfig):
    """Settings of ReinFlow, beside those of ``PPOConfig``.

    Attributes:
        std_low: lower bound of the noise std, in normalised action units.
        std_high: its upper bound at the start.
        std_hold: fraction of the iterations for which the upper bound is held before it decays.
        std_decay: how far it decays, as a fraction of the way from upper to lower bound.
        std_hidden: widths of the noise net.
    """

    std_low: float = 0.10
    std_high: float = 0.24
    std_hold: float = 0.35
    std_decay: float = 0.3
    std_hidden: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        """Refuse bounds that are none."""
        super().__post_init__()
        if not 0 < self.std_low <= self.std_high:
            raise UserError(f"std_low={self.std_low} and std_high={self.std_high} must be positive and in this order")
        if not (0 <= self.std_hold < 1 and 0 <= self.std_decay <= 1):
            raise UserError(f"std_hold={self.std_hold} and std_decay={self.std_decay} must lie in [0, 1) and [0, 1]")


class ReinFlow(ChainPPO):
    """PPO on chains with ReinFlow's learned noise; the chain is one PPO sample."""

    Config = ReinFlowConfig

    def __init__(self, policy: GenerativePolicy, config: ReinFlowConfig, *, iterations: int, seed: int) -> None:
        rule = LearnedStd(*policy.action_shape, policy.features, config.std_low, config.std_high, config.std_hidden)
        super().__init__(policy, rule, config, iterations=iterations, seed=seed)
        self.bounds = config

    def _schedule(self) -> None:
        super()._schedule()
        bounds = self.bounds
        end = bounds.std_high + bounds.std_decay * (bounds.std_low - bounds.std_high)
        progress = (self.updates / self.iterations - bounds.std_hold) / (1 - bounds.std_hold)
        rule = self.policy.std_rule
        assert isinstance(rule, LearnedStd)
        rule.high.copy_(torch.tensor(cosine(progress, bounds.std_high, end)))
