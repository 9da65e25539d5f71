"""Time embeddings: public time t in [0, 1] to features."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.pairs import Pair, through

# Public time is a fraction; embeddings were designed for step counts of this order (DPPO's K, DDPM's T / 10).
STEPS = 100.0


class Waves(nn.Module, ABC):
    """Sines and cosines of a time, at some rates."""

    @abstractmethod
    def rates(self) -> Tensor:
        """Radians (dim / 2,) over the whole time axis."""

    def forward(self, t: Tensor) -> Tensor:
        """Map times (...) to features (..., dim)."""
        angles = t.unsqueeze(-1) * self.rates()
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def moving(self, t: Tensor) -> Pair:
        """The features, and their derivatives by t."""
        rates = self.rates()
        sine, cosine = (wave(t.unsqueeze(-1) * rates) for wave in (torch.sin, torch.cos))
        return torch.stack([torch.cat([sine, cosine], dim=-1), torch.cat([cosine * rates, -sine * rates], dim=-1)])


class SinusoidalEmbedding(Waves):
    """Sine and cosine features at geometrically spaced frequencies (Vaswani et al. 2017, section 3.5).

    Args:
        dim: number of features, even.
        scale: the highest frequency, in radians over the whole time axis.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = STEPS) -> None:
        super().__init__()
        half = dim // 2
        exponents = torch.arange(half) / max(half - 1, 1)
        self.register_buffer("frequencies", scale * 10_000.0**-exponents, persistent=False)

    def rates(self) -> Tensor:
        """Fixed ones."""
        return self.frequencies


class FourierEmbedding(Waves):
    """Random Fourier features with learned frequencies (Tancik et al. 2020, eq. 5; learned as in IDQL).

    Args:
        dim: number of features, even.
        scale: what the frequencies are multiplied by.
        std: standard deviation of the initial frequencies, in periods over the time axis divided by ``scale``.
    """

    def __init__(self, dim: int, scale: float = STEPS, std: float = 0.2) -> None:
        super().__init__()
        self.scale = scale
        self.frequencies = nn.Parameter(torch.randn(dim // 2) * std)

    def rates(self) -> Tensor:
        """Learned ones."""
        return 2 * math.pi * self.scale * self.frequencies


EMBEDDINGS: dict[str, type[Waves]] = {"sinusoidal": SinusoidalEmbedding, "fourier": FourierEmbedding}


class TimeEncoding(nn.Sequential):
    """Learned features of a move's times: embedding, then Linear - Mish - Linear (Ren et al. 2024, appendix D).

    Args:
        dim: width of the embedding and of the features, even.
        embedding: a name in ``EMBEDDINGS``.
        two_times: also embed how far the move goes; one-time models ignore the stop time.
        scale: of the embedding's frequencies. Losses that differentiate by time want it low.
    """

    def __init__(self, dim: int, embedding: str = "sinusoidal", two_times: bool = False, scale: float = STEPS) -> None:
        if dim < 2 or dim % 2:
            raise UserError(f"time_dim={dim}, but sines and cosines need an even number")
        inputs = 2 * dim if two_times else dim
        super().__init__(
            EMBEDDINGS[embedding](dim, scale), nn.Linear(inputs, 2 * dim), nn.Mish(), nn.Linear(2 * dim, dim)
        )
        self.dim, self.two_times = dim, two_times

    def forward(self, t: Tensor, s: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map start and stop times (...) to features (..., dim)."""
        embedding, first, activation, last = self
        features = embedding(torch.stack([t, s - t], dim=-1)).flatten(-2) if self.two_times else embedding(t)
        return last(activation(first(features)))

    def moving(self, t: Tensor, s: Tensor) -> Pair:
        """The features, and their derivatives by t while s stays."""
        embedding, first, activation, last = self
        assert isinstance(embedding, Waves)
        if self.two_times:
            pair = embedding.moving(torch.stack([t, s - t], dim=-1))
            pair[1, ..., 1, :].neg_()  # what lies ahead gets shorter
            pair = pair.flatten(-2)
        else:
            pair = embedding.moving(t)
        return through(last, through(activation, through(first, pair)))
