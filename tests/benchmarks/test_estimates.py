"""Estimates against hand-made numbers, and against rliable's."""

import itertools

import numpy as np
import pytest

from benchmarks import rliable_parity
from benchmarks.estimates import estimate, improvement, iqm, profile, resamples

# What python -m benchmarks.rliable_parity printed with rliable 1.2.0, arch 7.2.0, numpy 2.4.6, pandas 2.3.3.
RLIABLE = {
    "iqm": [[50.0], [47.77777777777778], [54.44444444444444]],
    "profile": [[0.9333333333333333, 0.3333333333333333, 0.0], [0.8, 0.2, 0.0], [1.0, 0.4666666666666667, 0.0]],
    "improvement": [[0.4000000000000001], [0.2333333333333333], [0.6034999999999998]],
}


def test_interquartile_mean_by_hand():
    scores = np.array([[1.0, 100.0], [2.0, 3.0], [4.0, 5.0], [-90.0, 6.0]])  # -90, 1 and 6, 100 are cut
    assert iqm(scores) == (2 + 3 + 4 + 5) / 4
    assert iqm(np.array([[1.0], [2.0], [9.0]])) == 4  # a quarter of three is none
    np.testing.assert_array_equal(iqm(np.stack([scores, 2 * scores])), [3.5, 7.0])


def test_profile_at_thresholds():
    scores = np.array([[0.0, 10.0], [20.0, 30.0]])
    np.testing.assert_array_equal(profile(scores, np.array([-1.0, 0.0, 15.0, 30.0])), [1, 0.75, 0.5, 0])


def test_probability_of_improvement_by_enumeration():
    generator = np.random.default_rng(0)
    ours, theirs = generator.integers(0, 4, (3, 2)).astype(float), generator.integers(0, 4, (5, 2)).astype(float)
    wins = [
        (ours[i, t] > theirs[j, t]) + (ours[i, t] == theirs[j, t]) / 2
        for i, j, t in itertools.product(range(3), range(5), range(2))
    ]
    assert improvement(ours, theirs) == pytest.approx(np.mean(wins))
    assert improvement(ours, theirs) + improvement(theirs, ours) == pytest.approx(1)
    assert improvement(ours, ours) == 0.5


def test_interval_of_given_resamples():
    scores = np.array([[0.0, 10.0], [4.0, 20.0]])
    indices = np.array([[[0, 0], [0, 0]], [[0, 0], [1, 1]], [[1, 1], [1, 1]]])  # means 5, 8.5 and 12
    found = estimate(lambda x: x.mean(axis=(-2, -1)), [scores], [indices], 0.5)
    assert (found.value, found.low, found.high) == (8.5, 6.75, 10.25)


def test_resamples_are_drawn_for_every_task_apart():
    drawn = resamples((3, 2), 2000, np.random.default_rng(0))
    assert drawn.shape == (2000, 3, 2)
    assert set(np.unique(drawn)) == {0, 1, 2}
    assert (drawn[..., 0] == drawn[..., 1]).mean() == pytest.approx(1 / 3, abs=0.03)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    generator, held = np.random.default_rng(1), 0
    for _ in range(200):
        scores = generator.normal(0, 1, (20, 2))
        found = estimate(iqm, [scores], [resamples((20, 2), 400, generator)], 0.9)
        held += bool(found.low < 0 < found.high)
    assert 0.83 < held / 200 < 0.96


@pytest.mark.parametrize("name", RLIABLE)
def test_numbers_are_those_of_rliable(name):
    found = rliable_parity.ours()[name]
    for ours, theirs in zip((found.value, found.low, found.high), RLIABLE[name], strict=True):
        np.testing.assert_allclose(np.atleast_1d(ours), theirs, rtol=0, atol=1e-12)


def test_the_comparison_runs_where_rliable_is(capsys):
    pytest.importorskip("rliable")
    rliable_parity.main()
    assert '"iqm"' in capsys.readouterr().out
