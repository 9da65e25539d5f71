"""Every family of deployed policies, tiny, as export finds it, and how such a policy becomes a bundle."""

import functools
import math

import torch

from diffpolicy_rl.bundles.graph import Deployment
from diffpolicy_rl.bundles.writing import About
from diffpolicy_rl.nets.chi_unet1d import ChiUNet1d
from diffpolicy_rl.nets.mlp import ConditionMLP, DenoisingMLP
from diffpolicy_rl.nets.transformer import DiffusionTransformer
from diffpolicy_rl.nets.unet1d import ConditionalUNet1d
from diffpolicy_rl.policies.consistency import Consistency
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.meanflow import MeanFlow
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.shortcut import Shortcut
from diffpolicy_rl.runtime.manifest import Limits
from tests.agents.test_agent_contract import AGENTS, CLONING, experience

NETS = {
    "mlp": functools.partial(DenoisingMLP, hidden=(16,) * 3),
    "condition": functools.partial(ConditionMLP, hidden=(16,)),
    "unet1d": functools.partial(ConditionalUNet1d, widths=(8, 16), groups=4, hidden=(16,)),
    "chi_unet1d": functools.partial(ChiUNet1d, widths=(16, 32), time_dim=8),
    "transformer": functools.partial(DiffusionTransformer, width=16, depth=1, heads=2, hidden=(16,)),
}
FAMILIES = {
    "bc": (DDPM(levels=4), 1, "unet1d"),  # and IQL
    "dppo": (DDPM(levels=4, schedule="vp"), 2, "transformer"),
    "reinflow": (RectifiedFlow(), 2, "mlp"),
    "ppo": (Gaussian(), 1, "condition"),
    "sac": (RectifiedFlow(), 1, "mlp"),  # and RLPD
    "dsrl-na": (RectifiedFlow(), 1, "mlp"),
    "dsrl-sac": (Shortcut(), 1, "mlp"),
    "expo": (RectifiedFlow(), 1, "mlp"),
    "pa_rl": (Consistency(), 1, "mlp"),
    "residual_sac": (RectifiedFlow(), 1, "chi_unet1d"),
    "resip": (RectifiedFlow(), 1, "mlp"),
    "dql": (MeanFlow(), 1, "mlp"),  # and OFQL
    "fql": (RectifiedFlow(clip=None), 1, "mlp"),
    "idql": (RectifiedFlow(), 1, "mlp"),
    "td3_bc": (Gaussian(), 1, "condition"),
    "fisor": (RectifiedFlow(), 1, "mlp"),
}
EVALUATION = {"env": "Toy-v0", "result": None, "note": "", "distillation": None}
ABOUT = About("tiny", "Tiny", 50.0, Limits((-2.0, -2.0), (2.0, 4.0), (10.0, 10.0), None, None, None), EVALUATION, {})


def deployment(name):
    """The policy of an agent after one update, with normalisers that do something; O = 3, D = 2."""
    torch.manual_seed(0)
    process, steps, net = FAMILIES[name]
    horizon = 2 if name in CLONING else 4
    normalizers = Normalizer((3,)), Normalizer((2,))
    normalizers[0].set(torch.tensor([1.0, -5.0, 0.0]), torch.tensor([0.1, 10.0, 1.0]))
    normalizers[1].set(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))
    denoiser = NETS[net](horizon, 2, 3, process.two_times)
    for parameter in denoiser.parameters():  # nets that start at zero would agree on anything
        torch.nn.init.normal_(parameter, std=1 / math.sqrt(16))
    cls, config = AGENTS[name]
    agent = cls(GenerativePolicy(denoiser, process, *normalizers, horizon, 2, steps), config, iterations=3, seed=0)
    agent.update(experience(agent))
    policy = agent.deploy().exportable().eval().requires_grad_(False)
    return Deployment(policy, (3,), *normalizers)
