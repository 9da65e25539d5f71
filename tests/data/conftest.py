import http.server
import threading

import numpy as np
import pytest
from loopback import Handler

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


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFPOLICY_RL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
