"""Saved state and physics state of our own backend."""

import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.tasks import TASKS
from diffpolicy_rl.errors import UserError

N = 3


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        ("Hopper-v5", {}),
        ("Ant-v5", {"healthy_z_range": (0.4, 0.8), **TASKS["Ant-v5"].required}),
        ("PegInsertion-v0", {"max_episode_steps": 50}),
        ("PointMaze-v0", {"max_episode_steps": 50}),
        ("PointRobot-v0", {"anywhere": True}),
    ],
)
def test_saved_state_continues_bit_for_bit(env_id, settings):
    env = make_env(env_id, num_envs=N, chunk=4, history=2, **settings)
    moves = 2 * torch.rand(N, 30, 4, *env.single_action_space.shape) - 1
    env.reset(seed=7)
    for chunk in moves[:, :10].unbind(1):
        env.step(chunk)
    state, resumed_at = env.state_dict(), env.observation()
    expected = [env.step(chunk) for chunk in moves[:, 10:].unbind(1)]
    assert any((step[2] | step[3]).any() for step in expected)  # episodes end, so random streams are part of it
    other = make_env(env_id, num_envs=N, chunk=4, history=2, seed=99, **settings)
    other.load_state_dict(state)
    assert not other.restarted_on_load
    assert torch.equal(other.observation(), resumed_at)
    for chunk, step in zip(moves[:, 10:].unbind(1), expected, strict=True):
        again = other.step(chunk)
        assert all(torch.equal(a, b) for a, b in zip(again[:4], step[:4], strict=True))


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("Walker2d-v5", {}, "the saved spec_id is 'Hopper-v5', not 'Walker2d-v5'"),
        ("Hopper-v5", {"backend": "gymnasium"}, "the saved backend is 'batch', not 'gymnasium'"),
        ("Hopper-v5", {"num_envs": 4}, r"the saved \(N, To, O\) is \(3, 1, 11\), not \(4, 1, 11\)"),
        ("Hopper-v5", {"history": 2}, r"the saved \(N, To, O\) is \(3, 1, 11\), not \(3, 2, 11\)"),
    ],
)
def test_a_state_of_something_else_is_refused(env_id, options, message):
    env = make_env("Hopper-v5", num_envs=N)
    env.reset()
    with pytest.raises(UserError, match=message):
        make_env(env_id, **{"num_envs": N} | options).load_state_dict(env.state_dict())


def test_the_time_limit_counts_on_after_loading():
    env, other = (make_env("HalfCheetah-v5", max_episode_steps=6, chunk=2) for _ in range(2))
    env.reset()
    for _ in range(2):
        env.step(torch.zeros(1, 2, 6))
    other.load_state_dict(env.state_dict())
    assert other.step(torch.zeros(1, 2, 6))[3].item()


def test_a_saved_state_is_a_copy():
    env = make_env("Hopper-v5", num_envs=N)
    env.reset()
    state = env.state_dict()
    before = {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
    env.step(torch.ones(N, 1, 3))
    env.reset(mask=torch.tensor([True, False, False]))
    assert all(torch.equal(state[name], value) for name, value in before.items())


def test_physics_state_round_trip():
    env = make_env("Swimmer-v5", num_envs=2, dtype=torch.float64)
    env.reset(seed=0)
    qpos, qvel = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    obs = env.set_state(qpos=qpos, qvel=qvel)
    assert torch.equal(env.state()["qpos"], qpos)
    assert torch.equal(obs, torch.cat([qpos[:, 2:], qvel], dim=1))
    env.set_state(mask=torch.tensor([True, False]), qpos=torch.zeros(1, 5, dtype=torch.float64))
    assert torch.equal(env.state()["qpos"][1], qpos[1])
    assert (env.state()["qpos"][0] == 0).all()
    assert torch.equal(env.state()["qvel"], qvel)  # not given, hence kept
    with pytest.raises(UserError, match=r"qpos has shape \(2, 4\)"):
        env.set_state(qpos=torch.zeros(2, 4))
    with pytest.raises(UserError, match="no state field 'qposs'; did you mean 'qpos'"):
        env.set_state(qposs=qpos)


def test_setting_the_physics_repeats_exactly():
    """The same state and actions give the same numbers, whatever was simulated before."""
    env = make_env("Hopper-v5", num_envs=N, dtype=torch.float64)
    env.reset(seed=0)
    state = env.state()
    results = []
    for _ in range(2):
        env.set_state(**state)
        results.append([env.step(torch.full((N, 1, 3), 0.3))[0] for _ in range(8)])
        env.step(torch.ones(N, 1, 3))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_setting_the_physics_keeps_the_episode_and_refills_the_history():
    env = make_env("HalfCheetah-v5", history=3, max_episode_steps=4)
    env.reset()
    env.step(torch.zeros(1, 1, 6))
    obs = env.set_state(qpos=torch.zeros(1, 9))
    assert torch.equal(obs[0, 0], obs[0, 2])
    truncated = [env.step(torch.zeros(1, 1, 6))[3].item() for _ in range(3)]
    assert truncated == [False, False, True]  # one step before, three after
