"""OFQL: Diffusion-QL on a mean flow, which acts and learns in one step (Nguyen & Yoo 2025, arXiv 2508.13904).

Actions are z + u(z, 0, 1), so that TD targets and the gradient of the critics need one pass through the net instead of
a chain; cloning is mean flow's own regression, with one derivative. Public time runs the other way than the paper's.
"""

from dataclasses import dataclass

from diffpolicy_rl.agents._guided import Guided, GuidedConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.policy import GenerativePolicy


@dataclass(frozen=True)
class OFQLConfig(GuidedConfig):
    """Settings of OFQL, which are those of ``GuidedConfig``; the paper has eta from 0.001 (Kitchen) to 0.5."""

    eta: float = 0.1


class OFQL(Guided[OFQLConfig]):
    """One-step flow Q-learning.

    Raises:
        UserError: if the policy is not made to move from noise to action in one step.
    """

    Config = OFQLConfig

    def __init__(self, policy: GenerativePolicy, config: OFQLConfig, *, iterations: int, seed: int) -> None:
        if policy.steps != 1 or not policy.process.two_times:
            raise UserError(
                "agent=ofql learns with policies whose one step is as good as many; use policy=meanflow policy.steps=1"
            )
        super().__init__(policy, config, iterations=iterations, seed=seed)
