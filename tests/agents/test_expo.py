import copy
import dataclasses
import math

import pytest
import torch

from diffpolicy_rl.agents.expo import EXPO, EXPOConfig, joined
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.policies.flow import RectifiedFlow
from tests.agents.bandit import GOOD, deployed_actions, live, peak, shown, two_modes

SMALL = EXPOConfig(
    utd=1, actor_every=1, prefill=32, batch=64, critics=3, critic_hidden=(32, 32), actor_hidden=(32, 32),
    critic_lr=3e-3, actor_lr=3e-3, tau=0.05, base_lr=1e-4, alpha=0.01,
)  # fmt: skip


def build(policy, **changes):
    return EXPO(policy, dataclasses.replace(SMALL, **changes), iterations=1, seed=0)


@pytest.fixture
def agent(make_policy):
    made = build(make_policy(RectifiedFlow(), 3, horizon=2), candidates=3, beta=0.3)
    made.critics.target.load_state_dict(build(make_policy(RectifiedFlow(), 3, horizon=2)).critics.target.state_dict())
    with torch.no_grad():
        for parameter in made.base.online.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # the average is another policy
    return made


def batch(rows=5):
    return Decisions(
        obs=torch.randn(rows, 3), action=torch.randn(rows, 2, 2), mask=torch.rand(rows, 2) < 0.7,
        reward=torch.randn(rows), discount=torch.rand(rows), next_obs=torch.randn(rows, 3),
        extras={}, next_extras={}, followed=torch.ones(rows, dtype=torch.bool),
    )  # fmt: skip


def candidates_one_by_one(policy, edit, obs, noise):
    """Samples, then an edit of each, from noise (2M, B, H, D), with one call for each."""
    count, features = len(noise) // 2, policy.encode(obs)
    samples = [policy.sample(obs, noise[i]) for i in range(count)]
    means = [edit(torch.cat([features, sample.flatten(1)], dim=1)) for sample in samples]
    edits = [edit.bound * torch.tanh(mean + std.exp() * noise[count + i]) for i, (mean, std) in enumerate(means)]
    return torch.stack(samples + [sample + change for sample, change in zip(samples, edits, strict=True)])


def test_td_target_by_hand(agent, monkeypatch):
    """Reward plus the least of two other drawn target critics at the online base's candidate that two drawn prefer."""
    seen, data, critics = [], batch(), agent.critics
    generator = torch.Generator().set_state(agent.generator.get_state())
    monkeypatch.setattr(critics, "learn", lambda *arguments: seen.append(arguments) or {})
    monkeypatch.setattr(agent, "config", dataclasses.replace(agent.config, actor_every=2))
    edited = agent._learn(data)["expo/edited"]

    noise, rows = torch.randn(6, 5, 2, 2, generator=generator), torch.arange(5)
    with torch.no_grad():
        candidates = candidates_one_by_one(agent.base.online, agent.edit.actor, data.next_obs, noise)
        values = torch.stack([critics.target(data.next_obs, candidate) for candidate in candidates], dim=1)  # (E, M, B)
        first, second = (torch.randperm(3, generator=generator)[:2] for _ in range(2))
        best = values[first].amin(0).argmax(0)
        future = values[second].amin(0)[best, rows]
    features, action, target = seen[0]
    assert torch.equal(action, data.action)
    assert torch.equal(features, data.obs)
    torch.testing.assert_close(target, data.reward + data.discount * future)
    assert edited == (best >= 3).float().mean()


def test_acting_asks_the_average_of_the_base(agent):
    obs, generator = torch.randn(5, 3), torch.Generator().set_state(agent.generator.get_state())
    agent.made = agent.config.prefill
    action = agent.act(obs, explore=True)[1]["action"]
    with torch.no_grad():
        noise = torch.randn(6, 5, 2, 2, generator=generator)
        candidates = candidates_one_by_one(agent.policy, agent.edit.actor, obs, noise)
        heads = torch.randperm(3, generator=generator)[:2]
        values = agent.critics.target(obs, candidates)[heads].amin(0)
    torch.testing.assert_close(action, candidates[values.argmax(0), torch.arange(5)])


@pytest.mark.parametrize("noise_scale", [1.0, 0.5])
def test_deployed_is_the_best_candidate_by_the_mean_of_the_target_critics(agent, noise_scale):
    agent.critic_steps, agent.policy.noise_scale = 1, noise_scale
    deployed, obs = agent.deploy(), torch.randn(5, 3)
    assert deployed.noise_shape == (6, 2, 2)
    noise = deployed.sample_noise(5)
    with torch.no_grad():
        scaled = torch.cat([noise_scale * noise[:, :3], noise[:, 3:]], dim=1).transpose(0, 1)
        candidates = candidates_one_by_one(agent.policy, agent.edit.actor, obs, scaled)
        best = agent.critics.target(obs, candidates).mean(0).argmax(0)
    with torch.inference_mode():
        torch.testing.assert_close(deployed(obs, noise), candidates[best, torch.arange(5)])


def test_first_decisions_are_samples_of_the_base(agent):
    obs, generator = torch.randn(5, 3), torch.Generator().set_state(agent.generator.get_state())
    action = agent.act(obs, explore=True)[1]["action"]
    with torch.no_grad():
        torch.testing.assert_close(action, agent.policy.sample(obs, torch.randn(5, 2, 2, generator=generator)))


def test_edit_loss_is_at_the_batch_action_on_the_mean_of_all_critics(agent):
    data, generator = batch(), torch.Generator().set_state(agent.generator.get_state())
    agent.edit.actor_optimizer = torch.optim.SGD(agent.edit.actor.parameters(), lr=1.0)
    actor, critic = copy.deepcopy(agent.edit.actor), copy.deepcopy(agent.critics.online)
    agent._learn_edit(data.obs, data.action)

    inputs = torch.cat([data.obs, data.action.flatten(1)], dim=1)
    edit, log_prob = actor.sample(inputs, torch.randn(5, 2, 2, generator=generator))
    (0.01 * log_prob - critic(data.obs, data.action + edit).mean(0)).mean().backward()
    for ours, before in zip(agent.edit.actor.parameters(), actor.parameters(), strict=True):
        torch.testing.assert_close(ours, before - before.grad)
    others = [*agent.critics.online.parameters(), *agent.base.online.parameters()]
    assert all(parameter.grad is None for parameter in others)


def test_base_clones_what_was_executed_and_its_average_follows(agent):
    data, generator = batch(), torch.Generator().set_state(agent.generator.get_state())
    agent.base.optimizer = torch.optim.SGD(agent.base.online.net.parameters(), lr=0.1)
    online, average = copy.deepcopy(agent.base.online), copy.deepcopy(agent.policy)
    data.mask[:, 0] = True
    agent.base.learn(data.obs, data.action, data.mask, agent.generator)
    online.loss(data.obs, data.action, mask=data.mask, generator=generator).mean().backward()
    pairs = zip(agent.base.online.net.parameters(), online.net.parameters(), strict=True)
    for ours, before in pairs:
        torch.testing.assert_close(ours, before - 0.1 * before.grad)
    pairs = zip(agent.policy.parameters(), average.parameters(), agent.base.online.parameters(), strict=True)
    for ours, before, new in pairs:
        torch.testing.assert_close(ours, 0.999 * before + 0.001 * new)


def test_base_and_edit_learn_every_so_many_critic_steps(make_policy):
    agent = build(make_policy(RectifiedFlow(), 3, horizon=2), actor_every=4, utd=0.25)
    experience = Experience(ReplayBuffer(100), shown(peak(GOOD)))
    for _ in range(2):
        live(agent, experience, peak(GOOD))
    metrics = agent.update(experience)
    assert (agent.critic_steps, agent.gradient_steps) == (8, 2)
    assert {"actor/alpha", "base/loss", "critic/loss", "expo/edited"} <= metrics.keys()


def test_an_edit_sees_the_features_beside_every_action():
    features, action = torch.randn(5, 3), torch.randn(6, 5, 4, 2)
    one_by_one = [torch.cat([features, of_one.flatten(1)], dim=1) for of_one in action]
    torch.testing.assert_close(joined(features, action), torch.stack(one_by_one))


def learned(place, rounds, **changes):
    torch.manual_seed(0)
    agent = build(two_modes(), **changes)
    experience = Experience(ReplayBuffer(10_000), shown(peak(place)))
    for _ in range(rounds):
        live(agent, experience, peak(place))
        agent.update(experience)
    return agent


def test_chooses_the_good_mode():
    assert 0.4 < (deployed_actions(build(two_modes())) > 0).float().mean() < 0.6
    assert (deployed_actions(learned(GOOD, 6)) > 0).float().mean() > 0.95


def test_edits_reach_what_the_base_does_not():
    """Of the bound, and no further."""
    near = deployed_actions(learned(0.9, 10, beta=0.25, base_lr=1e-9)).mean()
    assert near == pytest.approx(0.9, abs=0.06)
    far = deployed_actions(learned(0.9, 3, beta=0.05, base_lr=1e-9))
    assert far.max() <= 0.75 + 1e-6


@pytest.mark.parametrize("paper", [False, True])
def test_temperature_under_both_meanings_of_the_target(paper):
    agent = build(two_modes(), paper_code_entropy=paper, alpha=1.0, alpha_lr=0.02, critic_lr=1e-2)
    size, steps = 4, 150
    assert agent.edit.temperature.target_entropy == pytest.approx(-size / 2 - paper * size * math.log(0.05))
    features, action = torch.zeros(64, 3), 0.1 * torch.randn(64, 2, 2)
    for _ in range(steps):
        alpha = agent._learn_edit(features, action)["actor/alpha"].item()
    if paper:  # no edit within beta has that entropy: log alpha grows by its learning rate at every step
        assert math.log(alpha) == pytest.approx(steps * 0.02, rel=0.05)
    else:
        assert alpha < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixing": "none"}, "mixing=none leaves EXPO without demonstrations"),
        ({"soft_backup": True}, "soft_backup=True"),
        ({"beta": 0.0}, "beta=0.0 must be above 0"),
        ({"candidates": 0}, "candidates=0 must be above 0"),
        ({"base_lr": 0.0}, "base_lr=0.0"),
        ({"base_tau": 0.0}, "base_tau=0.0"),
        ({"subset": 4}, "subset=4 must lie between 1 and critics=3"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build(two_modes(), **settings)


def test_a_base_that_predicts_more_than_is_executed_is_refused(make_policy):
    with pytest.raises(UserError, match=r"policy\.horizon=4 must equal policy\.execute=2"):
        build(make_policy(RectifiedFlow(), 3))
