"""Our tasks are Gymnasium's, bit for bit."""

import gymnasium
import numpy as np
import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.tasks import TASKS

STEPS = 1000


def copy_state(reference, env, row=0):
    """Put Gymnasium's simulation into a row's state, as its own reset would: set and forward."""
    state = env.state()
    reference.reset(seed=0)
    reference.unwrapped.set_state(state["qpos"][row].numpy(), state["qvel"][row].numpy())


@pytest.mark.parametrize("env_id", TASKS)
def test_a_thousand_steps_equal_gymnasium(env_id):
    reference = gymnasium.make(env_id)
    env = make_env(env_id, num_envs=1, dtype=torch.float64, seed=3)
    rng = np.random.default_rng(0)
    obs, _ = env.reset()
    copy_state(reference, env)
    np.testing.assert_array_equal(obs[0].numpy(), reference.unwrapped._get_obs())
    ended = 0
    for _ in range(STEPS):
        action = rng.uniform(-1.2, 1.2, env.single_action_space.shape)  # some lie outside the Box
        action = np.clip(action, env.single_action_space.low, env.single_action_space.high)
        expected, reward, terminated, truncated, _ = reference.step(action)
        qpos, qvel = reference.unwrapped.data.qpos.copy(), reference.unwrapped.data.qvel.copy()
        _, ours, our_terminated, our_truncated, info = env.step(torch.from_numpy(action).view(1, 1, -1))
        np.testing.assert_array_equal(info["final_obs"][0].numpy(), expected)
        assert abs(ours.item() - reward) <= 1e-12
        assert (our_terminated.item(), our_truncated.item()) == (terminated, truncated)
        if terminated or truncated:
            ended += 1
            copy_state(reference, env)
        else:
            np.testing.assert_array_equal(env.state()["qpos"][0].numpy(), qpos)
            np.testing.assert_array_equal(env.state()["qvel"][0].numpy(), qvel)
    assert ended > 0


@pytest.mark.parametrize("env_id", TASKS)
def test_spaces_equal_gymnasium(env_id):
    reference, env = gymnasium.make(env_id), make_env(env_id, dtype=torch.float64)
    assert env.single_observation_space.shape == reference.observation_space.shape
    np.testing.assert_array_equal(env.single_action_space.low, reference.action_space.low)
    np.testing.assert_array_equal(env.single_action_space.high, reference.action_space.high)
    assert env.max_episode_steps == reference.spec.max_episode_steps


@pytest.mark.parametrize("env_id", TASKS)
def test_initial_states_are_distributed_as_gymnasium_s(env_id):
    reference, rows = gymnasium.make(env_id), 400
    env = make_env(env_id, num_envs=rows)
    env.reset(seed=1)
    ours = torch.cat([env.state()["qpos"], env.state()["qvel"]], dim=1)
    theirs = []
    for seed in range(rows):
        reference.reset(seed=seed)
        data = reference.unwrapped.data
        theirs.append(np.concatenate([data.qpos, data.qvel]))
    theirs = torch.from_numpy(np.stack(theirs))
    std = theirs.std(0).clamp(min=1e-12)
    assert ((ours.mean(0) - theirs.mean(0)).abs() / std).max() < 5 * (2 / rows) ** 0.5
    assert (ours.std(0) / std).sub(1).abs().max() < 0.2
    bounded = (theirs - theirs.mean(0)).abs().amax(0) < 2 * std  # uniform noise ends at 1.73 standard deviations
    assert ((ours - theirs.mean(0)).abs().amax(0) / std)[bounded].max() < 1.9


def test_a_task_s_settings_are_gymnasium_s():
    settings = {"forward_reward_weight": 2.0, "ctrl_cost_weight": 0.5, "healthy_reward": 3.0}
    reference = gymnasium.make("Hopper-v5", **settings)
    env = make_env("Hopper-v5", dtype=torch.float64, **settings)
    env.reset()
    copy_state(reference, env)
    action = np.full(3, 0.5)
    _, ours, *_ = env.step(torch.from_numpy(action).view(1, 1, 3))
    assert abs(ours.item() - reference.step(action)[1]) <= 1e-12
