"""SAC and RLPD: targets, what learns from what, and a bandit."""

import math

import pytest
import torch

from diffpolicy_rl.agents.rlpd import RLPD, RLPDConfig
from diffpolicy_rl.agents.sac import SAC, SACConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.policies.flow import RectifiedFlow
from tests.agents.bandit import bandit_replay

SMALL = {"critic_hidden": (32, 32), "actor_hidden": (32, 32), "batch": 64, "prefill": 64}


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_td_target_by_hand(make_policy, monkeypatch):
    agent = SAC(make_policy(RectifiedFlow(), 4), SACConfig(**SMALL, actor_every=2), iterations=5, seed=0)
    agent.soft_actor.temperature.log_alpha.data.fill_(math.log(0.3))
    batch = bandit_replay(agent, 8, lasting=True).online.decisions(torch.arange(16), gamma=0.9)
    seen = {}
    monkeypatch.setattr(agent.critics, "learn", lambda *given: seen.update(zip("fat", given, strict=True)) or {})
    state = agent.generator.get_state()
    agent._learn(batch)
    agent.generator.set_state(state)
    after = agent.policy.encode(batch.next_obs)
    with torch.no_grad():
        action, log_prob = agent.soft_actor.sample(after)
        lower = agent.critics.target(after, action).amin(0)
    expected = batch.reward + 0.9**2 * (lower - 0.3 * log_prob)
    torch.testing.assert_close(seen["t"], expected)
    assert torch.equal(seen["a"], batch.action)


def test_hard_backup_has_no_entropy(make_policy):
    agent = RLPD(make_policy(RectifiedFlow(), 4), RLPDConfig(**SMALL, soft_backup=False), iterations=5, seed=0)
    value = torch.tensor([1.0, 2.0])
    assert torch.equal(agent.soft_actor.soft(value, torch.tensor([3.0, 4.0])), value)


def test_the_actor_learns_from_the_critics_and_not_the_reverse(make_policy):
    agent = SAC(make_policy(RectifiedFlow(), 4), SACConfig(**SMALL), iterations=5, seed=0)
    critics, actor = weights(agent.critics.online), weights(agent.soft_actor.actor)
    features = torch.randn(16, 3)
    agent.soft_actor.learn(features, lambda action: agent.critics.online(features, action).mean(0))
    assert torch.equal(weights(agent.critics.online), critics)
    assert not torch.equal(weights(agent.soft_actor.actor), actor)
    assert all(parameter.grad is None for parameter in agent.critics.online.parameters())


def test_steps_are_paid_for_by_decisions(make_policy):
    agent = SAC(make_policy(RectifiedFlow(), 4), SACConfig(**SMALL, utd=0.5), iterations=5, seed=0)
    experience = Experience(ReplayBuffer(1000))
    steps = []
    for decisions in (1, 1, 1, 2, 1):  # of 32 envs
        bandit_replay(agent, decisions, experience=experience)
        agent.update(experience)
        steps.append(agent.critic_steps)
    assert steps == [0, 0, 16, 48, 64]  # half of what came after the first 64


def test_offline_steps_need_no_decision(make_policy):
    agent = RLPD(make_policy(RectifiedFlow(), 4), RLPDConfig(**SMALL, steps=3), iterations=5, seed=0)
    shown = bandit_replay(agent, 4).online
    agent.update(Experience(ReplayBuffer(10), shown))
    assert (agent.critic_steps, agent.online_steps) == (3, 0)


@pytest.mark.parametrize(("cls", "config"), [(SAC, SACConfig), (RLPD, RLPDConfig)])
def test_learns_a_bandit(make_policy, cls, config):
    lr = {"actor_lr": 3e-3, "critic_lr": 3e-3, "alpha": 0.1, "entropy_per_element": -2.0}
    agent = cls(
        make_policy(RectifiedFlow(), 4),
        config(**SMALL, **lr, utd=1, actor_every=1, mixing="none"),
        iterations=5,
        seed=0,
    )
    experience = Experience(ReplayBuffer(10_000))
    for _ in range(16):
        bandit_replay(agent, 1, experience=experience)
        agent.update(experience)
    chosen = agent.deploy()(torch.zeros(4, 3), None)
    assert chosen.shape == (4, 2, 2)
    assert (chosen - 0.5).abs().max() < 0.15
    assert agent.critics.online(torch.zeros(1, 3), torch.full((1, 2, 2), 0.5)).mean().item() == pytest.approx(
        0, abs=0.1
    )


def test_before_anything_is_learned_the_base_policy_is_deployed(make_policy):
    policy = make_policy(RectifiedFlow(), 4)
    agent = SAC(policy, SACConfig(**SMALL), iterations=5, seed=0)
    obs, noise = torch.randn(3, 3), torch.randn(3, 4, 2)
    assert torch.equal(agent.deploy()(obs, noise), policy.deploy()(obs, noise))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subset": 3, "aggregation": "subset_min"}, "subset=3 must lie between 1 and critics=2"),
        ({"gamma": 1.5}, r"gamma=1\.5"),
        ({"utd": 0}, "utd"),
    ],
)
def test_settings_that_cannot_learn_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SACConfig(**settings)


def test_an_entropy_no_distribution_has_is_refused(make_policy):
    with pytest.raises(UserError, match="target_entropy=4 must be below"):
        SAC(make_policy(RectifiedFlow(), 4), SACConfig(entropy_per_element=1.0), iterations=1, seed=0)
