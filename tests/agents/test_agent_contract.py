"""What every agent promises the loop, over the processes that fit it; those that do not are refused in a sentence."""

import pytest
import torch

from diffpolicy_rl.agents._student import StudentConfig
from diffpolicy_rl.agents.bc import BC, BCConfig
from diffpolicy_rl.agents.dppo import DPPO, DPPOConfig
from diffpolicy_rl.agents.dql import DQL, DQLConfig
from diffpolicy_rl.agents.dsrl import DSRL, DSRLConfig
from diffpolicy_rl.agents.expo import EXPO, EXPOConfig
from diffpolicy_rl.agents.fisor import FISOR, FISORConfig
from diffpolicy_rl.agents.fql import FQL, FQLConfig
from diffpolicy_rl.agents.idql import IDQL, IDQLConfig
from diffpolicy_rl.agents.iql import IQL, IQLConfig
from diffpolicy_rl.agents.ofql import OFQL, OFQLConfig
from diffpolicy_rl.agents.onedp import OneDP, OneDPConfig
from diffpolicy_rl.agents.pa_rl import PARL, PARLConfig
from diffpolicy_rl.agents.ppo import PPO, GaussianPPOConfig
from diffpolicy_rl.agents.reflow import Reflow
from diffpolicy_rl.agents.regress import Regress, RegressConfig
from diffpolicy_rl.agents.reinflow import ReinFlow, ReinFlowConfig
from diffpolicy_rl.agents.residual_sac import ResidualSAC, ResidualSACConfig
from diffpolicy_rl.agents.resip import ResiP, ResiPConfig
from diffpolicy_rl.agents.rlpd import RLPD, RLPDConfig
from diffpolicy_rl.agents.sac import SAC, SACConfig
from diffpolicy_rl.agents.td3_bc import TD3BC, TD3BCConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.buffers import Batch
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.policies.consistency import Consistency
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.meanflow import MeanFlow
from diffpolicy_rl.policies.shortcut import Shortcut
from diffpolicy_rl.types import Agent, Student
from tests.agents.bandit import bandit_replay, bandit_rollout

PROCESSES = {
    "ddpm": (DDPM(levels=4), 4),
    "ddim": (DDPM(levels=8), 4),
    "x0": (DDPM(levels=4, prediction="x0"), 4),
    "flow": (RectifiedFlow(), 4),
    "shortcut": (Shortcut(), 4),
    "unclipped": (RectifiedFlow(clip=None), 4),
    "meanflow": (MeanFlow(), 2),
    "one_step": (MeanFlow(), 1),
    "consistency": (Consistency(), 2),
    "gaussian": (Gaussian(), 1),
}
CHAIN = {"minibatch": 64, "epochs": 1, "critic_hidden": (8,)}
REPLAY = {"batch": 8, "prefill": 16, "utd": 0.1, "critic_hidden": (8,)}
SOFT = {"actor_hidden": (8,), **REPLAY}
AGENTS = {
    "bc": (BC, BCConfig(steps=2, batch=8, ema_every=1)),
    "dppo": (DPPO, DPPOConfig(trained_moves=2, **CHAIN)),
    "reinflow": (ReinFlow, ReinFlowConfig(std_hidden=(8,), **CHAIN)),
    "ppo": (PPO, GaussianPPOConfig(**CHAIN)),
    "sac": (SAC, SACConfig(**SOFT)),
    "rlpd": (RLPD, RLPDConfig(actor_every=1, **SOFT)),
    "dsrl-na": (DSRL, DSRLConfig(**SOFT)),
    "dsrl-sac": (DSRL, DSRLConfig(variant="sac", tied=True, deploy_stochastic=True, **SOFT)),
    "expo": (EXPO, EXPOConfig(actor_every=2, **SOFT)),
    "pa_rl": (PARL, PARLConfig(**REPLAY)),
    "residual_sac": (ResidualSAC, ResidualSACConfig(**SOFT)),
    "resip": (ResiP, ResiPConfig(hidden=(8,), **CHAIN)),
    "dql": (DQL, DQLConfig(**REPLAY)),
    "edp": (DQL, DQLConfig(one_pass=True, max_backup=3, **REPLAY)),
    "ofql": (OFQL, OFQLConfig(**REPLAY)),
    "fql": (FQL, FQLConfig(**REPLAY)),
    "idql": (IDQL, IDQLConfig(**REPLAY)),
    "iql": (IQL, IQLConfig(**REPLAY)),
    "td3_bc": (TD3BC, TD3BCConfig(policy_every=1, **REPLAY)),
    "fisor": (FISOR, FISORConfig(**REPLAY)),
    "regress": (Regress, RegressConfig(steps=2, batch=8, ema_every=1)),
    "reflow": (Reflow, StudentConfig(steps=2, batch=8, ema_every=1)),
    "onedp": (OneDP, OneDPConfig(steps=2, batch=8, ema_every=1, warm_up=0.01)),
}
CLONING = ("expo", "pa_rl", "dql", "edp", "ofql", "fql", "idql", "iql", "td3_bc", "fisor")  # what was executed: H = A
REFUSED = {
    ("dsrl-na", "gaussian"): "Gaussian policy's action does not depend",
    ("dsrl-sac", "gaussian"): "Gaussian policy's action does not depend",
    **{
        ("dppo", process): r"trained_moves=2 must lie between 1 and policy\.steps=1"
        for process in ("gaussian", "one_step")
    },
    **{
        (name, process): "policy=gaussian"
        for name in ("ppo", "td3_bc")
        for process in PROCESSES
        if process != "gaussian"
    },
    **{
        (name, process): "students make one step"
        for name in ("regress", "reflow", "onedp")
        for process in PROCESSES
        if PROCESSES[process][1] > 1
    },
    **{("ofql", process): "policy=meanflow policy.steps=1" for process in PROCESSES if process != "one_step"},
    **{("fql", process): "process.clip=null" for process in PROCESSES if process != "unclipped"},
}
ALL = [(agent, process) for agent in AGENTS for process in PROCESSES]


class TwoWindows:
    """Demonstrations of two chunks."""

    def sample(self, batch, generator=None):
        action = torch.tensor([0.5, -0.5]).view(2, 1, 1).expand(2, 4, 2).repeat(batch // 2, 1, 1)
        return Batch(torch.zeros(batch, 3), action, torch.ones(batch, 4, dtype=torch.bool))


def build(make_policy, agent, process):
    cls, config = AGENTS[agent]
    policy = make_policy(*PROCESSES[process], horizon=2 if agent in CLONING else 4)
    agent = cls(policy, config, iterations=3, seed=0)
    if isinstance(agent, Student):
        agent.learn_from(make_policy(RectifiedFlow(), 4).deploy())
    return agent


def flat(state, path=""):
    """Copies of the weights in a state tree, by path."""
    if isinstance(state, dict):
        return {key: value for name, part in state.items() for key, value in flat(part, f"{path}/{name}").items()}
    return {path: state.clone()} if isinstance(state, torch.Tensor) and state.is_floating_point() else {}


def experience(agent):
    if agent.data == "rollout":
        return bandit_rollout(agent)
    if isinstance(agent, BC):
        return TwoWindows()
    return bandit_replay(agent, experience=Experience(ReplayBuffer(1000), bandit_replay(agent).online))


@pytest.mark.parametrize(("name", "process"), [pair for pair in ALL if pair not in REFUSED])
def test_contract(make_policy, name, process):
    agent = build(make_policy, name, process)
    assert isinstance(agent, Agent)
    before = flat(agent.state_dict())
    metrics = agent.update(experience(agent))
    assert all(value.dim() == 0 and value.isfinite() and not value.requires_grad for value in metrics.values())
    assert any(not torch.equal(before[key], value) for key, value in flat(agent.state_dict()).items() if key in before)
    assert agent.gradient_steps > 0
    # What is deployed is what is learned, in the right shapes, and a function of observation and noise alone.
    deployed, obs = agent.deploy(), torch.randn(32, 3)
    noise = deployed.sample_noise(32, torch.Generator().manual_seed(0))
    actions = deployed(obs, noise)
    assert actions.shape[::2] == (32, 2)
    assert actions.shape[1] >= deployed.execute == 2
    assert torch.equal(actions, deployed(obs, noise))
    # A copy that is given the state goes on in the same way.
    torch.manual_seed(1)
    copy = build(make_policy, name, process)
    copy.load_state_dict(agent.state_dict())
    assert torch.equal(copy.deploy()(obs, noise), actions)
    assert torch.equal(copy.deploy().correct(obs, actions[:, 0]), deployed.correct(obs, actions[:, 0]))
    ours, theirs = agent.act(obs, explore=True), copy.act(obs, explore=True)
    assert torch.equal(ours[0], theirs[0])
    assert ours[0].shape == (32, agent.chunk, 2)
    assert ours[1].keys() == theirs[1].keys()


@pytest.mark.parametrize("pair", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(make_policy, pair):
    with pytest.raises(UserError, match=REFUSED[pair]) as refusal:
        build(make_policy, *pair)
    assert "\n" not in str(refusal.value)
