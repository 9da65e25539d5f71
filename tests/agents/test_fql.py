import copy

import pytest
import torch

from diffpolicy_rl.agents.fql import FQL, FQLConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.flow import RectifiedFlow
from tests.agents.offline_bandit import SMALL, corners, learned, shares
from tests.agents.test_guided import batch


def fql(make_policy, **changes):
    policy = make_policy(RectifiedFlow(clip=None), 10, horizon=1, execute=1)
    return FQL(policy, FQLConfig(**(SMALL | {"steps": 200} | changes)), iterations=1, seed=0)


def test_policies_step_by_hand(make_policy):
    """Flow matching, plus alpha times the distance to the flow's ten steps from the same noise, less the mean value."""
    agent, data = fql(make_policy, alpha=2.0), batch()
    agent.optimizer = torch.optim.SGD([*agent.flow.net.parameters(), *agent.policy.net.parameters()], lr=0.1)
    flow, student, critic = (copy.deepcopy(part) for part in (agent.flow, agent.policy, agent.critics.online))
    generator = torch.Generator().set_state(agent.generator.get_state())
    agent._learn_policies(data, data.obs)

    noise = torch.randn(5, 1, 2, generator=generator)
    with torch.no_grad():
        shown = flow.sample(data.obs, noise, steps=10).clamp(-1, 1)
    cloning = flow.loss(data.obs, data.action, mask=data.mask, generator=generator).mean()
    action = noise + student.net(noise, torch.zeros(5), torch.zeros(5), data.obs)
    value = critic(data.obs, action.clamp(-1, 1)).mean(0)
    (cloning + 2 * (action - shown).square().mean() - value.mean() / value.detach().abs().mean()).backward()
    for ours, before in ((agent.flow, flow), (agent.policy, student)):
        for new, old in zip(ours.net.parameters(), before.net.parameters(), strict=True):
            torch.testing.assert_close(new, old - 0.1 * old.grad)


def test_td_target_by_hand(make_policy, monkeypatch):
    """Of the one-step policy's action, clipped, and the mean of the target critics."""
    agent, data, seen = fql(make_policy), batch(), []
    policy = copy.deepcopy(agent.policy)
    generator = torch.Generator().set_state(agent.generator.get_state())
    monkeypatch.setattr(agent.critics, "learn", lambda *arguments: seen.append(arguments) or {})
    agent._learn(data)
    noise = torch.randn(5, 1, 2, generator=generator)
    with torch.no_grad():
        action = noise + policy.net(noise, torch.zeros(5), torch.zeros(5), data.next_obs)
        assert action.abs().max() > 1
        future = agent.critics.target(data.next_obs, action.clamp(-1, 1)).mean(0)
    torch.testing.assert_close(seen[0][2], data.reward + data.discount * future)


def test_acts_within_the_bounds_that_it_is_judged_in(make_policy):
    agent, obs = fql(make_policy), torch.randn(50, 3)
    agent.critic_steps = 1
    noise = 3 * torch.randn(50, 1, 2)
    with torch.no_grad():
        action = agent.policy.sample(obs, noise)
        assert action.abs().max() > 1
        torch.testing.assert_close(agent.deploy()(obs, noise), action.clamp(-1, 1))


def test_finds_the_corner_that_pays_most(make_policy):
    agent = learned(fql(make_policy, alpha=0.3), corners(), updates=4)
    assert shares(agent.deploy())[3] > 0.9
    torch.testing.assert_close(shares(agent.flow.deploy()), torch.full((4,), 0.25), atol=0.08, rtol=0)


def test_far_from_the_values_it_is_the_flow_in_one_step(make_policy):
    agent = learned(fql(make_policy, alpha=1000.0), corners(), updates=6)
    with torch.no_grad():
        noise = torch.randn(500, 1, 2)
        ours, shown = (policy.sample(torch.zeros(500, 3), noise) for policy in (agent.policy, agent.flow))
    assert (ours - shown).square().mean().sqrt() < 0.25
    assert agent.deploy().policy.steps == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda make: fql(make, alpha=0.0), "alpha=0.0"),
        (
            lambda make: FQL(make(RectifiedFlow(), 4, 1, 1), FQLConfig(), iterations=1, seed=0),
            "use policy=flow policy.process.clip=null",
        ),
        (
            lambda make: FQL(make(RectifiedFlow(clip=None), 4), FQLConfig(), iterations=1, seed=0),
            "policy.horizon=4 must equal",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make_policy, build, message):
    with pytest.raises(UserError, match=message):
        build(make_policy)
