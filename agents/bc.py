"""Behaviour cloning: regress the policy on demonstrations, deploy the moving average of its weights.

Settings are DPPO's pre-training (Ren et al. 2024, appendix D), with a larger batch and the average updated from the
start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from diffpolicy_rl.agents._cloning import CloningAgent, CloningConfig
from diffpolicy_rl.errors import require_not_negative, require_positive
from diffpolicy_rl.experience.buffers import Demonstrations
from diffpolicy_rl.nets.base import Watched
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.process import dispersive_loss


@dataclass(frozen=True)
class BCConfig(CloningConfig):
    """Settings of behaviour cloning, beside those of ``CloningConfig``.

    Attributes:
        dispersive: weight of the dispersive loss on the net's hidden features; D2PPO takes 0.3 to 0.9.
        temperature: its temperature.
    """

    dispersive: float = 0.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        """Refuse settings that no update could be made with."""
        super().__post_init__()
        require_positive(temperature=self.temperature)
        require_not_negative(dispersive=self.dispersive)


class BC(CloningAgent):
    """Behaviour cloning of a generative policy."""

    Config = BCConfig
    data: ClassVar[Literal["rollout", "replay"]] = "replay"
    phases: ClassVar[tuple[str, ...]] = ("bc",)
    config: BCConfig

    def __init__(self, policy: GenerativePolicy, config: BCConfig, *, iterations: int, seed: int) -> None:
        self.watched = Watched(policy.net) if config.dispersive else None
        super().__init__(policy, config, iterations=iterations, seed=seed)

    def update(self, buffer: Demonstrations) -> Mapping[str, Tensor]:
        """``config.steps`` gradient steps on random windows."""
        steps = [self._gradient_step(buffer) for _ in range(self.config.steps)]
        self.updates += 1
        return self._means(steps)

    def _gradient_step(self, buffer: Demonstrations) -> dict[str, Tensor]:
        """One step on one batch; returns its regression loss, dispersive loss if there is one, and gradient norm."""
        batch = buffer.sample(self.config.batch, self.generator)
        losses = self.online.loss(batch.obs, batch.action, mask=batch.mask, net=self.watched, generator=self.generator)
        loss = total = losses.mean()
        metrics = {"loss": loss.detach()}
        if self.watched is not None:
            spread = dispersive_loss(self.watched.hidden, self.config.temperature)
            total = loss + self.config.dispersive * spread
            metrics["dispersive"] = spread.detach()
        return metrics | {"grad_norm": self._descend(total)}
