"""Critics."""

from collections.abc import Sequence

from torch import Tensor, nn

from diffpolicy_rl.nets.mlp import ResidualMLP


class ValueNet(nn.Module):
    """State value V(o) as DPPO's residual MLP."""

    def __init__(self, inputs: int, hidden: Sequence[int] = (256, 256, 256), activation: str = "mish") -> None:
        super().__init__()
        self.net = ResidualMLP(inputs, hidden, 1, activation)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., F) to values (...)."""
        return self.net(features).squeeze(-1)
