"""Who may talk to the server."""

import hmac
import ipaddress
import re
import socket
import time
from collections import deque
from http import HTTPStatus
from typing import NamedTuple

from websockets.datastructures import Headers

_MIN_TOKEN = 22  # characters of base64 that hold 128 bits
_FAILURES, _WINDOW_S, _ADDRESSES = 10, 60.0, 1000


class ServeError(ValueError):
    """The server does not start; one sentence."""


class Refusal(NamedTuple):
    """What a peer is told instead of being let in."""

    status: HTTPStatus
    sentence: str


def require_protection(host: str, token: str | None, insecure: bool) -> None:
    """Raise ServeError unless only this machine can reach the server, or a token that cannot be guessed protects it."""
    if token is not None and not re.fullmatch(rf"[!-~]{{{_MIN_TOKEN},}}", token):
        raise ServeError(
            f"the token must be at least {_MIN_TOKEN} characters of ASCII without spaces; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    if token is None and not insecure and not is_loopback(host):
        raise ServeError(
            f"host={host or 'any'} can be reached from other machines: give a token in DIFFPOLICY_RL_TOKEN or "
            "token_file=FILE, or set insecure=true on a network that nobody else is in"
        )


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone; none at all means every address."""
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ServeError(f"host={host} is not an address of this machine") from None
    return all(ipaddress.ip_address(info[4][0]).is_loopback for info in found)


class Gate:
    """Lets in who has the token, and no web page.

    An address that showed ten wrong tokens within a minute is no longer looked at until the minute is over.

    Args:
        token: what clients show as ``Authorization: Api-Key <token>``, or None for no such check.
    """

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else f"Api-Key {token}".encode()
        self._failures: dict[str, deque[float]] = {}

    def refusal(self, headers: Headers, address: str) -> Refusal | None:
        """Why a peer is not let in, if it is not."""
        if "Origin" in headers:  # a browser; its user need not know what the page it shows connects to
            return Refusal(HTTPStatus.FORBIDDEN, "web pages are not served")
        if self._expected is None:
            return None
        failures = self._failures.get(address, deque())
        while failures and failures[0] < time.monotonic() - _WINDOW_S:
            failures.popleft()
        if len(failures) >= _FAILURES:
            return Refusal(HTTPStatus.TOO_MANY_REQUESTS, "too many wrong tokens; wait a minute")
        if any(hmac.compare_digest(_encoded(shown), self._expected) for shown in headers.get_all("Authorization")):
            return None
        failures.append(time.monotonic())
        self._failures.pop(address, None)
        self._failures[address] = failures
        if len(self._failures) > _ADDRESSES:
            del self._failures[next(iter(self._failures))]
        return Refusal(HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Api-Key TOKEN")


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
