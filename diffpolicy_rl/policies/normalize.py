"""Normalisation as part of the policy, so that no checkpoint or export can forget it."""

from typing import Literal

import torch
from gymnasium.spaces import Box
from torch import Tensor, nn


class RunningMoments:
    """Mean and std of everything seen so far, per element.

    Args:
        shape: shape of one value.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self._count = torch.zeros((), dtype=torch.float64)
        self._mean, self._squares = torch.zeros((2, *shape), dtype=torch.float64)

    @property
    def count(self) -> int:
        """How many values were seen."""
        return int(self._count)

    @property
    def mean(self) -> Tensor:
        """Mean (*shape) float64."""
        return self._mean

    @property
    def std(self) -> Tensor:
        """Standard deviation (*shape) float64; 0 before anything was seen."""
        return (self._squares / self._count.clamp(min=1)).sqrt()

    def absorb(self, batch: Tensor) -> None:
        """Take in values (S, *shape) (Chan et al. 1983, eq. 2.1)."""
        batch = batch.to("cpu", torch.float64)
        n, batch_mean = len(batch), batch.mean(0)
        delta, total = batch_mean - self._mean, self._count + n
        batch_squares = (batch - batch_mean).square().sum(0)
        self._squares = self._squares + batch_squares + delta**2 * self._count * n / total
        self._mean, self._count = self._mean + delta * n / total, total

    def state_dict(self) -> dict[str, Tensor]:
        """Count, mean and sum of squared deviations."""
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state_dict`` was taken."""
        self._count, self._mean, self._squares = (state[name].clone() for name in ("count", "mean", "squares"))


class Normalizer(nn.Module):
    """Affine map from raw to normalised units, fitted once on data and then frozen.

    Args:
        shape: shape of one raw value, as (O,) or (D,).
    """

    shift: Tensor
    scale: Tensor

    # A dimension that hardly moves in the data would otherwise be blown up by any deviation on the robot.
    _min_scale = 1e-3

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def fit(self, data: Tensor, kind: Literal["min_max", "z_score"]) -> None:
        """Fit to raw data (S, ...): min_max maps its range to [-1, 1], z_score its mean and std to 0 and 1."""
        if kind == "min_max":
            low, high = data.amin(0), data.amax(0)
            shift, scale = (low + high) / 2, (high - low) / 2
        else:
            shift, scale = data.mean(0), data.std(0)
        self.set(shift, scale)

    def fit_box(self, box: Box) -> None:
        """Map a box to [-1, 1]; dimensions without bounds stay as they are."""
        low, high = torch.from_numpy(box.low), torch.from_numpy(box.high)
        bounded = low.isfinite() & high.isfinite()
        middle, half = (low + high) / 2, (high - low) / 2
        self.set(middle.where(bounded, torch.zeros(())), half.where(bounded, torch.ones(())))

    def set(self, shift: Tensor, scale: Tensor) -> None:
        """Map ``shift`` to 0 and ``shift + scale`` to 1, both (*shape)."""
        self.shift.copy_(shift)
        self.scale.copy_(torch.where(scale < self._min_scale, torch.ones_like(scale), scale))

    @property
    def fitted(self) -> bool:
        """Whether it does anything."""
        return bool((self.shift != 0).any() or (self.scale != 1).any())

    def forward(self, raw: Tensor) -> Tensor:
        """Raw (..., *shape) to normalised units."""
        return (raw - self.shift) / self.scale

    def inverse(self, normalized: Tensor) -> Tensor:
        """Normalised (..., *shape) to raw units."""
        return normalized * self.scale + self.shift
