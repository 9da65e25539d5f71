import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from diffpolicy_rl.agents.bc import BC, BCConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.meanflow import MeanFlow
from diffpolicy_rl.policies.process import dispersive_loss
from diffpolicy_rl.policies.shortcut import Shortcut

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


def test_dispersive_loss_by_hand():
    hidden = torch.tensor([[3.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])  # of length 1: squared distances 2, 4 and 2
    pairs = [0.0] * 3 + [2.0] * 4 + [4.0] * 2
    expected = torch.tensor([-distance / 0.5 for distance in pairs]).exp().mean().log()
    torch.testing.assert_close(dispersive_loss(hidden, 0.5), expected)
    torch.testing.assert_close(dispersive_loss(100 * hidden, 0.5), expected)  # growing alone gains nothing
    assert dispersive_loss(torch.ones(4, 8), 0.5).abs() < 1e-6  # the worst there is: all alike
    moved = hidden.clone().requires_grad_()
    dispersive_loss(moved, 0.5).backward()
    assert dispersive_loss(hidden - 0.1 * moved.grad, 0.5) < expected


@pytest.mark.parametrize("process", [RectifiedFlow(), Shortcut(), MeanFlow(), DDPM(20)])
def test_dispersive_gradient_is_added_to_the_regression(make_policy, process):
    """The weights after one step of plain descent tell the gradient, which a second forward would give, too."""
    policy = make_policy(process, 1)
    config = BCConfig(batch=32, steps=1, dispersive=0.7, temperature=0.3, max_grad_norm=1e9)
    agent = BC(policy, config, iterations=1, seed=3)
    agent.optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
    plain, seen = copy.deepcopy(policy), []
    metrics = agent.update(TwoModes())

    generator = torch.Generator().manual_seed(3)
    batch = TwoModes().sample(32, generator)
    plain.net.trunk[0].register_forward_hook(lambda *a: seen.append(a[2]) if torch.is_grad_enabled() else None)
    loss = plain.loss(batch.obs, batch.action, mask=batch.mask, generator=generator).mean()
    (hidden,) = seen
    spread = dispersive_loss(hidden, 0.3)
    (loss + 0.7 * spread).backward()
    torch.testing.assert_close(metrics["bc/loss"], loss.detach())
    torch.testing.assert_close(metrics["bc/dispersive"], spread.detach())
    for ours, before in zip(policy.parameters(), plain.parameters(), strict=True):
        change = torch.zeros_like(before) if before.grad is None else 1e-3 * before.grad
        torch.testing.assert_close(ours, before - change, atol=1e-7, rtol=1e-5)
    assert not policy.net.trunk[0]._forward_hooks


def test_dispersive_weight_spreads_the_features(make_policy):
    ends = []
    for weight in (0.0, 0.5):
        policy = make_policy(RectifiedFlow(), 4)
        agent = BC(policy, dataclasses.replace(SMALL, dispersive=weight), iterations=4, seed=0)
        for _ in range(4):
            metrics = agent.update(TwoModes())
        assert ("bc/dispersive" in metrics) == (weight > 0)
        batch = TwoModes().sample(64, torch.Generator().manual_seed(5))
        context = policy.net.context(torch.full((64,), 0.5), torch.full((64,), 0.5), batch.obs)
        _, hidden = policy.net.denoise_with_hidden(batch.action, context)
        unit = hidden / hidden.norm(dim=1, keepdim=True)
        ends.append((unit @ unit.T).mean().item())
    assert ends[1] < ends[0] - 0.1


def test_dispersive_loss_needs_a_net_that_shows_its_features(make_policy):
    class Closed(DenoisingNet):
        def context(self, t, s, cond):
            return (cond,)

        def denoise(self, x, context):
            return x

    policy = make_policy(RectifiedFlow(), 4)
    policy.net = Closed()
    with pytest.raises(UserError, match="Closed shows no hidden features to disperse; set dispersive=0"):
        BC(policy, dataclasses.replace(SMALL, dispersive=0.5), iterations=1, seed=0)
    for bad in ({"dispersive": -1.0}, {"temperature": 0.0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            BCConfig(**bad)
