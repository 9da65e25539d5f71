"""IQL: implicit values, and a policy that clones by the exponential of advantages (Kostrikov et al. 2021).

Any policy's regression loss can be weighted; with policy=gaussian it is the paper's, at a fixed std.
"""

from dataclasses import dataclass

from torch import Tensor

from diffpolicy_rl.agents._implicit import ImplicitAgent, ImplicitConfig
from diffpolicy_rl.errors import require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.types import DeployedPolicy


@dataclass(frozen=True)
class IQLConfig(ImplicitConfig):
    """Settings of IQL, beside those of ``ImplicitConfig``.

    Attributes:
        temperature: beta, what advantages are multiplied by in the exponent.
        max_weight: bound on the exponential.
    """

    exploration: float = 0.1
    temperature: float = 3.0
    max_weight: float = 100.0

    def __post_init__(self) -> None:
        """Refuse weights that order nothing."""
        super().__post_init__()
        require_positive(temperature=self.temperature, max_weight=self.max_weight)


class IQL(ImplicitAgent[IQLConfig]):
    """Implicit Q-learning."""

    Config = IQLConfig

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        """One step of the values, and one of the policy."""
        q, value, metrics = self._learn_values(batch, *self._encode(batch))
        weights = (self.config.temperature * (q - value)).exp().clamp(max=self.config.max_weight)
        return metrics | self._clone(batch, weights)

    def _deployed(self) -> DeployedPolicy:
        return self.policy.deploy()
