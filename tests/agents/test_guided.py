"""Policies that clone and climb: DQL, EDP, OFQL, TD3+BC."""

import copy
import dataclasses

import pytest
import torch
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from diffpolicy_rl.agents.dql import DQL, DQLConfig
from diffpolicy_rl.agents.ofql import OFQL, OFQLConfig
from diffpolicy_rl.agents.td3_bc import TD3BC, TD3BCConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.nets.linear import plain_fp32
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.meanflow import MeanFlow
from diffpolicy_rl.training.threads import torch_threads
from tests.agents.offline_bandit import SMALL, corners, deterministic, learned, shares


def dql(make_policy, **changes):
    policy = make_policy(DDPM(levels=5, schedule="vp"), 5, horizon=1, execute=1)
    return DQL(policy, DQLConfig(**(SMALL | changes)), iterations=1, seed=0)


def batch(rows=5):
    return Decisions(
        obs=torch.randn(rows, 3), action=torch.randn(rows, 1, 2), mask=torch.ones(rows, 1, dtype=torch.bool),
        reward=torch.randn(rows), discount=torch.rand(rows), next_obs=torch.randn(rows, 3),
        extras={}, next_extras={}, followed=torch.ones(rows, dtype=torch.bool),
    )  # fmt: skip


@pytest.fixture
def agent(make_policy):
    made = dql(make_policy)
    with torch.no_grad():
        for parameter in made.base.online.net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # the average is another policy
        for parameter in made.critics.target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def targets(agent, data, monkeypatch):
    seen = []
    monkeypatch.setattr(agent.critics, "learn", lambda *arguments: seen.append(arguments) or {})
    monkeypatch.setattr(agent, "_improve", lambda *arguments: {})
    agent._learn(data)
    return seen[0][2]


def test_td_target_by_hand(agent, monkeypatch):
    data, generator = batch(), torch.Generator().set_state(agent.generator.get_state())
    with torch.no_grad():
        action = agent.policy.sample(data.next_obs, torch.randn(5, 1, 2, generator=generator))
        future = agent.critics.target(data.next_obs, action).amin(0)
    torch.testing.assert_close(targets(agent, data, monkeypatch), data.reward + data.discount * future)


def test_max_backup_takes_each_critics_best_of_several_samples(agent, monkeypatch):
    agent.config = dataclasses.replace(agent.config, max_backup=4)
    data, generator = batch(), torch.Generator().set_state(agent.generator.get_state())
    with torch.no_grad():
        noise = torch.randn(4, 5, 1, 2, generator=generator)
        values = [agent.critics.target(data.next_obs, agent.policy.sample(data.next_obs, part)) for part in noise]
    future = torch.stack(values).amax(0).amin(0)
    torch.testing.assert_close(targets(agent, data, monkeypatch), data.reward + data.discount * future)


@pytest.mark.parametrize("level", [5.0, -5.0])
def test_policy_step_by_hand(agent, level):
    """Cloning loss less eta times the drawn critic's value, over its mean size, through the whole chain."""
    agent.config = dataclasses.replace(agent.config, eta=0.7)
    agent.base.online.process.clip = None  # before it has learned, all is beyond the clip
    with torch.no_grad():
        agent.critics.online.trunk[-1].bias += level
    agent.base.optimizer = torch.optim.SGD(agent.base.online.net.parameters(), lr=0.1)
    data, generator = batch(), torch.Generator().set_state(agent.generator.get_state())
    policy, critic = copy.deepcopy(agent.base.online), copy.deepcopy(agent.critics.online)
    agent._improve(data, data.obs)

    noise = torch.randn(5, 1, 2, generator=generator)
    cloning = policy.loss(data.obs, data.action, mask=data.mask, generator=generator).mean()
    action = policy.sample(data.obs, noise)
    value = critic(data.obs, action)[int(torch.randint(2, (1,), generator=generator))]
    assert (value * level > 0).all()
    climbing = -value.mean() / value.detach().abs().mean()
    assert torch.autograd.grad(climbing, policy.net.action_in.weight, retain_graph=True)[0].abs().max() > 1e-3
    (cloning + 0.7 * climbing).backward()
    for ours, before in zip(agent.base.online.net.parameters(), policy.net.parameters(), strict=True):
        torch.testing.assert_close(ours, before - 0.1 * before.grad)
    assert all(parameter.grad is None for parameter in agent.critics.online.parameters())


def test_one_pass_judges_what_the_noisy_action_says_of_the_clean_one(make_policy):
    """EDP's action by hand: (x_t - sqrt(1 - abar) eps) / sqrt(abar), inside the bounds."""
    agent, data = dql(make_policy, one_pass=True), batch()
    policy, drawn = agent.base.online, agent._drawn(data.action)
    _, action = agent._proposal(data, data.obs, torch.randn(5, 1, 2), drawn)
    noise, t = drawn["noise"], drawn["t"]
    abar = policy.process.alpha_bar(t.double()).float().view(-1, 1, 1)
    x = abar.sqrt() * data.action + (1 - abar).sqrt() * noise
    clean = (x - (1 - abar).sqrt() * policy.net(x, t, t, data.obs)) / abar.sqrt()
    torch.testing.assert_close(action, clean.clamp(-1, 1))


@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_a_candidate_acts_as_its_value_says(make_policy, temperature):
    agent = dql(make_policy, temperature=temperature)
    agent.critic_steps = 1
    deployed, obs = agent.deploy(), torch.randn(1, 3).expand(4000, 3)
    noise = deployed.sample_noise(1).expand(4000, -1, -1, -1).clone()
    assert noise.shape[1:] == (16 * (1 + (temperature > 0)), 1, 2)
    with torch.no_grad():
        candidates = torch.cat([agent.policy.sample(obs[:1], noise[:1, i]) for i in range(16)])
        values = agent.critics.target(obs[:1], candidates.unsqueeze(1)).amin(0).flatten()
        if temperature == 0:
            torch.testing.assert_close(deployed(obs, noise)[0], candidates[values.argmax()])
            return
        noise[:, 16:] = torch.randn(4000, 16, 1, 2, generator=torch.Generator().manual_seed(0))
        taken = deployed(obs, noise).mean(0)
    shares = (values / temperature).softmax(0)
    expected = (shares.view(-1, 1, 1) * candidates).sum(0)
    assert (expected - candidates.mean(0)).abs().max() > 0.1  # neither all alike
    assert (expected - candidates[values.argmax()]).abs().max() > 0.1  # nor always the best
    torch.testing.assert_close(taken, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize(("candidates", "aggregation"), [(1, "min"), (16, "min"), (16, "mean")])
def test_less_noise_acts_where_that_is_asked_for(make_policy, candidates, aggregation):
    agent, acted = dql(make_policy, candidates=candidates, aggregation=aggregation, temperature=0.0), {}
    agent.critic_steps, obs = 1, torch.randn(6, 3)
    noise = agent.deploy().sample_noise(6)
    for scale in (1.0, 0.5):
        agent.policy.noise_scale = scale
        with torch.no_grad():
            acted[scale] = agent.deploy()(obs, noise / scale)
    torch.testing.assert_close(acted[0.5], acted[1.0])


LEARNERS = {
    "dql": lambda make: dql(make, candidates=1, steps=200, eta=2.0),
    "edp": lambda make: dql(make, candidates=1, steps=200, one_pass=True, eta=10.0),
    "ofql": lambda make: OFQL(
        make(MeanFlow(), 1, horizon=1, execute=1, time_scale=3),
        OFQLConfig(**SMALL, candidates=1, steps=200),
        iterations=1,
        seed=0,
    ),
    "td3_bc": lambda make: TD3BC(deterministic(), TD3BCConfig(**SMALL, steps=200), iterations=1, seed=0),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_finds_the_corner_that_pays_most(make_policy, name):
    agent = learned(LEARNERS[name](make_policy), corners())
    assert shares(agent.deploy())[3] > 0.9


@pytest.mark.parametrize(("kind", "process", "steps"), [(DQL, DDPM(levels=2), 2), (OFQL, MeanFlow(), 1)])
def test_compiled_losses_are_the_same(make_policy, monkeypatch, kind, process, steps):
    compile, compiled_ones = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda part: compiled_ones.append(part.__name__) or compile(part))
    policy, config = make_policy(process, steps, horizon=1, execute=1), kind.Config(**SMALL, steps=3)
    plain = kind(copy.deepcopy(policy), config, iterations=1, seed=0)
    fast = kind(policy, dataclasses.replace(config, compile=True), iterations=1, seed=0)
    fast.critics.load_state_dict(plain.critics.state_dict())
    data = corners()
    for agent in (plain, fast):
        learned(agent, data)
    assert sorted(compiled_ones) == ["_judge", "_objective", "sample"]
    for ours, compiled in zip(plain.base.online.parameters(), fast.base.online.parameters(), strict=True):
        torch.testing.assert_close(compiled, ours, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("threads", "chosen"), [(1, "bf16"), (2, "none")])
def test_kernels_are_torchs_own_choice_on_several_threads(make_policy, monkeypatch, threads, chosen):
    agent, matmul, seen = dql(make_policy, steps=2), torch.backends.mkldnn.matmul, []
    monkeypatch.setattr(agent, "_learn", lambda batch: seen.append(matmul.fp32_precision) or {})
    with plain_fp32(), torch_threads(threads):  # which puts back what it was before
        matmul.fp32_precision = "bf16"
        agent.update(corners())
        assert matmul.fp32_precision == "bf16"
    assert seen == [chosen] * 2


def test_compiling_needs_a_compiler(make_policy, monkeypatch):
    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(UserError, match="compile=true needs a C\\+\\+ compiler"):
        learned(dql(make_policy, compile=True), corners())


def test_without_values_all_corners_are_cloned(make_policy):
    agent = learned(dql(make_policy, eta=0.0, candidates=1, steps=200), corners())
    torch.testing.assert_close(shares(agent.deploy()), torch.full((4,), 0.25), atol=0.08, rtol=0)


def test_candidates_alone_find_the_corner(make_policy):
    agent = learned(dql(make_policy, eta=0.0, candidates=16, temperature=0.0, steps=200), corners())
    assert shares(agent.deploy())[3] > 0.95


def test_td3_smooths_its_targets_inside_the_bounds():
    agent = TD3BC(deterministic(), TD3BCConfig(**SMALL, smoothing=10.0, smoothing_clip=0.3), iterations=1, seed=0)
    features = torch.randn(500, 3)
    with torch.no_grad():
        shift = agent._next_action(features) - agent.policy.sample(features)
        assert shift.abs().max() <= 0.3 + 1e-6
        assert shift.std() > 0.25


def test_exploring_adds_noise_to_what_is_deployed():
    agent = TD3BC(deterministic(), TD3BCConfig(**SMALL, exploration=0.2), iterations=1, seed=0)
    obs = torch.zeros(4000, 3)
    action, extras = agent.act(obs, explore=True)
    assert torch.equal(action, extras["action"])
    assert (action - agent.act(obs, explore=False)[0]).std().item() == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda make: dql(make, mixing="none"), "mixing=none leaves no data"),
        (lambda make: dql(make, eta=-1.0), "eta=-1.0 must not be negative"),
        (lambda make: dql(make, candidates=0), "candidates=0 must be above 0"),
        (lambda make: dql(make, temperature=-1), "temperature=-1 must not be negative"),
        (lambda make: dql(make, max_backup=0), "max_backup=0 must be above 0"),
        (lambda make: dql(make, exploration=-0.1), "exploration=-0.1 must not be negative"),
        (lambda make: TD3BCConfig(candidates=2), "set candidates=1 and max_backup=1"),
        (lambda make: TD3BCConfig(smoothing=-1.0), "smoothing=-1.0 must not be negative"),
        (
            lambda make: TD3BC(make(RectifiedFlow(), 4, 1, 1), TD3BCConfig(), iterations=1, seed=0),
            "use policy=gaussian",
        ),
        (
            lambda make: OFQL(make(RectifiedFlow(), 1, 1, 1), OFQLConfig(), iterations=1, seed=0),
            "use policy=meanflow policy.steps=1",
        ),
        (
            lambda make: OFQL(make(MeanFlow(), 2, 1, 1), OFQLConfig(), iterations=1, seed=0),
            "use policy=meanflow policy.steps=1",
        ),
        (
            lambda make: DQL(make(DDPM(levels=5), 5), DQLConfig(), iterations=1, seed=0),
            "policy.horizon=4 must equal policy.execute=2",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make_policy, build, message):
    with pytest.raises(UserError, match=message):
        build(make_policy)
