"""Regression of a one-step student on what a teacher makes of the same noise.

The student is a flow that makes one Euler step. A teacher whose noise is not one chunk, as one that selects among
candidates, has a student without noise: the mean of what it does. With ``value_weight`` the student climbs the critics
that its teacher selects by, too, as FQL's one-step policy does (Park et al. 2025, arXiv 2502.02538, eq. 8).
"""

from dataclasses import dataclass

from torch import Tensor

from diffpolicy_rl.agents._base import climbing
from diffpolicy_rl.agents._student import StudentAgent, StudentConfig
from diffpolicy_rl.errors import UserError, require_not_negative
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.types import DeployedPolicy


@dataclass(frozen=True)
class RegressConfig(StudentConfig):
    """Settings of regression on a teacher, beside those of ``StudentConfig``.

    Attributes:
        value_weight: of what the teacher's critics think of the student, over its mean size; 0 for regression alone.
    """

    value_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a student that would descend."""
        super().__post_init__()
        require_not_negative(value_weight=self.value_weight)


class Regress(StudentAgent):
    """A student by regression.

    Raises:
        UserError: if it shall climb what its teacher does not have.
    """

    Config = RegressConfig
    config: RegressConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def learn_from(self, teacher: DeployedPolicy) -> None:
        """Take a teacher."""
        super().learn_from(teacher)
        if self.config.value_weight and not teacher.scores:
            raise UserError("value_weight is for teachers that select by critics, which this one does not; set it to 0")

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        noise = self._noise(len(batch), *self.policy.action_shape)
        loss = self._regression(batch, noise)
        if not self.config.value_weight:
            return {"loss": loss.detach(), "grad_norm": self._descend(loss)}
        action = self.online.action_normalizer.inverse(self.online.sample(batch.obs, noise))
        value = self._known_teacher().score(batch.obs, action)
        norm = self._descend(loss + self.config.value_weight * climbing(value))
        return {"loss": loss.detach(), "grad_norm": norm, "value": value.detach().mean()}
