"""The peg and the hole: geometry by hand, reward and its end, where episodes start."""

import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.tasks import TASKS, Physics
from diffpolicy_rl.errors import UserError

ENV = "PegInsertion-v0"
TOP = 0.04


def peg(pose, hole=(0.0, 0.0, 0.0), **settings):
    """An env whose row 0 has its gripper at rest in ``pose``, and the block in ``hole``."""
    env = make_env(ENV, dtype=torch.float64, **settings)
    env.reset(seed=0)
    env.set_state(qpos=torch.tensor([[*pose, *hole]], dtype=torch.float64), qvel=torch.zeros(1, 7, dtype=torch.float64))
    return env


def drive(env, goal, steps=40):
    """Draw the gripper to a goal (x, y, z, yaw) until the episode ends; return whether it was solved."""
    for _ in range(steps):
        *_, terminated, _, info = env.step(torch.tensor(goal, dtype=torch.float64).view(1, 1, 4))
        if terminated:
            return bool(info["success"])
    return False


def turned(x, y, hole):
    """World coordinates of a place given along the hole's sides."""
    cos, sin = torch.tensor(hole[2]).cos().item(), torch.tensor(hole[2]).sin().item()
    return hole[0] + cos * x - sin * y, hole[1] + sin * x + cos * y


@pytest.mark.parametrize("hole", [(0.0, 0.0, 0.0), (0.05, -0.04, 0.4)])
@pytest.mark.parametrize(
    ("x", "y", "yaw", "fits"),
    [
        (0.0, 0.0, 0.0, True),
        (0.0004, 0.0, 0.0, True),  # half the clearance is 0.5 mm
        (0.0004, -0.0004, 0.0, True),
        (0.001, 0.0, 0.0, False),
        (0.0, -0.001, 0.0, False),
        (0.003, 0.003, 0.0, False),
        (0.0, 0.0, 0.03, True),  # sin + cos of the angle may reach 1 + clearance / width = 1.05
        (0.0, 0.0, -0.1, False),
    ],
)
def test_it_goes_in_where_it_fits(hole, x, y, yaw, fits):
    pose = (*turned(x, y, hole), TOP + 0.005, hole[2] + yaw)
    env = peg(pose, hole)
    assert drive(env, (*pose[:2], 0.0, pose[3])) == fits
    if not fits:
        assert env.state()["qpos"][0, 2].item() == pytest.approx(TOP, abs=5e-4)  # it rests on the edge


@pytest.mark.parametrize(("clearance", "fits"), [(0.001, False), (0.004, True)])
def test_clearance_decides(clearance, fits):
    pose = (0.0015, 0.0, TOP + 0.005, 0.0)
    assert drive(peg(pose, clearance=clearance), (0.0015, 0.0, 0.0, 0.0)) == fits


def test_a_jammed_peg_must_be_lifted():
    """Friction holds a peg that presses; above the block the same correction is free."""
    env = peg((0.003, 0.0, TOP + 0.005, 0.0))
    assert not drive(env, (0.003, 0.0, 0.0, 0.0), steps=10)
    assert not drive(env, (0.0, 0.0, 0.0, 0.0))
    assert not drive(env, (0.0, 0.0, TOP + 0.005, 0.0), steps=10)
    assert drive(env, (0.0, 0.0, 0.0, 0.0))


def test_walls_hold_a_peg_that_is_pulled_aside():
    env = peg((0.0, 0.0, TOP - 0.02, 0.0))
    drive(env, (0.08, 0.0, TOP - 0.02, 0.0))
    assert env.state()["qpos"][0, 0].item() == pytest.approx(0.0005, abs=3e-4)


def test_the_block_stays():
    hole = (0.05, -0.03, 0.4)
    env = peg((0.053, -0.03, TOP + 0.02, 0.2), hole, max_episode_steps=1000)
    for goal in ((0.053, -0.03, 0.0, 0.2), (0.08, 0.08, 0.0, 0.6)):  # press and drag
        assert not drive(env, goal)
    env.set_state(qpos=torch.tensor([[*hole[:2], TOP - 0.02, hole[2], *hole]], dtype=torch.float64))
    drive(env, (0.08, -0.03, TOP - 0.02, 0.6), steps=120)  # pull inside
    moved = env.state()["qpos"][0, 4:] - torch.tensor(hole, dtype=torch.float64)
    assert moved.abs().max() < 2e-6  # m, rad


@pytest.mark.parametrize(
    ("pose", "solved"),
    [
        ((0.0, 0.0, 0.0149, 0.0), True),
        ((0.0, 0.0, 0.0151, 0.0), False),  # 25 mm below the block's top at 40 mm
        ((0.06, 0.0, 0.0, 0.0), False),  # beside the block
    ],
)
def test_success_reward_and_termination_are_one(pose, solved):
    task = TASKS[ENV]()
    after = Physics(torch.tensor([[*pose, 0.0, 0.0, 0.0]], dtype=torch.float64), torch.zeros(1, 7, dtype=torch.float64))
    assert task.success(after).tolist() == task.terminated(after).tolist() == [solved]
    reward = task.reward(after, after, torch.zeros(1, 4))
    assert (reward.tolist(), reward.dtype) == ([float(solved)], torch.float64)


def test_a_solved_episode_pays_once_and_ends():
    env = peg((0.0, 0.0, TOP, 0.0), chunk=4)
    goal = torch.zeros(1, 4, 4)
    rewards = []
    while True:
        _, reward, terminated, truncated, info = env.step(goal)
        rewards += info["rewards"][0, : info["executed"]].tolist()
        assert info["success"].tolist() == terminated.tolist() == [bool(reward)]
        if terminated:
            break
    assert not truncated
    assert (rewards.count(0.0), rewards[-1]) == (len(rewards) - 1, 1.0)
    assert info["final_obs"][0, 2] <= TOP - 0.025
    assert env.observation()[0, 2] >= 0.06  # the next episode


def test_chunks_equal_single_steps():
    whole, single = (make_env(ENV, num_envs=8, chunk=chunk, dtype=torch.float64) for chunk in (4, 1))
    obs, _ = whole.reset(seed=3)
    single.reset(seed=3)
    hole = obs[:, [0, 1, 3]] + obs[:, 8:]
    down = torch.cat([hole[:, :2], obs[:, :1] * 0, hole[:, 2:]], dim=1)
    for _ in range(25):
        obs, _, terminated, _, info = whole.step(down[:, None].expand(8, 4, 4))
        alive = torch.ones(8, dtype=torch.bool)
        for step in range(4):
            _, reward, ended, _, one = single.step(down[:, None])
            assert torch.equal(info["rewards"][alive, step], reward[alive])
            alive &= ~ended
        assert torch.equal(terminated, ~alive)
        assert torch.equal(info["final_obs"][alive], one["final_obs"][alive])
        if terminated.any():
            break
    assert terminated.any()


def test_where_episodes_start():
    env = make_env(ENV, num_envs=500, dtype=torch.float64)
    env.reset(seed=0)
    state = env.state()
    poses = state["qpos"]
    bounds = {0: 0.06, 1: 0.06, 3: 0.5, 4: 0.06, 5: 0.06, 6: 0.5}
    for entry, bound in bounds.items():
        assert 0.95 * bound < poses[:, entry].abs().max() <= bound
        assert poses[:, entry].mean().abs() < 0.15 * bound
    assert 0.06 <= poses[:, 2].min() < 0.065 < 0.095 < poses[:, 2].max() <= 0.1
    assert (state["qvel"] == 0).all()
    assert poses.T.corrcoef().fill_diagonal_(0).abs().max() < 0.2


def test_what_is_observed():
    pose, hole = (0.01, -0.02, 0.1, 0.3), (0.03, 0.04, -0.5)
    env = peg(pose, hole)
    expected = torch.tensor([[*pose, 0, 0, 0, 0, 0.02, 0.06, -0.8]], dtype=torch.float64)
    torch.testing.assert_close(env.observation(), expected, rtol=0, atol=1e-15)
    goal = torch.tensor([0.02, -0.02, 0.1, 0.3], dtype=torch.float64).view(1, 1, 4)
    obs = env.step(goal)[0]
    assert obs[0, 4] > 0.05  # m/s
    assert 0.01 < obs[0, 0] < 0.02
    torch.testing.assert_close(obs[0, 1:4], expected[0, 1:4], rtol=0, atol=1e-9)
    for _ in range(20):
        obs = env.step(goal)[0]
    assert obs[0, 0].item() == pytest.approx(0.02, abs=1e-4)


def test_other_tasks_report_no_success():
    env = make_env("Hopper-v5")
    env.reset(seed=0)
    assert "success" not in env.step(torch.zeros(1, 1, 3))[4]


def test_refusals():
    with pytest.raises(UserError, match="clearance=0 must be above 0"):
        make_env(ENV, clearance=0)
    with pytest.raises(UserError, match=r"depth=0.05 is deeper than the hole, 0.04 m"):
        make_env(ENV, depth=0.05)
    with pytest.raises(UserError, match="no setting 'clearence'; did you mean 'clearance'"):
        make_env(ENV, clearence=0.002)
