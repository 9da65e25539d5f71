"""Who may talk to the server: tokens, addresses, web pages."""

import time

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus

from diffpolicy_rl.runtime.access import Gate, ServeError, require_protection
from diffpolicy_rl.runtime.client import ServerRefused
from diffpolicy_rl.runtime.server import PolicyServer, ServerSettings
from diffpolicy_rl.runtime.wire import unpack
from tests.runtime.served import OBS, FakePolicy, connected, http_get, serving

TOKEN = "0123456789abcdef0123456789abcdef"
LOCAL = {"Authorization": f"Api-Key {TOKEN}"}


def test_the_token_is_asked_for():
    with serving(token=TOKEN) as live:
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": f"Api-Key {TOKEN[:-1]}"}):
            with pytest.raises(InvalidStatus, match="401"):
                connected(live, additional_headers=headers).__enter__()
        with connected(live, additional_headers=LOCAL) as ws:
            assert unpack(ws.recv(10))["name"] == "toy"
        with live.client(token=TOKEN) as client:
            client.infer(OBS)
        with pytest.raises(ServerRefused, match="answers 401: it wants another token"):
            live.client(token="other")
        assert http_get(live.port) == (200, "OK\n")
        assert http_get(live.port, "/metrics")[0] == 401
        assert live.server.metrics.counts["refused_401"] == 5


def test_guessing_is_slowed_down_by_address():
    with serving(token=TOKEN) as live:
        for _ in range(10):
            assert http_get(live.port, "/metrics")[0] == 401
        assert http_get(live.port, "/metrics", [f"Authorization: Api-Key {TOKEN}"])[0] == 429
        with connected(live, additional_headers=LOCAL, source_address=("127.0.0.2", 0)) as ws:
            assert unpack(ws.recv(10))["name"] == "toy"


def test_old_failures_are_forgotten_and_addresses_are_not_kept_for_ever(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    gate, wrong, right = Gate(TOKEN), Headers(), Headers(LOCAL)
    for _ in range(12):
        status = gate.refusal(wrong, "10.0.0.1").status
    assert status == 429
    assert gate.refusal(right, "10.0.0.1").status == 429
    now = 61.0
    assert gate.refusal(right, "10.0.0.1") is None
    for host in range(3000):
        gate.refusal(wrong, f"10.0.{host}")
    assert len(gate._failures) <= 1000


def test_web_pages_are_refused():
    with serving() as live:
        with pytest.raises(InvalidStatus, match="403"):
            connected(live, origin="http://localhost").__enter__()
        assert http_get(live.port, "/metrics", ["Origin: http://127.0.0.1"])[0] == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.1"])
def test_other_machines_need_a_token(host):
    with pytest.raises(ServeError, match=r"can be reached from other machines: give a token") as error:
        PolicyServer(FakePolicy(), ServerSettings(host=host))
    assert "\n" not in str(error.value)
    require_protection(host, TOKEN, insecure=False)
    require_protection(host, None, insecure=True)


def test_this_machine_needs_none_and_tokens_must_be_long():
    for host in ("127.0.0.1", "localhost", "127.0.0.2"):
        require_protection(host, None, insecure=False)
    for token in ("short", "ä" * 40, "a\n" * 30, "two words " * 5):
        with pytest.raises(ServeError, match="at least 22 characters"):
            require_protection("127.0.0.1", token, insecure=True)
    with pytest.raises(ServeError, match="not an address"):
        require_protection("no such host.invalid", None, insecure=False)
