"""A bandit for agents that learn from chains: episodes of one decision, rewarded for actions near a target."""

import torch

from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer


def bandit_rollout(agent, decisions=8, num_envs=32, target=0.5):
    """Episodes of one decision whose reward is the negative squared distance of the executed actions to a target."""
    buffer, obs = RolloutBuffer(decisions), torch.zeros(num_envs, 3)
    ended, not_truncated = torch.ones(num_envs, dtype=torch.bool), torch.zeros(num_envs, dtype=torch.bool)
    for _ in range(decisions):
        action, extras = agent.act(obs, explore=True)
        rewards = -(action - target).square().mean(-1)
        buffer.add(obs, extras, rewards, torch.full((num_envs,), 2), ended, not_truncated, obs)
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
        experience.online.add(obs, extras, rewards, executed, ended, not_truncated, obs)
        agent.reset(ended)
    return experience
