"""Normalisation as part of the policy, so that no checkpoint or export can forget it."""

from typing import Literal

import torch
from torch import Tensor, nn


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
        self.shift.copy_(shift)
        self.scale.copy_(torch.where(scale < self._min_scale, torch.ones_like(scale), scale))

    def forward(self, raw: Tensor) -> Tensor:
        """Raw (..., *shape) to normalised units."""
        return (raw - self.shift) / self.scale

    def inverse(self, normalized: Tensor) -> Tensor:
        """Normalised (..., *shape) to raw units."""
        return normalized * self.scale + self.shift
