"""Consistency models: from any point of a path straight to its action (Song et al. 2023; Song & Dhariwal 2023)."""

from typing import ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.process import Time, masked_mse


class Consistency(RectifiedFlow):
    """Trained without a teacher, on the paths of rectified flow: f(x, t) = x + (1 - t) net(x, t, 1, cond) is an action.

    The net predicts the average velocity to the action, so that f(x, 1) = x by construction. Its stop time is always
    the action's, wherever the sampler stops: it knows one time only. A move goes to the predicted action and back to
    s, with the noise of x for eta = 0 (DDIM's move), and with fresh noise for eta = 1 (Song et al. 2023, algorithm 1).

    Args:
        levels: number of neighbouring pairs of times, evenly spaced. More are less biased and learn more slowly. The
            sampler stops at trained times only: K must divide ``levels``.
        huber: c of the pseudo-Huber distance, in normalised action units. Song & Dhariwal's 0.00054 is for images; with
            few action dimensions it makes a median of what must be a mean, which favours the more frequent mode.
        clip: see ``RectifiedFlow``.
    """

    two_times: ClassVar[bool] = False

    def __init__(self, levels: int = 20, huber: float = 0.3, clip: float | None = 1.0) -> None:
        super().__init__(clip)
        require_positive(levels=levels, huber=huber)
        self.levels, self.huber = levels, huber

    def grid(self, steps: int) -> list[float]:
        """t_k = k / K, times that the net is trained at."""
        if self.levels % steps:
            raise UserError(f"policy.steps={steps} must divide the {self.levels} times the policy is trained at")
        return super().grid(steps)

    def sample_times(self, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Times (B,) on the grid, without the last, which is the action's."""
        t = torch.randint(self.levels, (batch,), generator=generator) / self.levels
        return t, t

    def loss(
        self, net: DenoisingNet, action: Tensor, noise: Tensor, t: Tensor, s: Tensor, cond: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Pseudo-Huber distance per sample of the actions seen from t and, held fixed, from the next time of the grid.

        Song & Dhariwal 2023, sections 3.2 and 3.3, divided by the root of the number of entries. Both points share
        their noise; the target is the online net's.
        """
        after = (t + 1 / self.levels).clamp(max=1)
        with torch.no_grad():
            target = self._action(net, torch.lerp(noise, action, after.view(-1, 1, 1)), after, cond)
        seen = self._action(net, torch.lerp(noise, action, t.view(-1, 1, 1)), t, cond)
        return (masked_mse(seen, target, mask) + self.huber**2).sqrt() - self.huber

    def std(self, t: Time, s: Time, eta: float) -> Time:
        """Eta times the noise level at s: for eta = 1, all noise is drawn afresh."""
        return eta * (1 - s)  # pyright: ignore[reportReturnType]

    def _action(self, net: DenoisingNet, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """The action (B, H, D) that x (B, H, D) at times (B,) leads to."""
        return x + (1 - t).view(-1, 1, 1) * net(x, t, torch.ones_like(t), cond)
