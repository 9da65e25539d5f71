import contextlib
import socket
import threading
import time

import numpy as np
import pytest
from websockets.server import ServerProtocol
from websockets.sync.server import serve

from diffpolicy_rl.runtime.client import PolicyClient, ServerLost, ServerRefused
from diffpolicy_rl.runtime.manifest import Limits
from diffpolicy_rl.runtime.wire import WireError, pack
from tests.runtime.served import OBS, FakePolicy, make_manifest, serving

FIRST = [1, 11]
SLACK = 5.0  # this machine may be busy


@contextlib.contextmanager
def another(handler):
    """A server of someone else's making; gives its port."""
    with serve(handler, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_it_knows_the_policy_and_asks_it():
    with serving() as live, live.client() as client:
        assert client.metadata["algorithm"] == "bc"
        assert client.control == make_manifest().control
        assert client.limits == Limits((-1.0, -1.0), (1.0, 1.0), (2.0, 2.0), None, None, None)
        actions = client.infer(OBS)
        assert actions.dtype == np.float32
        np.testing.assert_array_equal(actions, [[1, 11], [2, 12], [3, 13], [4, 14]])
        client.infer(OBS)
        assert client.timing["prev_total_ms"] > client.timing["infer_ms"] > 0
        assert client.connections == 1


def test_pings_are_answered_on_the_way():
    def handler(ws):
        ws.send(pack({}))
        for _ in ws:
            answered = ws.ping()
            assert answered.wait(5)
            ws.send(pack({"actions": np.ones((1, 2))}))

    with another(handler) as port, PolicyClient(port=port, timeout_s=10) as client:
        np.testing.assert_array_equal(client.infer(OBS), [[1, 1]])


def test_a_server_that_tells_nothing_of_the_policy_is_said_to():
    def handler(ws):
        ws.send(pack({"name": "other"}))
        ws.recv()

    with another(handler) as port:
        client = PolicyClient(port=port, timeout_s=10)
        with pytest.raises(ServerRefused, match="does not tell the policy's limits"):
            _ = client.limits
        client.close()


def test_a_server_that_dies_and_comes_back():
    with serving() as live:
        client = live.client(timeout_s=2.0)
        client.infer(OBS)
        port = live.port
    with pytest.raises(ServerLost, match=f"no connection to 127.0.0.1 port {port}: Connection refused"):
        client.infer(OBS)
    with serving(port=port):
        np.testing.assert_array_equal(client.infer(OBS)[0], FIRST)
        assert client.connections == 2
    with serving(port=port):  # gone and back between two requests
        np.testing.assert_array_equal(client.infer(OBS)[0], FIRST)
        assert client.connections == 3
        client.close()


def test_a_refused_request_does_not_end_the_client():
    policy = FakePolicy()
    with serving(policy) as live, live.client() as client:
        with pytest.raises(ServerRefused, match=r"the server says: observation: state is not finite \[client 0\]$"):
            client.infer({"state": np.full(3, np.nan, np.float32)})
        np.testing.assert_array_equal(client.infer(OBS)[0], FIRST)
        policy.act = lambda obs: 1 / 0
        with pytest.raises(ServerRefused, match="the policy failed"):
            client.infer(OBS)
        assert len(policy.seen) == 3  # with the warm-up: a failure is not asked for twice
        policy.act = None
        client.infer(OBS)


def resets_told(client, meanwhile=lambda: None):
    """A list that grows with every request by whether it tells a reset; something happens while the first is asked."""
    told, ask = [], client._ask

    def asked(frame, until):
        told.append(b"__reset__" in frame)
        if len(told) == 1:
            meanwhile()
        return ask(frame, until)

    client._ask = asked
    return told


def test_a_reset_is_told_once():
    with serving() as live, live.client() as client:
        told = resets_told(client)
        client.infer(OBS)
        client.reset()
        client.infer(OBS)
        client.infer(OBS)
    assert told == [False, True, False]


def test_a_reset_is_told_again_if_it_did_not_arrive():
    with serving() as live, live.client() as client:
        told = resets_told(client)
        client.reset()
        with pytest.raises(ServerRefused):
            client.infer({"state": np.zeros(4)})
        client.infer(OBS)
        client.infer(OBS)
    assert told == [True, True, False]


def test_a_reset_is_told_though_an_earlier_one_is_under_way():
    with serving() as live, live.client() as client:
        told = resets_told(client, meanwhile=client.reset)
        client.reset()
        for _ in range(3):
            client.infer(OBS)
    assert told == [True, True, False]


@pytest.mark.parametrize("silent", ["accepts", "shakes hands", "sends metadata", "pings without end"])
def test_no_wait_is_longer_than_the_time_given(silent):
    done = threading.Event()

    def handler(ws):
        if silent != "shakes hands":
            ws.send(pack({}))
        if silent == "pings without end":
            ws.recv()
            while not done.wait(0.01):
                ws.ping()
        done.wait(10)

    with contextlib.ExitStack() as stack:
        if silent == "accepts":
            port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        else:
            port = stack.enter_context(another(handler))
        stack.callback(done.set)
        began = time.monotonic()
        with pytest.raises(ServerLost, match=rf"no answer from 127.0.0.1 port {port} within 0.2 s"):
            PolicyClient(port=port, timeout_s=0.2).infer(OBS)
        assert 0.1 < time.monotonic() - began < 0.4 + SLACK


def test_sending_to_a_server_that_does_not_read_ends_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as stack:
        protocol = ServerProtocol()

        def greet():
            peer = stack.enter_context(listening.accept()[0])
            protocol.receive_data(peer.recv(2**16))
            protocol.send_response(protocol.accept(protocol.events_received()[0]))
            protocol.send_binary(pack({}))
            peer.sendall(b"".join(protocol.data_to_send()))

        thread = threading.Thread(target=greet)
        thread.start()
        client = PolicyClient(port=listening.getsockname()[1], timeout_s=10)
        client.timeout_s = 0.3
        thread.join()
        began = time.monotonic()
        with pytest.raises(ServerLost, match=r"within 0\.3 s"):
            client.infer({"image": np.zeros(15 * 2**20, np.uint8)})
        assert 0.2 < time.monotonic() - began < 0.3 + SLACK


def test_a_late_answer_is_never_taken_for_the_next():
    slow, policy = threading.Event(), FakePolicy()
    with serving(policy) as live:
        client = live.client(timeout_s=0.2)
        policy.act = lambda obs: [slow.wait(0.5), np.full((1, 4, 2), 99)][1]
        with pytest.raises(ServerLost):
            client.infer(OBS)
        policy.act = None
        np.testing.assert_array_equal(client.infer(OBS)[0], FIRST)
        client.close()


def test_errors_name_the_server_and_the_cause():
    port = free_port()
    with pytest.raises(ServerLost, match=f"no connection to 127.0.0.1 port {port}: Connection refused"):
        PolicyClient(port=port)
    with pytest.raises(ServerLost, match=r"there is no host no-such-host\.invalid"):
        PolicyClient("no-such-host.invalid")
    with serving() as live, live.client() as client, pytest.raises(WireError, match="cannot be sent"):
        client.infer({"state": np.array([object()])})


@pytest.mark.parametrize("reply", [b"\xc1", pack({}), pack({"actions": np.zeros(3)}), b"\x81\xa7actions\x01"])
def test_what_is_no_reply_is_refused(reply):
    def handler(ws):
        ws.send(pack({}))
        ws.recv()
        ws.send(reply)

    with another(handler) as port:
        client = PolicyClient(port=port, timeout_s=10)
        with pytest.raises(ServerRefused, match=r"does not speak our protocol: the (message|reply)"):
            client.infer(OBS)


@pytest.mark.parametrize("answer", [b"SSH-2.0-other\r\n", b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n", b""])
def test_what_is_no_policy_server_is_said_to_be_none(answer):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk():
            with listening.accept()[0] as peer:
                peer.recv(2**16)
                peer.sendall(answer)

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises((ServerLost, ServerRefused), match=r"no policy server|answers 418: Teapot|closed"):
            PolicyClient(port=listening.getsockname()[1], timeout_s=5)
        thread.join()


def test_an_error_leaves_no_socket_open():
    with serving() as live:
        client = live.client()
        inner = client._connection._socket
        with pytest.raises(ServerRefused):
            client.infer({})
        assert inner.fileno() == -1
        assert client._connection is None
