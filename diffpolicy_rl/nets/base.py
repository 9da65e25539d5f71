"""What every denoising net is."""

from abc import abstractmethod

from torch import Tensor, nn


class DenoisingNet(nn.Module):
    """``net(x, t, s, cond)``, in two parts, so that what depends on time and condition is computed once per chunk.

    One-time models ignore the stop time s; shortcut and mean-flow models use it.
    """

    @abstractmethod
    def context(self, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """The part that does not depend on the noisy chunk.

        Args:
            t: start times (...).
            s: stop times (...).
            cond: condition features (..., F); leading dimensions broadcast against those of the times.
        """

    @abstractmethod
    def denoise(self, x: Tensor, context: Tensor) -> Tensor:
        """Predict (..., H, D) at noisy chunks (..., H, D) and their context."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """Predict (B, H, D) at noisy chunks (B, H, D), times (B,), stop times (B,), conditions (B, F)."""
        return self.denoise(x, self.context(t, s, cond))
