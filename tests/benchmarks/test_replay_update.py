"""The two sides of the replay agents' ratios do the same work."""

import pytest
import torch

from benchmarks.replay_update import TEXTBOOKS, check_equal_work, sides_of
from diffpolicy_rl.errors import UserError


@pytest.fixture(params=TEXTBOOKS)
def sides(request):
    agent, experience = sides_of(request.param)
    return agent, TEXTBOOKS[request.param], experience


def test_sides_stay_equal_over_steps_and_the_agent_as_it_was(sides):
    agent, textbook, experience = sides
    before = [weight.clone() for weight in agent.critics.online.parameters()]
    check_equal_work(agent, textbook, experience)
    for now, then in zip(agent.critics.online.parameters(), before, strict=True):
        assert torch.equal(now, then)
    assert torch.get_default_dtype() == torch.float32


def test_a_side_that_does_other_work_is_refused(sides):
    agent, textbook, experience = sides

    def other(agent):
        made = textbook(agent)
        with torch.no_grad():
            made.actor[0].weight[0] += 0.01
        return made

    with pytest.raises(UserError, match="the two sides do not do the same work: their actors differ"):
        check_equal_work(agent, other, experience)
