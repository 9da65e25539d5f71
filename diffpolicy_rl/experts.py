"""External agents as deployed policies: Stable-Baselines3 SAC and TQC actors, rebuilt from their weights alone."""

import io
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

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


def load_expert(path: Path, obs_dim: int, space: gymnasium.spaces.Box, stochastic: bool) -> SquashedGaussian:
    """Rebuild the actor of a zip; only ``policy.pth`` is read, as tensors, and nothing is unpickled.

    Args:
        path: the zip.
        obs_dim: O of the task it shall act in.
        space: action Box of that task.
        stochastic: sample; else act with the mean.

    Raises:
        UserError: if the file is not such a zip, its actor is not an MLP with a state-dependent std, or it is of a task
            of another shape.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = io.BytesIO(archive.read("policy.pth"))
        weights: Any = torch.load(stored, map_location="cpu", weights_only=True)
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise ValueError("policy.pth holds more than tensors")
    except (OSError, KeyError, RuntimeError, ValueError, EOFError, UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a Stable-Baselines3 agent: {reason}") from error
    actor = {name.removeprefix("actor."): tensor for name, tensor in weights.items() if name.startswith("actor.")}
    numbers = sorted(int(found[1]) for name in actor if (found := re.fullmatch(r"latent_pi\.(\d+)\.weight", name)))
    linear = [f"latent_pi.{number}" for number in numbers] + ["mu", "log_std"]
    if not numbers or not {f"{name}.{part}" for name in linear for part in ("weight", "bias")} <= set(actor):
        raise UserError(f"{path} holds no SAC or TQC actor with MLP and state-dependent std; other agents are not read")
    *hidden, mean, log_std = (_linear(actor, name) for name in linear)
    found, needed = (hidden[0].in_features, mean.out_features), (obs_dim, len(space.low))
    if found != needed:
        raise UserError(f"{path} has observations and actions of width {found}, the task needs {needed}")
    trunk = nn.Sequential(*(module for layer in hidden for module in (layer, nn.ReLU())))
    return SquashedGaussian(trunk, mean, log_std, space, stochastic).eval().requires_grad_(False)


def _linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
