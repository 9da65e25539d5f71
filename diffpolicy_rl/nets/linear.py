"""Which kernels multiply: a linear layer that can keep its weight in oneDNN's layout, and torch's own choice."""

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

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map (..., in) to (..., out)."""
        return self._product(x, "none", self.bias) if self._is_packed() else super().forward(x)

    def plus(self, x: Tensor, summand: Tensor) -> Tensor:
        """Map (..., in) to (..., out), and add a summand of that shape."""
        return self.weighted(x, summand, self.bias) if self._is_packed() else super().forward(x) + summand

    def weighted(self, x: Tensor, summand: Tensor, bias: Tensor) -> Tensor:
        """The weights times x (..., in), plus a summand and another bias than the layer's, which broadcast to it."""
        if bias.ndim == 2 and len(bias) == 1:
            bias = bias.squeeze(0)
        if bias.ndim > 1:
            return nn.functional.linear(x, self.weight) + summand + bias
        if not self._is_packed():
            return nn.functional.linear(x, self.weight, bias) + summand
        if summand.shape[:-1] != x.shape[:-1]:
            return self._product(x, "none", bias).add_(summand)
        return torch.ops.mkldnn._linear_pointwise.binary(x, summand, self._packed, bias, "add")

    def relu(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), and cut off what is negative."""
        return self._product(x, "relu", self.bias) if self._is_packed() else super().forward(x).relu_()

    def _is_packed(self) -> bool:
        return not (self._packed is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))

    def _product(self, x: Tensor, then: str, bias: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, then, [], "")

    def pack(self) -> None:
        """Bring the weight, as it is now, into oneDNN's order, where there is oneDNN."""
        ordinary = self.weight.device.type == "cpu" and self.weight.dtype == torch.float32
        if ordinary and torch.backends.mkldnn.is_available():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())

    def unpack(self) -> None:
        """Read the weight itself again."""
        self._packed = None


@contextlib.contextmanager
def plain_fp32() -> Iterator[None]:
    """A block with torch's own choice of fp32 kernels, as a program has it that does not choose."""
    matmul = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    # The choice is put back as it was, not probed for again, which takes products of its own.
    chosen, matmul.fp32_precision = matmul.fp32_precision, "none"
    try:
        yield
    finally:
        matmul.fp32_precision = chosen


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
