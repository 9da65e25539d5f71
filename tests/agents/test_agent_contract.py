"""What every agent promises the loop, over the processes that fit it; those that do not are refused in a sentence."""

import pytest
import torch

from diffpolicy_rl.agents.bc import BC, BCConfig
from diffpolicy_rl.agents.dppo import DPPO, DPPOConfig
from diffpolicy_rl.agents.ppo import PPO, GaussianPPOConfig
from diffpolicy_rl.agents.reinflow import ReinFlow, ReinFlowConfig
from diffpolicy_rl.agents.residual_sac import ResidualSAC, ResidualSACConfig
from diffpolicy_rl.agents.resip import ResiP, ResiPConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.buffers import Batch
from diffpolicy_rl.policies.consistency import Consistency
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.meanflow import MeanFlow
from diffpolicy_rl.policies.shortcut import Shortcut
from diffpolicy_rl.types import Agent
from tests.agents.bandit import bandit_replay, bandit_rollout

PROCESSES = {
    "ddpm": (DDPM(levels=4), 4),
    "ddim": (DDPM(levels=8), 4),
    "x0": (DDPM(levels=4, prediction="x0"), 4),
    "flow": (RectifiedFlow(), 4),
    "shortcut": (Shortcut(), 4),
    "meanflow": (MeanFlow(), 2),
    "consistency": (Consistency(), 2),
    "gaussian": (Gaussian(), 1),
}
CRITIC = {"batch": 8, "utd": 0.1, "prefill": 32, "critic_hidden": (8,)}
CHAIN = {"minibatch": 64, "epochs": 1, "critic_hidden": (8,)}
AGENTS = {
    "bc": (BC, BCConfig(steps=2, batch=8, ema_every=1)),
    "dppo": (DPPO, DPPOConfig(trained_moves=2, **CHAIN)),
    "reinflow": (ReinFlow, ReinFlowConfig(std_hidden=(8,), **CHAIN)),
    "ppo": (PPO, GaussianPPOConfig(**CHAIN)),
    "residual_sac": (
        ResidualSAC,
        ResidualSACConfig(actor_hidden=(8,), **CRITIC),
    ),
    "resip": (ResiP, ResiPConfig(hidden=(8,), **CHAIN)),
}
REFUSED = {
    ("dppo", "gaussian"): r"trained_moves=2 must lie between 1 and policy\.steps=1",
    **{("ppo", process): "policy=gaussian" for process in PROCESSES if process != "gaussian"},
}
ALL = [(agent, process) for agent in AGENTS for process in PROCESSES]


class TwoWindows:
    """Demonstrations of two chunks."""

    def sample(self, batch, generator=None):
        action = torch.tensor([0.5, -0.5]).view(2, 1, 1).expand(2, 4, 2).repeat(batch // 2, 1, 1)
        return Batch(torch.zeros(batch, 3), action, torch.ones(batch, 4, dtype=torch.bool))


def build(make_policy, agent, process):
    cls, config = AGENTS[agent]
    return cls(make_policy(*PROCESSES[process]), config, iterations=3, seed=0)


def experience(agent):
    if agent.data == "rollout":
        return bandit_rollout(agent)
    return TwoWindows() if isinstance(agent, BC) else bandit_replay(agent)


def executed(agent, obs, noise):
    """What is executed of a deployed policy's chunks at once."""
    deployed = agent.deploy()
    return deployed.correct(obs, deployed(obs, noise)[:, 0])


@pytest.mark.parametrize(("name", "process"), [pair for pair in ALL if pair not in REFUSED])
def test_contract(make_policy, name, process):
    agent = build(make_policy, name, process)
    assert isinstance(agent, Agent)
    obs, draw = torch.randn(32, 3), torch.Generator().manual_seed(0)
    noise = agent.deploy().sample_noise(32, draw)
    before = executed(agent, obs, noise).detach().clone()
    metrics = agent.update(experience(agent))
    assert all(value.dim() == 0 and value.isfinite() and not value.requires_grad for value in metrics.values())
    assert not torch.equal(before, executed(agent, obs, noise))
    assert agent.gradient_steps > 0
    # What is deployed is what is learned, in the right shapes, and a function of observation and noise alone.
    deployed = agent.deploy()
    actions = deployed(obs, noise)
    assert actions.shape == (32, 4, 2)
    assert torch.equal(actions, deployed(obs, noise))
    # A copy that is given the state goes on in the same way.
    torch.manual_seed(1)
    copy = build(make_policy, name, process)
    copy.load_state_dict(agent.state_dict())
    assert torch.equal(executed(copy, obs, noise), executed(agent, obs, noise))
    ours, theirs = agent.act(obs, explore=True), copy.act(obs, explore=True)
    assert torch.equal(ours[0], theirs[0])
    assert ours[0].shape == (32, agent.chunk, 2)
    assert ours[1].keys() == theirs[1].keys()


@pytest.mark.parametrize("pair", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(make_policy, pair):
    with pytest.raises(UserError, match=REFUSED[pair]) as refusal:
        build(make_policy, *pair)
    assert "\n" not in str(refusal.value)
