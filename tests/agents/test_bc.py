import copy
from types import SimpleNamespace

import pytest
import torch

from diffpolicy_rl.agents.bc import BC, BCConfig
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow

SMALL = BCConfig(batch=128, steps=50, lr=2e-3)


class TwoModes:
    """Actions at +0.7 or -0.7, the sign given by the first observation where that is not zero."""

    def sample(self, batch, generator):
        obs = torch.randint(-1, 2, (batch, 3), generator=generator).float()
        sign = torch.where(obs[:, 0] == 0, torch.randint(0, 2, (batch,), generator=generator) * 2.0 - 1, obs[:, 0])
        action = (0.7 * sign).view(-1, 1, 1).expand(batch, 4, 2)
        return SimpleNamespace(obs=obs, action=action, mask=torch.ones(batch, 4, dtype=torch.bool))


@pytest.mark.parametrize(("process", "steps"), [(RectifiedFlow(), 4), (DDPM(20), 20), (DDPM(20, prediction="x0"), 10)])
def test_clones_two_modes_and_their_condition(make_policy, process, steps):
    agent = BC(make_policy(process, steps, width=64), SMALL, iterations=30, seed=0)
    for _ in range(30):
        agent.update(TwoModes())
    obs = torch.tensor([[1.0, 0, 0]]).repeat(200, 1)
    noise = torch.randn(200, 4, 2, generator=torch.Generator().manual_seed(0))
    assert (agent.deploy()(obs, noise) - 0.7).abs().mean() < 0.1
    assert (agent.deploy()(-obs, noise) + 0.7).abs().mean() < 0.1
    both = agent.deploy()(0 * obs, noise)[:, 0, 0]
    assert 0.25 < (both > 0).float().mean() < 0.75
    assert (both.abs() - 0.7).abs().mean() < 0.2


def test_deployed_weights_are_the_average_not_the_raw_ones(make_policy):
    agent = BC(make_policy(RectifiedFlow(), 4), SMALL, iterations=2, seed=0)
    before = copy.deepcopy(agent.policy.net.action_in.weight)
    agent.update(TwoModes())
    average, raw = agent.policy.net.action_in.weight, agent.online.net.action_in.weight
    assert not torch.equal(average, before)
    assert not torch.equal(average, raw)
    assert agent.deploy().policy is agent.policy


def test_average_is_updated_as_written(make_policy):
    agent = BC(make_policy(RectifiedFlow(), 4), BCConfig(batch=16, steps=10), iterations=2, seed=0)
    start = agent.policy.net.action_in.weight.clone()
    agent.update(TwoModes())
    decay = 2 / 11  # the first of the short-memory averages: (1 + 1) / (10 + 1)
    expected = decay * start + (1 - decay) * agent.online.net.action_in.weight.detach()
    torch.testing.assert_close(agent.policy.net.action_in.weight, expected)


def test_learning_rate_follows_its_cosine(make_policy):
    agent = BC(
        make_policy(RectifiedFlow(), 4), BCConfig(batch=16, steps=10, lr=1.0, final_lr=0.5), iterations=2, seed=0
    )
    agent.update(TwoModes())
    rate = agent.optimizer.param_groups[0]["lr"]  # of step 9 of 20
    assert rate == pytest.approx(0.5 + 0.25 * (1 + torch.cos(torch.tensor(9 / 20 * torch.pi))).item())
