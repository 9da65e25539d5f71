"""Mean flow: average velocities from one derivative, without half steps (Geng et al. 2025, arXiv 2505.13447)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffpolicy_rl.errors import UserError, require_not_negative, require_positive
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.process import masked_mse


class MeanFlow(RectifiedFlow):
    """A flow whose net(x, t, s, cond) is the average velocity u from t to s, and the instantaneous one where s = t.

    (s - t) u is the integral of the velocity from t to s; its derivative by t, with s fixed, gives
    u = v + (s - t) du/dt. The paper's time runs the other way, and its signs are the opposite. Moves are those of
    ``RectifiedFlow``: exact for eta = 0; beyond, the average velocity stands in for the instantaneous one.

    The target holds the net's own derivative by time: give the net a smooth time embedding, as ``policy=meanflow``
    does (time_scale=3). With the usual one, which tells hundredths of the time axis apart, it learns far more slowly.

    Args:
        instant: share of rows with s = t, which train the velocity alone (the flow ratio of OFQL, arXiv 2508.13904).
        times: how the two times of a row are drawn before they are sorted.
        mean: of the normal before the logistic function, logit_normal only; 0.4 here is the papers' -0.4.
        std: its standard deviation.
        power: p of the weights 1 / (error + offset)^p. The paper takes 1 for images; 0, as OFQL, is plain regression,
            whose optimum is the mean velocity. Weights pull it towards the more frequent of few modes.
        offset: c of the weights, in squared normalised units per action dimension.
        clip: see ``RectifiedFlow``.
    """

    two_times: ClassVar[bool] = True

    def __init__(
        self,
        instant: float = 0.5,
        times: Literal["logit_normal", "uniform"] = "logit_normal",
        mean: float = 0.4,
        std: float = 1.0,
        power: float = 0.0,
        offset: float = 1e-3,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__(clip)
        require_positive(std=std, offset=offset)
        if not 0 < instant < 1:
            raise UserError(f"instant={instant} must lie between 0 and 1: averages are learned from velocities")
        require_not_negative(power=power)
        self.instant, self.times, self.mean, self.std_of_logit = instant, times, mean, std
        self.power, self.offset = power, offset

    def sample_times(self, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Times (B,): the smaller and the larger of two draws, or twice the smaller in ``instant`` of the rows."""
        if self.times == "uniform":
            pair = torch.rand(2, batch, generator=generator)
        else:
            pair = torch.sigmoid(self.mean + self.std_of_logit * torch.randn(2, batch, generator=generator))
        t, s = pair.amin(0), pair.amax(0)
        return t, torch.where(torch.rand(batch, generator=generator) < self.instant, t, s)

    def loss(
        self, net: DenoisingNet, action: Tensor, noise: Tensor, t: Tensor, s: Tensor, cond: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Squared distance per sample to the mean-flow target, held fixed (Geng et al. 2025, algorithm 1)."""
        x, target = torch.lerp(noise, action, t.view(-1, 1, 1)), action - noise
        rows = (s > t).nonzero().squeeze(1)
        if len(rows):
            with torch.no_grad():
                slope = net.slope(x[rows], t[rows], s[rows], cond[rows], target[rows])
            target.index_add_(0, rows, (s - t)[rows].view(-1, 1, 1) * slope)
        error = masked_mse(net(x, t, s, cond), target, mask)
        return error if self.power == 0 else error * (error.detach() + self.offset) ** -self.power
