"""Layers of E networks of the same shape, computed together: their weights are stacked, heads first."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy_rl.nets.mlp import activation_of


class EnsembleLinear(nn.Module):
    """E linear layers as one batched matrix product.

    Each head starts as ``nn.Linear`` does by itself: uniform within 1/sqrt(inputs).

    Args:
        heads: E.
        in_features: input width of each head.
        out_features: output width of each head.
    """

    def __init__(self, heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(heads, 1, out_features))
        bound = 1 / math.sqrt(in_features)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map (E, rows, in) to (E, rows, out)."""
        if self.weight.shape[-1] == 1:  # a product with one column takes longer than a sum, its gradients even more
            return (x * self.weight.transpose(1, 2)).sum(-1, keepdim=True) + self.bias
        return torch.bmm(x, self.weight).add_(self.bias)  # baddbmm copies the bias to every row beforehand


def shared_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Inputs (..., in) that all heads have in common, times weights (E, in, out), plus biases (E, 1, out)."""
    heads, inputs, outputs = weight.shape
    rows = x.reshape(1, math.prod(x.shape[:-1]), inputs).expand(heads, -1, -1)
    product = torch.bmm(rows, weight)
    return (product if bias is None else product.add_(bias)).view(heads, *x.shape[:-1], outputs)


class EnsembleLayerNorm(nn.Module):
    """Layer normalisation over the last dimension, with an affine map of each head's own.

    Args:
        heads: E.
        width: of each head.
    """

    ones: Tensor
    zeros: Tensor

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, 1, width))
        self.bias = nn.Parameter(torch.zeros(heads, 1, width))
        self.register_buffer("ones", torch.ones(width), persistent=False)
        self.register_buffer("zeros", torch.zeros(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (E, rows, width) to the same shape."""
        if len(x) == 1:
            return F.layer_norm(x, self.ones.shape, self.weight[0, 0], self.bias[0, 0])
        # torch's kernel for the CPU is vectorised only where it is given an affine map.
        normal = F.layer_norm(x, self.ones.shape, self.ones, self.zeros)
        if normal.requires_grad:  # what follows multiplies by 1 on its way back
            return normal * self.weight + self.bias
        return torch.addcmul(self.bias, normal, self.weight)


class EnsembleTrunk(nn.Sequential):
    """What follows the first linear layer of E MLPs: Linear, LayerNorm if wanted, activation, and so on to the output.

    Args:
        heads: E.
        hidden: widths of the hidden layers, the first layer's included.
        out: output width.
        activation: a name in ``ACTIVATIONS``.
        layer_norm: whether to normalise between each linear layer and its activation.
    """

    def __init__(self, heads: int, hidden: Sequence[int], out: int, activation: str, layer_norm: bool) -> None:
        layers: list[nn.Module] = []
        for width, following in pairwise([*hidden, out]):
            layers += [EnsembleLayerNorm(heads, width)] if layer_norm else []
            layers += [activation_of(activation), EnsembleLinear(heads, width, following)]
        super().__init__(*layers)
