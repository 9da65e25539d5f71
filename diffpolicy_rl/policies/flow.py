"""Rectified flow: straight lines from noise to action (Liu et al. 2022; Lipman et al. 2022)."""

import torch
from torch import Tensor

from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.process import Time, masked_mse


class RectifiedFlow:
    """x_t = (1 - t) z + t a; the net learns the velocity a - z; a move is one Euler step.

    Args:
        clip: bound on the mean of every move, in normalised units, as ReinFlow samples (section 4.2), or None. The clip
            is part of the sampler: a policy fine-tuned with it must be deployed with it.
    """

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
        """Euler step from t to s; a flow has no noise of its own, so eta is not used and the std is 0."""
        width = s - t
        mean = x + pred * (width.to(x.dtype) if isinstance(width, Tensor) else width)
        return (mean if self.clip is None else mean.clamp(-self.clip, self.clip)), self.std(t, s, eta)

    def std(self, t: Time, s: Time, eta: float) -> Time:
        """0: all exploration noise of a flow comes from its StdRule."""
        return 0.0 * t
