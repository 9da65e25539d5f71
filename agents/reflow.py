"""A few-step process taught by a teacher: its own loss, on the teacher's pairs of noise and action.

The pairs straighten what a flow has to learn (reflow, Liu et al. 2022, arXiv 2209.03003). A shortcut model (Frans et
al. 2024), a mean flow (Geng et al. 2025) or a consistency model distils itself on them, with no derivative of the
teacher, and still samples in more steps than one.
"""

from torch import Tensor

from diffpolicy_rl.agents._student import StudentAgent, StudentConfig
from diffpolicy_rl.experience.decisions import Decisions


class Reflow(StudentAgent):
    """A student whose process distils itself; settings are those of ``StudentConfig``."""

    Config = StudentConfig

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        noise = self._noise(len(batch), *self.policy.action_shape)
        taught = self._taught(batch.obs, noise)
        loss = self.online.loss(batch.obs, taught, noise=noise, generator=self.generator).mean()
        return {"loss": loss.detach(), "grad_norm": self._descend(loss)}
