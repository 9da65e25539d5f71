import copy
import dataclasses
import math

import pytest
import torch

from diffpolicy_rl.agents.pa_rl import PARL, PARLConfig, optimised
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.nets.critics import HLGauss
from diffpolicy_rl.policies.flow import RectifiedFlow
from tests.agents.bandit import GOOD, deployed_actions, live, peak, shown, two_modes
from tests.agents.test_expo import batch

SMALL = PARLConfig(
    utd=1, steps=100, batch=64, critics=2, critic_hidden=(32, 32), critic_lr=3e-3, tau=0.05, base_lr=1e-3, base_tau=0.1,
    candidates=4, kept=2, ascents=5, ascent_lr=0.02, cql_alpha=0.0,
)  # fmt: skip


def build(policy, **changes):
    return PARL(policy, dataclasses.replace(SMALL, **changes), iterations=1, seed=0)


class Bump(torch.nn.Module):
    """Three critics whose mean is -|a - top|^2, per chunk."""

    def __init__(self, top=0.5):
        super().__init__()
        self.top = top

    def context(self, features):
        return features

    def values(self, context, action):
        value = -(action - self.top).square().flatten(-2).sum(-1)
        return torch.stack([value - 1, value, value + 1])


@pytest.fixture
def agent(make_policy):
    return build(make_policy(RectifiedFlow(), 3, horizon=2), critics=3, cql_alpha=0.3, cql_actions=4)


def decisions(**changes):
    made = batch()
    return dataclasses.replace(made, extras={"return_to_go": torch.full((len(made),), -torch.inf)}, **changes)


def test_optimisation_by_hand():
    """The two nearest of four, moved by eta * 2 (top - a) at each step."""
    places = torch.tensor([-0.9, 0.1, 0.45, -0.2])
    candidates = places.view(4, 1, 1, 1).expand(4, 3, 2, 2)
    config = dataclasses.replace(SMALL, ascents=7, ascent_lr=0.05)
    actions, values = optimised(Bump(), config, torch.zeros(3, 1), candidates)
    expected = 0.5 + (torch.tensor([0.45, 0.1]) - 0.5) * (1 - 2 * 0.05) ** 7
    torch.testing.assert_close(actions, expected.view(2, 1, 1, 1).expand(2, 3, 2, 2))
    torch.testing.assert_close(values, (-4 * (expected - 0.5).square()).unsqueeze(1).expand(2, 3))


def test_optimisation_stays_in_the_box():
    actions, _ = optimised(Bump(3.0), SMALL, torch.zeros(3, 1), torch.zeros(4, 3, 2, 2))
    assert actions.max() <= 1
    assert actions.min() > 0.4


@pytest.mark.parametrize("ascent_lr", [1e-3, 0.3, 3.0])
def test_optimisation_never_lowers_a_value(agent, ascent_lr):
    """Not even with steps that overshoot."""
    critic, features, candidates = agent.critics.online, torch.randn(50, 3), torch.rand(4, 50, 2, 2) * 2 - 1
    for each in (critic, Bump()):
        config = dataclasses.replace(SMALL, ascent_lr=ascent_lr)
        before = optimised(each, dataclasses.replace(config, ascents=0), features, candidates)[1]
        actions, values = optimised(each, config, features, candidates)
        assert (values >= before).all()
        torch.testing.assert_close(values, each.values(each.context(features), actions).mean(0))
        assert ascent_lr == 3.0 or (values > before).all()


@pytest.mark.parametrize("noise_scale", [1.0, 0.5])
def test_optimisation_works_in_inference_mode(agent, noise_scale):
    agent.critic_steps, agent.policy.noise_scale = 1, noise_scale
    deployed, obs = agent.deploy(), torch.randn(5, 3)
    assert deployed.noise_shape == (4, 2, 2)
    noise = deployed.sample_noise(5)
    plain = deployed(obs, noise)
    with torch.inference_mode():
        made_inside = obs + 0
        assert torch.equal(deployed(made_inside, noise + 0), plain)
    assert not plain.requires_grad
    samples = torch.stack([agent.policy.sample(obs, noise_scale * noise[:, i]) for i in range(4)])
    actions, values = optimised(agent.critics.online, agent.config, obs, samples)
    torch.testing.assert_close(plain, actions[values.argmax(0), torch.arange(5)])


def test_conservative_term_by_hand(agent):
    """The policy's actions enter as often as the uniform ones, and with no less than the return that followed."""
    data = decisions()
    data.extras["return_to_go"] = torch.tensor([-torch.inf, -9.0, 0.0, 3.0, 50.0])
    policy, state = torch.randn(2, 5, 2, 2), agent.generator.get_state()
    ours = agent._conservative(data, data.obs, policy)

    generator, critic = torch.Generator().set_state(state), agent.critics.online
    heads = torch.randperm(3, generator=generator)[:2].tolist()
    uniform = 2 * torch.rand(4, 5, 2, 2, generator=generator) - 1
    expected = torch.zeros(())
    for head in heads:
        value = lambda action: critic(data.obs, action)[head]  # noqa: B023, E731
        floored = [torch.maximum(value(action), data.extras["return_to_go"]) for action in (*policy,) * 4]
        every = torch.stack([*(value(action) for action in uniform), *floored, value(data.action)])
        expected = expected + (every.logsumexp(0) - math.log(13) - value(data.action)).mean()
    torch.testing.assert_close(ours, expected)


def test_td_target_and_penalty(agent, monkeypatch):
    seen, data, critics, state = [], decisions(), agent.critics, agent.generator.get_state()
    monkeypatch.setattr(critics, "learn", lambda *arguments, **more: seen.append((arguments, more)) or {})
    gap = agent._learn(data)["critic/cql"]
    generator, rows = torch.Generator().set_state(state), torch.arange(5)
    noise = torch.randn(4, 10, 2, 2, generator=generator)[:, 5:]
    with torch.no_grad():
        samples = torch.stack([agent.policy.sample(data.next_obs, part) for part in noise])
    actions, values = optimised(critics.online, agent.config, data.next_obs, samples)
    heads = torch.randperm(3, generator=generator)[:2]
    future = critics.target(data.next_obs, actions[values.argmax(0), rows])[heads].amin(0)
    ((_, action, target), more) = seen[0]
    assert torch.equal(action, data.action)
    torch.testing.assert_close(target, data.reward + data.discount * future.detach())
    torch.testing.assert_close(more["penalty"].detach(), 0.3 * gap)


def test_penalty_reaches_the_critics(agent):
    data, plain = decisions(), copy.deepcopy(agent.critics)
    plain.optimizer = torch.optim.SGD(plain.online.parameters(), lr=0.1)
    agent.critics.optimizer = torch.optim.SGD(agent.critics.online.parameters(), lr=0.1)
    start = copy.deepcopy(agent.critics.online)
    plain.learn(data.obs, data.action, data.reward)
    penalty = agent.critics.online(data.obs, data.action).mean()
    agent.critics.learn(data.obs, data.action, data.reward, penalty=penalty)
    start(data.obs, data.action).mean().backward()
    trios = zip(agent.critics.online.parameters(), plain.online.parameters(), start.parameters(), strict=True)
    for ours, without, before in trios:
        torch.testing.assert_close(ours, without - 0.1 * before.grad)


@pytest.mark.parametrize("distill_argmax", [False, True])
def test_the_dataset_action_takes_the_place_of_the_worst(agent, distill_argmax):
    agent.config = dataclasses.replace(agent.config, distill_argmax=distill_argmax)
    data = decisions(obs=torch.zeros(4000, 3), action=torch.full((4000, 2, 2), 0.3))
    actions = torch.stack([torch.full((4000, 2, 2), place) for place in (-0.6, 0.6, 0.1)])
    values = torch.tensor([0.2, -0.5, 0.4]).unsqueeze(1).expand(3, 4000)
    agent.critics.online = Value(0.1)
    cloned = agent._distilled(data, data.obs, actions, values)[:, 0, 0]
    counts = torch.stack([(cloned == place).float().mean() for place in (-0.6, 0.3, 0.1)])
    assert counts.sum() == 1  # and never 0.6
    expected = torch.tensor([0.0, 0.0, 1.0]) if distill_argmax else torch.tensor([0.2, 0.1, 0.4]).softmax(0)
    torch.testing.assert_close(counts, expected, atol=0.03, rtol=0)
    assert (actions[1] == 0.6).all()


class Value(torch.nn.Module):
    """Critics that say one number."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, features, action):
        return torch.full((2, len(action)), self.number)


def test_offline_trains_the_critics_alone_and_online_starts_their_optimiser_anew():
    torch.manual_seed(0)
    agent, experience = build(two_modes(), steps=7), Experience(ReplayBuffer(1000), shown(peak(GOOD)))
    before = copy.deepcopy(agent.policy.state_dict())
    critic = copy.deepcopy(agent.critics.online.state_dict())
    agent.update(experience)
    assert (agent.critic_steps, agent.gradient_steps) == (7, 0)
    assert all(torch.equal(before[name], value) for name, value in agent.policy.state_dict().items())
    assert any(not torch.equal(critic[name], value) for name, value in agent.critics.online.state_dict().items())
    live(agent, experience, peak(GOOD), rows=9)
    agent.update(experience)  # one decision is the prefill
    assert (agent.critic_steps, agent.gradient_steps) == (15, 8)
    assert {int(state["step"]) for state in agent.critics.optimizer.state.values()} == {8}
    live(agent, experience, peak(GOOD), rows=9)
    agent.update(experience)
    assert {int(state["step"]) for state in agent.critics.optimizer.state.values()} == {17}


def test_returns_to_go_by_hand():
    """Episodes of two envs in one ring: one that ended, one that goes on, one that was cut off."""
    buffer, gamma = ReplayBuffer(8), 0.5
    rewards = torch.tensor([[[1.0, 2.0], [8.0, 0.0]], [[4.0, 0.0], [2.0, 2.0]], [[6.0, 6.0], [1.0, 1.0]]])
    executed = torch.tensor([[2, 2], [1, 2], [2, 2]])
    terminated = torch.tensor([[False, False], [True, False], [False, False]])
    truncated = torch.tensor([[False, True], [False, False], [False, False]])
    zeros = torch.zeros(2, 3)
    for t in range(3):
        action = {"action": torch.zeros(2, 2, 2)}
        buffer.add(zeros, action, rewards[t], executed[t], terminated[t], truncated[t], zeros)
    buffer.write_returns(gamma)
    read = buffer.decisions(torch.arange(6), gamma).extras["return_to_go"].tolist()
    inf = math.inf
    assert read == [1 + 0.5 * 2 + 0.25 * 4, 8.0, 4.0, -inf, -inf, -inf]
    buffer.add(zeros, action, torch.ones(2, 2), executed[0], terminated[1], ~terminated[1], zeros)  # both end
    buffer.write_returns(gamma)
    read = buffer.decisions(torch.arange(8), gamma).extras["return_to_go"].tolist()
    assert read[3:] == pytest.approx([2 + 1 + 0.25 * (1.5 + 0.25 * 1.5), 9 + 0.25 * 1.5, 1.5 + 0.25 * 1.5, 1.5, 1.5])


def test_histogram_critics(make_policy):
    agent = build(make_policy(RectifiedFlow(), 3, horizon=2), value_range=(-5.0, 0.0))
    readout = agent.critics.online.readout
    assert isinstance(readout, HLGauss)
    assert (readout.low, readout.high, readout.width) == (-5.0, 0.0, 128)
    assert agent._learn(decisions())["critic/loss"].isfinite()


def learned(offline, rounds, **changes):
    torch.manual_seed(0)
    agent, reward = build(two_modes(), **changes), peak(GOOD)
    experience = Experience(ReplayBuffer(10_000), shown(reward))
    for _ in range(offline):
        agent.update(experience)
    for _ in range(rounds):
        live(agent, experience, reward)
        agent.update(experience)
    return agent


def test_chooses_the_good_mode_after_learning_offline():
    agent = learned(2, 0, candidates=8)
    assert (deployed_actions(agent) > 0).float().mean() > 0.95
    noise = torch.randn(400, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        base = agent.policy.sample(torch.zeros(400, 3), noise)
    assert 0.4 < (base > 0).float().mean() < 0.6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixing": "none"}, "mixing=none leaves PA-RL nothing to learn from offline"),
        ({"candidates": 1}, "candidates=1 leaves nothing to choose from"),
        ({"kept": 1}, "kept=1 leaves nothing to choose from"),
        ({"ascents": -1}, "ascents=-1 must not be negative"),
        ({"cql_alpha": -1.0}, "cql_alpha=-1.0"),
        ({"cql_actions": 0}, "cql_actions=0"),
        ({"value_range": (1.0,)}, r"value_range=\[1.0\] must be the lowest and the highest value"),
        ({"value_range": (1.0, 0.0)}, "value_range="),
        ({"base_lr": 0.0}, "base_lr=0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build(two_modes(), **settings)


def test_a_base_that_predicts_more_than_is_executed_is_refused(make_policy):
    with pytest.raises(UserError, match=r"policy\.horizon=4 must equal policy\.execute=2"):
        build(make_policy(RectifiedFlow(), 3))
