"""Any Gymnasium environment, in this process and in worker processes."""

import gymnasium
import numpy as np
import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.streams import episode_seeds
from diffpolicy_rl.errors import UserError
from tests.envs.helpers import BACKENDS, TOY, full, toy


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunk_by_hand(backend):
    env = toy(backend, num_envs=2, chunk=4)
    obs, reward, terminated, truncated, info = env.step(torch.tensor([[1.0] * 4, [0.5] * 4]).unsqueeze(2))
    # Row 0 reaches the sum 3 with its third action; row 1 goes on. Rewards are t times the action.
    assert info["rewards"].tolist() == [[1.0, 2.0, 3.0, 0.0], [0.5, 1.0, 1.5, 2.0]]
    assert (reward.tolist(), info["executed"].tolist()) == ([6.0, 5.0], [3, 4])
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, False])
    assert info["success"].tolist() == [True, False]
    assert info["final_obs"][:, 0].tolist() == [3.0, 4.0]
    assert obs[:, 0].tolist() == [0.0, 4.0]
    _, _, terminated, truncated, info = env.step(full(0.0))
    assert (terminated.tolist(), truncated.tolist()) == ([False, False], [False, True])  # row 1's limit is 6
    assert info["executed"].tolist() == [4, 2]


def test_reaching_the_goal_at_the_time_limit_terminates():
    env = toy(num_envs=2, chunk=3)
    moves = torch.tensor([[0.5], [0.1]]).view(2, 1, 1).expand(2, 3, 1)
    env.step(moves)
    _, _, terminated, truncated, info = env.step(moves)
    assert info["executed"].tolist() == [3, 3]
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, True])


def test_success_anywhere_in_the_chunk_counts():
    env = make_env("tests.envs.toy_envs:ToyPassing-v0", backend="gymnasium", chunk=3)
    env.reset()
    assert [env.step(full(0.0, 1, 3))[4]["success"].tolist() for _ in range(2)] == [[True], [False]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_reported_costs_come_like_rewards(backend):
    env = make_env("tests.envs.toy_envs:ToyCostly-v0", backend=backend, num_envs=2, chunk=4)
    env.reset()
    info = env.step(torch.tensor([1.0, 0.5]).view(2, 1, 1).expand(2, 4, 1))[4]
    assert info["costs"].tolist() == [[2.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]]  # row 0 ends after three
    assert info["cost"].tolist() == [6.0, 4.0]
    assert "costs" not in toy().step(full(0.0, 1, 1))[4]


def test_settings_reach_gymnasium():
    env = toy(chunk=4, max_episode_steps=2)
    assert env.max_episode_steps == 2
    assert env.step(full(0.0, 1))[4]["executed"].tolist() == [2]


def test_arrays_are_flattened():
    env = make_env("tests.envs.toy_envs:ToyMatrix-v0", num_envs=2, chunk=2, dtype=torch.float64)
    assert (env.single_observation_space.shape, env.single_action_space.shape) == ((4,), (2,))
    obs, _ = env.reset()
    assert obs.tolist() == [[0.0, 0.0, 0.0, 0.0]] * 2
    obs, *_, info = env.step(torch.tensor([[[0.5, -0.25], [0.25, 9.0]]] * 2))
    assert obs.tolist() == [[0.75, 0.75, 0.75, 0.75]] * 2  # what was added up, in two equal columns
    assert "success" not in info  # this environment does not report it


@pytest.mark.parametrize("backend", BACKENDS)
def test_dicts_are_flattened_in_gymnasium_s_order(backend):
    name = "tests.envs.toy_envs:ToyGoal-v0"
    env = make_env(name, backend=backend, num_envs=2, dtype=torch.float64)
    reference = gymnasium.wrappers.FlattenObservation(gymnasium.make(name, disable_env_checker=True))
    assert env.single_observation_space.shape == reference.observation_space.shape == (7,)
    obs, _ = env.reset(seed=0)
    assert obs.tolist() == [reference.reset()[0].tolist()] * 2 == [list(range(7))] * 2
    obs, _, _, _, info = env.step(full(1.0, chunk=1))
    expected = [reference.step(np.ones(1, np.float32))[0].tolist()] * 2
    assert obs.tolist() == info["final_obs"].tolist() == expected == [list(range(1, 8))] * 2
    assert info["success"].tolist() == [False, False]
    for _ in range(2):
        *_, info = env.step(full(1.0, chunk=1))
    assert info["success"].tolist() == [True, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_episodes_start_from_a_seed_of_row_and_episode(backend):
    env = toy(backend, num_envs=2)
    starts = [env.observation()[:, 1]]
    for _ in range(3):
        obs, *_ = env.step(full(1.0, chunk=1))
    starts.append(obs[:, 1])
    rows = torch.arange(2)
    for episode, start in enumerate(starts):
        for row in range(2):
            seed = episode_seeds(5, rows, torch.full((2,), episode))[row]
            plain = gymnasium.make(TOY)
            assert plain.reset(seed=int(seed))[0][1] == start[row]


def test_masked_reset_starts_the_masked_rows_next_episode():
    env = toy(num_envs=3)
    env.step(full(0.5, 3, 1))
    before = env.observation()
    obs, _ = env.reset(mask=torch.tensor([True, False, True]))
    assert torch.equal(obs[1], before[1])
    assert obs[:, 0].tolist() == [0.0, 1.0, 0.0]
    for row in (0, 2):
        seed = episode_seeds(5, torch.arange(3), torch.ones(3, dtype=torch.long))[row]
        assert gymnasium.make(TOY).reset(seed=int(seed))[0][1] == obs[row, 1]
    assert env.step(full(0.5, 3, 1))[0][:, 0].tolist() == [1.0, 2.0, 1.0]


def test_real_environment_equals_stepping_it_by_hand():
    env = make_env("InvertedPendulum-v5", num_envs=1, chunk=2, dtype=torch.float64, backend="gymnasium")
    plain = gymnasium.make("InvertedPendulum-v5")
    obs, _ = env.reset(seed=1)
    zero = torch.zeros(1, dtype=torch.long)
    expected, _ = plain.reset(seed=int(episode_seeds(1, zero, zero)[0]))
    assert obs[0].tolist() == expected.tolist()
    for chunk in torch.rand(40, 1, 2, 1, generator=torch.Generator().manual_seed(0)):
        obs, _, terminated, _, info = env.step(chunk)
        for action in chunk[0, : info["executed"].item()]:
            expected, _, ended, *_ = plain.step(action.numpy())
        assert info["final_obs"][0].tolist() == expected.tolist()
        assert terminated.item() == ended
        if ended:
            break
    assert ended


@pytest.mark.parametrize("backend", BACKENDS)
def test_resuming_starts_new_episodes_and_says_so(backend):
    env = toy(backend, num_envs=2)
    env.step(full(0.5, chunk=1))
    state = env.state_dict()
    other = toy(backend, num_envs=2)
    other.load_state_dict(state)
    assert other.restarted_on_load
    assert other.observation()[:, 0].tolist() == [0.0, 0.0]
    assert not torch.equal(other.observation(), toy("gymnasium", num_envs=2).observation())  # the next episode's start


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ToyDictObs-v0", "observation_space holds a Discrete, but only a Box is supported"),
        ("ToyEndless-v0", "has no time limit; set max_episode_steps"),
        ("ToyCountre-v0", "cannot be made"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(backend, name, message):
    with pytest.raises(UserError, match=message):
        make_env(f"tests.envs.toy_envs:{name}", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_module_that_is_missing_is_one_sentence(backend):
    with pytest.raises(UserError, match=r"no_such_module.*[^.]$"):
        make_env("no_such_module:Env-v0", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_observation_that_is_not_a_number_stops_the_run(backend):
    env = make_env("tests.envs.toy_envs:ToyBroken-v0", backend=backend, chunk=3)
    env.reset()
    with pytest.raises(UserError, match="the observation of row 0 is not finite"):
        env.step(full(0.0, 1, 3))
