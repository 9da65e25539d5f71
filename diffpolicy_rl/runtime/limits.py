"""The safety filter between a policy and a robot: every action that it passes on keeps to the limits.

It is not a certified safety function. It bounds what is commanded; it knows nothing of where the robot really is, of
loads or of people; and it sits above the limits, the reflexes and the emergency stop of the robot itself.
"""

import enum
import itertools
from collections import Counter, deque
from typing import Any, NamedTuple

import numpy as np

from diffpolicy_rl.runtime.braking import Array, Motion
from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.manifest import Limits

_ROUNDING = 1e-9  # relative; what is beyond a limit by less raises no flag
_STILL = 1e-6  # of the largest velocity; braking with bounded jerk comes ever nearer to rest


class Flag(enum.IntFlag):
    """Why an action was not passed on as it was; the first six are the limits that it would have broken."""

    POSITION = 1
    WORKSPACE = 2
    VELOCITY = 4
    ACCELERATION = 8
    JERK = 16
    BRAKING = 32
    """It kept to the limits so far, but could not have been braked before a limit, or before what is wanted."""
    MALFORMED = 64
    """It was no array (D,) of real numbers."""
    NOT_FINITE = 128
    HELD = 256
    """It was not used: this tick brakes, or stands still."""
    ALARM = 512
    """More ticks than allowed were flagged within a second."""


_CLEAN, _HELD, _ALARM = Flag(0), int(Flag.HELD), int(Flag.ALARM)  # plain numbers: operators of flags are slow
_MALFORMED, _NOT_FINITE = int(Flag.MALFORMED | Flag.HELD), int(Flag.NOT_FINITE | Flag.HELD)


class Filtered(NamedTuple):
    """An action that keeps to the limits.

    Attributes:
        action: (D,) float64, in new memory.
        flags: none if this is the action that was asked for.
    """

    action: Array
    flags: Flag


class SafetyFilter:
    """Bounds position, velocity, acceleration and jerk of a stream of actions, with one call per control tick.

    Actions are positions, of joints or Cartesian ones, in the units of the limits. Whatever is asked for,

    1. positions and the workspace box hold exactly, for every action;
    2. the velocity limit holds, up to rounding, between any two actions since ``reset``;
    3. so do acceleration and jerk limits, counted from rest at the first action: only states are entered from which all
       joints can be braked within all limits (see ``braking``), so that they never conflict. Only a ``reset`` while the
       robot moves breaks them, and only rounding could set them against 1 and 2, which then win.

    An action within the limits that leaves room to brake passes bit for bit, and so do the filter's own actions through
    another one. After one that did not, the filter comes back to what is wanted without swinging past it. A bad input
    (NaN, infinite, anything but a float or integer array (D,)) never raises and is never used: all joints brake, then
    stand still, flagged ``HELD``. A finite number, however large, is a wish to go as far as allowed. Every call is one
    tick: in a tick without an action, call ``hold``.

    Args:
        limits: per dimension; the workspace box holds for its leading ones.
        dt: seconds between two actions.
        alarm_after: flagged ticks within a second, above which ``ALARM`` is raised too.

    Raises:
        BundleError: for limits that say nothing or contradict each other.
    """

    def __init__(self, limits: Limits, dt: float, alarm_after: int = 10) -> None:
        if not 0 < dt < np.inf:
            raise BundleError(f"dt={dt} must be a number of seconds above 0")
        low, high = _corners(limits)
        rates = [_rate(limits, name) * dt**power for power, name in enumerate(_RATES, start=1)]
        self._motion = Motion(low.max(axis=0), high.min(axis=0), *rates)
        self._shape = (len(limits.low),)
        self._centres = np.add(low, high, where=np.isfinite(low), out=np.zeros_like(low)) / 2
        allowed = np.stack([*((high - low) / 2), *rates, np.zeros(self._shape)])
        self._allowed = allowed * (1 + _ROUNDING) + _ROUNDING * self._motion.velocity
        self._wanted, self._inside, self._before = np.zeros((3, *self._shape))
        self._beyond, self._exceeds = np.zeros_like(allowed), np.zeros(allowed.shape, bool)
        self._rows, self._finite = np.zeros(len(allowed), bool), np.zeros(self._shape, bool)
        self._all_finite = np.ones(self._shape, bool).tobytes()
        self._alarm_after, self._ticks_per_second = alarm_after, max(1, round(1 / dt))
        self._seen: Counter[int] = Counter()
        self.reset(None)

    def reset(self, action: Array | None) -> None:
        """Start anew, at rest.

        Args:
            action: (D,), where the robot is; outside the limits it counts as the nearest place inside. With None the
                first action is the start, wherever within the limits it is (if it is bad: at 0, or the nearest to it).

        Raises:
            ValueError: if the action is not an array of D finite numbers.
        """
        self._tick, self._flagged = 0, deque[int]()
        self._started = False
        if action is not None:
            if self._read(action):
                raise ValueError(f"reset takes an array of {self._shape[0]} finite numbers, not {action!r:.80}")
            self._start()

    @property
    def counts(self) -> dict[Flag, int]:
        """In how many ticks each flag was raised since the filter was made."""
        return {flag: sum(ticks for flags, ticks in self._seen.items() if flags & flag) for flag in Flag}

    @property
    def still(self) -> bool:
        """Whether the last actions stand still: what is left of their motion is too small to matter."""
        left = np.maximum(np.abs(self._motion.speed), np.abs(self._motion.change))
        return bool((left <= _STILL * self._motion.velocity).all())

    @np.errstate(all="ignore")
    def __call__(self, action: Any) -> Filtered:
        """What to command in this tick, as near to the action (D,) as the limits allow."""
        return self._step(self._read(action))

    @np.errstate(all="ignore")
    def hold(self) -> Filtered:
        """What to command in a tick without an action: brake, then stand still."""
        return self._step(_HELD)

    def _read(self, action: Any) -> int:
        """Take over what is wanted; returns the flags of a bad input."""
        if type(action) is not np.ndarray or action.shape != self._shape:
            return _MALFORMED
        if action.dtype.kind not in "fiu" or action.dtype.itemsize > 8:
            return _MALFORMED
        np.copyto(self._wanted, action)
        np.isfinite(self._wanted, self._finite)
        if self._finite.tobytes() != self._all_finite:
            return _NOT_FINITE
        np.minimum(self._wanted, self._motion.high, out=self._inside)
        np.maximum(self._inside, self._motion.low, out=self._inside)
        return 0

    def _step(self, held: int) -> Filtered:
        motion = self._motion
        if not self._started:
            return Filtered(self._start(held), self._report(held or self._broken_at_start()))
        if held:
            motion.look_ahead()
            action = motion.nearest(motion.braked())
            np.copyto(self._inside, action)
        elif self._followed:
            motion.look_ahead()
            action = motion.nearest(self._inside)
        else:
            action = motion.nearest(motion.approach(self._inside, self._before))
        self._followed = not held and action.tobytes() == self._wanted.tobytes()
        flags = held if held or self._followed else self._broken(action)
        self._before, self._inside = self._inside, self._before
        motion.advance(action)
        return Filtered(action, self._report(flags))

    def _start(self, held: int = 0) -> Array:
        """Rest at what is wanted, or as near as positions allow."""
        if held:
            self._inside[:] = np.clip(0.0, self._motion.low, self._motion.high)
        self._motion.start(self._inside)
        self._started = self._followed = True
        return self._inside.copy()

    def _broken(self, action: Array) -> int:
        """Which limits the wanted action breaks in place of the one that is passed on."""
        motion, beyond = self._motion, self._beyond
        np.subtract(self._wanted, self._centres, beyond[:2])
        np.subtract(self._inside, motion.position, beyond[2])
        np.subtract(beyond[2], motion.speed, beyond[3])
        np.subtract(beyond[3], motion.change, beyond[4])
        np.subtract(action, motion.plain(self._inside), beyond[5])
        np.absolute(beyond, beyond)
        np.greater(beyond, self._allowed, self._exceeds)
        np.logical_or.reduce(self._exceeds, axis=1, out=self._rows)
        return _BITS[self._rows.tobytes()]

    def _broken_at_start(self) -> int:
        beyond = np.abs(self._wanted - self._centres) > self._allowed[:2]
        return _BITS[beyond.any(axis=1).tobytes().ljust(6, b"\0")]

    def _report(self, flags: int) -> Flag:
        """Count the flags of this tick, and raise the alarm."""
        self._tick += 1
        flagged = self._flagged
        if flagged and flagged[0] <= self._tick - self._ticks_per_second:
            flagged.popleft()
        if flags:
            flagged.append(self._tick)
        if len(flagged) > self._alarm_after:
            flags |= _ALARM
        if not flags:
            return _CLEAN
        self._seen[flags] += 1
        return Flag(flags)


_RATES = ("velocity", "acceleration", "jerk")
_BITS = {bytes(rows): sum(row << bit for bit, row in enumerate(rows)) for rows in itertools.product((0, 1), repeat=6)}


def _vector(values: tuple[float, ...], size: int, name: str) -> Array:
    vector = np.array(values, np.float64)
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise BundleError(f"limits.{name} must be {size} finite numbers, not {values}")
    return vector


def _rate(limits: Limits, name: str) -> Array:
    values, size = getattr(limits, name), len(limits.low)
    if values is None:
        return np.full(size, np.inf)
    rate = _vector(values, size, name)
    if not (rate > 0).all():
        raise BundleError(f"limits.{name} must be above 0 in every dimension, not {values}")
    return rate


def _corners(limits: Limits) -> tuple[Array, Array]:
    """Low and high (2, D): of the positions, and of the workspace, infinite where it has no axis."""
    size = len(limits.low)
    corners = np.full((2, 2, size), np.inf) * [[[-1.0]], [[1.0]]]
    corners[:, 0] = _vector(limits.low, size, "low"), _vector(limits.high, size, "high")
    if limits.workspace is not None:
        axes = len(limits.workspace[0])
        if axes > size:
            raise BundleError(f"limits.workspace has {axes} axes, but an action has only {size} dimensions")
        corners[:, 1, :axes] = [_vector(corner, axes, "workspace") for corner in limits.workspace]
    for axis in np.flatnonzero(corners[0].max(axis=0) > corners[1].min(axis=0)):
        raise BundleError(f"dimension {axis} of an action has no allowed position: see limits.low, high and workspace")
    return corners[0], corners[1]
