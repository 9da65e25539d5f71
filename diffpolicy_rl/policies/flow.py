"""Rectified flow: straight lines from noise to action (Liu et al. 2022; Lipman et al. 2022)."""

from typing import ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.process import Time, combined, masked_mse


class RectifiedFlow:
    """x_t = (1 - t) z + t a; the net learns the velocity a - z; a move is one Euler step.

    Args:
        clip: bound on the mean of every move, in normalised units, as ReinFlow samples (section 4.2), or None. The clip
            is part of the sampler: a policy fine-tuned with it must be deployed with it.
    """

    two_times: ClassVar[bool] = False

    def __init__(self, clip: float | None = 1.0) -> None:
        self.clip = clip

    def grid(self, steps: int) -> list[float]:
        """t_k = k / K."""
        return [k / steps for k in range(steps + 1)]

    def sample_times(self, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Uniform times (B,)."""
        t = torch.rand(batch, generator=generator)
        return t, t

    def loss(
        self, net: DenoisingNet, action: Tensor, noise: Tensor, t: Tensor, s: Tensor, cond: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Conditional flow-matching loss per sample (Lipman et al. 2022, eq. 9 with straight paths)."""
        x = torch.lerp(noise, action, t.view(-1, 1, 1))
        return masked_mse(net(x, t, s, cond), action - noise, mask)

    def step(self, x: Tensor, pred: Tensor, t: Time, s: Time, eta: float) -> tuple[Tensor, Time]:
        """Euler step from t to s with eta = 0; beyond, part of the noise that remains at s is drawn afresh.

        The velocity tells the clean action x + (1 - t) v and the noise x - t v, so the move is DDIM's (Song et al.
        2020, eq. 12) with the signal level t and the noise level 1 - t; marginals do not depend on eta.
        """
        std = self.std(t, s, eta)
        kept = ((1 - s) ** 2 - std**2) ** 0.5
        mean = combined(x, s + kept, pred, s * (1 - t) - kept * t)
        return (mean if self.clip is None else mean.clamp(-self.clip, self.clip)), std

    def std(self, t: Time, s: Time, eta: float) -> Time:
        """Eta times the std of the posterior of x_s given x_t and the action; 0 for the last move."""
        return eta * (1 - s) * (1 - (t / s * (1 - s) / (1 - t)) ** 2) ** 0.5  # pyright: ignore[reportReturnType]
