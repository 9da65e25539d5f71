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
        buffer.add(obs, extras, rewards, torch.full((num_envs,), agent.chunk), ended, not_truncated, obs)
        agent.reset(ended)
    return buffer


def bandit_replay(agent, decisions=8, num_envs=32, target=0.5):
    """The same, kept for replay, with as much for demonstrations."""

    def lived():
        buffer, rollout = ReplayBuffer(decisions * num_envs), bandit_rollout(agent, decisions, num_envs, target)
        for t in range(decisions):
            extras = {name: value[t] for name, value in rollout.extras.items()}
            flags = rollout.terminated[t], rollout.truncated[t]
            buffer.add(rollout.obs[t], extras, rollout.rewards[t], rollout.executed[t], *flags, rollout.obs[t])
        return buffer

    return Experience(lived(), lived())


def distance(agent, target=0.5):
    noise = torch.randn(256, 4, 2, generator=torch.Generator().manual_seed(7))
    return (agent.policy.sample(torch.zeros(256, 3), noise)[:, :2] - target).square().mean().item()
