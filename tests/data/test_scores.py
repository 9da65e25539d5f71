"""Normalised scores against D4RL's definition."""

import numpy as np
import pytest

from diffpolicy_rl.data.scores import describe, normalized_cost, normalized_score


def test_reference_returns_score_0_and_100() -> None:
    assert normalized_score("Hopper-v5", 3234.3) == pytest.approx(100)
    assert normalized_score("Hopper-v5", -20.272305) == pytest.approx(0)
    assert normalized_score("HalfCheetah-v5", 5927.4105235) == pytest.approx(50)


def test_a_task_without_references_has_no_score() -> None:
    assert normalized_score("PegInsertion", 1.0) is None


def test_dsrl_s_references_and_cost() -> None:
    assert normalized_score("SafeHopper-v5", 1911.396728515625) == pytest.approx(100)
    assert normalized_score("SafeHalfCheetah-v5", 5.7509765625) == pytest.approx(0)
    assert (normalized_cost(15, 10), normalized_cost(10, 10), normalized_cost(0, 10)) == (1.5, 1, 0)
    assert (normalized_cost(0, 0), normalized_cost(3, 0)) == (1, 4)


def test_how_a_set_is_described() -> None:
    lines = describe("Hopper-v5", np.arange(0.0, 1010, 10))
    assert lines[0] == "return 500.0 ± 291.5, 0.0 to 1000.0, 10/25/50/75/90 %: 100.0 250.0 500.0 750.0 900.0"
    assert lines[1].startswith("normalised score of the mean 16.0, by D4RL's references: Gymnasium's v5 physics is not")
    lines = describe("PointRobot-v0", np.array([1.0, 2.0]), np.array([0.0, 8.0]))
    spread = "cost 4.0 ± 4.0, 0.0 to 8.0, 10/25/50/75/90 %: 0.8 2.0 4.0 6.0 7.2"
    assert lines[1:] == [f"{spread}; 50% of the episodes cost nothing"]
    assert "DSRL's" in describe("SafeHopper-v5", np.ones(1), np.zeros(1))[2]
