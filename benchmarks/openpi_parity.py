"""Does openpi's own client work with our server? ``python -m benchmarks.openpi_parity`` where openpi-client is.

It wants an older numpy than the rest, so in an environment of its own, which needs no torch:
``python -m venv other; other/bin/pip install openpi-client "numpy<2" typing_extensions;
other/bin/python -m benchmarks.openpi_parity``. A toy policy is served with and without a token, and asked by
``WebsocketClientPolicy`` as it is published; each side's messages are read by the other's codec, too.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.runtime import wire
from diffpolicy_rl.runtime.manifest import Control, Limits, Manifest, Port
from diffpolicy_rl.runtime.server import PolicyServer, ServerSettings

H, D = 8, 7
TOKEN = "0123456789-abcdefghijkl"  # 128 bits, were it random


class Toy:
    """Two images and a state in, as robots have them; the state's start, repeated, out."""

    manifest = Manifest(
        name="toy",
        algorithm="bc",
        created="2030-01-01T00:00:00Z",
        inputs=(
            Port("observation/image", (224, 224, 3), "uint8", None, None),
            Port("observation/wrist_image", (224, 224, 3), "uint8", None, None),
            Port("observation/state", (8,), "float32", None, None),
        ),
        noise=None,
        output=Port("actions", (H, D), "float32", None, None),
        control=Control(20.0, H, 4, 5.0, 100.0),
        limits=Limits((-1.0,) * D, (1.0,) * D),
        graphs={"policy": "policy.onnx"},
        files=(),
        source={},
    )

    def __call__(self, obs: Mapping[str, NDArray[Any]], noise: NDArray[Any] | None = None) -> NDArray[Any]:
        """Actions (1, H, D)."""
        return np.repeat(obs["observation/state"][:, None, :D], H, axis=1)

    def noise(self, rows: int, rng: np.random.Generator) -> None:
        """None: it draws nothing."""

    def correct(self, obs: Mapping[str, NDArray[Any]], base_action: NDArray[Any]) -> NDArray[Any]:
        """Nothing is corrected."""
        return base_action


@contextlib.contextmanager
def serving(token: str | None) -> Iterator[int]:
    """A server in a thread; gives its port."""
    server, ports, stops = PolicyServer(Toy(), ServerSettings(port=0, token=token)), [], []
    there = threading.Event()

    async def run() -> None:
        stop = asyncio.Event()
        stops.extend((asyncio.get_running_loop(), stop))
        await server.run(stop, lambda port: (ports.append(port), there.set())[0])

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert there.wait(10)
    try:
        yield ports[0]
    finally:
        stops[0].call_soon_threadsafe(stops[1].set)
        thread.join()


def check_codecs() -> None:
    """Every dtype, to and fro between their codec and ours."""
    from openpi_client import msgpack_numpy  # type: ignore[import-not-found]

    rng = np.random.default_rng(0)
    message: dict[str, Any] = {"prompt": "pick it up", "n": 3, "list": [1, 2.5, None], "scalar": np.float32(1.5)}
    for dtype in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f4", ">i8"):
        message[dtype] = (100 * rng.random((2, 3))).astype(dtype)
    for found in (wire.unpack(msgpack_numpy.packb(message)), msgpack_numpy.unpackb(wire.pack(message))):
        assert found.keys() == message.keys()
        for name, value in message.items():
            np.testing.assert_array_equal(found[name], value)
            assert getattr(found[name], "dtype", None) == getattr(value, "dtype", None), name
    assert wire.pack(message) == msgpack_numpy.packb(message)


def check_client(token: str | None) -> None:
    """Twenty requests of the stock client, and an error as it expects one."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy  # type: ignore[import-not-found]

    image = np.zeros((224, 224, 3), np.uint8)
    with serving(token) as port:
        client = WebsocketClientPolicy("127.0.0.1", port, api_key=token)
        assert client.get_server_metadata()["control"]["horizon"] == H
        for step in range(20):
            state = np.arange(8) + step / 10  # float64, as numpy makes it
            obs = {"observation/image": image, "observation/wrist_image": image, "observation/state": state}
            reply = client.infer(obs)
            np.testing.assert_array_equal(reply["actions"], np.repeat(state[None, :D], H, 0).astype(np.float32))
            assert ("prev_total_ms" in reply["server_timing"]) == (step > 0)
        client.reset()
        said = ""
        try:
            client.infer({"observation/state": image})
        except RuntimeError as error:
            said = str(error).splitlines()[-1]
        assert said, "a wrong observation is not refused"
        print(f"with{'' if token else 'out'} a token: 20 replies; a mistake: {said}")


def check_refusal() -> None:
    """The stock client without the token is not let in."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy  # type: ignore[import-not-found]
    from websockets.exceptions import InvalidStatus

    with serving(TOKEN) as port:
        for key in (None, "another"):
            status = 101
            try:
                WebsocketClientPolicy("127.0.0.1", port, api_key=key)
            except InvalidStatus as error:
                status = error.response.status_code
            assert status == 401, f"a client without the token gets {status}"
    print("without the token that is asked for: 401")


def main() -> None:
    """Check all of it."""
    check_codecs()
    print("the codecs give the same bytes, and read each other's")
    check_client(None)
    check_client(TOKEN)
    check_refusal()


if __name__ == "__main__":
    main()
