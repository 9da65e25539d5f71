"""Stable-Baselines3 on our environments: the same numbers, under its own names."""

import sys

import numpy as np
import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.errors import UserError
from tests.envs.helpers import TOY

N = 3


@pytest.fixture
def adapter():
    pytest.importorskip("stable_baselines3")
    from diffpolicy_rl.envs.sb3 import SB3VecEnv

    return SB3VecEnv


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "diffpolicy_rl.envs.sb3", raising=False)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    with pytest.raises(UserError, match=r"pip install 'diffpolicy_rl\[experts\]'"):
        import diffpolicy_rl.envs.sb3  # noqa: F401


def test_numbers_equal_our_env_driven_directly(adapter):
    ours, theirs = make_env("Hopper-v5", num_envs=N), adapter(make_env("Hopper-v5", num_envs=N))
    expected, _ = ours.reset(seed=4)
    theirs.seed(4)
    np.testing.assert_array_equal(theirs.reset(), expected)
    generator, ended = np.random.default_rng(0), 0
    for _ in range(80):
        actions = generator.uniform(-1, 1, (N, 3)).astype(np.float32)
        obs, rewards, dones, infos = theirs.step(actions)
        expected, reward, terminated, truncated, info = ours.step(torch.from_numpy(actions).unsqueeze(1))
        np.testing.assert_array_equal(obs, expected)
        np.testing.assert_array_equal(rewards, reward)
        np.testing.assert_array_equal(dones, terminated | truncated)
        assert (obs.dtype, rewards.dtype, dones.dtype) == (np.float32, np.float32, np.bool_)
        for row in range(N):
            assert infos[row]["TimeLimit.truncated"] is False
            assert ("terminal_observation" in infos[row]) == dones[row]
            if dones[row]:
                np.testing.assert_array_equal(infos[row]["terminal_observation"], info["final_obs"][row])
                ended += 1
    assert ended > 0
    expected, _ = ours.reset()  # without a seed: the next episodes
    np.testing.assert_array_equal(theirs.reset(), expected)


def test_infos_tell_termination_from_truncation(adapter):
    """Row 0 reaches its goal, the sum 3, with its third action; row 1's time limit is 6."""
    env = adapter(make_env(TOY, num_envs=2, dtype=torch.float64))
    env.seed(5)
    env.reset()
    told = [env.step(np.array([[1.0], [0.1]], np.float32)) for _ in range(6)]
    assert [dones.tolist() for _, _, dones, _ in told] == [
        [False, False],
        [False, False],
        [True, False],
        [False, False],
        [False, False],
        [True, True],
    ]
    assert [[info["TimeLimit.truncated"] for info in infos] for *_, infos in told[2::3]] == [
        [False, False],
        [False, True],
    ]
    assert told[2][3][0]["terminal_observation"][0] == 3.0
    assert told[2][0][0, 0] == 0.0  # already the next episode
    assert told[5][3][1]["terminal_observation"][0] == 6.0
    assert [info["is_success"] for info in told[5][3]] == [True, False]


def test_it_looks_like_their_environments(adapter):
    from stable_baselines3.common.monitor import Monitor

    env = adapter(make_env("Hopper-v5", num_envs=N))
    assert (env.num_envs, env.observation_space.shape, env.action_space.shape) == (N, (11,), (3,))
    assert env.get_attr("spec_id", [0, 2]) == ["Hopper-v5"] * 2
    assert not env.has_attr("nonsense")
    assert env.env_is_wrapped(Monitor) == [False] * N
    with pytest.raises(UserError, match="its rows have no frame_skip of their own"):
        env.set_attr("frame_skip", 2)
    with pytest.raises(UserError, match=r"call \.env\.set_state instead"):
        env.env_method("set_state")
    env.close()


def test_longer_chunks_are_refused(adapter):
    with pytest.raises(UserError, match="Hopper-v5 was made with chunk=4, but Stable-Baselines3 acts step by step"):
        adapter(make_env("Hopper-v5", chunk=4))


def test_their_agents_learn_on_it(adapter):
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

    env = VecNormalize(VecMonitor(adapter(make_env("Hopper-v5", num_envs=2))))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(256)
    assert model.num_timesteps == 256
    assert len(model.ep_info_buffer) > 0
    env = adapter(make_env("Hopper-v5", num_envs=2))
    model = SAC("MlpPolicy", env, learning_starts=40, batch_size=16, buffer_size=1000, seed=0, device="cpu").learn(60)
    assert model.replay_buffer.timeouts.sum() == 0
