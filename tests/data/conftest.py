import numpy as np
import pytest

from diffpolicy_rl.data.d4rl import Transitions, write


@pytest.fixture
def transitions():
    def build(ends="__t_c_", **attributes):
        """One row per character: t ends an episode by termination, c by a cut; observation i is 10 i + (0, 1, 2)."""
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

    return build


@pytest.fixture
def path(tmp_path, transitions):
    write(tmp_path / "good.hdf5", transitions())
    return tmp_path / "good.hdf5"
