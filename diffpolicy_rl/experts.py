"""External agents as deployed policies: Stable-Baselines3 SAC and TQC actors, rebuilt from their weights alone."""

import io
import zipfile
from pathlib import Path

import gymnasium
import torch
from torch import Tensor, nn

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.types import DeployedPolicy, Obs


class SquashedGaussian(DeployedPolicy):
    """A tanh-Gaussian actor (Haarnoja et al. 2018, appendix C) with one action per call.

    Args:
        trunk: observation (N, O) to features.
        mean: features to means (N, D).
        log_std: features to log stds (N, D).
        space: action Box.
        stochastic: sample; else act with the mean.
    """

    execute = 1
    low: Tensor
    high: Tensor

    def __init__(
        self, trunk: nn.Module, mean: nn.Module, log_std: nn.Module, space: gymnasium.spaces.Box, stochastic: bool
    ) -> None:
        super().__init__()
        self.trunk, self.mean, self.log_std = trunk, mean, log_std
        self.register_buffer("low", torch.from_numpy(space.low))
        self.register_buffer("high", torch.from_numpy(space.high))
        self.noise_shape = (1, len(space.low)) if stochastic else None

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map raw observations (N, O) and noise (N, 1, D) to actions (N, 1, D) in env units."""
        features = self.trunk(obs)
        action = self.mean(features)
        if noise is not None:
            action = action + self.log_std(features).clamp(-20, 2).exp() * noise[:, 0]
        return (self.low + (action.tanh() + 1) / 2 * (self.high - self.low)).unsqueeze(1)


def load_expert(path: Path, space: gymnasium.spaces.Box, stochastic: bool) -> SquashedGaussian:
    """Rebuild the actor of a zip; only ``policy.pth`` is read, as tensors, and nothing is unpickled.

    Raises:
        UserError: if the file is not such a zip, or its actor is not an MLP with a state-dependent std.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = io.BytesIO(archive.read("policy.pth"))
        weights: dict[str, Tensor] = torch.load(stored, map_location="cpu", weights_only=True)
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a Stable-Baselines3 agent: {str(error).splitlines()[0]}") from error
    actor = {name.removeprefix("actor."): tensor for name, tensor in weights.items() if name.startswith("actor.")}
    hidden = sorted({name.rsplit(".", 1)[0] for name in actor if name.startswith("latent_pi.")}, key=_index)
    heads = {"mu.weight", "mu.bias", "log_std.weight", "log_std.bias"}
    if not hidden or not heads <= set(actor):
        raise UserError(f"{path} holds no SAC or TQC actor with MLP and state-dependent std; other agents are not read")
    layers: list[nn.Module] = []
    for name in hidden:
        layers += [_linear(actor, name), nn.ReLU()]
    policy = SquashedGaussian(
        nn.Sequential(*layers), _linear(actor, "mu"), _linear(actor, "log_std"), space, stochastic
    )
    return policy.eval().requires_grad_(False)


def _index(name: str) -> int:
    return int(name.rpartition(".")[2])


def _linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
