"""Transformer denoising net with one token per action of a chunk."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.nets.embeddings import STEPS, TimeEncoding
from diffpolicy_rl.nets.modulation import ModulatedNet, Modulation, modulate


class DiTBlock(nn.Module):
    """Self-attention and MLP, each normalised, scaled, shifted and gated from outside (Peebles & Xie 2023, figure 3).

    Every token sees every other: the actions of a chunk are denoised together.

    Args:
        width: of the tokens.
        heads: of the attention.
        expansion: hidden width of the MLP, in widths.
    """

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.size, self.heads = 6 * width, (3, heads, width // heads)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mix_in, self.mix_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(approximate="tanh"), nn.Linear(expansion * width, width)
        )

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Map tokens (B, H, width) to (B, H, width), given scales, shifts and gates (B, 6 width)."""
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = modulation.unsqueeze(1).chunk(6, dim=-1)
        x = torch.addcmul(x, gate, self.attend(modulate(self.norm(x), scale, shift)))
        return torch.addcmul(x, mlp_gate, self.mlp(modulate(self.norm(x), mlp_scale, mlp_shift)))

    def attend(self, x: Tensor) -> Tensor:
        """Multi-head self-attention over tokens (B, H, width)."""
        # torch's fused kernels have no forward-mode derivative, which mean flow needs. They take four dimensions only,
        # so with a fifth torch uses its differentiable ones; for tokens as few as these they are as fast.
        parts = self.mix_in(x).unflatten(-1, self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts if torch.compiler.is_exporting() else parts.unsqueeze(1)  # ONNX has no fifth
        mixed = F.scaled_dot_product_attention(query, key, value).flatten(0, -4)
        return self.mix_out(mixed.transpose(1, 2).flatten(2))


class DiffusionTransformer(ModulatedNet):
    """Diffusion transformer over (H, D) chunks with adaLN-Zero (Peebles & Xie 2023, section 3.2), positions learned.

    Gates and output start at zero: every block is the identity, and the prediction is zero.

    Args:
        horizon: H.
        action_dim: D.
        cond_dim: width of the condition features.
        two_times: whether the prediction depends on where the move goes.
        width: of the tokens, a multiple of ``heads``.
        depth: number of blocks.
        heads: of the attention.
        expansion: hidden width of a block's MLP, in widths.
        hidden: widths of the net from (times, condition) to the modulation; see ``ResidualTrunk``.
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
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        expansion: int = 4,
        hidden: tuple[int, ...] = (128, 128, 128),
        time_dim: int = 16,
        time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        time_scale: float = STEPS,
    ) -> None:
        super().__init__(horizon, action_dim)
        require_positive(width=width, depth=depth, heads=heads, expansion=expansion)
        if width % heads:
            raise UserError(f"width={width} must be a multiple of heads={heads}")
        self.tokens = nn.Linear(action_dim, width)
        self.positions = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.blocks = nn.ModuleList(DiTBlock(width, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, action_dim)
        sizes = [6 * width] * depth + [2 * width]
        time = TimeEncoding(time_dim, time_embedding, two_times, time_scale)
        self.modulation = Modulation(cond_dim, time, sizes, hidden)
        for layer in (self.modulation.trunk[-1], self.out):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def modulated(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Predict (B, H, D) at noisy chunks (B, H, D), given each block's parameters (B, 6 width).

        The last ones (B, 2 width) scale and shift what enters the output layer.
        """
        *modulations, last = parameters
        x = self.tokens(x) + self.positions
        for block, modulation in zip(self.blocks, modulations, strict=True):
            x = block(x, modulation)
        scale, shift = last.unsqueeze(1).chunk(2, dim=-1)
        return self.out(modulate(self.norm(x), scale, shift))
