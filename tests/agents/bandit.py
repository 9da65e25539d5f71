"""Bandits: episodes of one decision, for agents that learn from chains, and for those that learn from replay."""

import torch

from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy

GOOD, BAD = 0.7, -0.7


def bandit_rollout(agent, decisions=8, num_envs=32, target=0.5):
    """Episodes of one decision whose reward is the negative squared distance of the executed actions to a target."""
    buffer, obs = RolloutBuffer(decisions), torch.zeros(num_envs, 3)
    ended, not_truncated = torch.ones(num_envs, dtype=torch.bool), torch.zeros(num_envs, dtype=torch.bool)
    for _ in range(decisions):
        action, extras = agent.act(obs, explore=True)
        rewards = -(action - target).square().mean(-1)
        buffer.add(obs, extras, rewards, torch.full((num_envs,), agent.chunk), ended, not_truncated, obs)
        agent.reset(ended)
    return buffer


def distance(agent, target=0.5):
    noise = torch.randn(256, 4, 2, generator=torch.Generator().manual_seed(7))
    return (agent.policy.sample(torch.zeros(256, 3), noise)[:, :2] - target).square().mean().item()


def bandit_replay(agent, decisions=8, num_envs=32, target=0.5, lasting=False, experience=None):
    """The same bandit for agents that learn from replay; ``lasting`` episodes go on."""
    experience, obs = experience or Experience(ReplayBuffer(10_000)), torch.zeros(num_envs, 3)
    ended, not_truncated = torch.full((num_envs,), not lasting), torch.zeros(num_envs, dtype=torch.bool)
    executed = torch.full((num_envs,), agent.chunk)
    for _ in range(decisions):
        action, extras = agent.act(obs, explore=True)
        rewards = -(action - target).square().mean(-1)
        extras["costs"] = (rewards < -0.5).float()
        experience.online.add(obs, extras, rewards, executed, ended, not_truncated, obs)
        agent.reset(ended)
    return experience


class TwoModes(DenoisingNet):
    """A velocity that leads to GOOD or BAD in one step, as the sign of the noise's first element says."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def context(self, t, s, cond):
        return (cond + 0 * t.unsqueeze(-1),)

    def denoise(self, x, context):
        return GOOD * x[..., :1, :1].sign() + self.shift - x


def two_modes(horizon=2):
    """A flow whose chunks of two-dimensional actions are all GOOD or all BAD, half of the time each."""
    return GenerativePolicy(TwoModes(), RectifiedFlow(), Normalizer((3,)), Normalizer((2,)), horizon, horizon, 1)


def peak(place):
    """Single rewards (N, A) of actions (N, A, 2): the negative squared distance to a place."""
    return lambda action: -(action - place).square().mean(-1)


def store(buffer, action, reward, obs=None):
    """Write down decisions (N, A, 2) that each were an episode."""
    obs, ended = torch.zeros(len(action), 3) if obs is None else obs, torch.ones(len(action), dtype=torch.bool)
    executed = torch.full((len(action),), action.shape[1])
    buffer.add(obs, {"action": action}, reward(action), executed, ended, ~ended, obs)


def shown(reward, rows=64):
    """Demonstrations that are GOOD in one half and BAD in the other."""
    buffer = ReplayBuffer(rows)
    modes = torch.tensor([GOOD, BAD]).repeat(rows // 2)
    store(buffer, modes.view(-1, 1, 1).expand(-1, 2, 2) + 0.02 * torch.randn(rows, 2, 2), reward)
    return buffer


def live(agent, experience, reward, rows=32):
    """Let the agent make decisions, and write them down."""
    store(experience.online, agent.act(torch.zeros(rows, 3), explore=True)[1]["action"], reward)


def deployed_actions(agent, rows=400):
    """What the deployed policy does (rows, A, 2), its noise drawn from a fixed seed."""
    policy = agent.deploy()
    with torch.inference_mode():
        return policy(torch.zeros(rows, 3), policy.sample_noise(rows, torch.Generator().manual_seed(7))).clone()
