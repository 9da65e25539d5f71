import copy
import dataclasses

import pytest
import torch

from diffpolicy_rl.agents.residual_sac import ResidualSAC, ResidualSACConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.policies.flow import RectifiedFlow
from tests.agents.bases import always, numbered, two_modes

SMALL = ResidualSACConfig(
    batch=64, utd=0.125, prefill=128, mixing="none", critics=2, aggregation="min", alpha=0.01, alpha_lr=0.0,
    critic_hidden=(32, 32), critic_lr=6e-3, actor_hidden=(32, 32), actor_lr=6e-3, actor_every=1, tau=0.05,
)  # fmt: skip
YES, NO = torch.ones(32, dtype=torch.bool), torch.zeros(32, dtype=torch.bool)


def live(agent, experience, reward, rounds):
    """Episodes of one action (32, 2) at observation 0, each round's learned from at once."""
    obs = torch.zeros(32, 3)
    for _ in range(rounds):
        for _ in range(4):
            action, extras = agent.act(obs, explore=True)
            rewards = reward(action[:, 0]).unsqueeze(1)
            experience.online.add(obs, extras, rewards, torch.ones(32, dtype=torch.long), YES, NO, obs)
            agent.reset(YES)
        agent.update(experience)


def settled(agent, num_envs=256):
    """Executed actions (N, D) without exploration, at observation 0."""
    deployed, obs = agent.deploy(), torch.zeros(num_envs, 3)
    chunk = deployed(obs, deployed.sample_noise(num_envs, torch.Generator().manual_seed(7)))
    return deployed.correct(obs, chunk[:, 0])


def learned(base, reward, rounds=12, **changes):
    agent = ResidualSAC(base, dataclasses.replace(SMALL, **changes), iterations=1, seed=0)
    live(agent, Experience(ReplayBuffer(10_000)), reward, rounds)
    return agent


@pytest.mark.parametrize(("scale", "reaches"), [(0.1, False), (0.2, True)])
def test_a_bias_is_corrected_as_far_as_the_scale_goes(scale, reaches):
    action = settled(learned(always(0.35), lambda action: -10 * (action - 0.5).square().sum(-1), scale=scale))
    assert ((action - 0.5).abs().max() < 0.03) == reaches
    assert (action - 0.35).abs().max() <= scale + 1e-6
    if not reaches:
        assert (action - 0.45).abs().max() < 0.02  # as near as it can


def test_a_bounded_residual_does_not_change_the_bases_mind():
    agent = learned(two_modes(), lambda action: 1.0 - (action - 0.7).abs().sum(-1), scale=0.2)
    action = settled(agent)[:, 0]
    assert 0.4 < (action > 0).float().mean() < 0.6
    assert (action[action < 0] + 0.5).abs().max() < 0.05  # the worse mode is pulled to the better as far as it goes


def test_before_learning_the_deployed_policy_is_the_base_and_exploration_is_uniform():
    agent, obs = ResidualSAC(numbered(), SMALL, iterations=1, seed=0), torch.zeros(128, 3)
    noise = agent.deploy().sample_noise(128)
    assert torch.equal(agent.deploy()(obs, noise), agent.policy.deploy()(obs, noise))
    action, extras = agent.act(obs, explore=True)
    u = (action[:, 0] - extras["base_action"]) / SMALL.scale
    assert torch.equal(action, extras["action"])
    assert u.min() > -1.001
    assert u.max() < 1.001
    assert u.std().item() == pytest.approx(3**-0.5, abs=0.05)
    assert torch.equal(agent.act(obs, explore=True)[1]["base_action"], extras["base_action"] + 1)


def history(base_action):
    """Three decisions of three envs: one is cut off at the end, one terminates there, one goes on with a fourth."""
    buffer = ReplayBuffer(100)
    obs, rows = torch.randn(5, 3, 3), torch.arange(3)
    for t in range(4):
        extras = {"action": torch.randn(3, 1, 2), "base_action": base_action[t]}
        terminated, truncated = (rows == 1) & (t == 2), (rows == 0) & (t == 2)
        ones = torch.ones(3, dtype=torch.long)
        buffer.add(obs[t], extras, torch.full((3, 1), t + 1.0), ones, terminated, truncated, obs[t + 1])
    return buffer, obs


def test_targets_by_hand():
    agent = ResidualSAC(always(0.35), dataclasses.replace(SMALL, soft_backup=True), iterations=1, seed=0)
    base_action = torch.randn(4, 3, 2)
    buffer, obs = history(base_action)
    batch = buffer.decisions(torch.arange(3), SMALL.gamma, n_step=3)
    state = agent.generator.get_state()
    agent.plan.follow(batch.next_obs, batch.next_extras["base_action"], torch.tensor([False, True, True]))
    drawn = torch.Generator().set_state(agent.generator.get_state())
    agent.generator.set_state(state)
    planned = torch.stack([torch.full((2,), 0.35), torch.zeros(2), base_action[3, 2]])
    with torch.no_grad():
        # The terminated row's base action counts for nothing, so it may be any.
        planned[1] = batch.next_extras["base_action"][1]
        u, log_prob = agent.soft_actor.actor.sample(
            torch.cat([obs[3].clamp(-3, 3), planned], -1), torch.randn(3, 2, generator=drawn)
        )
        after = agent.critics.target(obs[3], planned + SMALL.scale * u).amin(0)
    gamma = SMALL.gamma
    expected = 1 + 2 * gamma + 3 * gamma**2 + gamma**3 * torch.tensor([1.0, 0, 1]) * (after - 0.01 * log_prob)
    torch.testing.assert_close(agent._targets(batch), expected)


def test_each_network_learns_from_its_own_loss_only():
    agent = ResidualSAC(always(0.35), dataclasses.replace(SMALL, actor_every=2), iterations=1, seed=0)
    batch = history(torch.randn(4, 3, 2))[0].decisions(torch.arange(3), SMALL.gamma, n_step=3)
    features, action, target = batch.obs, batch.action[:, 0], agent._targets(batch)
    before = copy.deepcopy([agent.policy, agent.soft_actor.actor, agent.critics.online])
    expected = (agent.critics.online(features, action) - target).square().mean().item()

    def changed():
        now = [agent.policy, agent.soft_actor.actor, agent.critics.online]
        return [
            any(not torch.equal(a, b) for a, b in zip(x.parameters(), y.parameters(), strict=True))
            for x, y in zip(before, now, strict=True)
        ]

    agent._targets = lambda batch: target
    assert agent._learn(batch)["critic/loss"].item() == pytest.approx(expected, rel=1e-5)
    assert changed() == [False, False, True]
    agent.critic_steps = 1
    critic = copy.deepcopy(agent.critics.online)
    agent.critics.learn = lambda *_: {}
    agent._learn(batch)
    assert changed() == [False, True, True]
    assert all(torch.equal(a, b) for a, b in zip(critic.parameters(), agent.critics.online.parameters(), strict=True))


def test_the_base_is_asked_once_what_it_would_do_in_demonstrations(make_policy):
    def prepared():
        agent = ResidualSAC(make_policy(RectifiedFlow(), 4), SMALL, iterations=1, seed=3)
        agent.policy.net.load_state_dict(weights)
        shown = ReplayBuffer(50)
        rows = {"action": torch.zeros(50, 1, 2), "rewards": torch.zeros(50, 1), "next_obs": obs}
        flags = {"terminated": torch.ones(50).bool(), "successor": torch.full((50,), -1)}
        shown.append({"obs": obs, "executed": torch.ones(50, dtype=torch.long)} | rows | flags)
        agent.config = dataclasses.replace(SMALL, steps=1)
        experience = Experience(ReplayBuffer(10), shown)
        state = agent.generator.get_state()
        agent.config = dataclasses.replace(agent.config, mixing="half")
        agent.update(experience)
        first = shown.decisions(torch.arange(50), 1.0).extras["base_action"].clone()
        agent.update(experience)
        assert torch.equal(first, shown.decisions(torch.arange(50), 1.0).extras["base_action"])
        return agent, first, state

    obs, weights = torch.randn(50, 3), make_policy(RectifiedFlow(), 4).net.state_dict()
    (agent, first, state), (_, again, _) = prepared(), prepared()
    assert first.shape == (50, 2)
    assert torch.equal(first, again)
    alone = torch.Generator().set_state(state)
    assert not torch.equal(first, agent.policy.sample(obs, generator=alone)[:, 0])  # a stream of its own


def test_base_stays_and_state_goes_on():
    agent = learned(always(0.35), lambda action: -action.square().sum(-1), rounds=2)
    assert torch.equal(agent.policy.net.unused, torch.zeros(1))
    other = ResidualSAC(always(0.35), SMALL, iterations=1, seed=9)
    other.load_state_dict(agent.state_dict())
    obs = torch.randn(32, 3)
    for explore in (True, True, False, True):
        assert torch.equal(agent.act(obs, explore=explore)[0], other.act(obs, explore=explore)[0])


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"n_step": 0}, {"subset": 3, "aggregation": "subset_min"}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))) as refusal:
        dataclasses.replace(SMALL, **settings)
    assert "\n" not in str(refusal.value)
