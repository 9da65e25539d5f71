"""A bandit for agents that learn from replay: episodes of one decision, rewarded for the executed actions."""

import torch

from diffpolicy_rl.experience.replay import Experience, ReplayBuffer


def live(agent, experience, reward, decisions=1, num_envs=32):
    """Act, and write down what was rewarded; observations are -1 or 1 in their first element, else 0."""
    ended, not_truncated = torch.ones(num_envs, dtype=torch.bool), torch.zeros(num_envs, dtype=torch.bool)
    for _ in range(decisions):
        obs = torch.zeros(num_envs, 3)
        obs[:, 0] = torch.arange(num_envs) % 2 * 2 - 1.0
        action, extras = agent.act(obs, explore=True)
        executed = torch.full((num_envs,), action.shape[1])
        rewards = reward(obs, action) / action.shape[1]
        experience.online.add(obs, extras, rewards, executed, ended, not_truncated, obs)


def learn(agent, reward, iterations):
    experience = Experience(ReplayBuffer(100_000))
    for _ in range(iterations):
        live(agent, experience, reward)
        agent.update(experience)


def near(target):
    """The negative squared distance of actions to a target, (N, A)."""
    return lambda obs, action: -(action - target).square().mean(-1)
