"""What nets share whose blocks meet times and condition only as scales, shifts and gates: FiLM and adaLN."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffpolicy_rl.nets.base import Context, DenoisingNet
from diffpolicy_rl.nets.embeddings import TimeEncoding
from diffpolicy_rl.nets.mlp import ResidualTrunk, draw_as_one_layer, width_of


class Modulation(nn.Module):
    """Residual MLP from (times, condition) to every modulation parameter of a net at once.

    As deep as DPPO's condition encoder (Ren et al. 2024, appendix D), which is deeper than the one layer of Chi et al.
    2023 and of Peebles & Xie 2023; one for all blocks, so that a chunk costs one pass instead of one per block.

    Args:
        cond_dim: width of the condition features.
        time: features of the times.
        sizes: how many parameters each block takes.
        hidden: see ``ResidualTrunk``.
    """

    def __init__(self, cond_dim: int, time: TimeEncoding, sizes: Sequence[int], hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes, self.time = list(sizes), time
        self.time_in = nn.Linear(time.dim, width_of(hidden))
        self.cond_in = nn.Linear(cond_dim, width_of(hidden), bias=False)
        draw_as_one_layer(self.time_in, self.cond_in)
        self.trunk = ResidualTrunk(hidden, sum(sizes), "mish")

    def forward(self, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """Map times (...) and conditions (..., F), which broadcast, to parameters (..., sum of sizes)."""
        return self.trunk(self.time_in(self.time(t, s)) + self.cond_in(cond))


class LinearModulation(nn.Module):
    """Mish and one layer from (times, condition) to every modulation parameter (Chi et al. 2023, public code).

    The layer over the concatenation is kept as two summands, because times and conditions broadcast.

    Args:
        cond_dim: width of the condition features.
        time: features of the times.
        sizes: how many parameters each block takes.
    """

    def __init__(self, cond_dim: int, time: TimeEncoding, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes, self.time = list(sizes), time
        self.time_out = nn.Linear(time.dim, sum(sizes))
        self.cond_out = nn.Linear(cond_dim, sum(sizes), bias=False)
        draw_as_one_layer(self.time_out, self.cond_out)

    def forward(self, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """Map times (...) and conditions (..., F), which broadcast, to parameters (..., sum of sizes)."""
        mish = nn.functional.mish
        return self.time_out(mish(self.time(t, s))) + self.cond_out(mish(cond))


class ModulatedNet(DenoisingNet):
    """A net whose context is the modulation of all its blocks.

    Attributes:
        action_shape: (H, D).
        modulation: from (times, condition) to the context.
    """

    modulation: Modulation | LinearModulation

    def __init__(self, horizon: int, action_dim: int) -> None:
        super().__init__()
        self.action_shape = (horizon, action_dim)

    @abstractmethod
    def modulated(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Predict (B, H, D) at noisy chunks (B, H, D), given each block's parameters (B, size)."""

    def context(self, t: Tensor, s: Tensor, cond: Tensor) -> Context:
        """Modulation parameters (..., sum of sizes)."""
        return (self.modulation(t, s, cond),)

    def denoise(self, x: Tensor, context: Context) -> Tensor:
        """Predict (..., H, D) at noisy chunks (..., H, D) and their context; leading dimensions broadcast."""
        (parameters,) = context
        lead = torch.broadcast_shapes(x.shape[:-2], parameters.shape[:-1])
        rows = math.prod(lead)
        x = x.expand(*lead, *self.action_shape).reshape(rows, *self.action_shape)
        parameters = parameters.expand(*lead, parameters.shape[-1]).reshape(rows, parameters.shape[-1])
        out = self.modulated(x, parameters.split(self.modulation.sizes, dim=-1))
        return out.reshape(*lead, *self.action_shape)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) x + shift, so that parameters of zero change nothing."""
    return torch.addcmul(shift, x, 1 + scale)
