import dataclasses

import pytest
import torch

from diffpolicy_rl.agents.ppo import PPO, GaussianPPOConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.mlp import ConditionMLP
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from tests.agents.bandit import bandit_rollout, distance

SMALL = GaussianPPOConfig(minibatch=128, epochs=4, lr=3e-3, final_lr=3e-3, critic_hidden=(32, 32, 32))


def gaussian(fitted=True):
    normalizer = Normalizer((3,))
    if fitted:
        normalizer.fit(torch.randn(100, 3), "z_score")
    net = ConditionMLP(4, 2, 3, two_times=False, hidden=(32, 32, 32))
    return GenerativePolicy(net, Gaussian(), normalizer, Normalizer((2,)), horizon=4, execute=2, steps=1)


def test_learns_a_bandit():
    agent = PPO(gaussian(), SMALL, iterations=60, seed=0)
    before = distance(agent)
    for _ in range(40):
        agent.update(bandit_rollout(agent))
    assert before > 0.2
    assert distance(agent) < 0.02


def test_log_density_is_that_of_independent_normals():
    agent = PPO(gaussian(), SMALL, iterations=1, seed=0)
    obs = torch.randn(16, 3)
    _, extras = agent.act(obs, explore=True)
    mean = agent.policy.sample(obs, torch.randn(16, 4, 2))
    expected = torch.distributions.Normal(mean, SMALL.std).log_prob(extras["chain"][:, -1])[:, :2].sum((1, 2))
    torch.testing.assert_close(extras["log_prob"][:, 0], expected, rtol=1e-5, atol=1e-5)


def test_the_first_ratio_of_an_update_is_one():
    agent = PPO(gaussian(), dataclasses.replace(SMALL, epochs=1, minibatch=10_000), iterations=10, seed=0)
    for _ in range(3):
        assert agent.update(bandit_rollout(agent))["ppo/first_ratio_error"] < 3e-6  # a sum of 4 densities, not a mean


def test_from_scratch_the_normaliser_follows_what_is_seen():
    agent = PPO(gaussian(fitted=False), SMALL, iterations=10, seed=0)
    seen = []
    for shift in (1.0, 5.0):
        rollout = bandit_rollout(agent)
        rollout.fields["obs"] = torch.randn_like(rollout.obs) * 2 + shift
        seen.append(rollout.obs.flatten(0, 1))
        agent.update(rollout)
    everything = torch.cat(seen)
    torch.testing.assert_close(agent.policy.obs_normalizer.shift, everything.mean(0))
    torch.testing.assert_close(agent.policy.obs_normalizer.scale, everything.std(0, correction=0))


def test_a_cloned_policy_keeps_its_normaliser():
    agent = PPO(gaussian(), SMALL, iterations=10, seed=0)
    before = agent.policy.obs_normalizer.shift.clone()
    agent.update(bandit_rollout(agent))
    assert torch.equal(agent.policy.obs_normalizer.shift, before)


def test_a_policy_that_is_no_gaussian_is_refused(make_policy):
    with pytest.raises(UserError, match="policy=gaussian"):
        PPO(make_policy(RectifiedFlow(), 4), SMALL, iterations=1, seed=0)


def test_a_gaussian_makes_one_move():
    with pytest.raises(UserError, match=r"policy\.steps=1"):
        Gaussian().grid(4)
