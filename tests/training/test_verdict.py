"""The verdict on a student, by hand; spread where it is known."""

import math

import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.training.verdict import compare, energy_distance, non_inferiority, spread, visited
from diffpolicy_rl.types import DeployedPolicy


class Normal(DeployedPolicy):
    """Normal actions about a centre."""

    execute, noise_shape = 4, (4, 3)

    def __init__(self, centre=0.0, scale=0.1):
        super().__init__()
        self.centre, self.scale = centre, scale

    def forward(self, obs, noise):
        return self.centre + self.scale * noise


class Silent(DeployedPolicy):
    """Always the same."""

    execute, noise_shape = 4, None

    def forward(self, obs, noise):
        return torch.zeros(len(obs), 4, 3)


def test_paired_difference_by_hand():
    teacher = {"mean": 100.0, "returns": [90.0, 100.0, 110.0, 100.0] * 25}
    student = {"returns": [88.0, 101.0, 108.0, 99.0] * 25}
    verdict = non_inferiority(teacher, student)
    half = 1.96 * math.sqrt(25 * ((-1) ** 2 + 2**2 + (-1) ** 2 + 0) / 99 / 100)  # of -2, 1, -2, -1 about -1
    assert verdict["measure"] == "return"
    assert verdict["difference"] == pytest.approx(-1)
    assert (verdict["ci_low"], verdict["ci_high"]) == pytest.approx((-1 - half, -1 + half))
    assert verdict["margin"] == pytest.approx(5)
    assert verdict["passed"]
    assert not non_inferiority(teacher | {"mean": 20.0}, student)["passed"]
    uncertain = non_inferiority(teacher | {"mean": 22.0}, student)
    assert uncertain["ci_low"] < -uncertain["margin"] < uncertain["difference"]
    assert not uncertain["passed"]


def test_few_episodes_pass_nothing():
    alike = {"mean": 100.0, "returns": [100.0] * 99}
    assert not non_inferiority(alike, alike)["passed"]
    enough = alike | {"returns": [100.0] * 100}
    assert non_inferiority(enough, enough)["passed"]


def test_a_student_that_costs_more_does_not_pass():
    teacher = {"mean": 100.0, "returns": [100.0] * 100, "costs": [0.0, 2.0] * 50}
    assert non_inferiority(teacher, teacher)["passed"]
    verdict = non_inferiority(teacher, teacher | {"costs": [0.0, 4.0] * 50})
    assert verdict["cost_difference"] == pytest.approx(1)
    assert verdict["cost_ci_high"] == pytest.approx(1 + 1.96 * math.sqrt(100 / 99 / 100))
    assert not verdict["passed"]


def test_success_counts_where_there_is_one():
    teacher = {"mean": 1.0, "returns": [1.0] * 200, "wins": [True] * 180 + [False] * 20}
    verdict = non_inferiority(teacher, teacher | {"wins": [True] * 178 + [False] * 22})
    assert verdict["measure"] == "success"
    assert verdict["difference"] == pytest.approx(-0.01)
    assert verdict["passed"]
    worse = non_inferiority(teacher, teacher | {"wins": [True] * 168 + [False] * 32})
    assert worse["difference"] == pytest.approx(-0.06)
    assert not worse["passed"]


def test_a_policy_plays_the_episodes_of_its_copy():
    env = make_env("Hopper-v5", num_envs=4, chunk=4)
    report = compare(Normal(), Normal(), env, episodes=12, seed=3)
    assert report["teacher"]["returns"] == report["student"]["returns"]
    assert (report["verdict"]["difference"], report["verdict"]["ci_low"]) == (0, 0)
    other = compare(Normal(), Normal(0.3), env, episodes=12, seed=3)
    assert other["teacher"]["returns"] == report["teacher"]["returns"]
    assert other["verdict"]["difference"] != 0


def test_energy_distance_by_hand():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    # across: 1, 5, 1, 3; within: 0, 2, 2, 0 and 0, 4, 4, 0
    assert energy_distance(x, y).item() == pytest.approx(2 * 2.5 - 1 - 2)
    assert energy_distance(x, x).item() == 0


def test_a_teacher_that_does_not_use_its_noise_has_no_spread():
    assert spread(Normal(scale=0.0), Normal(), torch.zeros(5, 11), samples=8) is None


def test_spread_tells_what_is_wrong_with_a_student():
    obs = torch.randn(500, 11)
    same = spread(Normal(), Normal(), obs)
    assert same is not None
    assert same["ratio"] == pytest.approx(1, abs=0.1)
    assert same["passed"]
    for student in (Normal(0.05), Normal(0.0, 0.05)):  # elsewhere; too sure
        other = spread(Normal(), student, obs)
        assert other is not None
        assert not other["passed"]
        assert len(other["by_state"]["to_teacher"]) == 200
    silent = Silent()
    assert spread(silent, Normal(), obs) is None
    mean_only = spread(Normal(), silent, obs)
    assert mean_only is not None
    assert mean_only["ratio"] > 5


def test_visited_observations_are_those_of_the_policys_own_way():
    env = make_env("Hopper-v5", num_envs=4, chunk=4)
    seen = visited(Normal(), env, decisions=5, seed=1)
    assert seen.shape == (20, 11)
    assert torch.equal(seen[:4], env.reset(seed=1)[0])
    assert torch.equal(seen, visited(Normal(), env, decisions=5, seed=1))
