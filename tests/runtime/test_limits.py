import dataclasses
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.limits import Flag, SafetyFilter
from diffpolicy_rl.runtime.manifest import Limits

REPEATABLE = {"derandomize": True, "deadline": None, "database": None}
EPS = np.finfo(float).eps
HOSTILE = [None, "up", object(), [0.0], 3, math.nan, np.float32(1), np.zeros(0), np.zeros((1, 1)), np.zeros(99)]
KINDS = ("jumps", "huge", "noise", "sine", "edge", "bad", "hold")


def limits(dim=1, low=-1.0, high=1.0, velocity=None, acceleration=None, jerk=None, workspace=None):
    rates = (rate and (float(rate),) * dim for rate in (velocity, acceleration, jerk))
    return Limits((low,) * dim, (high,) * dim, *rates, workspace)


@st.composite
def cases(draw):
    """Limits of any scale, some of them absent, and a period."""
    dim, dt = draw(st.integers(1, 3)), draw(st.sampled_from([0.001, 0.01, 0.02, 0.1]))
    low = draw(hnp.arrays(float, dim, elements=st.floats(-5, 5)))
    high = low + draw(hnp.arrays(float, dim, elements=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 6.0])))
    rates = [draw(st.none() | st.sampled_from([0.01, 0.3, 2.0, 15.0, 100.0, 7500.0])) for _ in range(3)]
    return Limits(tuple(low), tuple(high), *(rate and (rate,) * dim for rate in rates), None), dt


SEGMENTS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(1, 80), st.integers(0, 2**32)), min_size=1, max_size=9
)


def wanted(kind, ticks, seed, limits, dt):
    """What a policy gone wrong, or a good one, asks for; "hold" stands for no action."""
    rng, low, high = np.random.default_rng(seed), np.array(limits.low), np.array(limits.high)
    dim, middle = len(low), (low + high) / 2
    for tick in range(ticks):
        if kind == "jumps":
            yield rng.choice([low - 1, high + 1, middle])
        elif kind == "huge":
            yield rng.choice([-1e30, 1e308, 0.0], dim)
        elif kind == "noise":
            yield middle + rng.normal(size=dim) * (high - low)
        elif kind == "sine":
            yield (middle + (high - low) * np.sin((0.1 + rng.random()) * dt * tick)).astype(np.float32)
        elif kind == "edge":
            yield high
        elif kind == "bad":
            bad = rng.choice([math.nan, math.inf, -math.inf, 0.0], dim)
            yield HOSTILE[rng.integers(len(HOSTILE))] if rng.random() < 0.5 else np.where(rng.random() < 2, bad, 0)
        else:
            yield "hold"


def play(safety, segments, limits, dt):
    """All outputs (T, D)."""
    asked = [a for kind, ticks, seed in segments for a in wanted(kind, ticks, seed, limits, dt)]
    return np.stack([(safety.hold() if isinstance(a, str) and a == "hold" else safety(a)).action for a in asked])


def play_from(share, safety, segments, limits, dt):
    """The same with the start before them, a share of the way from low to high."""
    start = np.clip(np.array(limits.low) * (1 - share) + np.array(limits.high) * share, limits.low, limits.high)
    safety.reset(start)
    return np.concatenate([[start], play(safety, segments, limits, dt)])


def check_all_limits(path, limits, dt):
    """Finite differences of a path (T, D) that began at rest."""
    assert (path >= limits.low).all()
    assert (path <= limits.high).all()
    rounding = 16 * EPS * np.abs(path).max()
    differences = np.concatenate([path[:1]] * 3 + [path])
    for power, rate in enumerate((limits.velocity, limits.acceleration, limits.jerk), start=1):
        differences = np.diff(differences, axis=0)
        if rate is not None:
            assert (np.abs(differences) <= np.array(rate) * dt**power * (1 + 1e-9) + rounding).all(), power


@settings(max_examples=120, **REPEATABLE)
@given(case=cases(), segments=SEGMENTS, start=st.none() | st.floats(0, 1))
def test_no_input_breaks_any_limit(case, segments, start):
    limits, dt = case
    safety = SafetyFilter(limits, dt)
    path = play(safety, segments, limits, dt) if start is None else play_from(start, safety, segments, limits, dt)
    check_all_limits(path, limits, dt)
    other = SafetyFilter(limits, dt)
    again = [other(action) for action in path]
    assert not any(out.flags for out in again)  # its own actions pass through another one
    assert np.array_equal(np.stack([out.action for out in again]), path)


ANYTHING = st.one_of(
    st.none(),
    st.text(),
    st.lists(st.floats(), max_size=3),
    hnp.arrays(hnp.scalar_dtypes() | st.just(np.dtype(object)), hnp.array_shapes(min_dims=0, max_side=3)),
    hnp.arrays(hnp.scalar_dtypes(), 2),
    hnp.arrays(hnp.floating_dtypes() | hnp.integer_dtypes(), 2),
)


@settings(max_examples=200, **REPEATABLE)
@given(actions=st.lists(ANYTHING, min_size=1, max_size=12))
def test_nothing_raises_and_what_cannot_be_used_is_said(actions):
    robot = limits(2, velocity=1, acceleration=5, jerk=50)
    safety, path = SafetyFilter(robot, 0.02), []
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for action in actions:
            out = safety(action)
            path.append(out.action)
            real = isinstance(action, np.ndarray) and action.dtype.kind in "fiu" and action.shape == (2,)
            usable = real and action.dtype.itemsize <= 8 and np.isfinite(action).all()
            assert bool(out.flags & Flag.HELD) == (not usable)
            assert bool(out.flags & Flag.MALFORMED) <= (not usable)
    check_all_limits(np.stack(path), robot, 0.02)


@pytest.mark.parametrize(
    "action",
    [
        np.array([0x7FA00000, 0], np.uint32).view(np.float32),  # a NaN that signals when it is read
        np.zeros(2, np.longdouble) + np.longdouble("1e4000"),
        np.zeros(2, complex),
        np.zeros(2, bool),
        np.ma.masked_array([0.0, 0.0]),
        np.zeros((1, 2)),
        np.array(["0", "0"]),
    ],
)
def test_what_looks_like_an_action_and_is_none(action):
    safety = SafetyFilter(limits(2), 0.02)
    safety.reset(np.array([0.1, 0.2]))
    with np.errstate(all="raise"):
        out = safety(action)
    assert out.flags & Flag.HELD
    assert out.action.tolist() == [0.1, 0.2]


@pytest.mark.parametrize("rates", [(None, None, None), (2.0, None, None), (2.0, 10.0, None), (2.0, 10.0, 5.0)])
def test_positions_hold_to_the_last_bit(rates):
    """A thousand joints with limits of every scale, all pushed against one and then the other."""
    rng = np.random.default_rng(0)
    low = rng.normal(size=1000)
    high = low + 10 ** rng.uniform(-4, 1, 1000)
    safety = SafetyFilter(Limits(tuple(low), tuple(high), *(rate and (rate,) * 1000 for rate in rates), None), 0.02)
    safety.reset(rng.uniform(low, high))
    for tick in range(600):
        action = safety(np.full(1000, 1e30 if tick % 300 < 150 else -1e30)).action
        assert (action >= low).all()
        assert (action <= high).all()


@pytest.mark.parametrize("jerk", [None, 100])
def test_what_is_within_the_limits_passes_bit_for_bit(jerk):
    robot, ticks = limits(2, velocity=2, acceleration=10, jerk=jerk), np.arange(500)[:, None]
    path = np.array([0.5, 0.4]) * (1 - np.cos(np.array([2.0, 3.0]) * 0.02 * ticks)) - 0.3  # starts at rest
    safety = SafetyFilter(robot, 0.02)
    for wanted in path:
        out = safety(wanted.astype(np.float32))
        assert not out.flags
        assert out.action.dtype == np.float64
        assert np.array_equal(out.action, wanted.astype(np.float32))
    assert not any(safety.counts.values())


def test_bounds_by_hand():
    safety = SafetyFilter(limits(low=-10, high=10, velocity=4, acceleration=8, jerk=64), 0.25)  # per tick: 1, 1/2, 1
    safety.reset(np.zeros(1))
    path = [safety(np.array([9.0])).action[0] for _ in range(4)]
    assert path == [0.5, 1.5, 2.5, 3.5]  # half a unit of velocity per tick, up to one
    assert safety.hold() == ([4.0], Flag.HELD)
    assert safety.hold() == ([4.0], Flag.HELD)
    safety = SafetyFilter(limits(low=-1e4, high=1e4, acceleration=8, jerk=8), 0.25)  # per tick: 1/2 and 1/8
    safety.reset(np.zeros(1))
    path = [safety(np.array([9e3])).action[0] for _ in range(6)]
    assert np.diff(path, 2, prepend=[0, 0]).tolist() == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    safety = SafetyFilter(limits(velocity=4), 0.25)
    assert safety(np.array([-5.0])) == ([-1.0], Flag.POSITION)
    assert [safety(np.array([5.0])).action[0] for _ in range(3)] == [0, 1, 1]


@pytest.mark.parametrize("ticks", [1, 2, 7, 40])
def test_the_way_across_is_as_short_as_it_can_be(ticks):
    """At rest to at rest over m^2 A takes m ticks of speeding up, of which the last is braking's first: 2m - 1."""
    acceleration = 2.0**-10
    robot = limits(low=0.0, high=ticks**2 * acceleration, acceleration=acceleration)
    safety = SafetyFilter(robot, 1.0)
    safety.reset(np.zeros(1))
    path = np.array([0.0] + [safety(np.array([1e30])).action[0] for _ in range(2 * ticks + 3)]) / acceleration
    speeds = np.diff(path)
    assert np.allclose(speeds[: 2 * ticks - 1], [*range(1, ticks), *range(ticks, 0, -1)])
    assert np.allclose(path[2 * ticks - 1 :], ticks**2)
    check_all_limits(path[:, None] * acceleration, robot, 1.0)


@pytest.mark.parametrize("jerk", [None, 0.25, 0.125])
def test_braking_distance_in_closed_form(jerk):
    """From n A at a = 0: A n (n-1) / 2, and k v more with k = 2A / J - 1 where jerks are limited."""
    safety = SafetyFilter(limits(low=-1e3, high=1e3, velocity=4, acceleration=0.5, jerk=jerk), 1.0)
    safety.reset(np.zeros(1))
    before, position = [safety(np.array([1e3])).action[0] for _ in range(100)][-2:]
    assert position - before == pytest.approx(4.0, abs=1e-3)
    speed, n = position - before, 8
    for _ in range(300):
        stopped = safety.hold().action[0]
    lag = 2 * 0.5 / jerk - 1 if jerk else 0
    assert stopped - position == pytest.approx(0.5 * n * (n - 1) / 2 + lag * speed, abs=0.05)
    assert safety.hold().action[0] == pytest.approx(stopped, abs=1e-12)


@pytest.mark.parametrize("rates", [{"acceleration": 10}, {"acceleration": 10, "jerk": 100}, {"jerk": 200}, {}])
def test_far_away_actions_are_reached_without_swinging_past_them(rates):
    robot = limits(2, low=-3.0, high=3.0, velocity=2, **rates)
    safety = SafetyFilter(robot, 0.02)
    start, goal = np.array([0.0, -1.0]), np.array([1.0, -2.5])
    safety.reset(start)
    path = [start]
    for _ in range(400):
        out = safety(goal)
        path.append(out.action)
    assert not out.flags
    assert np.array_equal(out.action, goal)
    gone = (np.stack(path) - start) / (goal - start)
    assert (np.diff(gone, axis=0) >= -1e-12).all()
    assert gone.max() <= 1 + 1e-12
    check_all_limits(np.stack(path), robot, 0.02)


@pytest.mark.parametrize("jerk", [None, 100])
def test_after_holds_and_jumps_the_wanted_path_is_found_again(jerk):
    robot, ticks = limits(velocity=2, acceleration=10, jerk=jerk), np.arange(1200)
    path = 0.3 - 0.6 * np.cos(0.03 * ticks)
    safety, out = SafetyFilter(robot, 0.02), []
    for tick, action in enumerate(path[:, None]):
        if 100 <= tick < 130:
            out.append(safety(np.array([math.nan])))
        elif tick == 600:
            out.append(safety(action - 0.8))
        else:
            out.append(safety.hold() if 900 <= tick < 905 else safety(action))
    assert all(out[tick].flags & Flag.NOT_FINITE for tick in range(100, 130))
    assert out[900].flags == Flag.HELD
    for undisturbed in (slice(0, 100), slice(350, 600), slice(850, 900), slice(1150, 1200)):
        assert [o.action[0] for o in out[undisturbed]] == path[undisturbed].tolist()
        assert not any(o.flags for o in out[undisturbed])
    check_all_limits(np.stack([o.action for o in out]), robot, 0.02)


def test_a_held_robot_stands_still():
    safety = SafetyFilter(limits(velocity=2, acceleration=10, jerk=50), 0.02)
    safety.reset(np.zeros(1))
    for _ in range(10):
        safety(np.array([1.0]))
    assert not safety.still
    path = np.array([safety("nonsense").action[0] for _ in range(400)])
    assert safety.still
    assert (np.diff(path) >= 0).all()  # brakes without going back
    assert path[-1] == pytest.approx(path[-50], abs=1e-6)
    assert path[-1] > path[0]


def flags_of(wanted, before=(), **rates):
    safety = SafetyFilter(limits(1, **rates), 1.0)
    safety.reset(np.zeros(1))
    for action in before:
        assert not safety(np.array([action])).flags
    return safety(np.array([wanted])).flags


def test_each_limit_has_its_flag():
    assert flags_of(1.5) == Flag.POSITION
    assert flags_of(0.5, workspace=((-0.4,), (0.4,))) == Flag.WORKSPACE
    assert flags_of(1.5, workspace=((-0.4,), (0.4,))) == Flag.POSITION | Flag.WORKSPACE
    assert flags_of(0.5, velocity=0.4) == Flag.VELOCITY
    assert flags_of(0.5, acceleration=0.4) == Flag.ACCELERATION
    assert flags_of(0.5, jerk=0.4, low=-9.0, high=9.0) == Flag.JERK
    assert flags_of(0.9, [0.2, 0.6], acceleration=0.2, high=0.95) == Flag.BRAKING  # would need 0.1 more to stop
    assert flags_of(0.9, [0.2, 0.6], acceleration=0.2, high=1.01) == 0
    assert flags_of(0.5, velocity=0.5, acceleration=0.5, jerk=1.0) == 0


def test_start():
    safety = SafetyFilter(limits(2, low=1.0, high=2.0, velocity=1), 0.1)
    assert safety(np.array([math.nan, 0])).flags == Flag.NOT_FINITE | Flag.HELD
    safety.reset(None)
    out = safety(None)
    assert out.action.tolist() == [1, 1]  # nearest to 0
    assert out.flags == Flag.MALFORMED | Flag.HELD
    safety.reset(None)
    assert safety(np.array([1.5, 9.0])) == (pytest.approx([1.5, 2.0]), Flag.POSITION)
    safety.reset(np.array([1.0, 1.5]))
    assert safety(np.array([2.0, 1.55])).action.tolist() == [1.1, 1.55]
    safety.reset(np.array([2.001, 1.5]))
    assert safety.hold().action.tolist() == [2.0, 1.5]
    for bad in (np.zeros(3), np.array([math.nan, 0]), [1.0, 1.0]):
        with pytest.raises(ValueError, match="reset takes an array of 2 finite numbers, not "):
            safety.reset(bad)


def test_what_was_returned_is_the_callers():
    safety = SafetyFilter(limits(velocity=1), 0.1)
    for wanted in (0.0, 0.05, 0.9, 0.9):
        out, asked = safety(np.array([wanted])), np.array([wanted])
        out.action[:] = asked[:] = 77.0
    assert safety(np.array([0.9])).action[0] == pytest.approx(0.35)


def test_counts_and_alarm():
    safety = SafetyFilter(limits(velocity=1), 0.1, alarm_after=3)  # ten ticks a second
    safety.reset(np.zeros(1))
    far, here = np.array([5.0]), np.array([0.3])
    assert [Flag.ALARM in safety(far).flags for _ in range(3)] == [False] * 3
    assert safety(None).flags == Flag.MALFORMED | Flag.HELD | Flag.ALARM
    assert [Flag.ALARM in safety(here).flags for _ in range(8)] == [True] * 6 + [False] * 2
    counts = safety.counts
    assert (counts[Flag.POSITION], counts[Flag.VELOCITY], counts[Flag.HELD], counts[Flag.ALARM]) == (3, 3, 1, 7)
    assert counts[Flag.JERK] == counts[Flag.NOT_FINITE] == 0


def test_workspace_bounds_the_leading_dimensions():
    robot = limits(4, velocity=1, workspace=((-0.5, -0.5, 0.1), (0.5, 0.5, 0.4)))
    safety = SafetyFilter(robot, 0.02)
    for sign in (1, -1):
        for _ in range(300):
            out = safety(np.full(4, sign * 1e30))
        assert out.action.tolist() == ([0.5, 0.5, 0.4, 1.0] if sign > 0 else [-0.5, -0.5, 0.1, -1.0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"low": (0.0, math.inf)}, r"limits.low must be 2 finite numbers, not \(0.0, inf\)"),
        ({"high": (1.0,)}, r"limits.high must be 2 finite numbers"),
        ({"high": (1.0, -2.0)}, "dimension 1 of an action has no allowed position"),
        ({"velocity": (1.0, 0.0)}, "limits.velocity must be above 0 in every dimension"),
        ({"acceleration": (1.0, math.nan)}, "limits.acceleration must be 2 finite numbers"),
        ({"jerk": (1.0, 1.0, 1.0)}, "limits.jerk must be 2 finite numbers"),
        ({"workspace": ((0, 0, 0), (1, 1, 1))}, "limits.workspace has 3 axes, but an action has only 2 dimensions"),
        ({"workspace": ((0.0, 0.0), (1.0,))}, "limits.workspace must be 2 finite numbers"),
        ({"workspace": ((2.0,), (3.0,))}, "dimension 0 of an action has no allowed position"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(changed, message):
    with pytest.raises(BundleError, match=message):
        SafetyFilter(dataclasses.replace(limits(2), **changed), 0.02)


@pytest.mark.parametrize("dt", [0.0, -1.0, math.nan, math.inf])
def test_dt_must_be_a_duration(dt):
    with pytest.raises(BundleError, match=f"dt={dt} must be a number of seconds above 0"):
        SafetyFilter(limits(), dt)


def test_the_robot_side_needs_no_torch():
    program = "import sys, diffpolicy_rl.runtime.limits, diffpolicy_rl.runtime.chunk, diffpolicy_rl.runtime.watchdog\n"
    subprocess.run([sys.executable, "-c", program + "assert 'torch' not in sys.modules"], check=True)
