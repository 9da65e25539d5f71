import copy
import math

import pytest
import torch

from diffpolicy_rl.agents.dsrl import DSRL, DSRLConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy

SMALL = {"batch": 16, "prefill": 32, "utd": 0.25, "critic_hidden": (16, 16), "actor_hidden": (16,), "alpha": 0.2}
FAST = {"batch": 128, "utd": 0.25, "critic_lr": 3e-3, "actor_lr": 3e-3, "alpha_lr": 3e-3, "distill": 1.0}
VARIANTS = pytest.mark.parametrize("variant", ["na", "sac"])


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


def build(make_policy, **changes):
    return DSRL(make_policy(RectifiedFlow(), 4), DSRLConfig(**SMALL | changes), iterations=1, seed=0)


def batch_for(agent, rows=6):
    shape = (rows, *agent.noise_shape)
    return Decisions(
        obs=torch.randn(rows, 3),
        action=torch.rand(rows, 2, 2) * 2 - 1,
        mask=torch.ones(rows, 2, dtype=torch.bool),
        reward=torch.randn(rows),
        discount=torch.tensor([0.0] + [0.9] * (rows - 1)),
        next_obs=torch.randn(rows, 3),
        extras={"w": torch.rand(shape) * 2 - 1},
        next_extras={},
        followed=torch.zeros(rows, dtype=torch.bool),
    )


def sgd(agent):
    """Plain descent with a rate of 1: what weights lose is the gradient."""
    agent.soft_actor.actor_optimizer = torch.optim.SGD(agent.soft_actor.actor.parameters(), lr=1.0)
    if agent.aliased:
        agent.noise_optimizer = torch.optim.SGD(agent.noise_critic.parameters(), lr=1.0)


def check_descended(module, before, loss):
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    for now, then, gradient in zip(module.parameters(), before.parameters(), gradients, strict=True):
        torch.testing.assert_close(now, then - gradient, atol=1e-6, rtol=1e-4)


@VARIANTS
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_td_target_by_hand(make_policy, monkeypatch, variant, tied, soft):
    agent = build(make_policy, variant=variant, tied=tied, soft_backup=soft, bound=1.7)
    with torch.no_grad():
        for weight in agent.critics.target.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    batch, seen = batch_for(agent), []
    monkeypatch.setattr(agent.critics, "learn", lambda *given: seen.append(given) or {})
    eps = torch.randn(6, *agent.noise_shape, generator=copy.deepcopy(agent.generator))
    noise, log_prob = agent.soft_actor.actor.sample(batch.next_obs, eps)
    agent._learn(batch)
    ((features, judged, target),) = seen
    chunk = agent.policy.sample(batch.next_obs, noise.expand(6, 4, 2))
    judged_next = chunk[:, :2] if variant == "na" else noise / 1.7
    future = agent.critics.target(batch.next_obs, judged_next).amin(0) - soft * 0.2 * log_prob
    torch.testing.assert_close(features, batch.obs)
    torch.testing.assert_close(judged, batch.action if variant == "na" else batch.extras["w"] / 1.7)
    torch.testing.assert_close(target, batch.reward + batch.discount * future.detach(), atol=1e-5, rtol=1e-5)
    assert not target.requires_grad


@pytest.mark.parametrize("tied", [False, True])
def test_noise_critics_learn_from_their_twins_at_noise_of_the_prior(make_policy, tied):
    agent = build(make_policy, tied=tied, bound=0.5, distill=1.0, actor_every=2)
    sgd(agent)
    batch, before, stream = batch_for(agent), copy.deepcopy(agent.noise_critic), copy.deepcopy(agent.generator)
    agent._learn(batch)
    torch.randn(6, *agent.noise_shape, generator=stream)  # the actor's, for the TD target
    noise = torch.randn(6, *agent.noise_shape, generator=stream)
    assert noise.abs().max() > 0.5  # not kept to the box
    action = agent.policy.sample(batch.obs, noise.expand(6, 4, 2))[:, :2]
    twins = agent.critics.online(batch.obs, action).detach()
    check_descended(agent.noise_critic, before, (before(batch.obs, noise / 0.5) - twins).square().mean(1).sum())


@VARIANTS
def test_actor_climbs_the_values_of_noise(make_policy, monkeypatch, variant):
    agent = build(make_policy, variant=variant, bound=1.7, alpha=0.3)
    sgd(agent)
    monkeypatch.setattr(agent.critics, "learn", lambda *given: {})
    monkeypatch.setattr(agent, "_distill", lambda *given: {})
    batch, before, drawn = batch_for(agent), copy.deepcopy(agent.soft_actor.actor), []
    critics = copy.deepcopy(agent.noise_critic)
    sample = agent.soft_actor.actor.sample
    monkeypatch.setattr(agent.soft_actor.actor, "sample", lambda f, eps: drawn.append(eps) or sample(f, eps))
    agent._learn(batch)
    noise, log_prob = before.sample(batch.obs, drawn[-1])
    loss = (0.3 * log_prob - critics(batch.obs, noise / 1.7).amin(0)).mean()
    check_descended(agent.soft_actor.actor, before, loss)
    assert all(torch.equal(*pair) for pair in zip(critics.parameters(), agent.noise_critic.parameters(), strict=True))


@pytest.mark.parametrize(("distill", "expected"), [(0.5, [0, 1, 0, 1]), (1.0, [1] * 4), (2.5, [2, 3, 2, 3])])
def test_distillation_has_its_share_and_the_policy_runs_once_per_step(make_policy, monkeypatch, distill, expected):
    agent, distilled, moves = build(make_policy, distill=distill), [], []
    monkeypatch.setattr(agent, "_distill", lambda *given: distilled.append(given) or {})
    denoise = agent.policy.net.denoise
    monkeypatch.setattr(agent.policy.net, "denoise", lambda *given: moves.append(given) or denoise(*given))
    counts = []
    for step in range(4):
        agent.critic_steps, before = step, len(distilled)
        agent._learn(batch_for(agent))
        counts.append(len(distilled) - before)
    assert counts == expected
    assert len(moves) == 4 * agent.policy.steps


@VARIANTS
@pytest.mark.parametrize("tied", [False, True])
def test_first_decisions_are_the_policys_own(make_policy, variant, tied):
    agent = build(make_policy, variant=variant, tied=tied, bound=0.4)
    obs, stream = torch.randn(8, 3), copy.deepcopy(agent.generator)
    _, extras = agent.act(obs, explore=True)
    noise = torch.randn(8, *agent.noise_shape, generator=stream)
    if variant == "sac":
        noise = noise.clamp(-0.4, 0.4)
        assert torch.equal(extras["w"], noise)
    assert noise.shape == (8, 1 if tied else 4, 2)
    assert torch.equal(extras["action"], agent.policy.sample(obs, noise.expand(8, 4, 2))[:, :2])


@VARIANTS
def test_later_noise_stays_in_the_box_and_the_policy_as_it_was(make_policy, variant):
    agent, experience = build(make_policy, variant=variant, bound=0.4), Experience(ReplayBuffer(1000))
    before = copy.deepcopy(agent.policy.state_dict())
    for _ in range(3):
        live(agent, experience, near(0.5))
        agent.update(experience)
    assert agent.critic_steps == agent.gradient_steps == 16
    with torch.no_grad():
        agent.soft_actor.actor.net[-1].bias.mul_(100)
    _, extras = agent.act(torch.randn(32, 3), explore=True)
    assert variant == "na" or 0.3 < extras["w"].abs().max() <= 0.4
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())
    assert all(weight.grad is None for weight in agent.policy.parameters())


@VARIANTS
def test_deployed_is_the_base_then_the_actors_noise(make_policy, variant):
    for stochastic, tied in ((False, True), (True, False), (True, True)):
        agent = build(make_policy, variant=variant, deploy_stochastic=stochastic, tied=tied)
        obs, noise = torch.randn(5, 3), torch.randn(5, 4, 2)
        assert torch.equal(agent.deploy()(obs, noise), agent.policy.sample(obs, noise))
        agent.critic_steps = 1
        deployed, actor = agent.deploy(), agent.soft_actor.actor
        assert deployed.noise_shape == ((1 if tied else 4, 2) if stochastic else None)
        eps = deployed.sample_noise(5)
        chosen = actor.sample(obs, eps)[0] if stochastic else actor.bound * torch.tanh(actor(obs)[0])
        assert torch.equal(deployed(obs, eps), agent.policy.sample(obs, chosen.expand(5, 4, 2)))


class TwoModes(DenoisingNet):
    """In one move, a chunk at +0.7 or -0.7, by the sign of the noise's first element."""

    def context(self, t, s, cond):
        return ((cond[..., :1] + t.unsqueeze(-1)) * 0,)

    def denoise(self, x, context):
        return 0.7 * torch.tanh(5 * x[:, :1, :1]) - x


def two_modes(**changes):
    policy = GenerativePolicy(TwoModes(), RectifiedFlow(), Normalizer((3,)), Normalizer((2,)), 4, 2, steps=1)
    config = DSRLConfig(**SMALL | FAST | {"critic_hidden": (32, 32), "actor_hidden": (32,)} | changes)
    return DSRL(policy, config, iterations=1, seed=0)


def agreeing(obs, action):
    """1 for the mode of the observation's sign, -1 for the other."""
    return (action * obs[:, :1, None]).mean(-1) / 0.7


@VARIANTS
@pytest.mark.parametrize("stochastic", [False, True])
def test_finds_the_better_mode_for_each_observation(variant, stochastic):
    agent = two_modes(variant=variant, deploy_stochastic=stochastic)
    learn(agent, agreeing, 30)
    obs = torch.zeros(200, 3)
    obs[:, 0] = torch.arange(200) % 2 * 2 - 1.0
    deployed = agent.deploy()
    action = deployed(obs, deployed.sample_noise(200, torch.Generator().manual_seed(0)))
    assert (action[:, 0, 0] * obs[:, 0] > 0.6).float().mean() > 0.95


@VARIANTS
def test_what_the_base_cannot_do_stays_undone(variant):
    agent = two_modes(variant=variant)
    learn(agent, near(1.0), 25)
    action = agent.deploy()(torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]), None)
    assert (action > 0.6).all()
    assert (action <= 0.7 + 1e-6).all()


def test_values_of_noise_are_those_of_its_actions(make_policy):
    """The regression holds at noise it was not trained on, and makes more of the variance than none."""
    agent = build(make_policy, **FAST | {"critic_hidden": (64, 64)})
    learn(agent, near(0.5), 30)
    obs, noise = torch.zeros(500, 3), torch.randn(500, 4, 2, generator=torch.Generator().manual_seed(9))
    obs[:, 0] = 1.0
    with torch.no_grad():
        truth = agent.critics.online(obs, agent.policy.sample(obs, noise)[:, :2])
        guess = agent.noise_critic(obs, noise / agent.config.bound)
    assert (truth - guess).square().mean() < 0.25 * truth.var()


def test_learns_from_demonstrations_that_hold_no_noise(make_policy):
    agent, shown = build(make_policy, mixing="half"), ReplayBuffer(64)
    online = ReplayBuffer(1000)
    live(build(make_policy), Experience(shown), near(0.5), decisions=2)
    for _ in range(2):
        live(agent, Experience(online), near(0.5))
        metrics = agent.update(Experience(online, shown))
    assert agent.critic_steps == 8
    assert all(math.isfinite(value) for value in metrics.values())


def test_what_does_not_fit_is_refused(make_policy):
    with pytest.raises(UserError, match=r"Gaussian policy's action does not depend on it; start from policy=flow"):
        DSRL(make_policy(Gaussian(), 1), DSRLConfig(), iterations=1, seed=0)
    with pytest.raises(UserError, match=r"mixing=half, but variant=sac .* set variant=na or mixing=none"):
        DSRLConfig(variant="sac", mixing="half")
    for bad in ({"bound": 0.0}, {"distill": 0.0}):
        with pytest.raises(UserError, match=f"{next(iter(bad))}=0.0 must be above 0"):
            DSRLConfig(**bad)
