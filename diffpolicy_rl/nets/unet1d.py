"""Convolutional denoising net over the time axis of a chunk."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.nets.embeddings import STEPS, TimeEncoding
from diffpolicy_rl.nets.modulation import ModulatedNet, Modulation, modulate


class ConvBlock(nn.Sequential):
    """Convolution, group normalisation, Mish (Chi et al. 2023, section 3.1)."""

    def __init__(self, inputs: int, width: int, kernel: int, groups: int) -> None:
        conv = nn.Conv1d(inputs, width, kernel, padding=kernel // 2)
        super().__init__(conv, nn.GroupNorm(groups, width), nn.Mish())


class FilmBlock(nn.Module):
    """Two convolution blocks with FiLM between them, and a shortcut around (Chi et al. 2023, section 3.1).

    FiLM (Perez et al. 2018, eq. 1) scales and shifts each channel; the scale is learned as its distance from 1.
    """

    def __init__(self, inputs: int, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = ConvBlock(inputs, width, kernel, groups)
        self.second = ConvBlock(width, width, kernel, groups)
        self.shortcut = nn.Identity() if inputs == width else nn.Conv1d(inputs, width, 1)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Map (B, inputs, L) to (B, width, L), given scales and shifts (B, 2 width)."""
        scale, shift = film.unsqueeze(-1).chunk(2, dim=1)
        return self.shortcut(x) + self.second(modulate(self.first(x), scale, shift))


class Level(nn.Module):
    """Two FiLM blocks of one width.

    Attributes:
        size: how many modulation parameters they take.
    """

    def __init__(self, inputs: int, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.size = 4 * width
        self.first = FilmBlock(inputs, width, kernel, groups)
        self.second = FilmBlock(width, width, kernel, groups)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Map (B, inputs, L) to (B, width, L), given both blocks' scales and shifts (B, 4 width)."""
        first, second = film.chunk(2, dim=1)
        return self.second(self.first(x, first), second)


class ConditionalUNet1d(ModulatedNet):
    """Diffusion Policy's 1-D U-Net over (H, D) chunks (Chi et al. 2023, section 3.1; sizes: Ren et al. 2024, app. D).

    Each level has two blocks and half the length of the one above. The deepest level is the middle, and every level
    above it hands its features across at its own length, as in Ronneberger et al. 2015. (The public code has a middle
    beside the deepest level, and hands across every level's features but the first's.)

    Args:
        horizon: H, divisible by 2 once for every level but the first.
        action_dim: D.
        cond_dim: width of the condition features.
        two_times: whether the prediction depends on where the move goes.
        widths: channels of each level, from the full length to the shortest.
        kernel: width of the convolutions, odd.
        groups: of the group normalisation.
        hidden: widths of the net from (times, condition) to the FiLM parameters; see ``ResidualTrunk``.
        time_dim: width of the time embedding.
        time_embedding: a name in ``EMBEDDINGS``.
        time_scale: of the embedding's frequencies.
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        cond_dim: int,
        two_times: bool,
        widths: tuple[int, ...] = (64, 128),
        kernel: int = 5,
        groups: int = 8,
        hidden: tuple[int, ...] = (128, 128, 128),
        time_dim: int = 16,
        time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        time_scale: float = STEPS,
    ) -> None:
        super().__init__(horizon, action_dim)
        refuse_unfit(horizon, widths, kernel, groups)

        def level(inputs: int, width: int) -> Level:
            return Level(inputs, width, kernel, groups)

        *upper, bottom = widths
        down = [level(inputs, width) for inputs, width in pairwise([action_dim, *upper])]
        up = [level(2 * width, width) for width in reversed(upper)]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.shorten = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in upper)
        self.bottom = level(upper[-1] if upper else action_dim, bottom)
        self.lengthen = nn.ModuleList(
            nn.ConvTranspose1d(deeper, width, 4, stride=2, padding=1) for width, deeper in reversed([*pairwise(widths)])
        )
        self.out = nn.Sequential(ConvBlock(widths[0], widths[0], kernel, groups), nn.Conv1d(widths[0], action_dim, 1))
        sizes = [level.size for level in (*down, self.bottom, *up)]
        time = TimeEncoding(time_dim, time_embedding, two_times, time_scale)
        self.modulation = Modulation(cond_dim, time, sizes, hidden)

    def modulated(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Predict (B, H, D) at noisy chunks (B, H, D), given each level's scales and shifts (B, 4 width)."""
        film = iter(parameters)
        x, across = x.transpose(1, 2), []
        for level, shorten in zip(self.down, self.shorten, strict=True):
            x = level(x, next(film))
            across.append(x)
            x = shorten(x)
        x = self.bottom(x, next(film))
        for level, lengthen in zip(self.up, self.lengthen, strict=True):
            x = level(torch.cat([lengthen(x), across.pop()], dim=1), next(film))
        return self.out(x).transpose(1, 2)


def refuse_unfit(horizon: int, widths: tuple[int, ...], kernel: int, groups: int) -> None:
    """Raise UserError for settings that make no U-Net."""
    require_positive(kernel=kernel, groups=groups)
    if kernel % 2 == 0:
        raise UserError(f"kernel={kernel}, but only an odd one keeps the length of a chunk")
    if not widths:
        raise UserError("widths=[], but a U-Net needs at least one level")
    # One channel in a group at length 1 would be normalised to a constant.
    if any(width % groups or width <= groups for width in widths):
        raise UserError(f"widths={list(widths)} must be multiples of groups={groups}, and larger")
    if horizon % 2 ** (len(widths) - 1):
        raise UserError(
            f"policy.horizon={horizon} must be divisible by {2 ** (len(widths) - 1)}, because the "
            f"{len(widths)} levels of widths={list(widths)} halve it at each step down"
        )
