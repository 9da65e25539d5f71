"""What every denoising net is."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from diffpolicy_rl.errors import UserError

Context = tuple[Tensor, ...]
"""What a net makes of time and condition: tensors (..., W) whose leading dimensions broadcast."""


class DenoisingNet(nn.Module):
    """``net(x, t, s, cond)``, in two parts, so that what depends on time and condition is computed once per chunk.

    One-time models ignore the stop time s; shortcut and mean-flow models use it.
    """

    @abstractmethod
    def context(self, t: Tensor, s: Tensor, cond: Tensor) -> Context:
        """The part that does not depend on the noisy chunk.

        Args:
            t: start times (...).
            s: stop times (...).
            cond: condition features (..., F); leading dimensions broadcast against those of the times.
        """

    @abstractmethod
    def denoise(self, x: Tensor, context: Context) -> Tensor:
        """Predict (..., H, D) at noisy chunks (..., H, D) and their context."""

    def denoise_with_hidden(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Predict like ``denoise``, and return one hidden representation (..., W) that led to it.

        Optional: what cannot show any leaves this as it is.
        """
        raise NotImplementedError

    def slope(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor, velocity: Tensor) -> Tensor:
        """Derivative (B, H, D) of the prediction by t, where x moves with a velocity (B, H, D), and s and cond stay."""

        def along(x: Tensor, t: Tensor) -> Tensor:
            return self(x, t, s, cond)

        return torch.func.jvp(along, (x, t), (velocity, torch.ones_like(t)))[1]

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """Predict (B, H, D) at noisy chunks (B, H, D), times (B,), stop times (B,), conditions (B, F)."""
        return self.denoise(x, self.context(t, s, cond))


class Standin(DenoisingNet):
    """A net in whose place it can be used: whatever is not told otherwise, the net answers.

    Args:
        net: the net; its weights are shared.
    """

    def __init__(self, net: DenoisingNet) -> None:
        super().__init__()
        self.net = net

    def context(self, t: Tensor, s: Tensor, cond: Tensor) -> Context:
        """The net's."""
        return self.net.context(t, s, cond)

    def denoise(self, x: Tensor, context: Context) -> Tensor:
        """The net's."""
        return self.net.denoise(x, context)

    def slope(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor, velocity: Tensor) -> Tensor:
        """The net's."""
        return self.net.slope(x, t, s, cond, velocity)


class Watched(Standin):
    """A net in whose place it can be used, and which keeps what the net's differentiated forward looked like inside.

    Forwards without gradient, such as those of a loss's targets, leave no trace.

    Args:
        net: the net to watch; its weights are shared.

    Attributes:
        hidden: hidden representation (..., W) of the last forward that a gradient can flow through.

    Raises:
        UserError: if the net shows no hidden representation.
    """

    hidden: Tensor

    def __init__(self, net: DenoisingNet) -> None:
        super().__init__(net)
        if type(net).denoise_with_hidden is DenoisingNet.denoise_with_hidden:
            raise UserError(f"{type(net).__name__} shows no hidden features to disperse; set dispersive=0")

    def denoise(self, x: Tensor, context: Context) -> Tensor:
        """The net's."""
        pred, hidden = self.net.denoise_with_hidden(x, context)
        if torch.is_grad_enabled():
            self.hidden = hidden
        return pred


class Accompanied(Standin):
    """A net in whose place it can be used, and which takes rows of its own along in the net's differentiated forward.

    One forward of twice the rows takes less time than two.

    Args:
        net: the net; its weights are shared.
        x: noisy chunks (B, H, D).
        t: their start time.
        s: their stop time.
        cond: conditions (B, F).

    Attributes:
        pred: what the net predicted for them, (B, H, D).
    """

    pred: Tensor

    def __init__(self, net: DenoisingNet, x: Tensor, t: float, s: float, cond: Tensor) -> None:
        super().__init__(net)
        self.x, self.cond = x, cond
        self.t, self.s = (cond.new_full((len(cond),), time) for time in (t, s))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """The net's prediction."""
        if not torch.is_grad_enabled():
            return self.net(x, t, s, cond)
        pairs = ((x, self.x), (t, self.t), (s, self.s), (cond, self.cond))
        pred, self.pred = self.net(*(torch.cat(pair) for pair in pairs)).tensor_split([len(x)])
        return pred


class Remembering(Standin):
    """A net in whose place it can be used, and which keeps what it was asked last, and its answer.

    Args:
        net: the net; its weights are shared.

    Attributes:
        x: noisy chunks (B, H, D).
        t: their start times (B,).
        pred: the prediction (B, H, D).
    """

    x: Tensor
    t: Tensor
    pred: Tensor

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """The net's prediction."""
        self.x, self.t, self.pred = x, t, self.net(x, t, s, cond)
        return self.pred
