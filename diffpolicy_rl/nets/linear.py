"""A linear layer whose weight can be kept in the memory layout that oneDNN multiplies by, while nothing changes it."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """``nn.Linear`` that is faster inside ``fixed_weights``.

    Every plain call first brings the weight into oneDNN's order, a fifth of its time at small batches. That order is
    opaque to autograd, and fused optimisers do not tell that they changed a weight: so it is kept for a stated scope,
    used without gradient only, and never beside the weight.
    """

    _packed: Tensor | None = None

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map (..., in) to (..., out), and add ``plus`` of that shape."""
        if self._packed is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x) if plus is None else super().forward(x) + plus
        product = torch.ops.mkldnn._linear_pointwise
        if plus is None:
            return product(x, self._packed, self.bias, "none", [], "")
        return product.binary(x, plus, self._packed, self.bias, "add")

    def pack(self) -> None:
        """Bring the weight, as it is now, into oneDNN's order, where there is oneDNN."""
        ordinary = self.weight.device.type == "cpu" and self.weight.dtype == torch.float32
        if ordinary and torch.backends.mkldnn.is_available():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())

    def unpack(self) -> None:
        """Read the weight itself again."""
        self._packed = None


@contextlib.contextmanager
def fixed_weights(module: nn.Module) -> Iterator[None]:
    """A block in which no weight of the module changes; what is computed in it without gradient is faster."""
    layers = [layer for layer in module.modules() if isinstance(layer, Linear)]
    for layer in layers:
        layer.pack()
    try:
        yield
    finally:
        for layer in layers:
            layer.unpack()
