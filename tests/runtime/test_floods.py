"""Too much of everything: the server stays small, and answers others."""

import contextlib
import gc
import random
import socket
import struct
import threading
import time

import msgpack
import numpy as np
import pytest

from diffpolicy_rl.runtime.wire import pack
from tests.runtime.served import OBS, D, FakePolicy, H, serving
from tests.runtime.wild import HANDSHAKE, Peer, array, check_alive, framed, quiet, resident, shaken


def test_garbage_instead_of_a_handshake():
    rng = random.Random(0)
    with quiet(), serving() as live:
        for start in (b"", b"GET ", b"GET / HTTP/1.1\r\n", HANDSHAKE[:-2], HANDSHAKE.replace(b"13", b"12")):
            with socket.create_connection(("127.0.0.1", live.port), 10) as raw, contextlib.suppress(ConnectionError):
                raw.sendall(start + rng.randbytes(300) + b"\r\n" * 2)
                while raw.recv(2**16):
                    pass
        check_alive(live)


def test_floods_of_small_frames():
    pieces = framed(b"", fin=False) + framed(b"", opcode=0, fin=False) * 5000
    pings = framed(b"ping", opcode=9) * 5000 + framed(b"x")
    with quiet(), serving() as live:
        peer, before = Peer(live.port), resident()
        for _ in range(5):
            assert not peer.send(pieces)
            assert not peer.send(pings)
        assert resident() - before < 32 * 2**20
        check_alive(live)


def test_the_largest_frames_leave_no_memory_behind(request):
    """Each of 16 MiB less a little: an array of another shape, millions of maps, one long text."""
    room = 2**24 - 100
    whole = framed(msgpack.packb({"state": array("|u1", [room - 100], bytes(room - 100))}))
    maps = framed(b"\x81\xa5state" + b"\xdd" + struct.pack(">I", room - 20) + b"\x80" * (room - 20))
    text = framed(msgpack.packb({"state": "x" * (room - 20)}))
    held = []
    gc.disable()  # which frees cycles sometime; nothing this large may be in one
    request.addfinalizer(gc.enable)
    with quiet(), serving() as live:
        peer = Peer(live.port)
        for _ in range(6):
            for frame in (whole, maps, text):
                assert not peer.send(frame)
            held.append(resident())
        assert held[-1] - held[1] < 64 * 2**20  # twelve frames have 192
        check_alive(live)


def test_requests_whose_replies_nobody_reads():
    with quiet(), serving() as live, shaken(live.port) as flood:
        before, sent = resident(), 0
        flood.settimeout(0.2)
        until = time.monotonic() + 1
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < until:
                sent += flood.send(framed(pack(OBS)) * 100)
        check_alive(live)
        assert sent > 2**20
        assert resident() - before < 32 * 2**20


def test_requests_wait_in_the_socket_while_one_is_answered():
    """Ten of 15 MiB, sent at once; the server reads the next one or two."""
    policy, go = FakePolicy(), threading.Event()
    with quiet(), serving(policy) as live, shaken(live.port) as eager:
        policy.act = lambda obs: [go.wait(10), np.zeros((1, H, D))][1]
        large = framed(bytes(15 * 2**20))
        before = resident()
        eager.settimeout(0.5)
        eager.sendall(framed(pack(OBS)))
        with pytest.raises(TimeoutError):
            eager.sendall(large * 10)
        time.sleep(0.1)
        assert resident() - before < 80 * 2**20
        go.set()


def test_hundreds_of_clients_at_once():
    """Those that shake hands are told to come again; those that say nothing cost the others nothing."""
    with quiet(), serving(connections=4) as live, contextlib.ExitStack() as stack, live.client() as client:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", live.port), 10))
        for _ in range(100):
            stack.enter_context(shaken(live.port))
        until = time.monotonic() + 10
        while live.server.metrics.counts["refused_full"] < 97 and time.monotonic() < until:
            time.sleep(0.01)
        assert live.server.metrics.counts["refused_full"] == 97
        np.testing.assert_array_equal(client.infer(OBS)[0], [1, 11])
