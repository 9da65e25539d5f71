"""Values of the data's own actions, by expectile regression: what IQL, IDQL and FISOR have in common.

V(s) is an expectile of Q(s, a) over the actions of the data, and Q learns from V(s'): no action that is not in the data
is ever judged (Kostrikov et al. 2021, arXiv 2110.06169).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from diffpolicy_rl.agents._base import Stateful, adamw
from diffpolicy_rl.agents._candidates import ClonedBase
from diffpolicy_rl.agents._offline import OfflineAgent, OfflineConfig
from diffpolicy_rl.agents._replay import Critics
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience
from diffpolicy_rl.nets.mlp import MLP
from diffpolicy_rl.policies.policy import GenerativePolicy

_RETURN_SPAN = 1000.0  # of the data's returns, once scaled (Kostrikov et al. 2021, section 5)


@dataclass(frozen=True)
class ImplicitConfig(OfflineConfig):
    """Settings of agents with implicit values, beside those of ``OfflineConfig``.

    Attributes:
        expectile: of the actions' values that V(s) is; towards 1 it is that of the best action.
        policy_tau: how far the policy that acts moves to the one that learns at each of its steps.
    """

    expectile: float = 0.7
    policy_tau: float = 0.001

    def __post_init__(self) -> None:
        """Refuse what is no expectile, and what has no effect."""
        super().__post_init__()
        require_positive(policy_tau=self.policy_tau)
        if self.aggregation != "min":
            raise UserError(f"aggregation={self.aggregation} has no effect here: values are those of the worse critic")
        if not 0 < self.expectile < 1:
            raise UserError(f"expectile={self.expectile} must lie between 0 and 1")


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """|expectile - 1(error < 0)| error^2 of errors (...), target less prediction (Newey & Powell 1987)."""
    return torch.where(error < 0, 1 - expectile, expectile) * error.square()


class Learned(NamedTuple):
    """A batch's values before a step, and the step's metrics.

    Attributes:
        q: Q(s, a) of the target critics (B,).
        value: V(s) (B,).
        metrics: by name.
    """

    q: Tensor
    value: Tensor
    metrics: dict[str, Tensor]


class ImplicitValues(Stateful):
    """Critics, and the state value that is an expectile of theirs.

    Args:
        features: F.
        action_shape: of one action.
        config: settings.
        device: where they are.
        expectile: of the actions' values.
        reduce: from the heads' values (E, B) to one (B,).
    """

    _parts = ("critics", "value", "optimizer")

    def __init__(
        self,
        features: int,
        action_shape: tuple[int, ...],
        config: ImplicitConfig,
        device: torch.device,
        expectile: float,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self.critics = Critics(features, action_shape, config, device)
        self.value = MLP(features, config.critic_hidden, 1, "relu", config.layer_norm).to(device)
        self.optimizer, self.expectile, self.reduce = adamw(self.value, config.critic_lr), expectile, reduce

    def learn(self, features: Tensor, after: Tensor, action: Tensor, backup: Callable[[Tensor], Tensor]) -> Learned:
        """One gradient step of the state value, and one of the critics.

        Args:
            features: (B, F) at the data's observations.
            after: (B, F) at what followed.
            action: (B, A, D) of the data.
            backup: from V(s') (B,) to the critics' targets (B,).
        """
        with torch.no_grad():
            q = self.reduce(self.critics.target(features, action))
            following = self.value(after).squeeze(-1)
        value = self.value(features).squeeze(-1)
        loss = expectile_loss(q - value, self.expectile).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        metrics = self.critics.learn(features, action, backup(following))
        return Learned(q, value.detach(), metrics | {"value/loss": loss.detach()})


Settings = TypeVar("Settings", bound=ImplicitConfig)


class ImplicitAgent(OfflineAgent[Settings]):
    """Implicit values beside a policy that clones the data; subclasses weigh the data, or choose among samples.

    Rewards are scaled so that the data's returns span 1000 (Kostrikov et al. 2021, section 5): weights are exponentials
    of advantages, and would otherwise depend on the task's units.

    Attributes:
        reward_scale: what rewards are multiplied by; 0 before the data was seen.

    Raises:
        UserError: if the policy predicts more actions than are executed.
    """

    _parts = (*OfflineAgent._parts, "base", "values")
    _counters = (*OfflineAgent._counters, "reward_scale")

    def __init__(self, policy: GenerativePolicy, config: Settings, *, iterations: int, seed: int) -> None:
        self.base = ClonedBase(policy, config.policy_lr, config.policy_tau)
        super().__init__(self.base.average, config, iterations=iterations, seed=seed)
        self.reward_scale = 0.0
        self.values = ImplicitValues(
            policy.features, policy.action_shape, config, policy.device, config.expectile, lambda q: q.amin(0)
        )

    def update(self, buffer: Experience) -> Mapping[str, Tensor]:
        """As ``OfflineAgent`` does; the first looks at the returns of the data."""
        if not self.reward_scale and buffer.demonstrations is not None:
            low, high = buffer.demonstrations.return_range()
            self.reward_scale = _RETURN_SPAN / (high - low) if high > low else 1.0
        return super().update(buffer)

    @property
    def _policy_optimizer(self) -> torch.optim.Optimizer:
        return self.base.optimizer

    def _learn_values(self, batch: Decisions, features: Tensor, after: Tensor) -> Learned:
        """One step of the values of reward."""
        reward = self.reward_scale * batch.reward
        return self.values.learn(features, after, batch.action, lambda value: reward + batch.discount * value)

    def _clone(self, batch: Decisions, weights: Tensor | None = None) -> dict[str, Tensor]:
        """One step of the policy's own regression loss, weighted by (B,)."""
        losses = self.base.online.loss(batch.obs, batch.action, mask=batch.mask, generator=self.generator)
        self.base.step(losses.mean() if weights is None else (weights * losses).mean())
        self.gradient_steps += 1
        return {"policy/cloning": losses.detach().mean()}
