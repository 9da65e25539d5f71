"""Milliseconds of a decision for one robot: a one-step policy as it is exported, and its net sampled by a tutorial."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Figures, several, take_turns, with_plain_fp32
from benchmarks.textbook import TextbookNet
from diffpolicy_rl.bundles.examples import OBSERVATION
from diffpolicy_rl.bundles.graph import Deployment, export_graphs
from diffpolicy_rl.bundles.writing import About, manifest_of
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.mlp import DenoisingMLP
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.runtime.bundle import Bundle
from diffpolicy_rl.runtime.manifest import Limits
from diffpolicy_rl.training.threads import torch_threads

_O, _H, _D, _HIDDEN = 23, 4, 7, (512, 512, 512)  # an arm with a gripper
_STEPS, _CALLS = 10, 100


class TextbookFlow(nn.Module):
    """A flow's sampler written down one Euler step after the other.

    Args:
        policy: whose weights it copies.
        steps: K.
    """

    def __init__(self, policy: GenerativePolicy, steps: int) -> None:
        super().__init__()
        self.net, self.steps = TextbookNet(policy.net), steps
        self.obs_normalizer = copy.deepcopy(policy.obs_normalizer)
        self.action_normalizer = copy.deepcopy(policy.action_normalizer)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions (B, H, D) in env units at raw observations (B, O), from noise (B, H, D)."""
        cond, x = self.obs_normalizer(obs), noise
        for k in range(self.steps):
            t = torch.full((len(x),), k / self.steps)
            x = (x + self.net(x, t, cond) / self.steps).clamp(-1, 1)
        return self.action_normalizer.inverse(x)


def compare(repeats: int) -> Figures:
    """Milliseconds per call at batch 1 on one thread, and how many times longer than the exported policy others take.

    Args:
        repeats: turns of 100 calls each.

    Raises:
        UserError: if the sides do not compute the same.
    """
    torch.manual_seed(0)
    net = DenoisingMLP(_H, _D, _O, two_times=False, hidden=_HIDDEN, activation="mish")
    policy = GenerativePolicy(net, RectifiedFlow(), Normalizer((_O,)), Normalizer((_D,)), _H, _H, steps=1)
    policy.eval().requires_grad_(False)
    bundle = _exported(policy)
    obs, noise = torch.randn(1, _O), torch.randn(1, _H, _D)
    given, drawn = {OBSERVATION: obs.numpy()}, noise.numpy()
    textbook = {steps: TextbookFlow(policy, steps) for steps in (1, _STEPS)}
    sides: dict[str, Callable[[], object]] = {"exported_1": several(lambda: bundle(given, drawn), _CALLS)}
    for steps, eager in textbook.items():
        sides[f"textbook_{steps}"] = with_plain_fp32(several(lambda eager=eager: eager(obs, noise), _CALLS))
    with torch_threads(1), torch.inference_mode():
        if not np.allclose(bundle(given, drawn), textbook[1](obs, noise).numpy(), atol=1e-5):
            raise UserError("the exported policy and the textbook's do not compute the same")
        seconds = take_turns(sides, repeats)
    ours = seconds["exported_1"]
    ratios = {f"{name}/exported_1": value / ours for name, value in seconds.items() if name != "exported_1"}
    return {f"{name}_ms": 1e3 * value / _CALLS for name, value in seconds.items()} | ratios


def _exported(policy: GenerativePolicy) -> Bundle:
    """The policy on onnxruntime, as from a bundle's folder."""
    deployment = Deployment(policy.deploy(), (_O,), policy.obs_normalizer, policy.action_normalizer)
    about = About("one step", "bc", 50.0, Limits((-1.0,) * _D, (1.0,) * _D), {}, {})
    graphs = export_graphs(deployment)
    manifest = manifest_of(deployment, about, graphs.contents, graphs.noise, graphs.horizon)
    return Bundle(manifest, graphs.contents)
