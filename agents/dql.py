"""DQL: a diffusion policy differentiated through its whole chain (Wang et al. 2022, arXiv 2208.06193).

With ``one_pass`` it is EDP instead (Kang et al. 2023, arXiv 2305.20081): the action that the critics judge is what the
cloning loss's own forward says the clean action is, so that no chain is run to learn.

Differences from the public code: moves are DDIM's, without noise of their own; the moving average of the policy acts,
too, and follows from the first step; values are divided by the mean size of the same critic's; critics normalise their
layers, and have ReLUs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_rl.agents._guided import Guided, GuidedConfig
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.nets.base import Remembering
from diffpolicy_rl.policies.process import Drawn


@dataclass(frozen=True)
class DQLConfig(GuidedConfig):
    """Settings of DQL, beside those of ``GuidedConfig``.

    Attributes:
        one_pass: judge the clean action that the cloning loss's forward implies, as EDP does, instead of a sample.
    """

    one_pass: bool = False


class DQL(Guided[DQLConfig]):
    """Diffusion Q-learning; what it is given may be any policy that denoises."""

    Config = DQLConfig

    def _proposal(self, batch: Decisions, features: Tensor, noise: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        if not self.config.one_pass:
            return super()._proposal(batch, features, noise, drawn)
        policy, net = self.base.online, Remembering(self.base.online.net)
        loss = policy.loss(batch.obs, batch.action, mask=batch.mask, net=net, features=features, **drawn).mean()
        # What one move from there to the end of the chain leads to.
        t = net.t.double().view(-1, 1, 1)
        return loss, policy.process.step(net.x, net.pred, t, torch.ones_like(t), 0.0)[0]
