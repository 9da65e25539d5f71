"""Simulators that are extras: with them, their tasks run; without them, one sentence says what to install."""

import sys

import gymnasium
import numpy as np
import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.streams import episode_seeds
from diffpolicy_rl.errors import UserError

TASKS = {
    "PointMaze_UMaze-v3": (8, 2),
    "AntMaze_UMaze-v5": (109, 8),
    "AdroitHandDoor-v1": (39, 28),
    "AdroitHandHammer-v1": (46, 26),
    "AdroitHandPen-v1": (45, 24),
    "AdroitHandRelocate-v1": (39, 30),
}


@pytest.mark.parametrize("backend", ["gymnasium", "workers"])
def test_a_missing_extra_is_named(monkeypatch, backend):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    for env_id in set(gymnasium.registry) & set(TASKS):
        monkeypatch.delitem(gymnasium.registry, env_id)
    for env_id in TASKS:
        with pytest.raises(UserError, match=rf"{env_id} needs an extra .*: pip install 'diffpolicy_rl\[robotics\]'"):
            make_env(env_id, backend=backend)


@pytest.mark.parametrize("env_id", TASKS)
def test_robotics_tasks_equal_stepping_them_by_hand(env_id):
    pytest.importorskip("gymnasium_robotics")
    env = make_env(env_id, num_envs=2, chunk=2, dtype=torch.float64, max_episode_steps=6)
    assert (env.single_observation_space.shape[0], env.single_action_space.shape[0]) == TASKS[env_id]
    plain = gymnasium.make(env_id, max_episode_steps=6, disable_env_checker=True)
    reference = gymnasium.wrappers.FlattenObservation(plain)
    obs, _ = env.reset(seed=1)
    row = torch.ones(1, dtype=torch.long)
    expected, _ = reference.reset(seed=int(episode_seeds(1, row, 0 * row)))
    np.testing.assert_array_equal(obs[1], expected)
    box = env.single_action_space
    low, high = torch.from_numpy(box.low).double(), torch.from_numpy(box.high).double()
    for chunk in low + (high - low) * torch.rand(3, 2, 2, len(low), generator=torch.Generator().manual_seed(0)):
        *_, truncated, info = env.step(chunk)
        steps = [reference.step(action.numpy().astype(plain.action_space.dtype)) for action in chunk[1]]
        np.testing.assert_array_equal(info["final_obs"][1], steps[-1][0])
        assert info["rewards"][1].tolist() == [step[1] for step in steps]
        assert info["success"][1].item() == any(step[4]["success"] for step in steps)
    assert truncated.all()
    assert steps[-1][3]


def test_robotics_tasks_run_in_workers():
    pytest.importorskip("gymnasium_robotics")
    results = []
    for backend in ("gymnasium", "workers"):
        env = make_env("PointMaze_UMaze-v3", backend=backend, num_envs=2, chunk=4)
        env.reset(seed=0)
        results.append(env.step(torch.full((2, 4, 2), 0.5))[0])
        env.close()
    assert torch.equal(*results)
