"""The update that all agents on chains share, against what is known of it in closed form."""

import dataclasses
import math

import pytest
import torch

from diffpolicy_rl.agents import _ppo
from diffpolicy_rl.agents._ppo import ChainPPO, PPOConfig, standardized
from diffpolicy_rl.agents.reinflow import ReinFlow, ReinFlowConfig
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.std import FloorStd
from tests.agents.bandit import bandit_rollout


class Constant(DenoisingNet):
    """A velocity that is one number, whatever it is asked."""

    def __init__(self, theta):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(theta))

    def context(self, t, s, cond):
        return ((cond[..., :1] + t.unsqueeze(-1)) * 0,)

    def denoise(self, x, context):
        return self.theta + 0 * x


@pytest.mark.parametrize(("reduction", "share"), [("chain_sum", 1), ("move_sum", 1 / 3)])
def test_gradient_of_a_linear_gaussian_policy(reduction, share):
    """With velocity theta the action is N(theta, 1 + K sigma^2), and the reward -(a - c)^2.

    So dE[r]/dtheta = -2 (theta - c) and Var[r] = 2 tau^4 + 4 tau^2 (theta - c)^2 with tau^2 = 1 + K sigma^2; the
    surrogate's gradient is that of -E[r] over the std of r, shared among the moves where each is a sample.
    """
    theta, c, sigma, steps, rows = 0.3, 1.0, 0.5, 3, 400_000
    net, process = Constant(theta), RectifiedFlow(clip=None)
    policy = GenerativePolicy(net, process, Normalizer((1,)), Normalizer((1,)), horizon=1, execute=1, steps=steps)
    agent = ChainPPO(policy, FloorStd(sigma, eta=0.0), PPOConfig(reduction=reduction), iterations=1, seed=0)
    policy.std_rule.noise_clip = math.inf
    obs = torch.zeros(rows, 1)
    _, extras = agent.act(obs, explore=True)
    reward = -(extras["chain"][:, -1, 0, 0] - c).square()
    weight = torch.full((rows,), 1 / rows)
    piece = {"obs": obs, **extras, "weight": weight, "advantage": standardized(reward, weight)}
    agent._policy_loss(piece)[0].backward()
    tau2 = 1 + steps * sigma**2
    std = (2 * tau2**2 + 4 * tau2 * (theta - c) ** 2) ** 0.5
    assert net.theta.grad.item() == pytest.approx(share * 2 * (theta - c) / std, rel=0.02)


@pytest.fixture
def agent_and_batch(make_policy):
    config = ReinFlowConfig(minibatch=10_000, critic_hidden=(32, 32, 32), clip=0.2, epochs=1)
    agent = ReinFlow(make_policy(RectifiedFlow(), 4), config, iterations=10, seed=0)
    batch = {name: field.double() for name, field in agent._prepare(bandit_rollout(agent)).items()}
    agent.policy.double()
    agent.critic.double()
    batch["log_prob"] = batch["log_prob"] + 0.1 * torch.randn(len(batch["obs"]), 1)
    return agent, batch


def gradients(agent, minibatch):
    agent.actor_optimizer.zero_grad()
    agent.critic_optimizer.zero_grad()
    for piece in agent._pieces(minibatch):
        agent._backward(piece, learns=True)
    parameters = [*agent.policy.parameters(), *agent.critic.parameters()]
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def test_weighted_rows_give_the_gradient_of_repeated_rows(agent_and_batch):
    agent, batch = agent_and_batch
    agent.config = dataclasses.replace(agent.config, repeats=10, minibatch=640)
    drawn = torch.randperm(2560, generator=torch.Generator().set_state(agent.generator.get_state())) % 256
    minibatch = next(agent._minibatches(batch))
    assert len(minibatch["obs"]) < 256  # distinct rows only
    repeated = {name: field[drawn[:640]] for name, field in batch.items()}
    weight = torch.full((640,), 1 / 640, dtype=torch.float64)
    repeated |= {"weight": weight, "advantage": standardized(repeated["advantage"], weight)}
    ours, theirs = gradients(agent, minibatch), gradients(agent, repeated)
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-9


def test_pieces_add_up_to_the_minibatch(agent_and_batch, monkeypatch):
    agent, batch = agent_and_batch
    minibatch = next(agent._minibatches(batch))
    whole = gradients(agent, minibatch)
    monkeypatch.setattr(_ppo, "_PIECE", 150)  # 256 decisions of 4 moves: seven pieces
    assert len(list(agent._pieces(minibatch))) == 7
    parts = gradients(agent, minibatch)
    assert ((whole - parts).norm() / whole.norm()).item() < 1e-12


def test_standardized_by_hand():
    weight = torch.tensor([0.25, 0.25, 0.5])
    values = standardized(torch.tensor([0.0, 2.0, 5.0]), weight)  # mean 3, variance (9 + 1) / 4 + 4 / 2 = 4.5
    assert values.tolist() == pytest.approx([-3 / 4.5**0.5, -1 / 4.5**0.5, 2 / 4.5**0.5])
