"""Shortcut models: one net for moves of several lengths, trained from scratch (Frans et al. 2024, arXiv 2410.12557)."""

from typing import ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.process import masked_mse


class Shortcut(RectifiedFlow):
    """A flow whose net(x, t, s, cond) is the average velocity from t to s, and the instantaneous one where s = t.

    Moves have the lengths 1, 1/2, ..., 2^(1 - levels). A move learns to equal its two halves, and the halves of the
    shortest move are instantaneous velocities, which learn from the data. Moves are those of ``RectifiedFlow``: exact
    for eta = 0; beyond, the average velocity stands in for the instantaneous one.

    Args:
        levels: number of lengths; the sampler takes K = 1, 2, ..., 2^(levels - 1) steps. ReinFlow's public code draws
            from far more of them than it ever samples with.
        fraction: share of rows that train a move; the others train the velocity.
        clip: see ``RectifiedFlow``.
    """

    two_times: ClassVar[bool] = True

    def __init__(self, levels: int = 4, fraction: float = 0.25, clip: float | None = 1.0) -> None:
        super().__init__(clip)
        require_positive(levels=levels)
        if not 0 < fraction < 1:
            raise UserError(f"fraction={fraction} must lie between 0 and 1: moves are learned from velocities")
        self.levels, self.fraction = levels, fraction

    def grid(self, steps: int) -> list[float]:
        """t_k = k / K; K must be a number of equal moves that the net is trained on."""
        known = [2**level for level in range(self.levels)]
        if steps not in known:
            raise UserError(f"policy.steps={steps} must be one of {known}, the moves that process.levels trains")
        return super().grid(steps)

    def sample_times(self, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Times (B,): s = t uniform, but in ``fraction`` of the rows a length d, t a multiple of d, and s = t + d."""
        length = 0.5 ** torch.randint(self.levels, (batch,), generator=generator)
        move = torch.rand(batch, generator=generator) < self.fraction
        t = torch.rand(batch, generator=generator)
        t = torch.where(move, (t / length).floor() * length, t)
        return t, torch.where(move, t + length, t)

    def loss(
        self, net: DenoisingNet, action: Tensor, noise: Tensor, t: Tensor, s: Tensor, cond: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Flow matching where s = t, self-consistency where s > t (Frans et al. 2024, algorithm 1), per sample.

        The online net is its own target, as in ReinFlow; the averaged net of the paper would need a second copy.
        """
        x, target = torch.lerp(noise, action, t.view(-1, 1, 1)), action - noise
        rows = (s > t).nonzero().squeeze(1)
        if len(rows):
            target[rows] = self._halves(net, x[rows], t[rows], s[rows], cond[rows])
        return masked_mse(net(x, t, s, cond), target, mask)

    @torch.no_grad()
    def _halves(self, net: DenoisingNet, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """Average velocity (B, H, D) of two moves of half the length, the second from where the first ends."""
        middle = (t + s) / 2
        shortest = s - t < 1.5 * 0.5 ** (self.levels - 1)
        first = net(x, t, torch.where(shortest, t, middle), cond)
        x = x + (middle - t).view(-1, 1, 1) * first
        return (first + net(x, middle, torch.where(shortest, middle, s), cond)) / 2
