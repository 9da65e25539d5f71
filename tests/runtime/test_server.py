import asyncio
import contextlib
import json
import logging
import socket
import struct
import threading
import time

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from diffpolicy_rl.runtime.access import ServeError
from diffpolicy_rl.runtime.client import ServerLost, ServerRefused
from diffpolicy_rl.runtime.server import PolicyServer, ServerSettings
from diffpolicy_rl.runtime.wire import MAX_BYTES, pack, unpack
from tests.runtime.served import (
    HISTORY,
    IMAGE,
    OBS,
    STATE,
    D,
    FakePolicy,
    H,
    connected,
    http_get,
    make_manifest,
    serving,
)


def ended(ws):
    """Close code and reason that the server gave."""
    with pytest.raises(ConnectionClosed) as closed:
        ws.recv(10)
    return closed.value.rcvd.code, closed.value.rcvd.reason


def test_metadata_comes_first_then_one_reply_per_request():
    with serving() as live, connected(live) as ws:
        told = unpack(ws.recv(10))
        assert told["name"] == "toy"
        assert told["control"]["horizon"] == H
        assert told["inputs"][0] | {"names": None} == vars(STATE) | {"names": None, "shape": [3]}
        assert told["limits"]["velocity"] == [2.0, 2.0]
        ws.send(pack(OBS))
        reply = unpack(ws.recv(10))
        assert reply["actions"].dtype == np.float32
        np.testing.assert_array_equal(reply["actions"], [[1, 11], [2, 12], [3, 13], [4, 14]])
        assert reply["server_timing"].keys() == {"infer_ms"}
        ws.send(pack(OBS))
        timing = unpack(ws.recv(10))["server_timing"]
        assert timing["prev_total_ms"] > timing["infer_ms"] > 0


def test_a_batch_of_one_in_the_manifests_dtype_reaches_the_policy():
    policy = FakePolicy(make_manifest([STATE, IMAGE]))
    with serving(policy) as live, live.client() as client:
        client.infer({"state": np.array([1.0, 2.0, 3.0], ">f8"), "image": np.ones((2, 2, 3), np.uint8)})
    obs = policy.seen[-1]
    assert obs["state"].dtype == np.float32
    assert obs["state"].shape == (1, 3)
    assert obs["image"].dtype == np.uint8
    assert obs["image"].shape == (1, 2, 2, 3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"state": None}, "state is a NoneType, not an array"),
        ({"state": [1.0, 2.0, 3.0]}, "state is a list, not an array"),
        ({"state": np.zeros(4, np.float32)}, "state is float32 (4,), not float32 (3,)"),
        ({"state": np.zeros((1, 3), np.float32)}, "state is float32 (1, 3), not float32 (3,)"),
        ({"state": np.zeros(3, np.int64)}, "state is int64 (3,), not float32 (3,)"),
        ({"state": np.array([0, np.nan, 0], np.float32)}, "state is not finite"),
        ({"state": np.array([0, np.inf, 0], np.float32)}, "state is not finite"),
        ({"state": np.array([0, 1e300, 0])}, "state is not finite"),
        ({"image": np.zeros((2, 2, 3), np.int8)}, "image is int8 (2, 2, 3), not uint8 (2, 2, 3)"),
        ({"image": np.zeros((2, 3), np.uint8)}, "image is uint8 (2, 3), not uint8 (2, 2, 3)"),
        ({"image": ...}, "the observation image is missing"),
        ({"stat": np.zeros(3)}, "the policy has no input 'stat'; it takes image, state"),
        ({"x" * 1000: 1}, f"the policy has no input '{'x' * 40}'; it takes image, state"),
        ({"__reset__": 1}, "__reset__ is neither true nor false"),
    ],
)
def test_wrong_observations_are_refused_in_one_sentence(changes, sentence):
    policy = FakePolicy(make_manifest([STATE, IMAGE]))
    good = OBS | {"image": np.zeros((2, 2, 3), np.uint8)}
    with serving(policy) as live, connected(live) as ws:
        ws.recv(10)
        ws.send(msgpack.packb({k: v for k, v in (good | changes).items() if v is not ...}, default=encoded))
        kind = "message" if "__reset__" in changes else "observation"
        assert ws.recv(10) == f"{kind}: {sentence} [client 0]"
        assert ended(ws) == (1011, kind)
        assert live.server.metrics.counts[f"failed_{kind}"] == 1
    assert len(policy.seen) == 1  # the warm-up


def encoded(array):
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


def test_text_is_no_request():
    with serving() as live, connected(live) as ws:
        ws.recv(10)
        ws.send("hello")
        assert ws.recv(10) == "message: a request is a binary message, not text [client 0]"
        assert ended(ws) == (1011, "message")


def test_each_client_has_its_own_noise_and_the_seed_repeats_it():
    def drawn(seed):
        policy = FakePolicy(make_manifest(noise=(H, D)))
        with serving(policy, seed=seed) as live, live.client() as first, live.client() as second:
            replies = [client.infer(OBS) for client in (first, second, first, second)]
        grid = np.arange(H)[:, None] + 10 * np.arange(D) + 1
        return [reply - grid.astype(np.float32) for reply in replies]

    once = drawn(7)
    for number, found in enumerate(once):
        stream = np.random.default_rng(np.random.SeedSequence(7).spawn(2)[number % 2])
        expected = [stream.standard_normal((1, H, D)).astype(np.float32)[0] for _ in range(2)][number // 2]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(once, drawn(7))
    assert not np.allclose(drawn(None), drawn(None))


def test_each_client_has_its_own_history():
    policy = FakePolicy(make_manifest([HISTORY], execute=1))

    def rows(*values):
        return np.array(values, np.float32)[:, None].repeat(2, 1)

    with serving(policy) as live, live.client() as first, live.client() as second:
        for client, row, expected in [
            (first, 1, [1, 1, 1]),
            (first, 2, [1, 1, 2]),
            (second, 9, [9, 9, 9]),
            (first, 3, [1, 2, 3]),
            (first, 4, [2, 3, 4]),
            (second, 8, [9, 9, 8]),
        ]:
            client.infer({"state": rows(row)[0]})
            np.testing.assert_array_equal(policy.seen[-1]["state"][0], rows(*expected))
        first.reset()
        first.infer({"state": rows(5)[0]})
        np.testing.assert_array_equal(policy.seen[-1]["state"][0], rows(5, 5, 5))
        first.infer({"state": rows(6)[0]})
        np.testing.assert_array_equal(policy.seen[-1]["state"][0], rows(5, 5, 6))
        first.infer({"state": rows(0, 1, 2)})  # all of it, if the client keeps it itself
        np.testing.assert_array_equal(policy.seen[-1]["state"][0], rows(0, 1, 2))


def test_what_was_seen_between_two_requests_must_be_sent():
    with serving(FakePolicy(make_manifest([HISTORY], execute=2))) as live, live.client() as client:
        client.infer({"state": np.zeros((3, 2), np.float32)})
        with pytest.raises(ServerRefused, match=r"state is float32 \(2,\), not float32 \(3, 2\)"):
            client.infer({"state": np.zeros(2, np.float32)})


def test_a_policy_that_corrects_every_action_answers_with_one_at_a_time():
    """A = 2 of the plan h + 10 d + state[0] + 100 state[1]; the plan is of the first of the two observations."""
    policy = FakePolicy(make_manifest(graphs={"policy": "policy.onnx", "residual": "residual.onnx"}))
    with serving(policy) as live, live.client() as client:
        assert (client.control.horizon, client.control.execute) == (1, 1)
        for start, state, expected in [
            (False, [1, 0, 0], [1, 11]),
            (False, [5, 2, 0], [202, 212]),
            (False, [7, 0, 0], [7, 17]),
            (True, [3, 0, 0], [3, 13]),
            (False, [9, 0, 0], [4, 14]),
        ]:
            if start:
                client.reset()
            actions = client.infer({"state": np.array(state, np.float32)})
            np.testing.assert_array_equal(actions, [expected])


class Secret(Exception):
    pass


@pytest.mark.parametrize(
    ("act", "cause"),
    [
        (lambda obs: (_ for _ in ()).throw(Secret("/home/me/key")), "Secret: /home/me/key"),
        (lambda obs: np.zeros((1, H, D + 1)), "shape (1, 4, 3), not finite ones of (1, 4, 2)"),
        (lambda obs: np.full((1, H, D), np.nan), "not finite ones"),
        (lambda obs: None, "AttributeError"),
    ],
)
def test_a_policy_that_fails_tells_the_log_and_not_the_peer(act, cause, caplog):
    policy = FakePolicy()
    with serving(policy) as live, connected(live) as ws:
        policy.act = act
        ws.recv(10)
        ws.send(pack(OBS))
        assert ws.recv(10) == "policy: the policy failed; the server's log says why [client 0]"
        assert ended(ws) == (1011, "policy")
        assert cause in caplog.text
        assert "Traceback" in caplog.text
        policy.act = None
        with live.client() as client:
            client.infer(OBS)


def test_a_policy_that_hangs_costs_one_slot_until_it_returns():
    go, policy = threading.Event(), FakePolicy()
    with serving(policy, inference_s=0.2, connections=2) as live:
        policy.act = lambda obs: [go.wait(30), np.zeros((1, H, D))][1]
        with connected(live) as ws:
            ws.recv(10)
            ws.send(pack(OBS))
            assert ws.recv(10) == "timeout: the policy took more than 0.2 s [client 0]"
            assert ended(ws) == (1011, "timeout")
        assert http_get(live.port) == (503, "the policy hangs\n")
        policy.act = None
        with live.client() as client:
            client.infer(OBS)  # in a thread of its own
            with pytest.raises(ServerLost, match="all 2 connections are in use"):
                live.client()
        go.set()
        until = time.monotonic() + 5
        while http_get(live.port)[0] == 503 and time.monotonic() < until:
            time.sleep(0.01)
        assert http_get(live.port) == (200, "OK\n")


def test_threads_are_as_many_as_clients_at_a_time_and_end_with_the_server():
    before = threading.active_count()
    with serving() as live:
        for _ in range(20):
            with live.client() as first, live.client() as second:
                first.infer(OBS), second.infer(OBS)
        assert threading.active_count() <= before + 1 + 4
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_policy_that_fails_on_zeros_is_not_served():
    with pytest.raises(ServeError, match="fails on observations of zeros: bad graph"):
        PolicyServer(FakePolicy(act=lambda obs: (_ for _ in ()).throw(RuntimeError("bad graph"))), ServerSettings())


def test_where_it_cannot_listen_it_says_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = PolicyServer(FakePolicy(), ServerSettings(port=taken.getsockname()[1]))
        with pytest.raises(ServeError, match=r"cannot listen on 127.0.0.1 port \d+: "):
            asyncio.run(server.run(asyncio.Event(), print))


def test_clients_beyond_the_limit_are_sent_away():
    with serving(connections=2) as live:
        with live.client() as first, live.client():
            for _ in range(20):
                with connected(live) as ws:
                    assert ended(ws) == (1013, "all 2 connections are in use; try again later")
            first.infer(OBS)
        with connected(live) as ws:
            ws.recv(10)
        assert live.server.metrics.counts["refused_full"] == 20


def test_a_silent_client_is_sent_away():
    with serving(idle_s=0.2) as live, connected(live) as ws:
        ws.recv(10)
        began = time.monotonic()
        assert ended(ws) == (1001, "no request for 0.2 s")
        assert 0.1 < time.monotonic() - began < 5


def test_too_large_messages_are_refused_unread():
    with serving() as live:
        with connected(live) as ws:
            ws.recv(10)
            with contextlib.suppress(ConnectionClosed):
                ws.send(bytes(MAX_BYTES + 1))
            assert ended(ws)[0] == 1009
        with connected(live) as ws:
            ws.recv(10)
            ws.socket.sendall(b"\x82\xff" + struct.pack(">Q", 2**62) + bytes(4))  # declared, not sent
            assert ended(ws)[0] == 1009


def test_a_client_killed_mid_request_frees_its_place(caplog):
    caplog.set_level(logging.INFO)
    started, policy = threading.Event(), FakePolicy()
    with serving(policy, connections=1) as live:
        policy.act = lambda obs: [started.set(), time.sleep(0.2), np.zeros((1, H, D))][2]
        client = live.client()
        client._connection._protocol.send_binary(pack(OBS))
        client._connection._flush(time.monotonic() + 10)
        assert started.wait(10)
        client._connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client._connection._socket.close()  # a reset, as of a process that is killed with data on its way
        time.sleep(0.4)
        policy.act = None
        with live.client() as other:
            other.infer(OBS)
        assert http_get(live.port)[0] == 200
    assert "Traceback" not in caplog.text


def test_a_request_in_flight_is_answered_before_the_end():
    started, policy = threading.Event(), FakePolicy()
    with serving(policy) as live, connected(live) as ws:
        ws.recv(10)
        policy.act = lambda obs: [started.set(), time.sleep(0.1), np.ones((1, H, D))][2]
        ws.send(pack(OBS))
        assert started.wait(10)
        threading.Thread(target=live.stop).start()
        np.testing.assert_array_equal(unpack(ws.recv(10))["actions"], 1)
        assert ended(ws)[0] == 1001


def test_the_end_waits_for_nobody_who_hangs():
    go, started, policy = threading.Event(), threading.Event(), FakePolicy()
    with serving(policy) as live, connected(live) as ws, live.client():
        ws.recv(10)
        policy.act = lambda obs: [started.set(), go.wait(30), np.zeros((1, H, D))][2]
        ws.send(pack(OBS))
        assert started.wait(10)
        began = time.monotonic()
        live.stop()
        assert time.monotonic() - began < 15
    go.set()


def test_metrics_count_and_time():
    with serving() as live:
        with live.client() as client:
            for _ in range(5):
                client.infer(OBS)
        with connected(live) as ws:
            ws.send("x")
            ws.recv(10), ws.recv(10)
        status, body = http_get(live.port, "/metrics")
        report = json.loads(body)
    assert status == 200
    assert (report["clients"], report["answered"], report["failed_message"]) == (2, 5, 1)
    for name in ("infer_ms", "total_ms"):
        assert 0 < report[name]["p50"] <= report[name]["p95"] <= report[name]["p99"]
    assert report["infer_ms"]["p50"] < report["total_ms"]["p50"]
