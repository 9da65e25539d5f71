import copy
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal

from diffpolicy_rl.policies.consistency import Consistency
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.meanflow import MeanFlow
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.shortcut import Shortcut
from diffpolicy_rl.policies.std import FloorStd, LearnedStd

PROCESSES = [(RectifiedFlow(), 1), (RectifiedFlow(), 4), (DDPM(20), 20), (DDPM(20, "vp", "x0"), 5), (DDPM(20), 1)]
PROCESSES += [
    (Shortcut(), 1),
    (Shortcut(), 4),
    (MeanFlow(), 1),
    (MeanFlow(), 3),
    (Consistency(), 1),
    (Consistency(), 4),
]


@pytest.fixture(params=PROCESSES, ids=lambda p: f"{type(p[0]).__name__}-{p[1]}")
def policy(request, make_policy):
    return make_policy(*request.param)


def rules(policy):
    return [FloorStd(0.1), LearnedStd(4, 2, 3, 0.05, 0.3)]


def test_sample_is_a_function_of_the_noise(policy):
    obs, noise = torch.randn(5, 3), torch.randn(5, 4, 2)
    first, second = policy.sample(obs, noise), policy.sample(obs, noise)
    assert torch.equal(first, second)
    assert not torch.equal(first, policy.sample(obs, -noise))
    assert first.shape == (5, 4, 2)


def test_rows_do_not_see_each_other(policy):
    obs, noise = torch.randn(5, 3), torch.randn(5, 4, 2)
    torch.testing.assert_close(policy.sample(obs, noise)[2:3], policy.sample(obs[2:3], noise[2:3]))


def test_sample_is_the_plain_loop_over_the_grid(policy):
    obs, x = torch.randn(5, 3), torch.randn(5, 4, 2)
    sampled, cond, grid = policy.sample(obs, x), policy.encode(obs), policy.process.grid(policy.steps)
    for t, s in pairwise(grid):
        pred = policy.net(x, torch.full((5,), t), torch.full((5,), s), cond)
        x, _ = policy.process.step(x, pred, t, s, 0.0)
    torch.testing.assert_close(sampled, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_log_prob_of_a_chain_is_that_of_independent_normals(policy, which):
    policy.std_rule = rules(policy)[which]
    obs = torch.randn(6, 3)
    chain, drawn = policy.sample_chain(obs, generator=torch.Generator().manual_seed(1))
    log_prob, entropy = policy.chain_log_prob(obs, chain)
    grid, cond = policy.process.grid(policy.steps), policy.encode(obs)
    assert chain.states.shape == (6, policy.steps + 1, 4, 2)
    for k in range(policy.steps):
        t, s, before = grid[k], grid[k + 1], chain.states[:, k]
        pred = policy.net(before, torch.full((6,), t), torch.full((6,), s), cond)
        mean, own = policy.process.step(before, pred, t, s, policy.std_rule.eta)
        if which == 0:
            std = torch.tensor(max(own, 0.1))
        else:
            u = policy.std_rule.net(torch.tensor([t]), cond)[:, 0]
            std = 0.05 * (0.3 / 0.05) ** ((1 + torch.tanh(u)) / 2)
        expected = Normal(mean, std)
        torch.testing.assert_close(log_prob[:, k], expected.log_prob(chain.states[:, k + 1]), atol=2e-4, rtol=1e-5)
        torch.testing.assert_close(entropy.expand_as(log_prob)[:, k], expected.entropy().expand(6, 4, 2))
    # What sampling knew is what the likelihood says: the first ratio of an update is 1.
    ratio = (log_prob.flatten(1).mean(1) - drawn.flatten(1).mean(1)).exp()
    torch.testing.assert_close(ratio, torch.ones(6), atol=1e-6, rtol=0)


def test_part_of_a_chain_continues_where_another_stopped(make_policy):
    policy = make_policy(DDPM(20), 20)
    policy.std_rule = FloorStd(0.1)
    obs = torch.randn(6, 3)
    early, _ = policy.sample_chain(obs, stop=15)
    late, drawn = policy.sample_chain(obs, early.states[:, -1], start=15)
    assert (early.states.shape[1], late.states.shape[1]) == (16, 6)
    assert torch.equal(late.states[:, 0], early.states[:, -1])
    log_prob, _ = policy.chain_log_prob(obs, late)
    torch.testing.assert_close(log_prob, drawn, atol=2e-4, rtol=1e-5)


def test_stochastic_sampling_uses_all_its_noise(make_policy):
    policy = make_policy(DDPM(20), 5)
    deployed = policy.deploy(eta=1.0)
    assert deployed.noise_shape == (6, 4, 2)
    obs, noise = torch.randn(3, 3), deployed.sample_noise(3, torch.Generator().manual_seed(0))
    base = deployed(obs, noise)
    for k in range(5):
        changed = noise.clone()
        changed[:, k] += 1
        assert not torch.equal(deployed(obs, changed), base)
    changed = noise.clone()
    changed[:, 5] += 1  # the last DDPM move adds none
    assert torch.equal(deployed(obs, changed), base)


def test_deployed_policy_takes_and_gives_raw_units(make_policy):
    policy = make_policy(RectifiedFlow(), 4)
    policy.obs_normalizer.fit(torch.tensor([[0.0, 0.0, 0.0], [2.0, 4.0, 8.0]]), "min_max")
    policy.action_normalizer.fit(torch.tensor([[0.0, -10.0], [1.0, 30.0]]), "min_max")
    obs, noise = torch.tensor([[1.0, 2.0, 4.0]]), torch.randn(1, 4, 2)
    plain = make_policy(RectifiedFlow(), 4)
    plain.load_state_dict(policy.state_dict())
    for normalizer in (plain.obs_normalizer, plain.action_normalizer):
        normalizer.shift.zero_()
        normalizer.scale.fill_(1.0)
    expected = plain.sample(torch.zeros(1, 3), noise) * torch.tensor([0.5, 20.0]) + torch.tensor([0.5, 10.0])
    torch.testing.assert_close(policy.deploy()(obs, noise), expected)


def test_less_noise_is_drawn_and_deployed_but_what_is_given_is_taken_as_it_is(policy):
    obs, noise = torch.randn(5, 3), torch.randn(5, 4, 2)
    given, less = policy.sample(obs, noise), policy.sample(obs, 0.5 * noise)
    drawn = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0))
    expected = policy.sample(obs, 0.5 * drawn)
    policy.std_rule = FloorStd(0.1)
    policy.noise_scale = 0.5
    assert torch.equal(policy.sample(obs, noise), given)
    torch.testing.assert_close(policy.deploy()(obs, noise), less)
    torch.testing.assert_close(policy.sample(obs, generator=torch.Generator().manual_seed(0)), expected)
    start = policy.sample_chain(torch.zeros(4000, 3))[0].states[:, 0]
    torch.testing.assert_close(start.std(), torch.tensor(0.5), atol=0.01, rtol=0)


def test_normalizer_kinds_and_constant_dimensions():
    data = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])
    normalizer = Normalizer((2,))
    normalizer.fit(data, "min_max")
    assert normalizer(data)[:, 0].tolist() == [-1.0, 1.0, 0.0]
    assert normalizer(data)[:, 1].tolist() == [0.0, 0.0, 0.0]
    normalizer.fit(data, "z_score")
    assert normalizer(data)[:, 0].tolist() == [-1.0, 1.0, 0.0]
    torch.testing.assert_close(normalizer.inverse(normalizer(data)), data)


def test_samples_are_differentiable_in_weights_and_noise(policy):
    policy.process = copy.copy(policy.process)
    policy.process.clip = None  # a single DDPM step of a random net is clipped everywhere
    noise = torch.randn(2, 4, 2, requires_grad=True)
    policy.sample(torch.randn(2, 3), noise * 0.1).square().sum().backward()
    assert policy.net.action_in.weight.grad.abs().sum() > 0
    assert noise.grad.abs().sum() > 0


def test_loss_and_sample_share_a_forward_and_are_what_they_are_alone(policy):
    obs, action, noise, mask = torch.randn(5, 3), torch.rand(5, 4, 2), torch.randn(5, 4, 2), torch.rand(5, 4) < 0.8
    mask[:, 0] = True
    t, s = policy.process.sample_times(5, None)
    drawn = {"noise": torch.randn(5, 4, 2), "t": t, "s": s}
    loss, sample = policy.loss_and_sample(obs, action, noise, drawn=drawn, features=policy.encode(obs), mask=mask)
    torch.testing.assert_close(loss, policy.loss(obs, action, mask=mask, **drawn))
    torch.testing.assert_close(sample, policy.sample(obs, noise))
    together = torch.autograd.grad(loss.mean() + sample.square().mean(), policy.net.action_in.weight)
    apart = policy.loss(obs, action, mask=mask, **drawn).mean()
    apart = apart + policy.sample(obs, noise).square().mean()
    torch.testing.assert_close(together, torch.autograd.grad(apart, policy.net.action_in.weight))


def test_learned_std_stays_in_its_bounds():
    rule = LearnedStd(4, 2, 3, 0.05, 0.3)
    rule.net.layers[-1].bias.data.fill_(50.0)
    assert rule(torch.zeros(4), torch.rand(4), torch.randn(2, 3)).max().item() == pytest.approx(0.3)
    rule.net.layers[-1].bias.data.fill_(-50.0)
    assert rule(torch.zeros(4), torch.rand(4), torch.randn(2, 3)).min().item() == pytest.approx(0.05)
    rule.net.layers[-1].weight.data.zero_()
    rule.net.layers[-1].bias.data.zero_()
    assert rule(torch.zeros(4), torch.rand(4), torch.randn(2, 3)).mean().item() == pytest.approx((0.05 * 0.3) ** 0.5)
