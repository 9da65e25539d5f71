"""SAC: soft actor-critic from scratch (Haarnoja et al. 2018, arXiv 1812.05905), the off-policy baseline."""

from dataclasses import dataclass

from diffpolicy_rl.agents._sac import SoftActorCritic, SoftConfig


@dataclass(frozen=True)
class SACConfig(SoftConfig):
    """Settings of SAC: those of ``SoftConfig``, two critics without LayerNorm, and the target entropy of the paper."""

    critic_hidden: tuple[int, ...] = (256, 256)
    actor_hidden: tuple[int, ...] = (256, 256)
    layer_norm: bool = False
    prefill: int = 10_000
    entropy_per_element: float = -1.0


class SAC(SoftActorCritic):
    """Soft actor-critic."""

    Config = SACConfig
