import dataclasses
import warnings

import numpy as np
import pytest
import torch

from diffpolicy_rl.data.catalog import resolve
from diffpolicy_rl.data.d4rl import Transitions, read
from diffpolicy_rl.data.dataset import ChunkDataset
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.types import Spec


def transitions(**attributes):
    """Episodes of 3, 1 and 2 steps; action i is (i, -i), observation i is (100 i, 100 i + 1, 100 i + 2)."""
    index = np.arange(6, dtype=np.float32)
    flags = np.zeros((2, 6), bool)
    flags[0, 2] = flags[1, 3] = True  # the last episode has no flag: the file ends
    obs = 100 * index[:, None] + np.arange(3, dtype=np.float32)
    return Transitions(obs, np.stack([index, -index], axis=1), index, *flags, attributes, "toy.hdf5")


def spec(obs=3, action=2, env_id="Toy-v0"):
    return Spec(env_id, (obs,), action)


def test_windows_by_hand():
    batch = ChunkDataset(transitions(), horizon=4).windows(torch.arange(6))
    rows = [[0, 1, 2, 2], [1, 2, 2, 2], [2, 2, 2, 2], [3, 3, 3, 3], [4, 5, 5, 5], [5, 5, 5, 5]]
    valid = [3, 2, 1, 1, 2, 1]
    assert batch.action[:, :, 0].tolist() == rows
    assert torch.equal(batch.action[:, :, 1], -batch.action[:, :, 0])
    assert batch.mask.tolist() == [[h < n for h in range(4)] for n in valid]
    assert batch.obs[:, 0].tolist() == [0, 100, 200, 300, 400, 500]


def test_history_repeats_an_episode_s_first_observation_by_hand():
    batch = ChunkDataset(transitions(), horizon=1, history=3).windows(torch.arange(6))
    rows = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [3, 3, 3], [4, 4, 4], [4, 4, 5]]
    assert (batch.obs[:, :, 0] / 100).tolist() == rows
    assert batch.obs.shape == (6, 3, 3)


def test_horizon_one_has_no_padding():
    batch = ChunkDataset(transitions(), horizon=1).windows(torch.arange(6))
    assert batch.action[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.mask.all()


def test_samples_are_windows_and_cover_the_data():
    dataset = ChunkDataset(transitions(), horizon=2)
    batch = dataset.sample(400, torch.Generator().manual_seed(0))
    starts = (batch.obs[:, 0] / 100).long()
    assert starts.bincount().min() > 400 / 6 / 2
    expected = dataset.windows(starts)
    assert torch.equal(batch.action, expected.action)
    assert torch.equal(batch.mask, expected.mask)
    again = dataset.sample(400, torch.Generator().manual_seed(0))
    assert torch.equal(again.obs, batch.obs)


@pytest.mark.parametrize("name", ["hopper", "halfcheetah"])
def test_windows_of_the_packaged_sets_stay_inside_their_episode(name):
    data = read(resolve(name))
    dataset = ChunkDataset(data, horizon=16)
    batch = dataset.windows(torch.arange(len(dataset)))
    ends = data.episode_ends()
    last = torch.from_numpy(ends[np.searchsorted(ends, np.arange(len(dataset)), side="right")] - 1)
    assert torch.equal(batch.mask.sum(1), (last - torch.arange(len(dataset)) + 1).clamp(max=16))
    cut = batch.mask.sum(1) < 16
    assert cut.sum() == 15 * len(ends)  # every episode is longer than a window
    assert torch.equal(batch.action[cut, -1], dataset.actions[last[cut]])


@pytest.mark.parametrize(("episodes", "rows"), [(1, 3), (2, 4), (3, 6), (9, 6), (None, 6)])
def test_first_episodes(episodes, rows):
    dataset = ChunkDataset(transitions(), horizon=4, episodes=episodes)
    assert len(dataset) == rows == len(dataset.obs) == len(dataset.actions)
    assert dataset.sample(200).action.max() == rows - 1


@pytest.mark.parametrize("episodes", [0, -1])
def test_no_episodes(episodes):
    with pytest.raises(UserError, match=rf"data\.episodes={episodes}"):
        ChunkDataset(transitions(), horizon=4, episodes=episodes)


@pytest.mark.parametrize("shapes", [{"obs": 4}, {"action": 1}])
def test_other_widths_are_refused(shapes):
    with pytest.raises(UserError, match=r"toy\.hdf5 has observations and actions of width \(3, 2\), Toy-v0 needs"):
        ChunkDataset(transitions(), horizon=4).check_fits(spec(**shapes))


def test_other_task_is_said():
    dataset = ChunkDataset(transitions(env_id="Hopper-v5"), horizon=4)
    with pytest.warns(UserWarning, match=r"toy\.hdf5 was collected in Hopper-v5, not in Toy-v0"):
        dataset.check_fits(spec())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset.check_fits(spec(env_id="Hopper-v5"))
        ChunkDataset(transitions(), horizon=4).check_fits(spec())


def test_decisions_by_hand():
    """Episodes of 3 (terminated), 1 (truncated) and 2 (cut off) steps, decided upon in chunks of 2."""
    raw = transitions()
    raw.terminals[2] = raw.timeouts[3] = True
    buffer = ChunkDataset(raw, horizon=4).decisions(2)
    assert len(buffer) == 4  # what followed transitions 3 and 5 is not known
    batch = buffer.decisions(torch.arange(4), gamma=0.5)
    assert (batch.obs[:, 0] / 100).tolist() == [0, 1, 2, 4]
    assert batch.action[:, :, 0].tolist() == [[0, 1], [1, 2], [2, 2], [4, 4]]
    assert batch.mask.tolist() == [[True, True], [True, True], [True, False], [True, False]]
    assert batch.reward.tolist() == [0.5, 2, 2, 4]
    assert batch.discount.tolist() == [0.25, 0, 0, 0.5]
    assert (batch.next_obs[:, 0] / 100).tolist()[0::3] == [2, 5]
    assert batch.followed.tolist() == [True, False, False, False]
    two = buffer.decisions(torch.arange(1), gamma=0.5, n_step=2)
    assert two.reward.tolist() == [0.5 + 2 / 4]
    assert two.discount.tolist() == [0]


def test_episodes_that_cost_too_much_are_left_out():
    costs, finals = np.array([0, 1, 0, 5, 2, 1], np.float32), np.arange(9, dtype=np.float32).reshape(3, 3)
    data = dataclasses.replace(transitions(), costs=costs, finals=finals)
    kept = data.costing_at_most(3)
    assert kept.observations[:, 0].tolist() == [0, 100, 200, 400, 500]
    assert (kept.costs.tolist(), kept.episode_ends().tolist()) == ([0, 1, 0, 2, 1], [3, 5])
    assert kept.finals.tolist() == [[0, 1, 2], [6, 7, 8]]
    with pytest.raises(UserError, match=r"no episode of toy\.hdf5 costs 0\.5 or less, the cheapest 1"):
        data.costing_at_most(0.5)
    with pytest.raises(UserError, match=r"toy\.hdf5 has no costs"):
        transitions().costing_at_most(1)


def test_episodes_of_one_cut_off_action_teach_no_values():
    single = dataclasses.replace(transitions(), terminals=np.zeros(6, bool), timeouts=np.ones(6, bool))
    with pytest.raises(UserError, match=r"toy\.hdf5: every episode was cut off after one action, of unknown outcome"):
        ChunkDataset(single, horizon=1).decisions(1)
