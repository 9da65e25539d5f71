"""Keep MuJoCo's log away from users: model deprecations on the console, MUJOCO_LOG.TXT in the working directory."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules come without types.)

from collections.abc import Iterator
from contextlib import contextmanager

import mujoco


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Silence MuJoCo's console inside the block, and its log file from then on.

    Warnings from a running simulation still reach the console; nothing is ever written to the working directory.
    """
    config = mujoco.MjLogConfig.get()
    console = config.logto_console
    config.logto_console = config.logto_file = False
    config.set()
    try:
        yield
    finally:
        config.logto_console = console
        config.set()
