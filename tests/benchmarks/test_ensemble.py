"""The two sides of the critics' ratio do the same work."""

import pytest
import torch

from benchmarks.ensemble import OurStep, TextbookStep, check_equal_work, one_by_one
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.critics import CriticEnsemble


@pytest.fixture
def sides():
    critic = CriticEnsemble(5, (1, 2), heads=3, hidden=(16, 16))
    return critic, one_by_one(critic), (torch.randn(8, 5), torch.randn(8, 1, 2), torch.randn(8))


def test_sides_stay_equal_over_steps(sides):
    critic, networks, batch = sides
    check_equal_work(*sides)
    ours, theirs = OurStep(critic, batch), TextbookStep(networks, batch)
    before = networks[0][0].weight.clone()
    for _ in range(3):
        ours()
        theirs()
    assert not torch.equal(networks[0][0].weight, before)
    for a, b in zip(one_by_one(critic).parameters(), networks.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_side_that_does_other_work_is_refused(sides):
    critic, networks, batch = sides
    with torch.no_grad():
        networks[2][1].weight[0] += 0.01
    with pytest.raises(UserError, match="the two sides do not do the same work"):
        check_equal_work(critic, networks, batch)
