"""Regression of a one-step student on what a teacher makes of the same noise.

The student is a flow that makes one Euler step. A teacher whose noise is not one chunk, as one that selects among
candidates, has a student without noise: the mean of what it does.
"""

from torch import Tensor

from diffpolicy_rl.agents._student import StudentAgent, StudentConfig
from diffpolicy_rl.experience.decisions import Decisions


class Regress(StudentAgent):
    """A student by regression; settings are those of ``StudentConfig``."""

    Config = StudentConfig

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        loss = self._regression(batch, self._noise(len(batch), *self.policy.action_shape))
        return {"loss": loss.detach(), "grad_norm": self._descend(loss)}
