"""Both sides of DQL's ratio do the same work."""

import pytest
import torch

from benchmarks.offline_update import TextbookDQL, sides_of
from benchmarks.replay_update import check_equal_work
from diffpolicy_rl.errors import UserError


def test_sides_stay_equal_over_steps():
    check_equal_work(*sides_of("dql")[:1], TextbookDQL, sides_of("dql")[1])


def test_a_side_that_does_other_work_is_refused():
    agent, experience = sides_of("dql")

    def other(agent):
        made = TextbookDQL(agent)
        with torch.no_grad():
            made.net.first.weight[0] += 0.01
        return made

    with pytest.raises(UserError, match="the two sides do not do the same work: their policies differ"):
        check_equal_work(agent, other, experience)
