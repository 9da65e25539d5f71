"""A one-step student of a teacher's samples, by hand and on a teacher whose answer is known."""

import copy

import pytest
import torch

from diffpolicy_rl.agents.reflow import Reflow
from diffpolicy_rl.agents.regress import Regress, RegressConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.policies.consistency import Consistency
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.meanflow import MeanFlow
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.shortcut import Shortcut
from diffpolicy_rl.types import DeployedPolicy
from tests.agents.offline_bandit import deterministic

SMALL = RegressConfig(batch=128, steps=100, lr=3e-3, final_lr=3e-4, ema_every=1, ema_decay=0.95, mixing="none")


class Teacher(DeployedPolicy):
    """Actions that depend on where it is, and on noise by a bend that no straight line has."""

    execute, noise_shape = 2, (4, 2)

    def forward(self, obs, noise):
        return 0.4 * obs[:, :1, None].sign() + 0.5 * torch.tanh(2 * noise)


class Chooser(DeployedPolicy):
    """Of three candidates the highest; its mean is the mean of the largest of three normal numbers."""

    execute, noise_shape = 1, (3, 1, 2)

    scores = True

    def forward(self, obs, noise):
        return 0.1 * noise.amax(1)

    def score(self, obs, action):
        return 3 - (action - 0.5).square().sum((-2, -1))


def lived(rows=512, horizon=2):
    """Decisions that an agent lived through; only their observations count."""
    buffer = ReplayBuffer(rows)
    buffer.append({
        "obs": torch.randn(rows, 3), "action": torch.zeros(rows, horizon, 2), "rewards": torch.zeros(rows, horizon),
        "executed": torch.full((rows,), horizon), "terminated": torch.ones(rows, dtype=torch.bool),
        "next_obs": torch.zeros(rows, 3), "successor": torch.full((rows,), -1),
    })  # fmt: skip
    return Experience(buffer)


@pytest.fixture
def student(make_policy):
    agent = Regress(make_policy(RectifiedFlow(), 1, width=64), SMALL, iterations=20, seed=0)
    agent.learn_from(Teacher())
    return agent


def test_loss_is_the_distance_to_the_teacher_from_the_same_noise(student):
    experience, generator = lived(), torch.Generator().set_state(student.generator.get_state())
    student.config = RegressConfig(batch=16, steps=1, mixing="none")
    (batch,) = experience.batches(1, 16, "none", 1.0, generator)
    noise = torch.randn(16, 4, 2, generator=generator)
    with torch.no_grad():
        velocity = student.online.net(noise, torch.zeros(16), torch.zeros(16), batch.obs)
        expected = (noise + velocity - Teacher()(batch.obs, noise)).square().mean()
    torch.testing.assert_close(student.update(experience)["bc/loss"], expected)


def test_learns_what_the_teacher_makes_of_every_noise(student):
    experience = lived()
    for _ in range(20):
        student.update(experience)
    obs, noise = torch.randn(200, 3), torch.randn(200, 4, 2)
    away = obs[:, 0].abs() > 0.2
    apart = student.deploy()(obs, noise) - Teacher()(obs, noise)
    assert apart[away].square().mean() < 0.01
    assert student.deploy().noise_shape == (4, 2)


@pytest.mark.parametrize("process", [MeanFlow(), Shortcut(), Consistency()], ids=lambda p: type(p).__name__)
def test_processes_that_distil_themselves_learn_it_as_well(make_policy, process):
    agent = Reflow(make_policy(process, 1, width=64, time_scale=3), SMALL, iterations=20, seed=0)
    agent.learn_from(Teacher())
    experience = lived()
    for _ in range(20):
        agent.update(experience)
    obs, noise = torch.randn(200, 3), torch.randn(200, 4, 2)
    away = obs[:, 0].abs() > 0.2
    apart = (agent.deploy()(obs, noise) - Teacher()(obs, noise))[away].square().mean()
    other = (agent.deploy()(obs, -noise) - Teacher()(obs, noise))[away].square().mean()
    assert apart < 0.04
    assert other > 0.3


def test_a_teacher_that_chooses_has_a_student_of_its_mean():
    agent = Regress(deterministic(), RegressConfig(batch=512, lr=1e-2, mixing="none"), iterations=3, seed=0)
    agent.learn_from(Chooser())
    for _ in range(3):
        agent.update(lived(horizon=1))
    assert agent.deploy()(torch.zeros(1, 3), torch.zeros(1, 1, 2)).mean().item() == pytest.approx(0.0846, abs=0.01)


def test_values_are_climbed_beside_regression_by_hand():
    config = RegressConfig(batch=16, steps=1, mixing="none", value_weight=0.7)
    agent, experience = Regress(deterministic(), config, iterations=1, seed=0), lived(horizon=1)
    agent.learn_from(Chooser())
    agent.optimizer = torch.optim.SGD(agent.online.net.parameters(), lr=0.1)
    policy, generator = copy.deepcopy(agent.online), torch.Generator().set_state(agent.generator.get_state())
    agent.update(experience)
    (batch,) = experience.batches(1, 16, "none", 1.0, generator)
    torch.randn(16, 1, 2, generator=generator)  # the student's, which it does without
    taught = Chooser()(batch.obs, torch.randn(16, 3, 1, 2, generator=generator))
    action = policy.sample(batch.obs, torch.zeros(16, 1, 2))
    value = Chooser().score(batch.obs, action)
    loss = (action - taught).square().mean() - 0.7 * value.mean() / value.detach().abs().mean()
    gradients = torch.autograd.grad(loss, list(policy.net.parameters()))
    for ours, before, gradient in zip(agent.online.net.parameters(), policy.net.parameters(), gradients, strict=True):
        torch.testing.assert_close(ours, before - agent.config.lr * gradient)


def test_a_student_that_climbs_does_what_its_teachers_critics_like():
    config = RegressConfig(batch=512, lr=1e-2, mixing="none", value_weight=100.0)
    agent = Regress(deterministic(), config, iterations=3, seed=0)
    agent.learn_from(Chooser())
    for _ in range(3):
        agent.update(lived(horizon=1))
    assert agent.deploy()(torch.zeros(1, 3), torch.zeros(1, 1, 2)).mean().item() == pytest.approx(0.5, abs=0.02)


def test_the_teacher_shows_the_way_until_the_student_has_learned(student):
    obs, generator = torch.randn(8, 3), torch.Generator().set_state(student.generator.get_state())
    action, extras = student.act(obs, explore=True)
    torch.testing.assert_close(action, Teacher()(obs, torch.randn(8, 4, 2, generator=generator))[:, :2])
    assert torch.equal(extras["action"], action)  # the normaliser is the identity here
    student.updates = 1
    generator.set_state(student.generator.get_state())
    expected = student.policy.sample(obs, torch.randn(8, 4, 2, generator=generator))[:, :2]
    torch.testing.assert_close(student.act(obs, explore=True)[0], expected)


def test_noise_of_single_moves_is_left_out(make_policy, student):
    teacher: GenerativePolicy = make_policy(RectifiedFlow(), 4)
    student.learn_from(teacher.deploy(eta=1.0))
    obs, noise = torch.randn(5, 3), torch.randn(5, 4, 2)
    torch.testing.assert_close(student._taught(obs, noise), teacher.sample(obs, noise))


def test_refusals(make_policy, student):
    with pytest.raises(UserError, match=r"policy\.steps=4, but students make one step"):
        Regress(make_policy(RectifiedFlow(), 4), SMALL, iterations=1, seed=0)
    climber = Regress(deterministic(), RegressConfig(value_weight=1.0), iterations=1, seed=0)
    with pytest.raises(UserError, match="value_weight is for teachers that select by critics"):
        climber.learn_from(Teacher())
    with pytest.raises(UserError, match="value_weight=-1 must not be negative"):
        RegressConfig(value_weight=-1)
    with pytest.raises(UserError, match="students need a teacher"):
        Regress(make_policy(RectifiedFlow(), 1), SMALL, iterations=1, seed=0).update(lived())
