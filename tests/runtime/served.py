"""A fake bundle, and a server of it in a thread of the test's process."""

import asyncio
import contextlib
import socket
import threading
from dataclasses import dataclass

import numpy as np
from websockets.sync.client import connect

from diffpolicy_rl.runtime.client import PolicyClient
from diffpolicy_rl.runtime.manifest import Control, Limits, Manifest, Port
from diffpolicy_rl.runtime.server import PolicyServer, ServerSettings

H, D = 4, 2
STATE = Port("state", (3,), "float32", ("x", "y", "z"), "m")
IMAGE = Port("image", (2, 2, 3), "uint8", None, None)
HISTORY = Port("state", (3, 2), "float32", None, None)
OBS = {"state": np.array([1.0, 2.0, 3.0], np.float32)}


def make_manifest(inputs=(STATE,), noise=None, graphs=None, execute=2):
    return Manifest(
        name="toy",
        algorithm="bc",
        created="2030-01-01T00:00:00Z",
        inputs=tuple(inputs),
        noise=noise,
        output=Port("actions", (H, D), "float32", None, None),
        control=Control(20.0, H, execute, 5.0, 100.0),
        limits=Limits((-1.0,) * D, (1.0,) * D, (2.0,) * D, None, None, None),
        graphs=graphs or {"policy": "policy.onnx"},
        files=(),
        source={},
    )


class FakePolicy:
    """Actions h + 10 d + state[0] + noise; ``act`` is called with the observations first, if given."""

    def __init__(self, manifest=None, act=None):
        self.manifest = manifest or make_manifest()
        self.act = act
        self.seen = []

    def __call__(self, obs, noise=None):
        self.seen.append(obs)
        if self.act is not None:
            return self.act(obs)
        grid = np.arange(H, dtype=np.float32)[:, None] + 10 * np.arange(D, dtype=np.float32)
        first = obs["state"].reshape(len(obs["state"]), -1)[:, :1, None]
        return grid + first + (0 if noise is None else noise)

    def noise(self, rows, rng):
        shape = self.manifest.noise
        return None if shape is None else rng.standard_normal((rows, *shape)).astype(np.float32)

    def correct(self, obs, base_action):
        return base_action + 100 * obs["state"][:, 1:2]


@dataclass
class Live:
    port: int
    server: PolicyServer
    stop: object

    def client(self, **settings):
        return PolicyClient(port=self.port, **({"timeout_s": 10.0} | settings))


@contextlib.contextmanager
def serving(policy=None, **settings):
    """A live server; leaving the block stops it, and checks that it ends."""
    server = PolicyServer(policy or FakePolicy(), ServerSettings(**({"port": 0, "inference_s": 10.0} | settings)))
    told, there = {}, threading.Event()

    async def run():
        told["stop"], told["loop"] = asyncio.Event(), asyncio.get_running_loop()

        def ready(port):
            told["port"] = port
            there.set()

        await server.run(told["stop"], ready)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()

    def stop():
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself, or was told to from another thread
            told["loop"].call_soon_threadsafe(told["stop"].set)
        thread.join(10)
        assert not thread.is_alive(), "the server does not end"

    assert there.wait(10)
    try:
        yield Live(told["port"], server, stop)
    finally:
        stop()


def http_get(port, path="/healthz", headers=()):
    """Status and body of a plain GET."""
    with socket.create_connection(("127.0.0.1", port), 10) as raw:
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
        raw.sendall("\r\n".join(lines).encode())
        answer = b""
        while part := raw.recv(2**16):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def connected(live, **settings):
    """A plain websocket, as openpi's client opens it."""
    return connect(f"ws://127.0.0.1:{live.port}", compression=None, max_size=None, proxy=None, **settings)
