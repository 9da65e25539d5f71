"""TD3+BC: a deterministic actor that clones and climbs (Fujimoto & Gu 2021, arXiv 2106.06860)."""

from dataclasses import dataclass

from torch import Tensor

from diffpolicy_rl.agents._guided import Guided, GuidedConfig
from diffpolicy_rl.errors import UserError, require_not_negative, require_positive
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.policy import GenerativePolicy


@dataclass(frozen=True)
class TD3BCConfig(GuidedConfig):
    """Settings of TD3+BC, beside those of ``GuidedConfig``; ``eta`` is the paper's alpha.

    Attributes:
        smoothing: std of the noise on the actions in TD targets, in normalised units.
        smoothing_clip: bound on it.
    """

    eta: float = 2.5
    policy_every: int = 2
    candidates: int = 1
    exploration: float = 0.1
    smoothing: float = 0.2
    smoothing_clip: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what a deterministic policy cannot have."""
        super().__post_init__()
        require_positive(smoothing_clip=self.smoothing_clip)
        require_not_negative(smoothing=self.smoothing)
        if self.candidates > 1 or self.max_backup > 1:
            raise UserError("agent=td3_bc has one action per observation; set candidates=1 and max_backup=1")


class TD3BC(Guided[TD3BCConfig]):
    """TD3 with a term of behaviour cloning.

    Raises:
        UserError: if the policy is not deterministic.
    """

    Config = TD3BCConfig

    def __init__(self, policy: GenerativePolicy, config: TD3BCConfig, *, iterations: int, seed: int) -> None:
        if not isinstance(policy.process, Gaussian):
            raise UserError("agent=td3_bc needs a policy that maps observations to actions; use policy=gaussian")
        super().__init__(policy, config, iterations=iterations, seed=seed)

    def _next_action(self, features: Tensor) -> Tensor:
        action, bound = super()._next_action(features), self.config.smoothing_clip
        noise = (self.config.smoothing * self._noise(*action.shape)).clamp_(-bound, bound)
        return (action + noise).clamp_(-1, 1)
