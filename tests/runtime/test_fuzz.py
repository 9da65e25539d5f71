"""Hostile input against a live server: it refuses, forgets, and goes on."""

import math
import random
import struct
from collections import Counter
from pathlib import Path

import msgpack
import numpy as np

from diffpolicy_rl.runtime.wire import pack
from tests.runtime.served import OBS, FakePolicy, serving
from tests.runtime.wild import Peer, array, check_alive, framed, quiet, resident

FRAMES = 10_000
GOOD = pack(OBS)


def messages(rng):
    """One hostile message of each kind, as a websocket's bytes."""
    flipped = bytearray(GOOD)
    for _ in range(rng.randint(1, 4)):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    value = rng.choice([None, True, -1, 1e300, "text" * rng.randint(0, 300), b"\xff" * 100, [], {}, [[{}] * 20] * 20])
    lengths = [rng.choice([0, 1, 3, 2**31, 2**40, 2**63 - 1, -1]) for _ in range(rng.randint(0, 9))]
    header = rng.choice([b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"]) + struct.pack(">I", rng.randint(2**16, 2**31))
    number = rng.choice([np.nan, np.inf, -np.inf])
    sane = {
        "random bytes": rng.randbytes(rng.randint(0, 200)),
        "flipped bytes": bytes(flipped),
        "truncated": GOOD[: rng.randrange(len(GOOD))],
        "trailing": GOOD + rng.randbytes(rng.randint(1, 9)),
        "wrong type": msgpack.packb({"state": value}),
        "wrong map": msgpack.packb(value),
        "wrong dtype": msgpack.packb({"state": array(rng.choice(["|O", "O", "|V4", "<c8", "<U1", "<f4,<f4", "x", 3]))}),
        "wrong shape": msgpack.packb({"state": array(shape=lengths)}),
        "wrong length": msgpack.packb({"state": array(data=bytes(rng.randint(0, 100)))}),
        "not finite": msgpack.packb({"state": array(data=struct.pack("<3f", 0, number, 1))}),
        "declared size": b"\x81\xa5state" + header,
        "deep": b"\x81\xa5state" + rng.choice([b"\x91", b"\x81\xa1a"]) * rng.choice([10, 400, 20_000]),
        "many": b"\x81\xa5state" + b"\xdc\x04\x00" * 2 + b"\x80" * rng.choice([1000, 100_000]),
        "names": msgpack.packb({rng.choice(["state ", "", "__reset__", "🤖" * 50]): array(), "state": array()}),
        "reset": msgpack.packb({"__reset__": rng.choice([0, "yes", None, [True]]), "state": array()}),
        "pickle": b"cos\nsystem\n(S'touch never'\ntR.",
    }
    raw = {
        "text": framed(rng.randbytes(20), opcode=1),
        "reserved opcode": framed(b"", opcode=rng.choice([3, 7, 11, 15])),
        "reserved bits": bytes([0xF2]) + framed(GOOD)[1:],
        "huge frame": framed(b"", declared=rng.choice([2**24 + 1, 2**40, 2**63 - 1])),
        "no mask": b"\x82" + bytes([len(GOOD)]) + GOOD,
        "pieces": framed(GOOD[:9], fin=False) + framed(GOOD[9:], opcode=0, fin=False) + framed(GOOD),
        "bad continuation": framed(GOOD, opcode=0),
        "long ping": framed(bytes(200), opcode=9),
        "bad close": framed(struct.pack(">H", rng.randrange(2**16)) + b"\xff", opcode=8),
    }
    return {name: framed(payload) for name, payload in sane.items()} | raw


def test_ten_thousand_hostile_frames(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy, rng, sent, answered = FakePolicy(), random.Random(0), 0, Counter()
    with quiet(), serving(policy) as live:
        peer, before = Peer(live.port), math.inf
        while sent < FRAMES:
            for name, data in messages(rng).items():
                answered[name] += peer.send(data)
                sent += 1
            if sent == 1000:
                before = resident()
        assert resident() - before < 32 * 2**20
        assert {name for name, count in answered.items() if count} <= {"flipped bytes", "wrong shape", "wrong length"}
        assert len(policy.seen) == 1 + answered.total() == 1 + live.server.metrics.counts["answered"]  # and the warm-up
        check_alive(live)
    assert not Path("never").exists()
    assert all(np.isfinite(obs["state"]).all() and obs["state"].shape == (1, 3) for obs in policy.seen)
