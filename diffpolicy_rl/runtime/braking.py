"""Where a motion may go on, so that it can always be braked to rest within all its limits.

A tick has length 1 here: for commands p the velocity is v = p - p_before, the acceleration a = v - v_before, the jerk
the change of a; V, A and J are their limits. With g = min(1, J / 2A) and k = 1/g - 1 look at

    P = p + k v,    W = v + k a.

They move like a plain double integrator, P' = P + W' and W' = W + u, which p follows as an exponential average: p' =
(1-g) p + g P'. So a' = (1-g) a + g u and the jerk is g (u - a). If P stays between low and high and |u| <= A, then p
and a, averages of what keeps to the limits, keep to them, and the jerk to 2 g A <= J. A state from which P can be
braked to rest by u = -clip(W, -A, A) is thus one from which p can. On this way an acceleration towards a limit of
velocity falls by at least c = g A in every tick, so that the velocity keeps to V if v + (a - c) + (a - 2c) + ... does,
as long as the terms are positive. Whatever leads to such a state is allowed, and the way itself always is.

Both are the same sum: braking P at A from W' takes f(W') = W' + (W' - A) + (W' - 2A) + ... = (n+1) W' - A n(n+1)/2,
n = floor(W' / A), and a' takes f(a') of the velocity with c in the place of A. Its inverse is the largest W' where r is
left before the limit, or the largest a':

    W'(r) = A (R / (n+1) + n/2),    R = r / A,    n = floor(sqrt(2 R + 1/4) - 1/2).

Where J >= 2A, or no jerk is limited, g = 1, k = 0, and braking is as short as it can be. Slower jerks cost distance:
k v more from a = 0.

Commands that were out of reach once are approached in the same way: going for the nearest command in every tick would
arrive with a velocity that cannot be braked, and swing about what is wanted for ever.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ZERO, _QUARTER, _HALF, _ONE, _TWO = map(np.array, (0.0, 0.25, 0.5, 1.0, 2.0))  # faster than plain numbers


class Motion:
    """The commands so far, and which may follow. All per tick; limits that there are not are infinite.

    Args:
        low: (D,) smallest position.
        high: largest position, finite like ``low`` and not below it.
        velocity: largest change of position, above 0.
        acceleration: largest change of velocity, above 0.
        jerk: largest change of acceleration, above 0.

    Attributes:
        position: (D,), the last command.
        speed: (D,), its velocity.
        change: (D,), its acceleration.
    """

    def __init__(self, low: Array, high: Array, velocity: Array, acceleration: Array, jerk: Array) -> None:
        self.low, self.high = low, high
        self.velocity = np.minimum(velocity, high - low)
        self.acceleration = _useful(acceleration, high - low, self.velocity, jerk)
        self.jerk = np.minimum(jerk, 2 * self.acceleration)
        self._gain = self.jerk / (2 * self.acceleration)
        self._lag, self._keep = 1 / self._gain - 1, 1 - self._gain
        self._lag_but_one = self._lag - 1
        self._deceleration = -self.acceleration
        lost = self._gain * self.acceleration  # of acceleration per tick, at least, where it is braked
        self._step_of_rows = np.stack([lost, lost, self.acceleration, self.acceleration, self.acceleration])
        self._per_row, self._gained = 1 / self._step_of_rows, np.stack([lost] * 5)
        # Within these of what is wanted (offset, velocity, own acceleration) it can be taken over and followed at once.
        lagging = self._lag > 0
        third = np.where(lagging, self.jerk / 3, np.inf)
        self._near = np.stack([np.where(lagging, third, self.acceleration), third, third])
        self._allocate(len(low))

    def _allocate(self, dim: int) -> None:
        """Memory that every tick writes to anew; all calls that need some cost more than those that do not."""
        self.position, self.speed, self.change, self._next = np.zeros((4, dim))
        self._slow, self._fast, self._lower, self._upper = np.zeros((4, dim))
        self._slowest, self._fastest, self._lead, self._from = np.zeros((4, dim))
        self._ahead, self._step, self._goal = np.zeros((3, dim))
        self._rows, self._off = np.zeros((3, 5, dim)), np.zeros((3, dim))
        self._is_near, self._are_near = np.zeros((3, dim), bool), np.zeros(dim, bool)

    def start(self, position: Array) -> None:
        """Rest at a position (D,) within the limits."""
        self.position[:], self.speed[:], self.change[:] = position, 0.0, 0.0

    def look_ahead(self) -> None:
        """Find the bounds of the next command."""
        self._find_room()
        self._find_bounds(self._brakeable(4))

    def approach(self, wanted: Array, before: Array) -> Array:
        """Find the bounds, and the command (D,) that leads back to what is wanted after others than that were given.

        What is wanted is taken to move on as it did from ``before``, wanted in the last tick, to ``wanted``; in the
        frame that moves with it, P is braked to rest there. The result is overwritten by the next call.
        """
        self._find_room()
        step, goal, off = self._step, self._goal, self._off
        np.subtract(wanted, before, step)
        np.multiply(self._lag_but_one, step, goal)
        np.add(goal, wanted, goal)
        np.subtract(goal, self._lead, goal)
        np.absolute(goal, self._rows[0, 4])
        brakeable = self._brakeable(5)
        self._find_bounds(brakeable)
        np.copysign(brakeable[4], goal, goal)
        np.multiply(self._gain, step, off[0])
        np.add(goal, off[0], goal)
        np.add(goal, self._from, goal)
        np.subtract(before, self.position, off[0])
        np.subtract(step, self.speed, off[1])
        np.copyto(off[2], self.change)
        np.absolute(off, off)
        np.less_equal(off, self._near, self._is_near)
        np.logical_and.reduce(self._is_near, axis=0, out=self._are_near)
        np.copyto(goal, wanted, where=self._are_near)
        return goal

    def _find_room(self) -> None:
        """What is left up to and down to the limits, of v and of P."""
        room = self._rows[0]
        np.subtract(self.velocity, self.speed, room[0])
        np.add(self.velocity, self.speed, room[1])
        np.multiply(self._lag, self.speed, self._lead)
        np.add(self._lead, self.position, self._lead)
        np.subtract(self.high, self._lead, room[2])
        np.subtract(self._lead, self.low, room[3])

    def _brakeable(self, count: int) -> Array:
        """The largest a' or g W' for the room of the first rows, in its place."""
        room, ticks, parts = self._rows[:, :count]
        np.multiply(room, self._per_row[:count], room)
        np.maximum(room, _ZERO, out=room)
        np.multiply(room, _TWO, ticks)
        np.add(ticks, _QUARTER, ticks)
        np.sqrt(ticks, ticks)
        np.subtract(ticks, _HALF, ticks)
        np.floor(ticks, ticks)
        np.add(ticks, _ONE, parts)
        np.divide(room, parts, room)
        np.multiply(ticks, _HALF, ticks)
        np.add(room, ticks, room)
        return np.multiply(room, self._gained[:count], room)

    def _find_bounds(self, brakeable: Array) -> None:
        """The commands that braking allows, lower to upper, and that acceleration and velocity do, slow to fast."""
        np.multiply(self._keep, self.speed, self._from)
        np.add(self._from, self.position, self._from)
        np.add(self._from, brakeable[2], self._upper)
        np.subtract(self._from, brakeable[3], self._lower)
        np.subtract(self.change, self.jerk, self._slowest)
        np.maximum(self._slowest, self._deceleration, out=self._slowest)
        np.add(self.change, self.jerk, self._fastest)
        np.minimum(self._fastest, self.acceleration, out=self._fastest)
        np.add(self.position, self.speed, self._ahead)
        np.minimum(self._fastest, brakeable[0], out=self._fast)
        np.add(self._fast, self._ahead, self._fast)
        np.negative(brakeable[1], brakeable[1])
        np.maximum(self._slowest, brakeable[1], out=self._slow)
        np.add(self._slow, self._ahead, self._slow)

    def nearest(self, wanted: Array) -> Array:
        """The command (D,), in new memory, that is nearest to the wanted one and within the bounds.

        Positions come last, so that they hold exactly even where rounding leaves no command within all bounds.
        """
        command = np.minimum(wanted, self._fast)
        np.maximum(command, self._slow, out=command)
        np.minimum(command, self._upper, out=command)
        np.maximum(command, self._lower, out=command)
        np.minimum(command, self.high, out=command)
        return np.maximum(command, self.low, out=command)

    def plain(self, wanted: Array) -> Array:
        """The same as if nothing had ever to be braked; overwritten by the next call."""
        change = self._step
        np.subtract(wanted, self.position, change)
        np.minimum(change, self.velocity, out=change)
        np.negative(self.velocity, self._lead)
        np.maximum(change, self._lead, out=change)
        np.subtract(change, self.speed, change)
        np.minimum(change, self._fastest, out=change)
        np.maximum(change, self._slowest, out=change)
        return np.add(change, self._ahead, change)

    def braked(self) -> Array:
        """The next command (D,) on the way to rest that is always open."""
        coasting = self.speed + self._lag * self.change
        coasting -= np.clip(coasting, self._deceleration, self.acceleration)
        return self.position + self._keep * self.speed + self._gain * coasting

    def advance(self, command: Array) -> None:
        """Take over a command (D,)."""
        np.subtract(command, self.position, self._next)
        np.subtract(self._next, self.speed, self.change)
        self.speed, self._next = self._next, self.speed
        np.copyto(self.position, command)


def _useful(acceleration: Array, length: Array, velocity: Array, jerk: Array) -> Array:
    """The acceleration limit, or less where the other limits leave less to any motion; above 0.

    Of ticks the velocity cannot change by more than 2V. By the inequalities of Landau and of Kolmogorov, motions with
    a velocity of at most V have a^2 <= 2 V J, and those within a length L have a^3 <= 3/2 L J^2.
    """
    with np.errstate(invalid="ignore"):
        most = np.fmin(np.sqrt(2 * velocity * jerk), np.cbrt(1.5 * length * jerk**2))
    return np.where(length > 0, np.fmin(acceleration, np.fmin(most, 2 * velocity)), 1.0)
