import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.watchdog import State, Watchdog

PERIOD = 0.02


class Clock:
    """Time that passes when told to."""

    now = 1000.0

    def __call__(self):
        return self.now


def made():
    clock = Clock()
    return Watchdog(2 * PERIOD, clock=clock), clock


def test_by_hand():
    watchdog, clock = made()
    assert watchdog.state() is State.HOLD  # nothing seen yet
    assert watchdog.observed(0)
    assert watchdog.acted(0)
    assert watchdog.state() is State.RUN
    states = []
    for _ in range(4):  # silence
        clock.now += PERIOD
        states.append(watchdog.state())
    assert states == [State.RUN, State.HOLD, State.STOP, State.STOP]
    assert watchdog.observed(1)
    assert watchdog.state() is State.STOP  # seen again, but not commanded
    assert watchdog.acted(1)
    assert watchdog.state() is State.RUN
    clock.now += 2 * PERIOD
    watchdog.acted(2)
    assert watchdog.state() is State.HOLD  # commanded, but not seen


def test_silence_from_the_start_ends_in_a_stop():
    watchdog, clock = made()
    clock.now += 2.5 * PERIOD
    assert watchdog.state() is State.HOLD
    clock.now += 0.5 * PERIOD
    assert watchdog.state() is State.STOP
    watchdog.reset()
    assert watchdog.state() is State.HOLD


def test_age_counts_from_when_the_observation_was_taken():
    watchdog, clock = made()
    watchdog.acted(0)
    watchdog.observed(0, taken_s=clock.now - 1.5 * PERIOD)
    assert watchdog.state() is State.RUN
    clock.now += 0.5 * PERIOD
    assert watchdog.state() is State.HOLD
    watchdog.observed(1, taken_s=clock.now + 100)  # a clock that runs ahead must not hide a silence
    watchdog.acted(1)
    clock.now += 2 * PERIOD
    assert watchdog.state() is State.HOLD
    assert not watchdog.observed(2, taken_s=math.nan)
    assert watchdog.state() is State.HOLD


def test_what_comes_out_of_order_is_dropped():
    watchdog, clock = made()
    assert [watchdog.observed(number) for number in (3, 2, 3, 4, -1, 9)] == [True, False, False, True, False, True]
    assert watchdog.dropped == 3
    assert [watchdog.acted(number) for number in (0, 5, 4)] == [True, True, False]  # numbered apart
    assert watchdog.dropped == 4
    clock.now += 2 * PERIOD
    assert not watchdog.observed(9)
    assert watchdog.state() is State.HOLD  # an old one refreshes nothing
    clock.now += PERIOD
    assert not watchdog.acted(5)
    assert watchdog.state() is State.STOP
    watchdog.reset()
    assert watchdog.dropped == 0
    assert watchdog.observed(0)
    assert watchdog.acted(0)


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(
    ticks=st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(-0.005, 0.005)), min_size=1, max_size=60),
    late=st.floats(0, 0.9),
)
def test_every_silence_is_reported_within_two_periods(ticks, late):
    """Ticks jitter by 0.5 % of a period; observations come at any phase between them."""
    watchdog, clock = made()
    began = seen = acted = clock.now
    watchdog.observed(0)
    for number, (sees, acts, jitter) in enumerate(ticks, start=1):
        if sees:
            clock.now = seen = max(clock.now, began + (number - late) * PERIOD)
            assert watchdog.observed(number)
        clock.now = max(clock.now, began + (number + jitter) * PERIOD)
        if acts:
            acted = clock.now
            assert watchdog.acted(number)
        silent, idle = clock.now - seen, clock.now - acted
        state = watchdog.state()
        if idle > 2.99 * PERIOD:
            assert state is State.STOP
        elif silent > 1.99 * PERIOD:
            assert state is State.HOLD
        elif idle < 2.96 * PERIOD and silent < 1.97 * PERIOD:
            assert state is State.RUN


@pytest.mark.parametrize("times", [(0.0, None), (math.nan, None), (0.1, -1.0), (0.1, math.inf)])
def test_times_must_be_durations(times):
    with pytest.raises(BundleError, match="must be a number of seconds above 0"):
        Watchdog(*times)
