"""What a control loop does when the observations or the actions stop."""

import enum
import math
import time
from collections.abc import Callable

from diffpolicy_rl.runtime.errors import BundleError

_EARLY = 0.99  # a tick that comes a hundredth too early counts, so that jitter never costs a whole period


class State(enum.Enum):
    """What to do in this tick."""

    RUN = "run"
    """Execute the action."""
    HOLD = "hold"
    """Brake and hold the position (``SafetyFilter.hold``): the robot has not been seen for too long."""
    STOP = "stop"
    """Brake, then let the robot damp: nothing has commanded it for too long."""


class Watchdog:
    """Tells from the age of the last observation and of the last action what to do; asked in every control tick.

    It has no thread and latches nothing: the state is that of the moment, and whoever wants a stop to last keeps it.

    Args:
        stale_after_s: age of the last observation from which on the state is HOLD; two control periods, as bundles say
            it (``Control.stale_after_ms``), report a silence in the second tick without an observation.
        stop_after_s: time without an action from which on it is STOP; by default half as much again, three periods.
        clock: seconds that never go back.

    Raises:
        BundleError: for times that are not above 0.
    """

    def __init__(
        self, stale_after_s: float, stop_after_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stale_after_s = stale_after_s
        self.stop_after_s = 1.5 * stale_after_s if stop_after_s is None else stop_after_s
        for name in ("stale_after_s", "stop_after_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise BundleError(f"{name}={getattr(self, name)} must be a number of seconds above 0")
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Start anew: nothing has been seen, and the time without an action begins now."""
        self.dropped = 0
        self._seen_s, self._acted_s = -math.inf, self._clock()
        self._last_observation: int | None = None
        self._last_action: int | None = None

    def observed(self, sequence: int, taken_s: float | None = None) -> bool:
        """Note an observation; returns False, and notes nothing, if a later one is already known.

        Args:
            sequence: grows with every observation.
            taken_s: when it was taken, on the same clock; by default now. A time to come counts as now.
        """
        now = self._clock()
        taken_s = now if taken_s is None else taken_s
        if self._is_old(sequence, self._last_observation) or math.isnan(taken_s):
            return False
        self._last_observation, self._seen_s = sequence, min(taken_s, now)
        return True

    def acted(self, sequence: int) -> bool:
        """Note an action, numbered as observations are; returns False if a later one is known: do not execute it."""
        if self._is_old(sequence, self._last_action):
            return False
        self._last_action, self._acted_s = sequence, self._clock()
        return True

    def _is_old(self, sequence: int, last: int | None) -> bool:
        old = last is not None and sequence <= last
        self.dropped += old
        return old

    @property
    def stale(self) -> bool:
        """Whether the last observation is too old to act on, or there is none."""
        return self._clock() - self._seen_s >= _EARLY * self.stale_after_s

    def state(self) -> State:
        """What to do now; STOP before HOLD, and HOLD before the first observation."""
        if self._clock() - self._acted_s >= _EARLY * self.stop_after_s:
            return State.STOP
        return State.HOLD if self.stale else State.RUN
