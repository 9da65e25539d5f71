"""Every process learns a distribution of two modes, 70 : 30, and samples it in as few steps as it promises."""

import pytest
import torch

from diffpolicy_rl.nets.mlp import DenoisingMLP
from diffpolicy_rl.policies.consistency import Consistency
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.meanflow import MeanFlow
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.shortcut import Shortcut

MODE, SHARE, STEPS, BATCH = 0.6, 0.7, 1000, 256


def cloned(process, time_scale):
    """A small policy after some seconds of regression on actions at +0.6 and -0.6."""
    net = DenoisingMLP(2, 1, 1, process.two_times, (64,) * 3, time_scale=time_scale)
    policy, generator = GenerativePolicy(net, process, Normalizer((1,)), Normalizer((1,)), 2, 2, 1), torch.Generator()
    generator.manual_seed(0)
    average, optimizer = policy.frozen_copy(), torch.optim.Adam(policy.parameters(), lr=3e-3)
    obs = torch.zeros(BATCH, 1)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / STEPS)
        sign = (torch.rand(BATCH, 1, 1, generator=generator) < SHARE) * 2.0 - 1
        loss = policy.loss(obs, (MODE * sign).expand(BATCH, 2, 1), generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(list(average.parameters()), list(policy.parameters()), 0.02)
    return average


@pytest.mark.parametrize(
    ("process", "time_scale", "samplers", "spread"),
    [
        (RectifiedFlow(), 100.0, [(8, 0.0), (8, 0.5)], 0.15),
        (DDPM(20), 100.0, [(10, 0.0), (10, 1.0)], 0.15),
        (Shortcut(), 100.0, [(1, 0.0), (2, 0.0), (4, 0.0)], 0.2),
        (MeanFlow(), 3.0, [(1, 0.0), (2, 0.0)], 0.22),
        (Consistency(), 3.0, [(1, 0.0), (2, 0.0), (2, 1.0)], 0.26),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "two_times") else "",
)
def test_two_modes(process, time_scale, samplers, spread):
    policy, obs, generator = cloned(process, time_scale), torch.zeros(2000, 1), torch.Generator().manual_seed(1)
    for steps, eta in samplers:
        actions = policy.sample(obs, steps=steps, eta=eta, generator=generator).mean((1, 2))
        off = actions.abs() - MODE
        assert (actions > 0).float().mean().item() == pytest.approx(SHARE, abs=0.08), (steps, eta)
        assert off.square().mean().sqrt().item() < spread, (steps, eta)
        assert off.median().abs().item() < 0.1, (steps, eta)
