import re

import h5py
import numpy as np
import pytest

from diffpolicy_rl.data.d4rl import read
from diffpolicy_rl.errors import UserError

ARRAYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def refused(path):
    """The message of the refusal, which must be one sentence that names the file."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


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


def _external_link(name):
    def change(file):
        del file[name]
        file[name] = h5py.ExternalLink("other.hdf5", name)

    return change


def _empty(file):
    for name in ARRAYS:
        shape = (0, *file[name].shape[1:])
        _array(name, shape=shape, dtype="f4")(file)


def _claims_the_newest(file):
    file.attrs["format_version"] = 2
    del file["rewards"]  # which may have another name there


BROKEN = {
    "rank of a matrix": (_array("actions", data=np.zeros(6)), r"actions has shape \(6,\), but needs 2"),
    "rank of a vector": (_array("rewards", data=np.zeros((6, 2))), r"rewards has shape \(6, 2\), but needs 1"),
    "scalar": (_array("rewards", data=1.0), r"rewards has shape \(\), but needs 1"),
    "null": (_array("rewards", data=h5py.Empty("f4")), "rewards"),
    "length": (_array("rewards", data=np.zeros(5)), "rewards has 5 rows, but needs 6"),
    "misnamed": (lambda file: file.move("rewards", "reward"), "has no rewards; did you mean 'reward'?"),
    "group": (lambda file: (file.move("rewards", "r"), file.create_group("rewards")), "rewards is not a plain array"),
    "text": (_array("rewards", data=[b"x"] * 6), "rewards is not a plain array"),
    "objects": (_array("rewards", data=["x"] * 6, dtype=h5py.string_dtype()), "rewards is not a plain array"),
    "complex": (_array("rewards", data=np.zeros(6, complex)), "rewards is not a plain array"),
    "external link": (_external_link("actions"), "actions is a link"),
    "optional external link": (_external_link("timeouts"), "timeouts is a link"),
    "virtual": (_virtual, "rewards is not a plain array"),
    "external bytes": (
        _array("rewards", shape=(6,), dtype="f4", external=[("other.bin", 0, 24)]),
        "rewards is not a plain array",
    ),
    "size": (
        _array("observations", shape=(2**45, 11), dtype="f4", chunks=(1024, 11)),
        r"claims \(35184372088832, 11\)",
    ),
    "overflowing size": (_array("observations", shape=(2**62, 4), dtype="f4", chunks=(64, 4)), "claims"),
    "version": (_claims_the_newest, "has data format 2, this version reads 1"),
    "odd version": (lambda file: file.attrs.update(format_version=[1, 1]), r"has data format \[1, 1\]"),
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
