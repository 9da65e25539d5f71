"""MLPs: plain ones, residual ones as critics use them, and DPPO's denoising net on top of those."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from diffpolicy_rl.errors import UserError, did_you_mean
from diffpolicy_rl.nets.base import Context, DenoisingNet
from diffpolicy_rl.nets.embeddings import EMBEDDINGS, STEPS, TimeEncoding
from diffpolicy_rl.nets.linear import Linear
from diffpolicy_rl.nets.pairs import Pair, through

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
}


def activation_of(name: str) -> nn.Module:
    """The activation with this name, for a layer's output, which it may overwrite; UserError if there is none."""
    if name not in ACTIVATIONS:
        raise UserError(f"there is no activation {name!r}; {did_you_mean(name, ACTIVATIONS)}")
    kind = ACTIVATIONS[name]
    return nn.ReLU(inplace=True) if kind is nn.ReLU else kind()


class MLP(nn.Sequential):
    """Plain MLP (..., inputs) to (..., out): Linear, LayerNorm if wanted, activation, and so on; the output is linear.

    Args:
        inputs: input width.
        hidden: widths of the hidden layers.
        out: output width.
        activation: a name in ``ACTIVATIONS``.
        layer_norm: whether to normalise between each linear layer and its activation.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], out: int, activation: str, layer_norm: bool = False) -> None:
        layers: list[nn.Module] = []
        for width, following in pairwise([inputs, *hidden]):
            layers += [nn.Linear(width, following), *([nn.LayerNorm(following)] if layer_norm else [])]
            layers += [activation_of(activation)]
        super().__init__(*layers, nn.Linear([inputs, *hidden][-1], out))


def width_of(hidden: Sequence[int]) -> int:
    """The width that a residual MLP's layers share; UserError if they do not, or are not odd in number."""
    if len(set(hidden)) != 1 or len(hidden) % 2 == 0 or hidden[0] < 1:
        raise UserError(f"hidden={list(hidden)}, but a residual MLP needs an odd number of equal widths")
    return hidden[0]


@torch.no_grad()
def shrink(layer: nn.Module, factor: float) -> None:
    """Multiply a layer's initial weights and biases by a factor."""
    for parameter in layer.parameters():
        parameter.mul_(factor)


class ResidualBlock(nn.Module):
    """Pre-activation block y = x + L2(act(L1(act(x))))."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.first, self.second = Linear(width, width), Linear(width, width)
        self.activation, self.rectified = ACTIVATIONS[activation](), activation == "relu"

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., width)."""
        if self.rectified:
            return self.second.plus(self.first.relu(torch.relu(x)), x)
        return self.second.plus(self.activation(self.first(self.activation(x))), x)

    def moving(self, pair: Pair) -> Pair:
        """The same for values and their derivatives."""
        inner = through(self.first, through(self.activation, pair))
        return through(self.second, through(self.activation, inner)) + pair


class ResidualTrunk(nn.Sequential):
    """Residual blocks and the output layer of DPPO's residual MLP (Ren et al. 2024, appendix D).

    Args:
        hidden: widths, equal and odd in number: the input layer's, then two per block. [512, 512, 512] is one block.
        out: output width.
        activation: a name in ``ACTIVATIONS``.
    """

    def __init__(self, hidden: Sequence[int], out: int, activation: str) -> None:
        width = width_of(hidden)
        blocks = [ResidualBlock(width, activation) for _ in range(len(hidden) // 2)]
        super().__init__(*blocks, Linear(width, out))

    def with_middle(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (..., out) and, as they pass, the features (..., width) behind the middle block."""
        parts = list(self)
        for part in parts[: len(parts) // 2]:
            x = part(x)
        middle = x
        for part in parts[len(parts) // 2 :]:
            x = part(x)
        return x, middle

    def moving(self, pair: Pair) -> Pair:
        """Outputs and their derivatives."""
        *blocks, last = self
        for block in blocks:
            assert isinstance(block, ResidualBlock)
            pair = block.moving(pair)
        return through(last, pair)


class ResidualMLP(nn.Sequential):
    """Input layer and residual trunk: (..., inputs) to (..., out)."""

    def __init__(self, inputs: int, hidden: Sequence[int], out: int, activation: str) -> None:
        super().__init__(nn.Linear(inputs, width_of(hidden)), ResidualTrunk(hidden, out, activation))


class LinearMap(Protocol):
    """A linear layer, or several of the same shape."""

    in_features: int

    def parameters(self) -> Iterator[nn.Parameter]:
        """Weights and biases."""
        ...


def draw_as_one_layer(*summands: LinearMap) -> None:
    """Draw the weights of layers whose outputs are added as those of one layer over their concatenated inputs."""
    bound = 1 / math.sqrt(sum(layer.in_features for layer in summands))
    for layer in summands:
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound)


class DenoisingMLP(DenoisingNet):
    """DPPO's residual MLP over (noisy chunk, time, condition), predicting noise, action or velocity.

    The input layer over the concatenation is kept as three summands. What depends on time and condition alone is the
    ``context``: computed once per chunk for all K steps, instead of once per step.

    Args:
        horizon: H.
        action_dim: D.
        cond_dim: width of the condition features.
        two_times: whether the prediction depends on where the move goes.
        hidden: see ``ResidualTrunk``.
        activation: a name in ``ACTIVATIONS``.
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
        hidden: tuple[int, ...] = (512, 512, 512),
        activation: Literal["relu", "mish", "gelu", "tanh"] = "relu",
        time_dim: int = 16,
        time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        time_scale: float = STEPS,
    ) -> None:
        super().__init__()
        width, size = width_of(hidden), horizon * action_dim
        self.action_shape = (horizon, action_dim)
        self.time = TimeEncoding(time_dim, time_embedding, two_times, time_scale)
        self.action_in = Linear(size, width)
        self.time_in = nn.Linear(time_dim, width, bias=False)
        self.cond_in = Linear(cond_dim, width, bias=False)
        self.trunk = ResidualTrunk(hidden, size, activation)
        draw_as_one_layer(self.action_in, self.time_in, self.cond_in)

    def context(self, t: Tensor, s: Tensor, cond: Tensor) -> Context:
        """Time and condition summands of the input layer (..., width) each, its bias with the former."""
        time = nn.functional.linear(self.time(t, s), self.time_in.weight, self.action_in.bias)
        return time, self.cond_in(cond)

    def denoise(self, x: Tensor, context: Context) -> Tensor:
        """Predict (..., H, D) at noisy chunks (..., H, D) and their context."""
        return self.trunk(self._hidden(x, context)).unflatten(-1, self.action_shape)

    def denoise_with_hidden(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Also the features (..., width) behind the middle block of the trunk."""
        pred, middle = self.trunk.with_middle(self._hidden(x, context))
        return pred.unflatten(-1, self.action_shape), middle

    def slope(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor, velocity: Tensor) -> Tensor:
        """Derivative (B, H, D) of the prediction along a line; see ``DenoisingNet``."""
        pair = through(self.action_in, torch.stack([x, velocity]).flatten(-2))
        pair += through(self.time_in, self.time.moving(t, s))
        pair[0] += self.cond_in(cond)
        return self.trunk.moving(pair)[1].unflatten(-1, self.action_shape)

    def _hidden(self, x: Tensor, context: Context) -> Tensor:
        """What the input layer (..., width) makes of chunks (..., H, D) and their context."""
        time, cond = context
        return self.action_in.weighted(x.flatten(-2), cond, time)


class ConditionMLP(DenoisingNet):
    """Residual MLP from the condition to a chunk; it sees neither the noisy chunk nor the times.

    Args:
        horizon: H.
        action_dim: D.
        cond_dim: width of the condition features.
        two_times: not used.
        hidden: see ``ResidualTrunk``.
        activation: a name in ``ACTIVATIONS``.
        squash: whether predictions end in a tanh, and so inside the range of the data.
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        cond_dim: int,
        two_times: bool,
        hidden: tuple[int, ...] = (256, 256, 256),
        activation: Literal["relu", "mish", "gelu", "tanh"] = "tanh",
        squash: bool = False,
    ) -> None:
        super().__init__()
        self.action_shape, self.squash = (horizon, action_dim), squash
        self.net = ResidualMLP(cond_dim, hidden, horizon * action_dim, activation)
        *_, last = self.net.modules()
        shrink(last, 0.01)  # actions near the middle of their range at first (Andrychowicz et al. 2021, section 3.2)

    def context(self, t: Tensor, s: Tensor, cond: Tensor) -> Context:
        """The whole prediction (..., H D)."""
        prediction = self.net(cond)
        return (prediction.tanh() if self.squash else prediction,)

    def denoise(self, x: Tensor, context: Context) -> Tensor:
        """The prediction (..., H, D), whatever x is; leading dimensions broadcast."""
        prediction = context[0].unflatten(-1, self.action_shape)
        return prediction.expand(torch.broadcast_shapes(x.shape, prediction.shape))


class NoiseNet(nn.Module):
    """Small tanh MLP from (time, condition) to one unbounded number per chunk element (ReinFlow, section 4.1).

    It has a fixed sinusoidal time embedding of its own: no gradient reaches the policy's.
    """

    def __init__(self, horizon: int, action_dim: int, cond_dim: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.action_shape = (horizon, action_dim)
        self.time = EMBEDDINGS["sinusoidal"](16)
        self.layers = MLP(16 + cond_dim, hidden, horizon * action_dim, "tanh")

    def forward(self, t: Tensor, cond: Tensor) -> Tensor:
        """Map times (K,) and conditions (B, F) to (B, K, H, D)."""
        batch, steps = len(cond), len(t)
        time = self.time(t).expand(batch, steps, -1)
        features = torch.cat([time, cond.unsqueeze(1).expand(-1, steps, -1)], dim=-1)
        return self.layers(features).unflatten(-1, self.action_shape)
