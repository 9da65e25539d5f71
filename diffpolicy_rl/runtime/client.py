"""Asks a policy server, and never waits longer than it was told to."""

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from diffpolicy_rl.runtime import wire
from diffpolicy_rl.runtime.manifest import Control, Limits

_quiet = logging.getLogger(f"{__name__}.transport")
_quiet.setLevel(logging.CRITICAL)
_READ = 2**16
_ADVICE = {
    401: "it wants another token",
    429: "too many wrong tokens came from here; wait a minute",
    503: "it is shutting down",
}


class ClientError(RuntimeError):
    """There are no actions; one sentence."""


class ServerLost(ClientError):
    """The server cannot be reached, closed the connection, or did not answer in time; asking again may help."""


class ServerRefused(ClientError):
    """The server did not let the client in, or did not answer its request; asking the same again does not help."""


class PolicyClient:
    """One robot's connection to a policy server: ours, or openpi's.

    A request on a connection that turns out to be closed is repeated once on a new one, within the same time; after
    an error the next request connects anew. The server forgets what it kept of the client (history, plan) when a
    connection ends. Threads that ask at the same time wait for each other, no longer than for an answer.

    Args:
        host: the server's name or address; looked up here and never again.
        port: of the server.
        token: what the server asks for.
        timeout_s: seconds for connecting, and for each request with all that it takes.

    Attributes:
        metadata: what the server says of the policy.
        timeout_s: may be changed between requests.
        timing: ``server_timing`` of the last reply, in ms.
        connections: how often the client has connected.

    Raises:
        ServerLost: if there is no server.
        ServerRefused: if it does not let the client in.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 8000, *, token: str | None = None, timeout_s: float = 1.0
    ) -> None:
        self.metadata: dict[str, Any] = {}
        self.timing: dict[str, float] = {}
        self.connections = 0
        self._name, self._token, self.timeout_s = f"{host} port {port}", token, timeout_s
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ServerLost(f"there is no host {host}: {error.strerror}") from None
        self._addresses = [(family, address) for family, _, _, _, address in found]
        self._uri = parse_uri(f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}")
        self._connection: _Connection | None = None
        self._resets = self._told_resets = 0
        self._lock = threading.Lock()
        with self._clear_errors():
            self._connect(time.monotonic() + timeout_s)

    def infer(self, obs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Actions (H, D) in physical units, of which ``control.execute`` are to be executed.

        Args:
            obs: observations without a batch dimension, by the names in ``metadata["inputs"]``.

        Raises:
            ServerLost: if no answer came within the time.
            ServerRefused: if the server refuses the observations, or its policy fails.
            WireError: if the observations cannot be sent.
        """
        until = time.monotonic() + self.timeout_s
        resets = self._resets  # a later one is not for these observations
        if not self._lock.acquire(timeout=self.timeout_s):
            raise ServerLost(f"another request to {self._name} is still under way after {self.timeout_s:g} s")
        try:
            frame = wire.pack({**obs, wire.RESET: True} if resets > self._told_resets else dict(obs))
            with self._clear_errors():
                reply = self._ask(frame, until)
                actions = reply.get("actions")
                if not isinstance(actions, np.ndarray) or actions.ndim != 2:
                    raise wire.WireError("the reply has no actions (H, D)")
            self._told_resets = max(self._told_resets, resets)
            self.timing = reply.get("server_timing", {})
        finally:
            self._lock.release()
        return actions.astype(np.float32, copy=False)

    def reset(self) -> None:
        """Begin an episode: the server forgets its history and plan with the next request that is made from now on."""
        self._resets += 1

    @property
    def control(self) -> Control:
        """Rates and chunk lengths, as the server says."""
        return Control(**self._told("control"))

    @property
    def limits(self) -> Limits:
        """Limits of actions, as the server says."""
        return Limits(**{name: _tuples(value) for name, value in self._told("limits").items()})

    def close(self) -> None:
        """Leave; the next request would connect again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _told(self, part: str) -> dict[str, Any]:
        if part not in self.metadata:
            raise ServerRefused(f"the server at {self._name} does not tell the policy's {part}; give them yourself")
        return self.metadata[part]

    def _ask(self, frame: bytes, until: float) -> dict[str, Any]:
        if self._connection is not None:
            with contextlib.suppress(ConnectionError):  # it may have ended since the last request
                return self._connection.ask(frame, until)
            self.close()
        return self._connect(until).ask(frame, until)

    def _connect(self, until: float) -> "_Connection":
        connection = _Connection(_open_socket(self._addresses, until), self._uri)
        self._connection = connection  # from now on closed if anything fails
        self.metadata = connection.begin(self._token, until)
        self.connections += 1
        return connection

    @contextlib.contextmanager
    def _clear_errors(self) -> Any:
        """Say in one sentence what failed, and leave no connection whose next message may be an old reply."""
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, TimeoutError):
                raise ServerLost(f"no answer from {self._name} within {self.timeout_s:g} s") from None
            if isinstance(error, OSError):
                raise ServerLost(f"no connection to {self._name}: {error.strerror or error}") from None
            if isinstance(error, wire.WireError):
                raise ServerRefused(f"{self._name} does not speak our protocol: {error}") from None
            raise


class _Connection:
    """A websocket over a plain socket: no thread, and every wait ends at a given time.

    Times ``until`` are on the monotonic clock. Methods raise TimeoutError or another OSError.
    """

    def __init__(self, connected: socket.socket, uri: WebSocketURI) -> None:
        self._socket = connected
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._protocol = ClientProtocol(uri, max_size=wire.MAX_BYTES, logger=_quiet)
        self._frames: deque[Frame] = deque()

    def begin(self, token: str | None, until: float) -> dict[str, Any]:
        """Shake hands; returns the metadata with which the server begins."""
        request = self._protocol.connect()
        if token is not None:
            request.headers["Authorization"] = f"Api-Key {token}"
        self._protocol.send_request(request)
        self._flush(until)
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            self._read(until)
        error = self._protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            status = error.response.status_code
            raise ServerRefused(f"the server answers {status}: {_ADVICE.get(status, error.response.reason_phrase)}")
        if error is not None:
            raise ConnectionAbortedError(f"it is no policy server ({error})")
        return self._message(until)

    def ask(self, frame: bytes, until: float) -> dict[str, Any]:
        """Send a request and wait for its reply."""
        if self._protocol.state is not State.OPEN:
            raise ConnectionResetError("it closed the connection")
        self._protocol.send_binary(frame)
        self._flush(until)
        return self._message(until)

    def close(self) -> None:
        """Say goodbye if that needs no waiting."""
        with contextlib.suppress(Exception):
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
                self._flush(time.monotonic() + 1e-3)
        self._socket.close()

    def _message(self, until: float) -> dict[str, Any]:
        """The next message; its size is bounded by the protocol."""
        parts: list[bytes] = []
        text = False
        while True:
            while not self._frames:
                self._read(until)
            frame = self._frames.popleft()
            if frame.opcode is Opcode.CLOSE:
                closed = self._protocol.close_rcvd
                raise ConnectionResetError(f"it closed the connection, {closed.reason if closed else 'for no reason'}")
            if frame.opcode in (Opcode.PING, Opcode.PONG):
                continue
            text = text or frame.opcode is Opcode.TEXT
            parts.append(bytes(frame.data))
            if frame.fin:
                break
        message = b"".join(parts)
        if text:
            raise ServerRefused(f"the server says: {message.decode(errors='replace')}")
        return wire.unpack(message)

    def _read(self, until: float) -> None:
        """Wait for bytes; pings are answered on the way."""
        self._socket.settimeout(_left(until))
        data = self._socket.recv(_READ)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        events = self._protocol.events_received()
        self._frames += [event for event in events if isinstance(event, Frame)]
        self._flush(until)
        ended = not data or self._protocol.state in (State.CLOSING, State.CLOSED)
        if ended and not self._frames and self._protocol.handshake_exc is None:
            raise ConnectionResetError("it closed the connection")

    def _flush(self, until: float) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._socket.settimeout(_left(until))
                self._socket.sendall(data)


def _open_socket(addresses: list[tuple[Any, Any]], until: float) -> socket.socket:
    """Connect to the first address that answers."""
    failed: OSError = ConnectionRefusedError("it has no address")
    for family, address in addresses:
        opened = socket.socket(family, socket.SOCK_STREAM)
        try:
            opened.settimeout(_left(until))
            opened.connect(address)
        except OSError as error:
            opened.close()
            failed = error
        else:
            return opened
    raise failed


def _left(until: float) -> float:
    """Seconds left; raises TimeoutError when there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
