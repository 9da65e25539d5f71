"""PointMaze: its walls, goals and speeds; and that its dynamics are Gymnasium-Robotics'."""

import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.tasks import TASKS
from diffpolicy_rl.scripted import PointMazeExpert, PointMazeMediumExpert
from diffpolicy_rl.training.evaluation import evaluate_policy

MAZES = {"PointMaze-v0": PointMazeExpert, "PointMazeMedium-v0": PointMazeMediumExpert}

# Place and velocity of PointMaze_UMaze-v3 (gymnasium-robotics 1.4.2 on MuJoCo 4.0.0) set to (1.1, 1.05, 0, 0), after
# every tenth of 60 steps with the action (1, 0.3), which end at the wall.
REFERENCE = (
    (1.2300586421328683, 1.0890175926398604, 2.3562749326975307, 0.7068824798092593),
    (1.4039817662219751, 1.197804071505932, -0.2503561028452965, 1.3971088649431425),
    (1.396899161025355, 1.3747154898212437, -0.01406849363701641, 2.0710716187852514),
    (1.396628723096853, 1.396340396792192, -7.160841727595977e-05, -0.002316399679544217),
    (1.396627875017081, 1.3962890303290594, -1.5780713935573243e-07, -6.445664031551305e-05),
    (1.396627873152015, 1.3962875496447171, -3.466503818363863e-10, -1.9033333362325921e-06),
)


def ball(place, velocity=(0.0, 0.0), goal=(-1.0, -1.0), **settings):
    env = make_env("PointMaze-v0", dtype=torch.float64, **settings)
    env.reset(seed=0)
    qpos, qvel = torch.tensor([[[*place, *goal]], [[*velocity, 0, 0]]], dtype=torch.float64)
    env.set_state(qpos=qpos, qvel=qvel)
    return env


def test_dynamics_are_gymnasium_robotics():
    env = ball((1.1, 1.05))
    for expected in REFERENCE:
        for _ in range(10):
            obs, *_ = env.step(torch.tensor([[[1.0, 0.3]]], dtype=torch.float64))
        assert obs[0, :4].tolist() == pytest.approx(expected, abs=1e-12)


def test_no_force_leads_through_a_wall():
    env = ball((0.0, 1.0), chunk=200, max_episode_steps=1000)  # above the wall in the middle
    for force in ((0.0, -1.0), (0.0, 1.0)):
        obs, *_ = env.step(torch.tensor([[force] * 200]))
        assert 0.55 < obs[0, 1] < 1.45


def test_the_goal_pays_once_and_ends_the_episode():
    env = ball((-0.5, -1.0), velocity=(-4.0, 0.0))
    _, reward, terminated, _, info = env.step(torch.zeros(1, 1, 2))
    assert (reward.item(), terminated.item(), info["success"].item()) == (0, False, False)
    _, reward, terminated, _, info = env.step(torch.zeros(1, 1, 2))
    assert (reward.item(), terminated.item(), info["success"].item()) == (1, True, True)


def test_speed_is_limited():
    env = ball((-1.0, 1.0), velocity=(9.0, 0.0))
    before = env.observation()[0, 0]
    after = env.step(torch.zeros(1, 1, 2))[0][0, 0]
    assert after - before == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("env_id", MAZES)
def test_starts_and_goals_lie_in_different_cells(env_id):
    env = make_env(env_id, num_envs=500, dtype=torch.float64)
    obs, _ = env.reset(seed=0)
    centres = TASKS[env_id].centres()
    ball_cell, goal_cell = (torch.cdist(at, centres).argmin(1) for at in (obs[:, :2], obs[:, 4:]))
    for at, cell in ((obs[:, :2], ball_cell), (obs[:, 4:], goal_cell)):
        assert (at - centres[cell]).abs().max() <= 0.25
        assert len(cell.unique()) == len(centres)
    assert (ball_cell != goal_cell).all()


@pytest.mark.parametrize("env_id", MAZES)
def test_the_planner_reaches_every_goal(env_id):
    result = evaluate_policy(MAZES[env_id](env_id, stochastic=True), make_env(env_id, num_envs=50), 100, seed=0)
    assert result["success"] == 1.0
    assert max(result["lengths"]) < TASKS[env_id]().max_episode_steps
