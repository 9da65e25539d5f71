"""Critics: state values, ensembles of action values, how heads are reduced to one value, and how outputs are read."""

import copy
import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.ensemble import EnsembleLinear, EnsembleTrunk, shared_product
from diffpolicy_rl.nets.mlp import ResidualMLP

Aggregation = Literal["min", "subset_min", "mean", "pessimistic"]
"""Rules of ``aggregate``."""


class ValueNet(nn.Module):
    """State value V(o) as DPPO's residual MLP."""

    def __init__(self, inputs: int, hidden: Sequence[int] = (256, 256, 256), activation: str = "mish") -> None:
        super().__init__()
        self.net = ResidualMLP(inputs, hidden, 1, activation)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., F) to values (...)."""
        return self.net(features).squeeze(-1)


class Readout(Protocol):
    """What a critic's outputs mean.

    Attributes:
        width: outputs per value.
    """

    width: int

    def mean(self, outputs: Tensor) -> Tensor:
        """Values (...) that outputs (..., width) stand for."""
        ...

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Loss per value (...) of outputs (..., width) at targets that broadcast to (...)."""
        ...


class Scalar:
    """The output is the value; the loss is the squared error."""

    width: int = 1

    def mean(self, outputs: Tensor) -> Tensor:
        """Drop the last dimension of (..., 1)."""
        return outputs.squeeze(-1)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Squared errors (...)."""
        return (outputs.squeeze(-1) - target).square()


class HLGauss:
    """The outputs are the logits of a histogram over the value's range (Farebrother et al. 2024, section 3.1).

    A target becomes a Gaussian around it, cut off at the ends of the range and integrated over each bin; the loss is
    the cross-entropy with it.

    Args:
        low: lower end of the range; targets below count as this.
        high: upper end.
        bins: number of bins.
        sigma_ratio: std of the Gaussian in bin widths.

    Raises:
        UserError: if the range is empty, there are fewer than two bins, or the ratio is not positive.
    """

    def __init__(self, low: float, high: float, bins: int = 128, sigma_ratio: float = 0.75) -> None:
        if not (low < high and bins >= 2 and sigma_ratio > 0):
            raise UserError(
                f"low={low}, high={high}, bins={bins}, sigma_ratio={sigma_ratio}, but a histogram of values needs "
                "low < high, at least 2 bins and a positive sigma_ratio"
            )
        self.low, self.high, self.width = low, high, bins
        self.sigma = sigma_ratio * (high - low) / bins

    def project(self, target: Tensor) -> Tensor:
        """Probabilities (..., bins) that stand for targets (...)."""
        target = target.clamp(self.low, self.high).unsqueeze(-1)
        edges = torch.linspace(self.low, self.high, self.width + 1, dtype=target.dtype, device=target.device)
        below = torch.erf((edges - target) / (math.sqrt(2) * self.sigma))
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected values (...) of the histograms with these logits (..., bins)."""
        half = (self.high - self.low) / self.width / 2
        centers = torch.linspace(
            self.low + half, self.high - half, self.width, dtype=outputs.dtype, device=outputs.device
        )
        return outputs.softmax(-1) @ centers

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross-entropies (...) of logits (..., bins) with the projected targets."""
        return -(self.project(target) * outputs.log_softmax(-1)).sum(-1)


class CriticEnsemble(nn.Module):
    """E action values Q(o, a), each an MLP over (features, action) of its own, computed together.

    What the first layer makes of the features alone is the ``context``: computed once per observation for all its
    candidate actions.

    Args:
        features: F.
        action_shape: of one action, as (A, D).
        heads: E.
        hidden: widths of the hidden layers.
        activation: a name in ``ACTIVATIONS``.
        layer_norm: whether to normalise between each linear layer and its activation, as RLPD does (Ball et al. 2023).
        readout: what the outputs mean.

    Raises:
        UserError: if there is no head or no hidden layer.
    """

    def __init__(
        self,
        features: int,
        action_shape: Sequence[int],
        heads: int = 2,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "relu",
        layer_norm: bool = True,
        readout: Readout | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or not hidden:
            raise UserError(f"heads={heads}, hidden={list(hidden)}, but a critic needs a head and a hidden layer")
        self.heads, self.action_dims, self.readout = heads, len(action_shape), readout or Scalar()
        self.features = features
        self.first = EnsembleLinear(heads, features + math.prod(action_shape), hidden[0])
        self.trunk = EnsembleTrunk(heads, hidden, self.readout.width, activation, layer_norm)
        self._views: dict[tuple[int, int], CriticEnsemble] = {}

    def context(self, features: Tensor) -> Tensor:
        """The first layer's summand (E, ..., width) of features (..., F)."""
        return shared_product(features, self.first.weight[:, : self.features], self.first.bias)

    def outputs(self, features: Tensor, action: Tensor) -> Tensor:
        """Outputs (E, ..., readout.width) for actions (..., *action_shape) at features (..., F).

        Leading dimensions broadcast: candidates (M, B, *action_shape) at B observations give (E, M, B).
        """
        flat = action.flatten(-self.action_dims)
        if flat.ndim != features.ndim or flat.shape[:-1] != features.shape[:-1]:
            return self._outputs_at(self.context(features), action)
        return self._rest(shared_product(torch.cat([features, flat], dim=-1), self.first.weight, self.first.bias))

    def values(self, context: Tensor, action: Tensor) -> Tensor:
        """Values (E, ...) of actions (..., *action_shape) at a context; leading dimensions broadcast."""
        return self.readout.mean(self._outputs_at(context, action))

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """Values (E, ...) of actions (..., *action_shape) at features (..., F); see ``outputs``."""
        return self.readout.mean(self.outputs(features, action))

    def some(self, heads: Tensor, features: Tensor, action: Tensor) -> Tensor:
        """Values (k, ...) of the heads with indices (k,) alone."""
        chosen = {name: parameter[heads] for name, parameter in self.named_parameters()}
        return functional_call(self, chosen, (features, action))

    def frozen_view(self, heads: slice = slice(None)) -> "CriticEnsemble":
        """These heads as an ensemble that shares their memory and takes no gradient; made anew when weights move."""
        start, stop, _ = heads.indices(self.heads)
        view = self._views.get((start, stop))
        if view is None or view.first.weight.data_ptr() != self.first.weight.data[heads].data_ptr():
            with torch.inference_mode(False):  # what is made in there could not be used outside
                view = self._views[start, stop] = copy.deepcopy(self, {id(self._views): {}}).requires_grad_(False)
                for own, shared in zip(view.parameters(), self.parameters(), strict=True):
                    own.data = shared.data[heads]
            view.heads = stop - start
        return view

    def loss(self, features: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """Loss per head and sample (E, ...) at targets (...), which carry no gradient here."""
        return self.readout.loss(self.outputs(features, action), target.detach())

    def _outputs_at(self, context: Tensor, action: Tensor) -> Tensor:
        """Outputs (E, ..., readout.width) for actions (..., *action_shape) at a context."""
        hidden = shared_product(action.flatten(-self.action_dims), self.first.weight[:, self.features :])
        dims = max(hidden.ndim, context.ndim)
        return self._rest(_align(hidden, dims) + _align(context, dims))

    def _rest(self, hidden: Tensor) -> Tensor:
        """Outputs (E, ..., readout.width) of what the first layer made, (E, ..., width)."""
        rows = hidden.reshape(len(hidden), math.prod(hidden.shape[1:-1]), hidden.shape[-1])
        return self.trunk(rows).view(*hidden.shape[:-1], self.readout.width)


def _align(x: Tensor, dims: int) -> Tensor:
    """(E, ..., width) with ones behind E, so that what follows E broadcasts from the right."""
    return x.reshape(len(x), *(1,) * (dims - x.ndim), *x.shape[1:])


def aggregate(
    values: Tensor,
    rule: Aggregation,
    *,
    subset: int = 2,
    rho: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One value (...) from those of E heads (E, ...).

    - min: of all heads (Fujimoto et al. 2018, eq. 10);
    - subset_min: of ``subset`` heads drawn without replacement, the same for the whole batch (Chen et al. 2021,
      algorithm 1);
    - mean: of all heads;
    - pessimistic: mean - rho * std, with the heads as the whole population (std 0 for a single head).

    Args:
        values: (E, ...).
        rule: one of the above.
        subset: number of heads drawn by subset_min.
        rho: weight of the std.
        generator: the CPU stream that subset_min draws from.

    Raises:
        UserError: if the subset is not between 1 and E.
    """
    if rule == "min":
        return values.amin(0)
    if rule == "mean":
        return values.mean(0)
    if rule == "pessimistic":
        return values.mean(0) - rho * values.std(0, correction=0)
    if not 1 <= subset <= len(values):
        raise UserError(f"subset={subset} must be between 1 and the number of heads, {len(values)}")
    chosen = torch.randperm(len(values), generator=generator)[:subset]
    return values[chosen.to(values.device)].amin(0)
