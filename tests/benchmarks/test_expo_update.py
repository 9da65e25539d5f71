"""The two sides of EXPO's ratio do the same work."""

import pytest
import torch

from benchmarks.expo_update import check_equal_work, double_precision, make_sides
from diffpolicy_rl.errors import UserError


def test_sides_stay_equal_over_updates():
    with double_precision():
        sides = make_sides(width=16, critic_width=16)
        before = sides[1].base.first.weight.clone()
        for _ in range(2):
            check_equal_work(*sides)
    assert not torch.equal(sides[1].base.first.weight, before)


def test_a_side_that_does_other_work_is_refused():
    with double_precision():
        agent, textbook, experience = make_sides(width=16, critic_width=16)
        textbook.config = agent.config.__class__(**{**vars(agent.config), "tau": 0.006})
        with pytest.raises(UserError, match="the two sides do not do the same work"):
            check_equal_work(agent, textbook, experience)
