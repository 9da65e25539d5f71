"""A peer that keeps no rules."""

import contextlib
import logging
import os
import socket
import struct
from pathlib import Path

import numpy as np

from tests.runtime.served import OBS, http_get

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@contextlib.contextmanager
def quiet():
    """No log line for each refusal."""
    logger = logging.getLogger("diffpolicy_rl.runtime.server")
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(logging.NOTSET)


def resident():
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def framed(payload, opcode=2, fin=True, declared=None):
    """A client's websocket frame; the mask of zeros leaves the payload as it is."""
    length = len(payload) if declared is None else declared
    head = bytes([(0x80 if fin else 0) | opcode])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 2**16:
        head += b"\xfe" + struct.pack(">H", length)
    else:
        head += b"\xff" + struct.pack(">Q", length)
    return head + bytes(4) + payload


def array(dtype="<f4", shape=(3,), data=bytes(12), **more):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape} | more


class Peer:
    """A raw socket that connects anew whenever the server has closed it."""

    def __init__(self, port):
        self.port, self.socket = port, None

    def send(self, data):
        """Send on an open connection; returns whether the server answered, rather than close."""
        if self.socket is None:
            self.socket = shaken(self.port)
        self.socket.sendall(data)
        with contextlib.suppress(ConnectionError):
            while part := self.socket.recv(2**16):
                if b"server_timing" in part:
                    return True
                if b"\x88" in part:  # a close frame; nothing else that the server sends here has that byte
                    break
        self.socket.close()
        self.socket = None
        return False


def shaken(port):
    """A raw socket after the handshake."""
    raw = socket.create_connection(("127.0.0.1", port), 10)
    raw.sendall(HANDSHAKE)
    got = b""
    while b"\r\n\r\n" not in got:
        part = raw.recv(2**16)
        assert part, "the server refuses to shake hands"
        got += part
    return raw


def check_alive(live):
    """A well-behaved client is answered."""
    with live.client() as client:
        np.testing.assert_array_equal(client.infer(OBS)[0], [1, 11])
    assert http_get(live.port) == (200, "OK\n")
