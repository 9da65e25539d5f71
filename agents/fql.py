"""FQL: a one-step policy, distilled from a flow that only clones, climbs the critics (Park et al. 2025, 2502.02538).

The flow is never differentiated through its steps: the one-step policy stays near what the flow makes of the same
noise. It has the flow's own form, z + v(z, 0), instead of a net of another shape.
"""

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from diffpolicy_rl.agents._base import adamw, climbing
from diffpolicy_rl.agents._candidates import refuse_unexecuted
from diffpolicy_rl.agents._offline import OfflineAgent, OfflineConfig
from diffpolicy_rl.agents._replay import Critics
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.nets.critics import Aggregation
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import DeployedPolicy


@dataclass(frozen=True)
class FQLConfig(OfflineConfig):
    """Settings of FQL, beside those of ``OfflineConfig``; ``policy_lr`` is that of both policies.

    Attributes:
        alpha: weight of the distance to the flow; values are divided by their mean size, as the authors advise for new
            tasks, with 0.03 to 10.
    """

    aggregation: Aggregation = "mean"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a one-step policy without a flow."""
        super().__post_init__()
        require_positive(alpha=self.alpha)


class FQL(OfflineAgent[FQLConfig]):
    """Flow Q-learning; ``policy`` is the one-step policy.

    Attributes:
        flow: the policy that clones.

    Raises:
        UserError: if the policy has no noise to distil by, or clips what the one-step policy shall learn from.
    """

    Config = FQLConfig
    _parts = (*OfflineAgent._parts, "flow", "critics", "optimizer")

    def __init__(self, policy: GenerativePolicy, config: FQLConfig, *, iterations: int, seed: int) -> None:
        refuse_unexecuted(policy)
        if getattr(policy.process, "clip", 0) is not None:
            raise UserError(
                "agent=fql needs a flow that does not clip its moves, since nothing is learned beyond a clip; "
                "use policy=flow policy.process.clip=null"
            )
        self.flow = policy.requires_grad_(True)
        one_step = copy.deepcopy(policy)
        one_step.steps = 1
        super().__init__(one_step, config, iterations=iterations, seed=seed)
        self.critics = Critics(policy.features, policy.action_shape, config, policy.device)
        self.optimizer = adamw(nn.ModuleList([self.flow, self.policy]), config.policy_lr)

    @property
    def _policy_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        """One step of the critics and of both policies."""
        features, after = self._encode(batch)
        with torch.no_grad():
            action = self.policy.sample(after, self._noise(*batch.action.shape), features=after).clamp_(-1, 1)
            future = self.critics.target_value(after, action, self.generator)
        metrics = self.critics.learn(features, batch.action, batch.reward + batch.discount * future)
        self.gradient_steps += 1
        return metrics | self._learn_policies(batch, features)

    def _learn_policies(self, batch: Decisions, features: Tensor) -> dict[str, Tensor]:
        """One step of the sum of the flow's loss, the distance of the one-step policy to it, and minus its value."""
        noise = self._noise(*batch.action.shape)
        with torch.no_grad(), fixed_weights(self.flow):
            shown = self.flow.sample(features, noise, features=features).clamp_(-1, 1)
        cloning = self.flow.loss(batch.obs, batch.action, mask=batch.mask, generator=self.generator).mean()
        action = self.policy.sample(features, noise, features=features)
        distance = (action - shown).square().mean()
        value = self.critics.hope(self.critics.online.frozen_view()(features, action.clamp(-1, 1)))
        loss = cloning + self.config.alpha * distance + climbing(value)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        figures = {"cloning": cloning, "distance": distance, "value": value.mean()}
        return {f"policy/{name}": figure.detach() for name, figure in figures.items()}

    def _deployed(self) -> DeployedPolicy:
        # Within the bounds that the critics judged it in.
        bounded, process = copy.copy(self.policy), copy.copy(cast(RectifiedFlow, self.policy.process))
        bounded.process, process.clip = process, 1.0
        return bounded.deploy()
