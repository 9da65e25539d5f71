"""A file that is larger than what memory may grow by: its pieces are one compressed piece, written many times."""

import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest

from diffpolicy_rl.data import transitions
from diffpolicy_rl.data.catalog import resolve
from diffpolicy_rl.data.formats import open_source
from diffpolicy_rl.data.survey import survey
from diffpolicy_rl.errors import UserError

PIECE, ROWS = 2**14, 1024
GROWTH = """
import resource, sys
from pathlib import Path
import numpy as np
from diffpolicy_rl.data.formats import open_source, read
from diffpolicy_rl.data.survey import survey
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
path = Path(sys.argv[1])
{work}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def growth(path, work):
    """By how many MiB the memory of a process grew."""
    command = [sys.executable, "-c", GROWTH.format(work=work), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def repeated(group, name, pieces, shape, dtype):
    """An array of ones, ``pieces`` times the same compressed bytes of ``shape``."""
    item = group.create_dataset(name, (pieces * shape[0], *shape[1:]), dtype, chunks=shape, compression="gzip")
    content = zlib.compress(np.ones(shape, dtype).tobytes(), 1)
    for piece in range(pieces):
        item.id.write_direct_chunk((piece * shape[0], *[0] * (len(shape) - 1)), content)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """512 MiB of observations."""
    path = tmp_path_factory.mktemp("large") / "large.hdf5"
    with h5py.File(path, "w") as file:
        for name, shape in (("observations", (PIECE, 128)), ("actions", (PIECE, 2)), ("rewards", (PIECE,))):
            repeated(file, name, 64, shape, "f4")
        file["terminals"] = np.arange(64 * PIECE) % 1000 == 999
        file["timeouts"] = np.zeros(64 * PIECE)
    assert path.stat().st_size < 2**25
    return path


def test_what_does_not_fit_into_memory_is_looked_through_but_not_loaded(monkeypatch):
    source = open_source(resolve("hopper"))
    monkeypatch.setattr(transitions, "_MEMORY", 2**19)  # observations, actions and rewards are 0.9 MiB
    assert len(survey(source).lengths) == 40
    with pytest.raises(UserError, match=r"hopper\.hdf5 takes 0 GiB of memory, this machine has 0; info and check read"):
        transitions.load(source)


def test_looking_through_takes_little_memory(large):
    work = """
found = survey(open_source(path))
assert (len(found.lengths), found.lengths[0], found.returns[-1]) == (1049, 1000, 576)
"""
    assert growth(large, work) < 150


def test_reading_takes_what_is_kept(large):
    assert growth(large, "data = read(path); assert data.observations.nbytes == 2**29") < 512 + 150


def test_images_take_what_is_asked_for(tmp_path):
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        for index in range(4):
            demo = file.create_group(f"data/demo_{index}")
            repeated(demo, "obs/camera", ROWS, (1, 256, 256, 3), "u1")
            demo["obs/state"], demo["actions"] = np.zeros((ROWS, 3)), np.zeros((ROWS, 2))
            demo["rewards"], demo["dones"] = np.zeros(ROWS), np.zeros(ROWS)
    work = """
data = read(path)
images = data.images["camera"].read(np.arange(0, len(data.rewards), 64))
assert images.shape == (64, 3, 256, 256)
"""
    assert growth(path, work) < 150
