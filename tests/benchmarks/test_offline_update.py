"""Both sides of DQL's ratio do the same work."""

import pytest
import torch

from benchmarks import offline_update
from benchmarks.offline_update import TextbookDQL, check_equal_actions, sides_of
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


def test_sides_choose_equal_actions():
    agent, experience = sides_of("dql")
    textbook, obs = TextbookDQL(agent), experience.sample(200, "half", 1.0, agent.generator).obs
    check_equal_actions(agent, textbook, obs)
    with torch.no_grad():
        for weight in textbook.targets[0].parameters():
            weight.mul_(3)
    with pytest.raises(UserError, match="the two sides do not do the same work: their actions differ"):
        check_equal_actions(agent, textbook, obs)


def test_ratios_are_of_time_and_of_the_arithmetic_of_products(monkeypatch):
    a, seconds = torch.randn(8, 16), {"dql": 0.009, "ofql": 0.004}
    monkeypatch.setattr(offline_update, "take_turns", lambda sides, repeats: seconds)
    sides = {name: (lambda n=n: [a @ a.T for _ in range(n)]) for name, n in (("dql", 7), ("ofql", 3))}
    assert offline_update._versus(sides, 1) == pytest.approx(
        {"dql_ms": 9, "ofql_ms": 4, "dql/ofql": 9 / 4, "dql/ofql_work": 7 / 3}
    )
