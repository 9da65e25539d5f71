"""PPO with a Gaussian policy, from scratch or from a cloned one (Schulman et al. 2017, arXiv 1707.06347).

The baseline that chain methods are compared with: the same update, on a chain of one move. From scratch, observations
are normalised by their running mean and std, which change between rollouts only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from diffpolicy_rl.agents._ppo import ChainPPO, PPOConfig
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.normalize import RunningMoments
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.std import FreeStd


@dataclass(frozen=True)
class GaussianPPOConfig(PPOConfig):
    """Settings of PPO with a Gaussian policy, beside those of ``PPOConfig``.

    Attributes:
        std: standard deviation at the start, in normalised action units.
    """

    gamma: float = 0.99
    epochs: int = 4
    minibatch: int = 250
    lr: float = 3e-4
    final_lr: float = 0.0
    critic_lr: float = 3e-4
    critic_activation: Literal["relu", "mish", "gelu", "tanh"] = "relu"
    clip: float = 0.2
    reduction: Literal["chain_mean", "chain_sum", "move_mean", "move_sum"] = "chain_sum"
    max_grad_norm: float = 0.5
    std: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a policy without noise."""
        super().__post_init__()
        require_positive(std=self.std)


class PPO(ChainPPO):
    """PPO on a Gaussian policy."""

    Config = GaussianPPOConfig
    phases: ClassVar[tuple[str, ...]] = ("online",)
    _parts = (*ChainPPO._parts, "obs_moments")

    def __init__(self, policy: GenerativePolicy, config: GaussianPPOConfig, *, iterations: int, seed: int) -> None:
        if not isinstance(policy.process, Gaussian):
            raise UserError("agent=ppo needs a Gaussian policy; set policy=gaussian, or use agent=dppo")
        rule = FreeStd(policy.action_shape[-1], config.std)
        super().__init__(policy, rule, config, iterations=iterations, seed=seed)
        self.obs_moments = RunningMoments(tuple(policy.obs_normalizer.shift.shape))

    def update(self, buffer: RolloutBuffer) -> Mapping[str, Tensor]:
        """Learn from a rollout; a normaliser that no data set has fitted then takes in its observations."""
        metrics, normalizer = super().update(buffer), self.policy.obs_normalizer
        if self.obs_moments.count or not normalizer.fitted:
            self.obs_moments.absorb(buffer.obs.flatten(0, -2))
            normalizer.set(self.obs_moments.mean, self.obs_moments.std)
        return metrics
