"""PointRobot against hand arithmetic."""

import math

import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.tasks import TASKS

ROBOT = "PointRobot-v0"
START = (-1.8, 0.0, 2.0, math.pi / 4)


def robot(state=START, **settings):
    env = make_env(ROBOT, dtype=torch.float64, **settings)
    env.reset(seed=0)
    env.set_state(qpos=torch.tensor([state], dtype=torch.float64))
    return env


def moved(state, action):
    """Euler's rule over 0.05 s."""
    x, y, speed, heading = state
    change = (speed * math.cos(heading), speed * math.sin(heading), *action)
    return [value + 0.05 * rate for value, rate in zip((x, y, speed, heading), change, strict=True)]


def to(state, place):
    return math.dist(state[:2], place)


def test_one_step_by_hand():
    env, action = robot(), (0.5, -1.0)
    _, reward, terminated, truncated, info = env.step(torch.tensor([[action]]))
    after = moved(START, action)
    assert env.state()["qpos"][0].tolist() == pytest.approx(after, abs=1e-15)
    assert reward.item() == pytest.approx(to(START, (2.2, 2.2)) - to(after, (2.2, 2.2)), abs=1e-14)
    assert not (terminated | truncated | info["success"]).item()
    assert info["cost"].tolist() == [0]


def test_a_chunk_is_its_single_steps():
    env, state = robot(chunk=3), START
    actions = ((1.0, 0.3), (-1.0, -1.0), (0.2, 1.0))
    env.step(torch.tensor([actions], dtype=torch.float64))
    for action in actions:
        state = moved(state, action)
    assert env.state()["qpos"][0].tolist() == pytest.approx(state, abs=1e-14)


def test_what_it_sees():
    env = robot((1.4, -1.2, 0.7, math.pi / 2))  # 1 m to the right of the first hazard, looking up
    expected = [1.4, -1.2, 0.7, 0, 1, 1.0, 0, 1]  # so that this one is 1 m away, to the left
    assert env.observation()[0, :8].tolist() == pytest.approx(expected, abs=1e-12)
    distance = math.hypot(-1.8, 2.4)  # to the second: 2.4 ahead, and 1.8 to the left
    assert env.observation()[0, 8:].tolist() == pytest.approx([distance, 2.4 / distance, 1.8 / distance], abs=1e-12)


@pytest.mark.parametrize(
    ("place", "cost"), [((0.4, -1.2), 1), ((-0.4, 1.99), 1), ((-0.4, 2.01), 0), ((0.4, -0.41), 1), ((0.0, 0.0), 0)]
)
def test_hazards_cost(place, cost):
    info = robot((*place, 0.0, 0.0)).step(torch.zeros(1, 1, 2))[4]
    assert info["costs"].tolist() == [[cost]]


@pytest.mark.parametrize(
    ("state", "over", "won"),
    [
        ((1.85, 2.2, 2.0, 0.0), True, True),
        ((1.79, 2.2, 2.0, 0.0), False, False),
        ((2.95, 0.0, 2.0, 0.0), True, False),
        ((0.0, -2.95, 2.0, -math.pi / 2), True, False),
    ],
)
def test_where_it_ends(state, over, won):
    _, reward, terminated, _, info = robot(state).step(torch.zeros(1, 1, 2))
    nearer = to(state, (2.2, 2.2)) - to(moved(state, (0, 0)), (2.2, 2.2))
    assert (terminated.item(), info["success"].item()) == (over, won)
    assert reward.item() == pytest.approx(nearer + won)


def test_starts():
    test, anywhere = (make_env(ROBOT, num_envs=500, anywhere=choice) for choice in (False, True))
    for env in (test, anywhere):
        env.reset(seed=0)
    assert torch.equal(test.state()["qpos"], torch.tensor(START, dtype=torch.float64).expand(500, 4))
    state = anywhere.state()["qpos"]
    low = torch.tensor([-3, -3, 0.5, math.pi / 4], dtype=torch.float64)
    high = torch.tensor([3, 3, 2, 3 * math.pi / 4], dtype=torch.float64)
    assert ((low <= state) & (state <= high)).all()
    torch.testing.assert_close(state.mean(0), (low + high) / 2, rtol=0, atol=0.3)


def test_time_limit():
    env = robot((0.0, 0.0, 0.0, 0.0), chunk=100)
    *_, truncated, _ = [env.step(torch.zeros(1, 100, 2)) for _ in range(3)][-1]
    assert truncated.item()
    assert TASKS[ROBOT]().max_episode_steps == 300
