"""Serves a policy by openpi's websocket protocol, so that its stock client and ours can ask it.

The server speaks first: a map of metadata. Then each request, a map of observations, gets one reply: ``actions``
(H, D) float32 in physical units and ``server_timing`` with ``infer_ms`` and, from the second reply on,
``prev_total_ms``. What goes wrong is said in a text message of one sentence, whose cause is in the log, before the
connection is closed with code 1011. ``GET /healthz`` says OK, and ``GET /metrics`` from this machine counts and times.
(Source of the protocol: openpi at 15a9616, ``websocket_policy_server.py``, and openpi-client 0.1.2.)
"""

import asyncio
import dataclasses
import functools
import itertools
import json
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from diffpolicy_rl.runtime import wire
from diffpolicy_rl.runtime.access import Gate, ServeError, is_loopback, require_protection
from diffpolicy_rl.runtime.metrics import Metrics
from diffpolicy_rl.runtime.session import Answer, Policy, RequestError, Session, metadata
from diffpolicy_rl.runtime.worker import Worker

_log = logging.getLogger(__name__)
_transport_log = logging.getLogger(f"{__name__}.transport")
_transport_log.setLevel(logging.CRITICAL)  # a traceback for every port scan otherwise

_OPEN_S, _DRAIN_S, _CLOSE_S, _STOP_S = 5.0, 0.3, 0.3, 0.8


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens, whom it lets in, and how long it waits.

    Attributes:
        host: address to listen on; anything but this machine's own needs a token.
        port: 0 for one that is free.
        token: what clients must show.
        insecure: listen off this machine without a token.
        connections: clients at a time.
        idle_s: seconds without a request after which a client is sent away.
        inference_s: seconds after which a request is given up.
        seed: of the clients' noise streams; by default no two runs draw alike.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = dataclasses.field(default=None, repr=False)
    insecure: bool = False
    connections: int = 4
    idle_s: float = 60.0
    inference_s: float = 1.0
    seed: int | None = None


class PolicyServer:
    """Serves one policy until it is told to stop.

    Args:
        policy: the bundle.
        settings: where and for whom.

    Raises:
        ServeError: if the settings would let in anyone, or the policy fails on zeros.
    """

    def __init__(self, policy: Policy, settings: ServerSettings) -> None:
        require_protection(settings.host, settings.token, settings.insecure)
        self.metrics = Metrics()
        self._policy, self._settings = policy, settings
        self._gate = Gate(settings.token)
        self._metadata = wire.pack(metadata(policy.manifest))
        self._numbers = itertools.count()
        self._seeds = np.random.SeedSequence(settings.seed)
        self._clients = self._busy = 0
        self._idle: list[Worker[Answer]] = []
        self._hanging: list[Worker[Answer]] = []
        self._warm_up()

    async def run(self, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
        """Serve until ``stop`` is set, and end within a second of it; requests in flight have 0.3 s to be answered.

        Args:
            stop: tells it to end.
            ready: called with the port once clients can connect.

        Raises:
            ServeError: if it cannot listen there.
        """
        settings = self._settings
        try:
            server = await serve(
                self._talk,
                settings.host,
                settings.port,
                process_request=self._admit,
                compression=None,
                max_size=wire.MAX_BYTES,
                max_queue=1,
                open_timeout=_OPEN_S,
                ping_interval=None,  # idle_s ends what is dead
                close_timeout=_CLOSE_S,
                server_header=None,
                logger=_transport_log,
            )
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ServeError(f"cannot listen on {settings.host} port {settings.port}: {reason}") from None
        ready(next(iter(server.sockets)).getsockname()[1])
        await stop.wait()
        await self._close(server)

    async def _close(self, server: Server) -> None:
        """Let requests in flight be answered, say goodbye, and wait for nobody who does not listen."""
        deadline = time.monotonic() + _DRAIN_S
        while self._busy and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        server.close()
        try:
            async with asyncio.timeout(_STOP_S - _DRAIN_S):
                await server.wait_closed()
        except TimeoutError:
            _log.warning("ended with a client still connected")
        for worker in self._idle:
            worker.stop()

    def _warm_up(self) -> None:
        """The first call is slow; a policy that cannot be called at all is better found now."""
        ports = self._policy.manifest.inputs
        request = {port.name: np.zeros(port.shape, port.dtype) for port in ports}
        try:
            Session(self._policy, np.random.default_rng(0)).answer(wire.pack(request), None)
        except (RequestError, wire.WireError) as error:
            raise ServeError(f"the policy fails on observations of zeros: {error.__cause__ or error}") from error

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """What is answered instead of a websocket, if anything is."""
        address = str(connection.remote_address[0])
        if request.path == "/healthz":
            if self._hangs():
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the policy hangs\n")
            return connection.respond(HTTPStatus.OK, "OK\n")
        refusal = self._gate.refusal(request.headers, address)
        if refusal is not None:
            self.metrics.counts[f"refused_{refusal.status.value}"] += 1
            return connection.respond(refusal.status, f"{refusal.sentence}\n")
        if request.path == "/metrics" and is_loopback(address):
            return connection.respond(HTTPStatus.OK, json.dumps(self.metrics.report()) + "\n")
        return None

    def _hangs(self) -> int:
        """How many threads are still in a call that was given up."""
        self._hanging = [worker for worker in self._hanging if worker.alive]
        return len(self._hanging)

    async def _talk(self, connection: ServerConnection) -> None:
        """One client, from its metadata to its leaving."""
        if self._clients + self._hangs() >= self._settings.connections:
            self.metrics.counts["refused_full"] += 1
            await connection.close(1013, f"all {self._settings.connections} connections are in use; try again later")
            return
        self._clients += 1
        self.metrics.counts["clients"] += 1
        session = Session(self._policy, np.random.default_rng(self._seeds.spawn(1)[0]))
        worker = self._idle.pop() if self._idle else Worker[Answer]()
        name = f"client {next(self._numbers)}"
        _log.info("%s came from %s", name, connection.remote_address[0])
        try:
            await self._requests(connection, session, worker)
        except ConnectionClosed as closed:
            _log.info("%s left: %s", name, closed)
        except RequestError as error:
            await self._refuse(connection, error, name)
        except Exception:
            _log.exception("%s: the server failed", name)
            raise
        finally:
            self._clients -= 1
            if worker in self._hanging:
                worker.stop()
            else:
                self._idle.append(worker)
            _forget(connection)

    async def _requests(self, connection: ServerConnection, session: Session, worker: Worker[Answer]) -> None:
        """Answer one request after the other; until a reply is sent, the next request waits in the socket."""
        total_s: float | None = None
        await self._send(connection, self._metadata)
        while True:
            try:
                async with asyncio.timeout(self._settings.idle_s):
                    frame = await connection.recv()
            except TimeoutError:
                await connection.close(1001, f"no request for {self._settings.idle_s:g} s")
                return
            began = time.perf_counter()
            if isinstance(frame, str):
                raise RequestError("message", "a request is a binary message, not text")
            call = functools.partial(session.answer, frame, total_s)
            del frame  # up to 16 MiB, which an error that holds on to this frame would keep
            self._busy += 1
            try:
                answer = await self._within_limit(worker, call)
                await self._send(connection, answer.frame)
            finally:
                self._busy -= 1
                del call
            total_s = time.perf_counter() - began
            self.metrics.answered(answer.infer_s, total_s)

    async def _send(self, connection: ServerConnection, frame: bytes) -> None:
        """Send to a client that reads; one that does not is dropped."""
        try:
            async with asyncio.timeout(self._settings.idle_s):
                await connection.send(frame)
        except TimeoutError:
            connection.transport.abort()

    async def _within_limit(self, worker: Worker[Answer], call: Callable[[], Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._settings.inference_s):
                return await worker.submit(call)
        except TimeoutError:
            self._hanging.append(worker)
            raise RequestError("timeout", f"the policy took more than {self._settings.inference_s:g} s") from None

    async def _refuse(self, connection: ServerConnection, error: RequestError, name: str) -> None:
        """Say in one sentence what is wrong, keep its cause for the log, and close."""
        self.metrics.counts[f"failed_{error.kind}"] += 1
        _log.warning("%s: %s: %s", name, error.kind, error, exc_info=error.__cause__)
        try:
            async with asyncio.timeout(_CLOSE_S):
                await connection.send(f"{error.kind}: {error} [{name}]")
            await connection.close(1011, error.kind)
        except (ConnectionClosed, TimeoutError):
            connection.transport.abort()


def _forget(connection: ServerConnection) -> None:
    """Let go of the last frame, up to 16 MiB, which websockets keeps in a cycle with what ended the connection."""
    if connection.protocol.parser_exc is not None:
        traceback.clear_frames(connection.protocol.parser_exc.__traceback__)
