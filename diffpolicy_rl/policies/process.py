"""What a noise process is: how actions are corrupted, what the net learns, and how one sampling move is made.

Processes are pure and stateless. Public time runs t = 0 (noise) to t = 1 (action); a process converts inside.
"""

import math
from typing import ClassVar, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor

from diffpolicy_rl.nets.base import DenoisingNet

Time = TypeVar("Time", float, Tensor)
"""A time is a Python float in the sampling loop, or a float64 tensor that broadcasts against (..., H, D)."""


class Drawn(TypedDict):
    """What a regression loss draws for actions (B, H, D): noise (B, H, D), start and stop times (B,)."""

    noise: Tensor
    t: Tensor
    s: Tensor


class Process(Protocol):
    """A noise process.

    Attributes:
        two_times: whether the net is asked for a prediction that depends on where the move goes.
    """

    two_times: ClassVar[bool]

    def grid(self, steps: int) -> list[float]:
        """The K + 1 times of a K-step sampler, 0.0 to 1.0: one grid for sampling and likelihood."""
        ...

    def sample_times(self, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Training start and stop times, (B,) each, drawn on the CPU; equal where the net knows one time only."""
        ...

    def loss(
        self, net: DenoisingNet, action: Tensor, noise: Tensor, t: Tensor, s: Tensor, cond: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Regression loss per sample (B,) at noise (B, H, D), t and s (B,), averaged over valid rows of mask (B, H)."""
        ...

    def step(self, x: Tensor, pred: Tensor, t: Time, s: Time, eta: float) -> tuple[Tensor, Time]:
        """Mean and standard deviation of the move from t to s; eta = 0 is deterministic, eta = 1 fully stochastic."""
        ...

    def std(self, t: Time, s: Time, eta: float) -> Time:
        """The standard deviation that ``step`` returns; it does not depend on x."""
        ...


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared error per sample (B,) of (B, H, D), over the rows where mask (B, H) is set."""
    error = (pred - target).square().mean(-1)
    if mask is None or mask.shape[1] == 1:  # where no other row could stand in
        return error.mean(-1)
    return (error * mask).sum(-1) / mask.sum(-1)


def dispersive_loss(hidden: Tensor, temperature: float) -> Tensor:
    """Log of the mean of exp(-|h_i - h_j|^2 / temperature) over all pairs of a batch (B, ...), i = j included; 0-d.

    D2PPO's InfoNCE-L2 variant (Zou et al. 2025, after Wang & He 2025), but of features scaled to length 1: the squared
    distance lies in [0, 4], and nothing is gained by features that merely grow.
    """
    unit = torch.nn.functional.normalize(hidden.flatten(1), dim=-1)
    closeness = (unit @ unit.T - 1) * (2 / temperature)
    return closeness.flatten().logsumexp(0) - 2 * math.log(len(unit))


def combined(x: Tensor, a: Time, y: Tensor, b: Time) -> Tensor:
    """Return a x + b y, with factors that were computed in double precision, without leaving the dtype of x."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.addcmul(x * a.to(x.dtype), y, b.to(x.dtype))
    return (x * a).add_(y, alpha=b)  # pyright: ignore[reportArgumentType, reportCallIssue]
