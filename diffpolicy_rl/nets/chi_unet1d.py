"""The 1-D U-Net of Diffusion Policy's public code, which other toolkits have, too."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from diffpolicy_rl.nets.embeddings import STEPS, TimeEncoding
from diffpolicy_rl.nets.modulation import LinearModulation, ModulatedNet
from diffpolicy_rl.nets.unet1d import ConvBlock, Level, refuse_unfit

GROUPS = 8  # of every group normalisation, as in the public code


class ChiUNet1d(ModulatedNet):
    """Diffusion Policy's 1-D U-Net over (H, D) chunks as its authors published it (Chi et al. 2023, section 3.1).

    Beside ``ConditionalUNet1d`` it has a middle below the deepest level; features are handed across where a level ends,
    before it is shortened, and join what comes from below before that is lengthened, so that those of the first level
    are not; and each block has one layer of its own from (times, condition) to its scales and shifts. It is the net of
    LeRobot's policy type ``diffusion``, but for the time embedding, whose hidden layer is half as wide.

    Args:
        horizon: H, divisible by 2 once for every level but the first.
        action_dim: D.
        cond_dim: width of the condition features.
        two_times: whether the prediction depends on where the move goes.
        widths: channels of each level, from the full length to the shortest, multiples of 8.
        kernel: width of the convolutions, odd.
        time_dim: width of the time embedding.
        time_embedding: a name in ``EMBEDDINGS``.
        time_scale: of the embedding's frequencies.

    Attributes:
        widths: as given.
        kernel: as given.
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        cond_dim: int,
        two_times: bool,
        widths: tuple[int, ...] = (64, 128),
        kernel: int = 5,
        time_dim: int = 32,
        time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        time_scale: float = STEPS,
    ) -> None:
        super().__init__(horizon, action_dim)
        refuse_unfit(horizon, widths, kernel, GROUPS)
        self.widths, self.kernel = widths, kernel

        def level(inputs: int, width: int) -> Level:
            return Level(inputs, width, kernel, GROUPS)

        down = [level(inputs, width) for inputs, width in pairwise([action_dim, *widths])]
        up = [level(2 * deeper, width) for width, deeper in reversed([*pairwise(widths)])]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.middle = level(widths[-1], widths[-1])
        self.shorten = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.lengthen = nn.ModuleList(
            nn.ConvTranspose1d(width, width, 4, stride=2, padding=1) for width in reversed(widths[:-1])
        )
        self.out = nn.Sequential(ConvBlock(widths[0], widths[0], kernel, GROUPS), nn.Conv1d(widths[0], action_dim, 1))
        sizes = [level.size for level in (*down, self.middle, *up)]
        self.modulation = LinearModulation(
            cond_dim, TimeEncoding(time_dim, time_embedding, two_times, time_scale), sizes
        )

    def modulated(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Predict (B, H, D) at noisy chunks (B, H, D), given each level's scales and shifts (B, 4 width)."""
        film = iter(parameters)
        x, across = x.transpose(1, 2), []
        for level, shorten in zip(self.down, [*self.shorten, nn.Identity()], strict=True):
            x = level(x, next(film))
            across.append(x)
            x = shorten(x)
        x = self.middle(x, next(film))
        for level, lengthen in zip(self.up, self.lengthen, strict=True):
            x = lengthen(level(torch.cat([x, across.pop()], dim=1), next(film)))
        return self.out(x).transpose(1, 2)
