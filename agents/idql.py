"""IDQL: implicit values choose among the samples of a policy that only clones (Hansen-Estruch et al. 2023, 2304.10573).

Learning values and cloning share nothing, so neither can spoil the other. Of the candidates the best acts, the paper's
deterministic variant; moves are DDIM's, without noise of their own.
"""

from dataclasses import dataclass

from torch import Tensor

from diffpolicy_rl.agents._candidates import LeastValueCandidate
from diffpolicy_rl.agents._implicit import ImplicitAgent, ImplicitConfig
from diffpolicy_rl.errors import require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.types import DeployedPolicy


@dataclass(frozen=True)
class IDQLConfig(ImplicitConfig):
    """Settings of IDQL, beside those of ``ImplicitConfig``.

    Attributes:
        candidates: M, samples to choose from when acting.
    """

    candidates: int = 16

    def __post_init__(self) -> None:
        """Refuse no candidates."""
        super().__post_init__()
        require_positive(candidates=self.candidates)


class IDQL(ImplicitAgent[IDQLConfig]):
    """Implicit diffusion Q-learning."""

    Config = IDQLConfig

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        """One step of the values, and one of the policy, which does not see them."""
        return self._learn_values(batch, *self._encode(batch)).metrics | self._clone(batch)

    def _deployed(self) -> DeployedPolicy:
        return LeastValueCandidate(self.policy, self.values.critics.target, self.config.candidates)
