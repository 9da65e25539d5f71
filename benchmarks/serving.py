"""What a policy server costs on top of its policy: round trips over loopback, less the inference in them."""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.sync.client import ClientConnection, connect

from benchmarks.measure import Figures
from diffpolicy_rl.runtime import wire
from diffpolicy_rl.runtime.client import PolicyClient
from diffpolicy_rl.runtime.manifest import Control, Limits, Manifest, Port
from diffpolicy_rl.runtime.metrics import quantiles
from diffpolicy_rl.runtime.server import PolicyServer, ServerSettings

_O, _H, _D, _WIDTH = 11, 4, 3, 512
_CALLS = 200  # of each client in a turn
_PATIENCE_S = 10.0


class StatePolicy:
    """A one-step policy of the size that Hopper's are: three hidden layers of 512, in numpy."""

    manifest = Manifest(
        name="state policy",
        algorithm="bc",
        created="2030-01-01T00:00:00Z",
        inputs=(Port("state", (_O,), "float32", None, None),),
        noise=(_H, _D),
        output=Port("actions", (_H, _D), "float32", None, None),
        control=Control(50.0, _H, _H, 5.0, 40.0),
        limits=Limits((-1.0,) * _D, (1.0,) * _D),
        graphs={"policy": "policy.onnx"},
        files=(),
        source={},
    )

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        sizes = (_O + _H * _D, _WIDTH, _WIDTH, _WIDTH, _H * _D)
        shapes = list(itertools.pairwise(sizes))
        self._weights = [(rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32) for shape in shapes]

    def __call__(self, obs: Mapping[str, NDArray[Any]], noise: NDArray[Any] | None = None) -> NDArray[Any]:
        """Actions (B, H, D)."""
        assert noise is not None
        x = np.concatenate([obs["state"], noise.reshape(len(noise), -1)], 1)
        for weight in self._weights[:-1]:
            x = np.maximum(x @ weight, 0)
        return np.tanh(x @ self._weights[-1]).reshape(-1, _H, _D)

    def noise(self, rows: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Standard normal (B, H, D)."""
        return rng.standard_normal((rows, _H, _D), np.float32)

    def correct(self, obs: Mapping[str, NDArray[Any]], base_action: NDArray[Any]) -> NDArray[Any]:
        """Nothing is corrected."""
        return base_action


def compare(repeats: int) -> dict[str, Figures]:
    """Milliseconds of a decision through the server, a process of its own, asked by two clients in turn.

    ``ours`` is ``PolicyClient``, ``plain`` the websockets package's own blocking client, as openpi's is built:
    quantiles of the round trip, and of it less the inference (``over``). ``inference`` is that of both.

    Args:
        repeats: turns of 200 requests of each client.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        url = f"ws://127.0.0.1:{port}"
        with PolicyClient(port=port, timeout_s=_PATIENCE_S) as client, connect(url, compression=None) as plain:
            plain.recv(_PATIENCE_S)
            sides = {"ours": lambda obs: _ours(client, obs), "plain": lambda obs: _plainly(plain, obs)}
            return _in_turn(sides, repeats)


def _in_turn(sides: Mapping[str, Callable[[dict[str, Any]], float]], repeats: int) -> dict[str, Figures]:
    rng = np.random.default_rng(0)
    trips: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(1 + repeats):  # the first is to warm up
        for name, ask in sides.items():
            for _ in range(_CALLS):
                obs = {"state": rng.standard_normal(_O, np.float32)}
                began = time.perf_counter()
                infer_ms = ask(obs)
                if turn:
                    trips[name].append((1e3 * (time.perf_counter() - began), infer_ms))
    figures: dict[str, Figures] = {}
    for name, pairs in trips.items():
        trip, infer = np.array(pairs).T
        over = {f"over_{key}_ms": value for key, value in quantiles(trip - infer).items()}
        figures[name] = {f"{key}_ms": value for key, value in quantiles(trip).items()} | over
    infer = [infer for pairs in trips.values() for _, infer in pairs]
    return figures | {"inference": {f"{key}_ms": value for key, value in quantiles(infer).items()}}


def _ours(client: PolicyClient, obs: dict[str, Any]) -> float:
    client.infer(obs)
    return client.timing["infer_ms"]


def _plainly(plain: ClientConnection, obs: dict[str, Any]) -> float:
    plain.send(wire.pack(obs))
    reply = plain.recv(_PATIENCE_S)
    assert isinstance(reply, bytes)
    return wire.unpack(reply)["server_timing"]["infer_ms"]


async def _serve() -> None:
    """Until standard input ends, which it does with the process that measures."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), stop.set)
    await PolicyServer(StatePolicy(), ServerSettings(port=0)).run(stop, lambda port: print(port, flush=True))


if __name__ == "__main__":
    asyncio.run(_serve())
