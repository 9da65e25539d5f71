"""RLPD: SAC with prior data (Ball et al. 2023, arXiv 2302.02948).

Half of every batch is demonstrations; ten critics with LayerNorm, of which TD targets see two, keep many steps per
decision stable.
"""

from dataclasses import dataclass

from diffpolicy_rl.agents._sac import SoftActorCritic, SoftConfig
from diffpolicy_rl.experience.replay import Mixing
from diffpolicy_rl.nets.critics import Aggregation


@dataclass(frozen=True)
class RLPDConfig(SoftConfig):
    """Settings of RLPD: those of ``SoftConfig`` with the paper's defaults."""

    utd: float = 20.0
    actor_every: int = 20
    prefill: int = 5000
    mixing: Mixing = "half"
    critics: int = 10
    aggregation: Aggregation = "subset_min"


class RLPD(SoftActorCritic):
    """Soft actor-critic with prior data."""

    Config = RLPDConfig
