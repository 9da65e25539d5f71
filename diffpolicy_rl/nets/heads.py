"""Stochastic actors of the maximum-entropy agents, and the temperature that weighs their entropy."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.nets.mlp import MLP, shrink

_LOG_STD = (-20.0, 2.0)  # as Haarnoja et al. 2018 have it


class TanhGaussian(nn.Module):
    """A diagonal Gaussian squashed into a box: action = bound * tanh(u), u ~ N(mean, std) (Haarnoja et al. 2018).

    Log-probabilities are those of the *unscaled* variable tanh(u), so that a target entropy means the same at every
    bound. The action itself has log-density ``log_prob - log_volume``, and entropy higher by ``log_volume``.

    Args:
        features: F.
        action_shape: of one action, as (H, D).
        bound: half the side of the box.
        hidden: widths of the hidden layers.
        activation: a name in ``ACTIVATIONS``.
        layer_norm: whether to normalise between each linear layer and its activation.
        last_scale: factor on the last layer's initial weights; small, actions start near tanh(N(0, 1)) around zero.

    Attributes:
        log_volume: elements of an action times log(bound).

    Raises:
        UserError: if the bound is not positive.
    """

    def __init__(
        self,
        features: int,
        action_shape: Sequence[int],
        bound: float = 1.0,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "relu",
        layer_norm: bool = False,
        last_scale: float = 1.0,
    ) -> None:
        super().__init__()
        require_positive(bound=bound)
        size = math.prod(action_shape)
        self.action_shape, self.bound, self.log_volume = tuple(action_shape), bound, size * math.log(bound)
        self.net = MLP(features, hidden, 2 * size, activation, layer_norm)
        shrink(self.net[-1], last_scale)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log std (..., *action_shape) of u at features (..., F)."""
        mean, log_std = (part.unflatten(-1, self.action_shape) for part in self.net(features).chunk(2, dim=-1))
        return mean, log_std.clamp(*_LOG_STD)

    def sample(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (..., *action_shape), differentiable, and log-probabilities (...) of the unscaled variable.

        Args:
            features: (..., F).
            noise: standard normal (..., *action_shape); leading dimensions broadcast.
        """
        mean, log_std = self(features)
        u = mean + log_std.exp() * noise
        log_normal = -noise.square() / 2 - log_std - math.log(2 * math.pi) / 2
        # log(1 - tanh(u)^2), which is 0 - infinity in its own words as soon as tanh(u) rounds to 1
        log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
        log_prob = (log_normal - log_slope).flatten(-len(self.action_shape)).sum(-1)
        return self.bound * torch.tanh(u), log_prob

    def mode(self, features: Tensor) -> Tensor:
        """Actions (..., *action_shape) at the Gaussian's mean, for acting without exploration."""
        return self.bound * torch.tanh(self(features)[0])


class Temperature(nn.Module):
    """The entropy weight alpha, learned so that the policy's entropy meets a target (Haarnoja et al. 2018, eq. 18).

    The loss is linear in log alpha instead of in alpha, as most implementations have it.

    Args:
        target_entropy: wanted entropy, in nats.
        size: elements of an action.
        bound: the box [-bound, bound]^size that the entropy is measured in; 1 with ``TanhGaussian``'s log-probability.
        initial: alpha at the start.

    Raises:
        UserError: if no distribution on the box has the target entropy, or a setting is not positive.
    """

    def __init__(self, target_entropy: float, size: int, bound: float = 1.0, initial: float = 1.0) -> None:
        super().__init__()
        require_positive(size=size, bound=bound, initial=initial)
        most = size * math.log(2 * bound)
        if target_entropy >= most:
            raise UserError(
                f"target_entropy={target_entropy:g} must be below {most:.4g}, the entropy of the uniform distribution "
                f"on [-{bound:g}, {bound:g}]^{size}, or the temperature would grow without bound"
            )
        self.target_entropy = target_entropy
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial)))

    @property
    def alpha(self) -> Tensor:
        """The weight (), without gradient."""
        return self.log_alpha.detach().exp()

    def loss(self, log_prob: Tensor) -> Tensor:
        """Loss () of log alpha at log-probabilities (...) of actions drawn from the policy."""
        return -self.log_alpha * (log_prob.detach() + self.target_entropy).mean()
