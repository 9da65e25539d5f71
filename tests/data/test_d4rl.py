import errno
import os
import re

import h5py
import numpy as np
import pytest

from diffpolicy_rl.data import d4rl
from diffpolicy_rl.data.d4rl import Transitions, read, write
from diffpolicy_rl.errors import UserError

ARRAYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def transitions(ends="__t_c_", **attributes):
    """One row per character: t ends an episode by termination, c by a cut; observation i is (10 i, 10 i + 1, ...)."""
    rows = len(ends)
    flags = np.array(list(ends))
    return Transitions(
        (10 * np.arange(rows)[:, None] + np.arange(3)).astype(np.float32),
        np.linspace(-1, 1, 2 * rows, dtype=np.float32).reshape(rows, 2),
        np.arange(rows, dtype=np.float32) + 0.5,
        flags == "t",
        flags == "c",
        attributes,
    )


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "good.hdf5", transitions())
    return tmp_path / "good.hdf5"


def refused(path):
    """The message of the refusal, which must be one sentence that names the file."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_round_trip(tmp_path):
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
def test_episodes_by_hand(ends, expected, returns):
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


def test_missing_and_foreign_files(tmp_path):
    assert "there is no data file" in refused(tmp_path / "absent.hdf5")
    assert "there is no data file" in refused(tmp_path)
    (tmp_path / "text.hdf5").write_text("no data at all" * 100)
    assert "not a readable hdf5 file" in refused(tmp_path / "text.hdf5")


@pytest.mark.parametrize("kept", [0, 7, 0.3, 0.9, -1])
def test_truncated_file(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert "not a readable hdf5 file" in refused(path)


def _array(name, **settings):
    def change(file):
        del file[name]
        file.create_dataset(name, **settings)

    return change


def _virtual(file):
    del file["rewards"]
    layout = h5py.VirtualLayout((6,), "f4")
    layout[:] = h5py.VirtualSource("other.hdf5", "rewards", (6,))
    file.create_virtual_dataset("rewards", layout)


def _external_link(file):
    del file["actions"]
    file["actions"] = h5py.ExternalLink("other.hdf5", "actions")


def _empty(file):
    for name in ARRAYS:
        shape = (0, *file[name].shape[1:])
        _array(name, shape=shape, dtype="f4")(file)


def _claims_the_newest(file):
    file.attrs["format_version"] = 2
    del file["rewards"]  # which may have another name there


BROKEN = {
    "rank of a matrix": (_array("actions", data=np.zeros(6)), r"actions has shape \(6,\), but needs 2"),
    "rank of a vector": (_array("rewards", data=np.zeros((6, 1))), r"rewards has shape \(6, 1\), but needs 1"),
    "scalar": (_array("rewards", data=1.0), r"rewards has shape \(\), but needs 1"),
    "null": (_array("rewards", data=h5py.Empty("f4")), "rewards"),
    "length": (_array("rewards", data=np.zeros(5)), "rewards has 5 rows, observations has 6"),
    "misnamed": (lambda file: file.move("rewards", "reward"), "has no rewards; did you mean 'reward'?"),
    "group": (lambda file: (file.move("rewards", "r"), file.create_group("rewards")), "rewards is not a plain array"),
    "text": (_array("rewards", data=[b"x"] * 6), "rewards is not a plain array"),
    "objects": (_array("rewards", data=["x"] * 6, dtype=h5py.string_dtype()), "rewards is not a plain array"),
    "complex": (_array("rewards", data=np.zeros(6, complex)), "rewards is not a plain array"),
    "external link": (_external_link, "actions lies in another file"),
    "virtual": (_virtual, "rewards is not a plain array"),
    "external bytes": (
        _array("rewards", shape=(6,), dtype="f4", external=[("other.bin", 0, 24)]),
        "rewards is not a plain array",
    ),
    "size": (_array("observations", shape=(2**45, 11), dtype="f4", chunks=(1024, 11)), r"claims \(35184372088832, 11\)"),
    "overflowing size": (_array("observations", shape=(2**62, 4), dtype="f4", chunks=(64, 4)), "claims"),
    "version": (_claims_the_newest, "has data format 2, this version reads 1"),
    "empty": (_empty, "holds no transitions"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refusals(path, case):
    change, message = BROKEN[case]
    with h5py.File(path, "r+") as file:
        change(file)
    before = path.read_bytes()
    assert re.search(message, refused(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])  # the last is finite in float64 only
@pytest.mark.parametrize("name", ["observations", "rewards"])
def test_not_a_number_names_the_row(path, name, bad):
    with h5py.File(path, "r+") as file:
        values = file[name][()].astype(np.float64)
        values[4] = bad
        del file[name]
        file[name] = values
    assert f"{name} holds NaN or infinity, first in row 4" in refused(path)


def test_existing_target_is_kept(path):
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"good\.hdf5 exists already"):
        write(path, transitions("t"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("place", "number"), [("create_dataset", errno.ENOSPC), ("replace", errno.EACCES), ("fsync", errno.EIO)]
)
def test_failed_write_leaves_nothing(tmp_path, monkeypatch, place, number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(h5py.Group if place == "create_dataset" else d4rl.os, place, fail)
    with pytest.raises(UserError, match=rf"^cannot write .*a\.hdf5: {os.strerror(number)}$"):
        write(tmp_path / "a.hdf5", transitions())
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "a.hdf5", transitions())
