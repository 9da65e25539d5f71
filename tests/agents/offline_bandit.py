"""Diffusion-QL's bandit: four actions of the data, one at each corner, and what each of them pays."""

import torch

from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.nets.mlp import ConditionMLP
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy

CORNERS = 0.8 * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
PAY = torch.tensor([3.0, 0.0, 1.5, 5.0])
SMALL = {"batch": 128, "critic_hidden": (32, 32), "critic_lr": 3e-3, "tau": 0.05, "policy_lr": 3e-3}


def stored(action, reward, costs=None):
    """Demonstrations (N, 1, 2) that each were an episode of one decision."""
    buffer, rows = ReplayBuffer(len(action)), len(action)
    fields = {
        "obs": torch.zeros(rows, 3), "action": action, "rewards": reward.unsqueeze(1),
        "executed": torch.ones(rows, dtype=torch.long), "terminated": torch.ones(rows, dtype=torch.bool),
        "next_obs": torch.zeros(rows, 3), "successor": torch.full((rows,), -1),
    }  # fmt: skip
    buffer.append(fields | ({} if costs is None else {"costs": costs.unsqueeze(1)}))
    return Experience(ReplayBuffer(1), buffer)


def corners(rows=1024, costs=None):
    """As often each, with a std of 0.05 (Wang et al. 2022, section 5); costs (4,) by corner."""
    which = torch.arange(rows) % 4
    action = CORNERS[which] + 0.05 * torch.randn(rows, 2)
    return stored(action.unsqueeze(1), PAY[which], None if costs is None else costs[which])


def deterministic():
    net = ConditionMLP(1, 2, 3, False, hidden=(32,), activation="relu", squash=True)
    return GenerativePolicy(net, Gaussian(), Normalizer((3,)), Normalizer((2,)), 1, 1, 1)


def learned(agent, experience, updates=3):
    for _ in range(updates):
        agent.update(experience)
    return agent


def shares(policy, rows=2000):
    """How often a deployed policy does what is nearest to each corner (4,)."""
    with torch.inference_mode():
        noise = policy.sample_noise(rows, torch.Generator().manual_seed(7))
        action = policy(torch.zeros(rows, 3), noise).squeeze(1)
    return torch.cdist(action, CORNERS).argmin(1).bincount(minlength=4) / rows
