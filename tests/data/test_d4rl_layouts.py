"""What files of D4RL and DSRL look like, in all their variants."""

import dataclasses

import h5py
import made_files as made
import numpy as np
import pytest
import torch
from made_files import equal

from diffpolicy_rl.data import d4rl, transitions
from diffpolicy_rl.data.dataset import ChunkDataset
from diffpolicy_rl.data.formats import open_source, read
from diffpolicy_rl.data.transitions import ReadOptions
from diffpolicy_rl.errors import UserError


def test_flags_and_rewards_may_be_columns(tmp_path):
    columns = {name: getattr(made, name.upper())[:, None] for name in ("rewards", "terminals", "timeouts")}
    data = read(made.d4rl(tmp_path / "set", **columns))
    equal(data.rewards, made.REWARDS)
    equal(data.terminals, made.TERMINALS)


def test_what_else_a_file_of_d4rl_holds_is_not_looked_at(tmp_path):
    path = made.d4rl(tmp_path / "set", next_observations=np.full((5, 3), np.nan))
    with h5py.File(path, "r+") as file:
        file["infos/qpos"] = np.full((5, 4), np.nan)
        file["metadata/algorithm"] = "SAC"
        file["metadata/policy/fc0/weight"] = h5py.SoftLink("/nowhere")
    assert read(path).finals is None


@pytest.mark.parametrize(
    ("name", "attributes", "given", "limit"),
    [
        ("hopper-medium-v0", {}, 3, 3),
        ("mine", {}, 2, 2),
        ("mine", {"max_episode_steps": 4}, None, 4),
        ("mine", {}, None, None),
        ("pen-human-v0", {}, None, 100),
        ("relocate-human-v0", {}, None, 200),
        ("walker_mixed", {}, None, 1000),
    ],
)
@pytest.mark.parametrize("block_bytes", [60, 2**20])
def test_unmarked_episodes_are_cut_where_the_task_cuts_them(
    tmp_path, monkeypatch, name, attributes, given, limit, block_bytes
):
    monkeypatch.setattr(transitions, "BLOCK_BYTES", block_bytes)
    rows, terminals = 412, np.zeros(412)
    terminals[[3, 7, 11, 30, 31]] = 1
    arrays = {"observations": np.zeros((rows, 3)), "actions": np.zeros((rows, 2)), "rewards": np.zeros(rows)}
    path = made.d4rl(tmp_path / f"{name}.hdf5", **arrays, terminals=terminals, timeouts=None)
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)
    expected, steps = np.zeros(rows, bool), 0
    for row in range(rows):  # as D4RL counts
        steps += 1
        expected[row] = limit is not None and steps == limit and not terminals[row]
        steps = 0 if terminals[row] or expected[row] else steps
    source = open_source(path, ReadOptions(max_episode_steps=given))
    np.testing.assert_array_equal(transitions.load(source).timeouts, expected)
    assert (f"cut after {limit} steps" if limit else "episodes end at terminals alone") in source.notes[0]


def test_chunked_file(tmp_path):
    with h5py.File(tmp_path / "set", "w") as file:
        for part, rows in ((10, slice(3, 5)), (9, slice(0, 3))):
            for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
                file[f"virtual/{part}/{name}"] = getattr(made, name.upper())[rows]
    data = read(tmp_path / "set")
    equal(data.observations, made.OBSERVATIONS)
    equal(data.timeouts, made.TIMEOUTS)


def test_episodes_go_on_in_the_next_part(tmp_path):
    with h5py.File(tmp_path / "set", "w") as file:
        for part, rows in enumerate((slice(0, 2), slice(2, 5))):
            for name in ("observations", "actions", "rewards"):
                file[f"virtual/{part}/{name}"] = getattr(made, name.upper())[rows]
            file[f"virtual/{part}/terminals"] = np.zeros(len(made.REWARDS[rows]))
    data = read(tmp_path / "set", ReadOptions(max_episode_steps=3))
    assert data.timeouts.tolist() == [False, False, True, False, False]


def test_rows_of_dsrl_that_do_not_follow_each_other_are_cut(tmp_path):
    following = np.roll(made.OBSERVATIONS, -1, axis=0)
    following[[2, 3, 4]] = [[7, 7, 7], [8, 8, 8], [9, 9, 9]]
    data = read(made.dsrl(tmp_path / "set", next_observations=following, timeouts=np.zeros(5)))
    assert data.timeouts.tolist() == [False, False, False, True, True]
    assert data.finals[:, 0].tolist() == [7, 8, 9]


def test_q_learning_view_of_three_episodes(tmp_path):
    """D4RL's own loop over a file whose episodes end by a terminal, a timeout and the end of the file."""
    ends = {"terminals": [0, 0, 1, 0, 0, 0, 0, 0], "timeouts": [0, 0, 0, 0, 0, 1, 0, 0]}
    obs, index = np.arange(16.0).reshape(8, 2), np.arange(8.0)
    arrays = {"observations": obs, "actions": np.stack([index, -index], 1), "rewards": 10 + index}
    data = read(made.d4rl(tmp_path / "set", **arrays, **{name: np.array(flags) for name, flags in ends.items()}))
    expected = [
        (obs[row], [[row, -row]], 10 + row, obs[row + 1], ends["terminals"][row])
        for row in range(7)
        if not ends["timeouts"][row]
    ]
    view = ChunkDataset(data, horizon=1).decisions(1)
    assert len(view) == len(expected) == 6
    drawn = view.decisions(torch.arange(6), gamma=0.9)
    for row, (seen, action, reward, following, terminal) in enumerate(expected):
        assert drawn.obs[row].tolist() == seen.tolist()
        assert drawn.action[row].tolist() == action
        assert drawn.reward[row] == reward
        assert drawn.discount[row] == pytest.approx(0 if terminal else 0.9)
        if not terminal:  # D4RL has the next episode's first observation there, which nothing uses
            assert drawn.next_obs[row].tolist() == following.tolist()


@pytest.mark.parametrize("history", [1, 2])
def test_known_ends_are_bootstrapped_from(tmp_path, history):
    """By hand: chunks of 2 in episodes of 3 (terminated) and 2 (cut off)."""
    data = read(made.dsrl(tmp_path / "set"))
    buffer = ChunkDataset(data, horizon=2, history=history).decisions(2)
    drawn = buffer.decisions(torch.arange(len(buffer)), gamma=0.5)
    assert len(buffer) == 5  # no action is left out
    assert drawn.reward.tolist() == [0.5 + 0.75, 1.5 + 1.25, 2.5, 3.5 + 2.25, 4.5]
    assert drawn.discount.tolist() == [0.25, 0, 0, 0.25, 0.5]
    newest = drawn.next_obs.view(5, history, 3)[:, -1, 0]
    assert newest.tolist() == [20, 1000, 1000, 2000, 2000]
    if history == 2:
        assert drawn.next_obs[:, 0, 0].tolist() == [10, 20, 20, 40, 40]


@pytest.mark.parametrize("place", [("observations", 4), ("actions", 3), ("rewards", 4)])
def test_rows_are_counted_from_the_file_s_start(tmp_path, monkeypatch, place):
    name, row = place
    values = getattr(made, name.upper()).copy()
    values[row] = np.nan
    path = made.d4rl(tmp_path / "set", **{name: values})
    monkeypatch.setattr(transitions, "BLOCK_BYTES", 1)
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity, first in row {row}"):
        read(path)


def test_d4rl_reads_what_it_wrote(tmp_path):
    data = read(made.dsrl(tmp_path / "set"))
    d4rl.write(tmp_path / "new.hdf5", dataclasses.replace(data, costs=None))
    assert open_source(tmp_path / "new.hdf5").format == "d4rl"
    equal(read(tmp_path / "new.hdf5").finals, made.FINALS)
