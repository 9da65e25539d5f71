"""How much noise a policy explores with: the standard deviation of every sampling move."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffpolicy_rl.nets.mlp import NoiseNet


class StdRule(nn.Module):
    """Base of the rules; what a chain's likelihood depends on beside the process lives here.

    Attributes:
        eta: stochasticity the process is asked for.
        noise_clip: unit noise is clipped to this many standard deviations (3 in DPPO and ReinFlow).
    """

    eta: float
    noise_clip: float = 3.0

    def forward(self, process_std: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Stds (B, K', H, D), or broadcastable, of moves with the stds (K',), start times (K',), cond (B, F)."""
        raise NotImplementedError


class FloorStd(StdRule):
    """The process's own noise, but at least ``floor``, also at the last move (DPPO, section 4.3).

    With a process that has no noise of its own this is fixed-noise exploration.
    """

    def __init__(self, floor: float = 0.1, eta: float = 1.0) -> None:
        super().__init__()
        self.floor, self.eta = floor, eta

    def forward(self, process_std: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """(1, K', 1, 1)."""
        return process_std.to(cond.dtype).clamp(min=self.floor).view(1, -1, 1, 1)


class FreeStd(StdRule):
    """A learned std per action dimension that depends on nothing (Schulman et al. 2017, section 6.1).

    Args:
        action_dim: D.
        initial: std at the start, in normalised action units.
    """

    eta = 0.0
    noise_clip = math.inf

    def __init__(self, action_dim: int, initial: float) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((action_dim,), math.log(initial)))

    def forward(self, process_std: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """(1, 1, 1, D)."""
        return self.log_std.exp().view(1, 1, 1, -1)


class LearnedStd(StdRule):
    """ReinFlow's noise net: sigma(t, o), log-uniform between two bounds (Zhang et al. 2025, section 4.1).

    sigma = low * (high / low) ** ((1 + tanh u) / 2). The agent may move ``high`` from iteration to iteration.
    """

    eta = 0.0
    high: Tensor

    def __init__(
        self, horizon: int, action_dim: int, cond_dim: int, low: float, high: float, hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        self.net = NoiseNet(horizon, action_dim, cond_dim, hidden)
        self.low = low
        self.register_buffer("high", torch.tensor(high))

    def forward(self, process_std: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """(B, K', H, D)."""
        fraction = (1 + torch.tanh(self.net(t.to(cond.dtype), cond))) / 2
        return self.low * (self.high / self.low) ** fraction
