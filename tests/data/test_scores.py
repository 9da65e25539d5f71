"""Normalised scores against D4RL's definition."""

import pytest

from diffpolicy_rl.data.scores import normalized_score


def test_reference_returns_score_0_and_100() -> None:
    assert normalized_score("Hopper-v5", 3234.3) == pytest.approx(100)
    assert normalized_score("Hopper-v5", -20.272305) == pytest.approx(0)
    assert normalized_score("HalfCheetah-v5", 5927.4105235) == pytest.approx(50)


def test_a_task_without_references_has_no_score() -> None:
    assert normalized_score("PegInsertion", 1.0) is None
