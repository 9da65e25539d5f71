"""What agents share that learn a policy and critics from data alone, and may go on with what they live through."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from diffpolicy_rl.agents._base import cosine, set_lr
from diffpolicy_rl.agents._replay import ReplayAgent, ReplayConfig
from diffpolicy_rl.errors import UserError, require_not_negative, require_positive
from diffpolicy_rl.experience.replay import Experience, Mixing
from diffpolicy_rl.types import Extras, Obs


@dataclass(frozen=True)
class OfflineConfig(ReplayConfig):
    """Settings of agents that learn from data first, beside those of ``ReplayConfig``.

    Target critics follow fast, because values must come from as far as the horizon within 50,000 steps; published
    settings have tau = 0.005 and a million steps.

    Attributes:
        policy_lr: learning rate of the policy.
        policy_final_lr: the same at the end of half a cosine from policy_lr; None to stay there.
        exploration: std of the noise on deployed actions while exploring online, in normalised units.
    """

    mixing: Mixing = "proportional"
    tau: float = 0.02
    policy_lr: float = 3e-4
    policy_final_lr: float | None = None
    exploration: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that leave nothing to learn from."""
        super().__post_init__()
        require_positive(policy_lr=self.policy_lr)
        if self.policy_final_lr is not None:
            require_not_negative(policy_final_lr=self.policy_final_lr)
        if self.mixing == "none":
            raise UserError("mixing=none leaves no data to learn from offline; use mixing=half or proportional")
        require_not_negative(exploration=self.exploration)


Settings = TypeVar("Settings", bound=OfflineConfig)


class OfflineAgent(ReplayAgent, Generic[Settings]):
    """Learns from data; online, it does what it would do deployed, with a little noise."""

    phases: ClassVar[tuple[str, ...]] = ("offline", "online")
    config: Settings

    @property
    @abstractmethod
    def _policy_optimizer(self) -> torch.optim.Optimizer:
        """What ``policy_lr`` is the learning rate of."""

    def update(self, buffer: Experience) -> Mapping[str, Tensor]:
        """As ``ReplayAgent`` does, at the policy's learning rate of now."""
        start, end = self.config.policy_lr, self.config.policy_final_lr
        if end is not None:
            set_lr(self._policy_optimizer, cosine(self.updates / self.iterations, start, end))
        return super().update(buffer)

    def _decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        action = self.policy.action_normalizer(self._deployed_action(obs))
        noise = self.config.exploration * self._noise(*action.shape)
        return torch.clamp(action + noise, -1, 1), {}

    def _first_decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        return self._decision(obs)  # it has learned offline
