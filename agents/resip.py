"""ResiP: PPO on per-step residuals of a frozen chunk policy (Ankile et al. 2024, arXiv 2407.16677).

A Gaussian residual that sees the base's next action besides the observation is a policy of one action in an MDP whose
observation is both: it is trained by PPO on chains of one move, where that policy is all there is to train.

The value of what followed a rollout's last decision, or of a truncated episode's final observation, needs the action
that the base would have taken there: the next one of its chunk, or, where that was used up, the first of a new chunk.

Differences from the public code: minibatches instead of whole rollouts; actor and critic clip their gradients apart;
rewards are divided by the running std of returns instead of rewards; truncated episodes bootstrap; the last layer, zero
at first, has a bias; residuals are scaled by 0.2 by default instead of 0.1, to be learned in fewer env steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffpolicy_rl.agents._base import BaseAgent
from diffpolicy_rl.agents._ppo import ChainPPO, PPOConfig
from diffpolicy_rl.agents._residual import BasePlan, ResidualPolicy, residual_input
from diffpolicy_rl.errors import require_positive
from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.nets.mlp import ConditionMLP, shrink
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.std import FreeStd
from diffpolicy_rl.types import DeployedPolicy, Extras, Obs


@dataclass(frozen=True)
class ResiPConfig(PPOConfig):
    """Settings of ResiP, beside those of ``PPOConfig``.

    Attributes:
        scale: what residuals are multiplied by, in normalised action units.
        std: fixed standard deviation of residuals, before they are scaled.
        hidden: widths of the residual's net.
    """

    gamma: float = 0.995
    epochs: int = 10
    minibatch: int = 500
    lr: float = 3e-4
    clip: float = 0.2
    reduction: Literal["chain_mean", "chain_sum", "move_mean", "move_sum"] = "chain_sum"
    target_kl: float = 0.1
    max_grad_norm: float = 1.0
    scale: float = 0.2
    std: float = 0.37
    hidden: tuple[int, ...] = (256, 256, 256)

    def __post_init__(self) -> None:
        """Refuse residuals that cannot be, or cannot explore."""
        super().__post_init__()
        require_positive(scale=self.scale, std=self.std)


class GaussianResidual(GenerativePolicy):
    """The residual as a policy of one action, whose observation is ``residual_input``'s; its mean is 0 at first.

    Args:
        features: F + D.
        action_dim: D.
        hidden: widths.
    """

    def __init__(self, features: int, action_dim: int, hidden: tuple[int, ...]) -> None:
        net = ConditionMLP(1, action_dim, features, two_times=False, hidden=hidden, activation="relu")
        *_, last = net.modules()
        shrink(last, 0.0)
        normalizers = Normalizer((features,)), Normalizer((action_dim,))
        super().__init__(net, Gaussian(), *normalizers, horizon=1, execute=1, steps=1)

    def mode(self, features: Tensor) -> Tensor:
        """Means (B, D)."""
        return self.sample(features, features.new_zeros((features.shape[0], *self.action_shape))).squeeze(1)


class ResiP(BaseAgent):
    """PPO on a Gaussian residual; the base stays as it is."""

    Config = ResiPConfig
    data: ClassVar[Literal["rollout", "replay"]] = "rollout"
    phases: ClassVar[tuple[str, ...]] = ("bc", "online")
    per_step = True
    _parts = ("policy", "plan", "ppo")

    def __init__(self, policy: GenerativePolicy, config: ResiPConfig, *, iterations: int, seed: int) -> None:
        super().__init__(policy.requires_grad_(False), iterations, seed)
        self.config, self.chunk, dim = config, 1, policy.action_shape[-1]
        self.residual = GaussianResidual(policy.features + dim, dim, config.hidden).to(policy.device)
        rule = FreeStd(dim, config.std).requires_grad_(False)
        self.ppo = ChainPPO(self.residual, rule, config, iterations=iterations, seed=seed)
        self.generator = self.ppo.generator  # one stream: two from one seed would draw the same numbers
        self.plan = BasePlan(policy, self.generator)

    @torch.inference_mode()
    def act(self, obs: Obs, *, explore: bool) -> tuple[Tensor, Extras]:
        """The base's next actions (N, 1, D), corrected, in env units."""
        base_action, normalizer = self.plan.pop(obs), self.policy.action_normalizer
        if not explore:
            return self.deploy().correct(obs, normalizer.inverse(base_action)).unsqueeze(1), {}
        u, extras = self.ppo.act(residual_input(self.policy, obs, base_action), explore=True)
        planned, going_on = self.plan.peek()
        extras |= {"base_action": base_action, "planned": planned, "going_on": going_on}
        return normalizer.inverse(base_action.unsqueeze(1) + self.config.scale * u), extras

    def reset(self, done: Tensor) -> None:
        """Forget the chunks of finished envs."""
        self.plan.reset(done)

    def update(self, buffer: RolloutBuffer) -> Mapping[str, Tensor]:
        """PPO's, on observations that hold the base's actions."""
        metrics = self.ppo.update(self._with_base_actions(buffer))
        self.updates, self.gradient_steps = self.ppo.updates, self.ppo.gradient_steps
        return metrics

    @torch.no_grad()
    def _with_base_actions(self, buffer: RolloutBuffer) -> RolloutBuffer:
        """The rollout as the residual sees it."""
        extras, policy, cut = buffer.extras, self.policy, buffer.truncated
        rows = residual_input(policy, buffer.obs.flatten(0, 1), extras["base_action"].flatten(0, 1))
        after = (
            (buffer.last_obs, extras["planned"][-1], extras["going_on"][-1]),
            (buffer.final_obs, extras["planned"][cut], extras["going_on"][cut]),
        )
        last, final = (residual_input(policy, obs, self.plan.follow(obs, *rest)) for obs, *rest in after)
        return buffer.seen_as(rows.unflatten(0, cut.shape), last, final)

    def deploy(self) -> DeployedPolicy:
        """The base, and the residual's mean."""
        return ResidualPolicy(self.policy, self.residual, self.config.scale)
