"""A Gaussian policy as a process of one move, whose mean does not depend on the noise it starts from."""

from typing import ClassVar

import torch
from torch import Tensor

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.process import Time, masked_mse


class Gaussian:
    """The net predicts the action itself; all exploration noise comes from the policy's StdRule.

    Use it with a net that ignores the noisy chunk, as ``ConditionMLP``.
    """

    two_times: ClassVar[bool] = False

    def grid(self, steps: int) -> list[float]:
        """One move from 0 to 1."""
        if steps != 1:
            raise UserError(f"policy.steps={steps}, but a Gaussian policy makes one move; set policy.steps=1")
        return [0.0, 1.0]

    def sample_times(self, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Zeros (B,): there is nothing to draw."""
        return torch.zeros(batch), torch.zeros(batch)

    def loss(
        self, net: DenoisingNet, action: Tensor, noise: Tensor, t: Tensor, s: Tensor, cond: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Squared error per sample: the negative log-likelihood at fixed std, up to constants."""
        return masked_mse(net(noise, t, s, cond), action, mask)

    def step(self, x: Tensor, pred: Tensor, t: Time, s: Time, eta: float) -> tuple[Tensor, Time]:
        """To the prediction, wherever x is."""
        return pred, self.std(t, s, eta)

    def std(self, t: Time, s: Time, eta: float) -> Time:
        """0: the noise is the StdRule's."""
        return 0.0 * t
