"""What any robot's control loop does with a policy server."""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from diffpolicy_rl.runtime.chunk import ChunkRunner
from diffpolicy_rl.runtime.client import ClientError, PolicyClient
from diffpolicy_rl.runtime.limits import Filtered, SafetyFilter
from diffpolicy_rl.runtime.manifest import Limits
from diffpolicy_rl.runtime.watchdog import State, Watchdog


class Command(NamedTuple):
    """What to command in a tick.

    Attributes:
        filtered: the action (D,), and the limits that the policy's would have broken.
        state: RUN if the policy drives, HOLD or STOP if the watchdog does.
    """

    filtered: Filtered
    state: State


class ControlLoop:
    """Commands what the policy wants as far as the limits allow, and holds when either side falls silent.

    It never waits for the server: chunks are fetched in the background while the last one is executed. Only a policy
    that decides every tick anew (H = 1) is asked within the tick, for half of it at most. Nothing is asked while the
    last observation is stale, and what was planned before such a silence is never executed after it.

    Args:
        client: connected; its timeout is set here.
        limits: of the robot; the bundle's, ``client.limits``, are a start.
        rate_hz: control ticks per second.
    """

    def __init__(self, client: PolicyClient, limits: Limits, rate_hz: float) -> None:
        control = client.control
        mode = "receding" if control.horizon == 1 else "prefetch"
        client.timeout_s = (0.5 if control.horizon == 1 else control.horizon) / rate_hz  # later is too late
        self._client = client
        self._runner = ChunkRunner(client.infer, control.horizon, control.execute, mode=mode)
        self._filter = SafetyFilter(limits, 1 / rate_hz)
        self._watchdog = Watchdog(max(control.stale_after_ms / 1e3, 2 / rate_hz))
        self._obs: Mapping[str, NDArray[Any]] | None = None
        self._seen = self._ticks = 0

    def reset(self, action: NDArray[Any] | None) -> None:
        """Begin an episode; action (D,) is where the robot is commanded to be, if that is known."""
        self._client.reset()
        self._runner.reset()
        self._filter.reset(action)
        self._watchdog.reset()
        self._obs, self._seen, self._ticks = None, 0, 0

    def observe(self, obs: Mapping[str, NDArray[Any]], taken_s: float | None = None) -> None:
        """Note what is seen, at whatever rate that is; taken_s is when, by ``time.monotonic``, and by default now."""
        self._seen += 1
        if self._watchdog.stale:  # told here and not in a tick, so that a silence of this program itself counts, too
            self._runner.reset()
            self._client.reset()
        if self._watchdog.observed(self._seen, taken_s):
            self._obs = obs

    def tick(self) -> Command:
        """What to command now; called ``rate_hz`` times per second, whatever happens."""
        self._ticks += 1
        action = None
        if self._obs is not None and not self._watchdog.stale:
            with contextlib.suppress(ClientError):  # the watchdog sees the silence
                action = self._runner(self._obs)
        if action is None:
            return Command(self._filter.hold(), self._watchdog.state())
        self._watchdog.acted(self._ticks)
        return Command(self._filter(action), State.RUN)

    def brake(self) -> Command:
        """What to command in place of a tick after a stop that is to last."""
        return Command(self._filter.hold(), State.STOP)

    @property
    def still(self) -> bool:
        """Whether the commands stand still."""
        return self._filter.still
