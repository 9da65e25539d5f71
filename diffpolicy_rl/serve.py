"""Serve a policy bundle: ``python -m diffpolicy_rl.serve bundle/``."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError, require_positive

if TYPE_CHECKING:
    from diffpolicy_rl.runtime.server import PolicyServer

_TOKEN = "DIFFPOLICY_RL_TOKEN"


@dataclass(frozen=True)
class ServeConfig:
    """Serve a policy by openpi's websocket protocol; clients off this machine need the token in DIFFPOLICY_RL_TOKEN.

    The connection is not encrypted: between machines, use it through SSH or WireGuard.

    Attributes:
        bundle: folder or .zip that export wrote.
        host: address to listen on; any but this machine's own needs a token.
        port: to listen on; 0 for one that is free.
        token_file: file with the token that clients must show, instead of DIFFPOLICY_RL_TOKEN.
        insecure: listen off this machine without a token.
        connections: clients at a time.
        idle_s: seconds without a request after which a client is sent away.
        inference_s: seconds after which a request is given up.
        seed: of the policy's noise; by default no two runs draw alike.
    """

    bundle: str
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str | None = None
    insecure: bool = False
    connections: int = 4
    idle_s: float = 60.0
    inference_s: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse limits that nobody could be served within."""
        require_positive(connections=self.connections, idle_s=self.idle_s, inference_s=self.inference_s)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(ServeConfig, argv, "python -m diffpolicy_rl.serve BUNDLE [key=value ...]", "bundle")
    try:
        from diffpolicy_rl.runtime.access import ServeError
        from diffpolicy_rl.runtime.bundle import load_bundle
        from diffpolicy_rl.runtime.server import PolicyServer, ServerSettings
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}; pip install 'diffpolicy_rl[serve]'") from None
    from diffpolicy_rl.runtime.errors import BundleError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    shared = {name: value for name, value in vars(config).items() if name not in ("bundle", "token_file")}
    settings = ServerSettings(token=_token(config.token_file), **shared)
    try:
        server = PolicyServer(load_bundle(config.bundle), settings)
        asyncio.run(_serve(server, config))
    except (BundleError, ServeError) as error:
        raise UserError(str(error)) from error
    print(json.dumps(server.metrics.report()))


async def _serve(server: "PolicyServer", config: ServeConfig) -> None:
    """Until SIGTERM or SIGINT; a second one ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def note(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, note, number)
    await server.run(stop, lambda port: print(f"serving {config.bundle} on {config.host} port {port}", flush=True))


def _token(file: str | None) -> str | None:
    """The token from a file, or else from the environment, where other users do not see it as they do a command."""
    if file is None:
        return os.environ.get(_TOKEN) or None
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"token_file={file} cannot be read: {error}") from None


if __name__ == "__main__":
    cli.run(main)
