"""Score distillation: its direction in closed form, and what it does with a teacher of two modes."""

import copy

import pytest
import torch

from diffpolicy_rl.agents.bc import BC, BCConfig
from diffpolicy_rl.agents.onedp import OneDP, OneDPConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.nets.mlp import ConditionMLP
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from tests.agents.test_bc import TwoModes
from tests.agents.test_regress import Teacher, lived

MEAN, STD = 0.3, 0.5


class Velocity(DenoisingNet):
    """That of the flow to N(MEAN, STD^2)."""

    def forward(self, x, t, s, cond):
        t = t.view(-1, 1, 1)
        slope = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
        return MEAN + slope * (x - t * MEAN)


class Noise(DenoisingNet):
    """That a perfect net sees in a diffusion of N(MEAN, STD^2)."""

    def forward(self, x, t, s, cond):
        abar = DDPM(20).alpha_bar(t.double()).to(x.dtype).view(-1, 1, 1)
        return (1 - abar).sqrt() * (x - abar.sqrt() * MEAN) / (abar * STD**2 + 1 - abar)


def policy(net, process, steps):
    return GenerativePolicy(net, process, Normalizer((3,)), Normalizer((2,)), 4, 2, steps)


def certain():
    return policy(ConditionMLP(4, 2, 3, False, hidden=(32,), activation="relu"), Gaussian(), 1)


def at(t):
    return lambda batch, generator=None: (torch.full((batch,), t), torch.full((batch,), t))


@pytest.mark.parametrize("t", [0.2, 0.6])
def test_direction_without_noise_in_closed_form(t, monkeypatch):
    """Of a flow: (a - mean) (1 - t) / ((1 - t)^2 + t^2 std^2), on average over the noise."""
    agent = OneDP(certain(), OneDPConfig(mixing="none"), iterations=2, seed=0)
    agent.learn_from(policy(Velocity(), RectifiedFlow(), 4).deploy())
    monkeypatch.setattr(agent.teacher.policy.process, "sample_times", at(t))
    (batch,) = lived(40_000).batches(1, 40_000, "none", 1.0, torch.Generator().manual_seed(0))
    direction, _ = agent._direction(batch, torch.full((40_000, 4, 2), 0.7), batch.obs)
    expected = (0.7 - MEAN) * (1 - t) / ((1 - t) ** 2 + t**2 * STD**2)
    assert direction.mean().item() == pytest.approx(expected, abs=0.01)


def test_direction_of_a_diffusion_points_away_from_its_mode(monkeypatch):
    """(noise the teacher sees) - noise = sqrt(1 - abar) sqrt(abar) (a - mean) / (abar std^2 + 1 - abar), on average."""
    agent = OneDP(certain(), OneDPConfig(mixing="none"), iterations=2, seed=0)
    process = DDPM(20)
    agent.learn_from(policy(Noise(), process, 20).deploy())
    monkeypatch.setattr(process, "sample_times", at(0.5))
    monkeypatch.setattr(agent.teacher.policy, "process", process)
    (batch,) = lived(40_000).batches(1, 40_000, "none", 1.0, torch.Generator().manual_seed(0))
    direction, _ = agent._direction(batch, torch.full((40_000, 4, 2), 0.7), batch.obs)
    abar = process.alpha_bar(0.5)
    expected = ((1 - abar) * abar) ** 0.5 * (0.7 - MEAN) / (abar * STD**2 + 1 - abar)
    assert direction.mean().item() == pytest.approx(expected, abs=0.01)


@pytest.fixture(scope="module")
def teacher():
    """A flow to two modes at 0.7 and -0.7, the first observation's sign deciding where it is not zero."""
    from diffpolicy_rl.nets.mlp import DenoisingMLP

    torch.manual_seed(0)
    flow = policy(DenoisingMLP(4, 2, 3, False, hidden=(64,) * 3), RectifiedFlow(), 8)
    agent = BC(flow, BCConfig(batch=128, steps=50, lr=2e-3), iterations=30, seed=0)
    for _ in range(30):
        agent.update(TwoModes())
    return agent.policy


def taught(student, teacher, **changes):
    config = OneDPConfig(**({"batch": 128, "lr": 2e-3, "mixing": "none", "ema_decay": 0.9, "ema_every": 1} | changes))
    agent = OneDP(student, config, iterations=12, seed=0)
    agent.learn_from(teacher.deploy())
    experience = lived()
    experience.online._fields["obs"].zero_()
    for _ in range(12):
        agent.update(experience)
    return agent


def test_a_student_with_noise_gets_nearer_to_both_modes_than_regression(teacher):
    def apart(agent):
        action = agent.deploy()(torch.zeros(400, 3), torch.randn(400, 4, 2))[:, 0, 0]
        assert 0.35 < (action > 0).float().mean() < 0.65
        return (action.abs() - 0.7).abs().mean()

    rates = {"steps": 70, "student_lr": 3e-4, "score_lr": 3e-3}
    regressed, distilled = (
        taught(
            policy(copy.deepcopy(teacher.net).requires_grad_(True), RectifiedFlow(), 1), teacher, warm_up=share, **rates
        )
        for share in (0.99, 0.5)
    )
    assert apart(distilled) < apart(regressed) - 0.015


def test_a_student_without_noise_chooses_one_where_regression_takes_the_mean(teacher):
    def average(agent):
        return agent.deploy()(torch.zeros(1, 3), torch.zeros(1, 4, 2))[0, 0, 0].abs().item()

    regressed = taught(certain(), teacher, steps=50, warm_up=0.99)
    assert average(regressed) < 0.3
    assert average(taught(certain(), teacher, steps=50, warm_up=0.1, student_lr=3e-3)) > 0.5


def test_refusals(make_policy):
    agent = OneDP(make_policy(RectifiedFlow(), 1), OneDPConfig(), iterations=1, seed=0)
    for other in (Teacher(), make_policy(DDPM(4, prediction="x0"), 4).deploy()):
        with pytest.raises(UserError, match="selects nothing; use method=regress"):
            agent.learn_from(other)
    with pytest.raises(UserError, match=r"warm_up=1\.0"):
        OneDPConfig(warm_up=1.0)
