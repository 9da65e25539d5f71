"""The tasks that are Gymnasium's too are so bit for bit."""

import gymnasium
import numpy as np
import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.tasks import TASKS, Physics
from diffpolicy_rl.envs.tasks.locomotion import Locomotion

SPEED_LIMITS = {"SafeHopper-v5": 0.7402, "SafeWalker2d-v5": 2.3415, "SafeHalfCheetah-v5": 3.2096}
GYMNASIUM_S = [env_id for env_id, task in TASKS.items() if issubclass(task, Locomotion)]


def theirs(env_id):
    """The id of the task in Gymnasium, which knows no speed limits."""
    return env_id.removeprefix("Safe")


def copy_state(reference, env, row=0):
    """Put Gymnasium's simulation into a row's state, as its own reset would: set and forward."""
    state = env.state()
    reference.reset(seed=0)
    reference.unwrapped.set_state(state["qpos"][row].numpy(), state["qvel"][row].numpy())


def step_both(env_id, steps, **settings):
    """Step our environment and Gymnasium's by the same random actions and compare; return how many episodes ended."""
    reference = gymnasium.make(theirs(env_id), **settings)
    env = make_env(env_id, num_envs=1, dtype=torch.float64, seed=3, **settings)
    rng = np.random.default_rng(0)
    obs, _ = env.reset()
    copy_state(reference, env)
    np.testing.assert_array_equal(obs[0].numpy(), reference.unwrapped._get_obs())
    ended = 0
    for _ in range(steps):
        action = rng.uniform(-1.2, 1.2, env.single_action_space.shape)  # some lie outside the Box
        action = np.clip(action, env.single_action_space.low, env.single_action_space.high)
        expected, reward, terminated, truncated, told = reference.step(action)
        qpos, qvel = reference.unwrapped.data.qpos.copy(), reference.unwrapped.data.qvel.copy()
        _, ours, our_terminated, our_truncated, info = env.step(torch.from_numpy(action).view(1, 1, -1))
        if "cost" in info:
            assert info["cost"].tolist() == [float(told["x_velocity"] > SPEED_LIMITS[env_id])]
        np.testing.assert_array_equal(info["final_obs"][0].numpy(), expected)
        assert abs(ours.item() - reward) <= 1e-12
        assert (our_terminated.item(), our_truncated.item()) == (terminated, truncated)
        if terminated or truncated:
            ended += 1
            copy_state(reference, env)
        else:
            np.testing.assert_array_equal(env.state()["qpos"][0].numpy(), qpos)
            np.testing.assert_array_equal(env.state()["qvel"][0].numpy(), qvel)
    return ended


@pytest.mark.parametrize("env_id", GYMNASIUM_S)
def test_a_thousand_steps_equal_gymnasium(env_id):
    assert step_both(env_id, 1000, **TASKS[env_id].required) > 0


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        ("Hopper-v5", {"forward_reward_weight": 2.0, "ctrl_cost_weight": 0.5, "healthy_reward": 3.0}),
        ("Hopper-v5", {"healthy_reward": 0.3, "max_episode_steps": 70}),  # no float32 number
        ("Hopper-v5", {"frame_skip": 2, "max_episode_steps": 70}),
        ("Walker2d-v5", {"terminate_when_unhealthy": False, "max_episode_steps": 70}),
        ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False, "max_episode_steps": 70}),
        ("Swimmer-v5", {"exclude_current_positions_from_observation": False, "max_episode_steps": 70}),
        ("Ant-v5", {"exclude_current_positions_from_observation": False, "max_episode_steps": 70}),
        ("Ant-v5", {"healthy_z_range": (0.4, 0.8), "healthy_reward": 0.3, "forward_reward_weight": 2.0}),
        ("Ant-v5", {"terminate_when_unhealthy": False, "healthy_z_range": (0.5, 0.7), "max_episode_steps": 70}),
    ],
)
def test_settings_mean_what_they_mean_to_gymnasium(env_id, settings):
    assert step_both(env_id, 200, **settings, **TASKS[env_id].required) > 0


def test_speeding_costs_and_can_be_penalised():
    moves = 2 * torch.rand(4, 30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    infos, speeds = {}, []
    for penalty in (0.0, 3.0):
        settings = {"num_envs": 4, "dtype": torch.float64, "seed": 0, "speed_limit": 0.2, "penalty": penalty}
        env = make_env("SafeHalfCheetah-v5", **settings)
        env.reset()
        infos[penalty] = []
        for move in moves.unsqueeze(2).unbind(1):
            before = env.state()["qpos"][:, 0]
            infos[penalty].append(env.step(move)[4])
            speeds.append((env.state()["qpos"][:, 0] - before) / 0.05)
    excess = torch.stack(speeds[:30]) - 0.2
    costs, plain = (torch.stack([info[name][:, 0] for info in infos[0.0]]) for name in ("costs", "rewards"))
    penalised = torch.stack([info["rewards"][:, 0] for info in infos[3.0]])
    assert torch.equal(costs, (excess > 0).double())
    assert 10 < costs.sum() < 110
    torch.testing.assert_close(penalised, plain - 3 * excess.clamp(min=0), rtol=0, atol=1e-10)


def test_steps_from_a_state_in_contact_equal_gymnasium():
    """Setting a state makes the solver forget, as Gymnasium's reset does, and the step computes all it needs."""
    rows = 16
    reference = gymnasium.make("Walker2d-v5")
    env = make_env("Walker2d-v5", num_envs=rows, dtype=torch.float64, terminate_when_unhealthy=False)
    env.reset(seed=0)
    moves = 2 * torch.rand(rows, 61, 6, dtype=torch.float64) - 1
    for move in moves[:, :60].unsqueeze(2).unbind(1):
        env.step(move)
    env.set_state(**env.state())
    expected, contacts = [], 0
    for row in range(rows):
        copy_state(reference, env, row)
        contacts += reference.unwrapped.data.ncon
        expected.append(reference.step(moves[row, 60].numpy())[0])
    assert contacts >= rows
    np.testing.assert_array_equal(env.step(moves[:, 60:])[0].numpy(), np.stack(expected))


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [("Hopper-v5", {}), ("Hopper-v5", {"healthy_angle_range": (-1e9, 1e9)}), ("Walker2d-v5", {}), ("Ant-v5", {})],
)
def test_what_is_healthy_equals_gymnasium(env_id, settings):
    reference, task = gymnasium.make(env_id, **settings).unwrapped, TASKS[env_id](**settings)
    nq, nv = task.model.nq, task.model.nv
    rng = np.random.default_rng(0)
    upright = np.zeros(nq + nv)
    upright[:nq] = task.model.qpos0
    edges = [(1, 0.7), (1, 0.8), (1, 2.0), (2, 0.2), (2, -0.2), (2, 1.0), (2, -1.0)]  # most intervals are open
    states = [upright + scale * rng.normal(size=nq + nv) for scale in (0.1, 0.5, 50) for _ in range(100)]
    for index, value in [*edges, *((index, value) for index in range(nq + nv) for value in (-150.0, 99.0, 150.0))]:
        states.append(upright.copy())
        states[-1][index] = value
    verdicts = []
    for state in states:
        reference.data.qpos[:], reference.data.qvel[:] = state[:nq], state[nq:]
        verdicts.append(bool(reference.is_healthy))
    ours = task.healthy(Physics(*torch.from_numpy(np.stack(states)).split([nq, nv], dim=1)))
    assert ours.tolist() == verdicts
    assert len(set(verdicts)) == 2


@pytest.mark.parametrize("env_id", GYMNASIUM_S)
def test_spaces_equal_gymnasium(env_id):
    settings = TASKS[env_id].required
    reference, env = gymnasium.make(theirs(env_id), **settings), make_env(env_id, dtype=torch.float64, **settings)
    assert env.backend == "batch"
    assert env.single_observation_space.shape == reference.observation_space.shape
    np.testing.assert_array_equal(env.single_action_space.low, reference.action_space.low)
    np.testing.assert_array_equal(env.single_action_space.high, reference.action_space.high)
    assert env.max_episode_steps == reference.spec.max_episode_steps


@pytest.mark.parametrize("env_id", GYMNASIUM_S)
def test_initial_states_are_distributed_as_gymnasium_s(env_id):
    reference, rows = gymnasium.make(theirs(env_id), **TASKS[env_id].required), 400
    env = make_env(env_id, num_envs=rows, **TASKS[env_id].required)
    env.reset(seed=1)
    ours = torch.cat([env.state()["qpos"], env.state()["qvel"]], dim=1)
    expected = []
    for seed in range(rows):
        reference.reset(seed=seed)
        data = reference.unwrapped.data
        expected.append(np.concatenate([data.qpos, data.qvel]))
    expected = torch.from_numpy(np.stack(expected))
    std = expected.std(0).clamp(min=1e-12)
    assert ((ours.mean(0) - expected.mean(0)).abs() / std).max() < 5 * (2 / rows) ** 0.5
    assert (ours.std(0) / std).sub(1).abs().max() < 0.2
    bounded = (expected - expected.mean(0)).abs().amax(0) < 2 * std  # uniform noise ends at 1.73 standard deviations
    assert ((ours - expected.mean(0)).abs().amax(0) / std)[bounded].max() < 1.9


@pytest.mark.parametrize(
    ("env_id", "noise", "velocity"),
    [
        ("Hopper-v5", 5e-3, 5e-3 * 0.95),
        ("Walker2d-v5", 5e-3, 5e-3 * 0.95),
        ("HalfCheetah-v5", 0.1, 0.1 * 1.959963984540054),  # the normal distribution's 97.5 % quantile
        ("Swimmer-v5", 0.1, 0.1 * 0.95),
        ("Ant-v5", 0.1, 0.1 * 1.959963984540054),
    ],
)
def test_initial_states_by_hand(env_id, noise, velocity):
    task = TASKS[env_id]()
    rest = torch.from_numpy(task.model.qpos0)
    rows, size = torch.tensor([0.5, 0.975, 0.025, 1e-12], dtype=torch.float64), task.model.nq + task.model.nv
    start = task.initial_state(rows[:, None].expand(4, size))
    position = torch.tensor([0.0, 0.95 * noise, -0.95 * noise, -noise], dtype=torch.float64)
    torch.testing.assert_close(start.qpos - rest, position[:, None].expand(4, task.model.nq), rtol=0, atol=1e-12)
    speeds = torch.tensor([0.0, velocity, -velocity], dtype=torch.float64)
    torch.testing.assert_close(start.qvel[:3], speeds[:, None].expand(3, task.model.nv), rtol=0, atol=1e-12)
    assert start.qvel.isfinite().all()
