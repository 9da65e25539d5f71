import errno
import os
import resource

import h5py
import numpy as np
import pytest

from diffpolicy_rl.data import files
from diffpolicy_rl.data.d4rl import read, write
from diffpolicy_rl.errors import UserError

ARRAYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def test_round_trip(tmp_path, transitions):
    data = transitions(env_id="Hopper-v5", seed=3)
    write(tmp_path / "new" / "folder" / "a.hdf5", data)
    back = read(tmp_path / "new" / "folder" / "a.hdf5")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(data, name))
        assert getattr(back, name).dtype == getattr(data, name).dtype
    assert back.source == "a.hdf5"
    # returns by hand: rows 0-2, 3-4 and 5
    statistics = {"return_mean": 6.0, "return_std": np.std([4.5, 8.0, 5.5]), "return_min": 4.5, "return_max": 8.0}
    assert back.attributes == {"env_id": "Hopper-v5", "seed": 3, "format_version": 1, "episodes": 3} | {
        name: pytest.approx(value) for name, value in statistics.items()
    }
    assert [entry.name for entry in (tmp_path / "new" / "folder").iterdir()] == ["a.hdf5"]


@pytest.mark.parametrize(
    ("ends", "expected", "returns"),
    [
        ("__t_c_", [3, 5, 6], [4.5, 8.0, 5.5]),
        ("__t", [3], [4.5]),
        ("___", [3], [4.5]),
        ("tct", [1, 2, 3], [0.5, 1.5, 2.5]),
    ],
)
def test_episodes_by_hand(transitions, ends, expected, returns):
    data = transitions(ends)
    assert data.episode_ends().tolist() == expected
    assert data.returns().tolist() == returns


def test_timeouts_may_be_missing_and_numbers_are_converted(path):
    with h5py.File(path, "r+") as file:
        del file["timeouts"], file["terminals"], file["rewards"]
        file["terminals"] = np.array([0, 0, 1, 0, 0, 0], np.uint8)
        file["rewards"] = np.arange(6)
        file["infos/qpos"] = np.zeros((6, 5))  # what is not needed is not looked at
    data = read(path)
    assert data.terminals.tolist() == [False, False, True, False, False, False]
    assert not data.timeouts.any()
    assert data.timeouts.shape == (6,)
    assert data.rewards.dtype == np.float32


def test_existing_target_is_kept(path, transitions):
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"good\.hdf5 exists already"):
        write(path, transitions("t"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(("call", "number"), [("fsync", errno.ENOSPC), ("replace", errno.EACCES)])
def test_failed_write_leaves_nothing(tmp_path, transitions, monkeypatch, call, number):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(UserError, match=rf"^cannot write .*a\.hdf5: {os.strerror(number)}$"):
        write(tmp_path / "a.hdf5", transitions())
    assert list(tmp_path.iterdir()) == []


def test_write_that_the_system_cuts_short_leaves_nothing(tmp_path, transitions, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"^cannot write .*a\.hdf5: File too large$"):
            write(tmp_path / "a.hdf5", transitions())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_unwritable_places(tmp_path, transitions):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot write"):
        write(tmp_path / "file" / "a.hdf5", transitions())
