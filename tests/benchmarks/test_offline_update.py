"""Both sides of DQL's ratio do the same work."""

import copy

import pytest
import torch

from benchmarks import measure, offline_update
from benchmarks.measure import product_flops
from benchmarks.offline_update import check_equal_actions, sides_of
from benchmarks.replay_update import check_equal_work
from benchmarks.textbook_dql import PublicDQL, TextbookDQL
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
    monkeypatch.setattr(measure, "take_turns", lambda sides, repeats: seconds)
    sides = {name: (lambda n=n: [a @ a.T for _ in range(n)]) for name, n in (("dql", 7), ("ofql", 3))}
    figures = measure.milliseconds(sides, 2, 1)
    ratios = measure.ratios(figures, [("dql", "ofql")])
    assert figures | ratios | offline_update._work(sides) == pytest.approx(
        {"dql_ms": 4.5, "ofql_ms": 2, "dql/ofql": 9 / 4, "dql/ofql_work": 7 / 3}
    )


def test_the_public_side_makes_the_posteriors_moves():
    """Its tables against our process with eta = 1 on adjacent levels (Ho et al. 2020, eq. 7)."""
    agent, _ = sides_of("dql")
    public, process, rows = PublicDQL(agent), agent.policy.process, 7
    obs, noise = torch.randn(rows, agent.policy.features), torch.randn(rows, 5, *public.action_shape)
    x, grid, drawn = noise[:, 0], process.grid(5), iter(noise[:, 1:].unbind(1))
    with torch.no_grad():
        for k in range(5):
            eps = public.net(x, torch.full((rows,), grid[k]), obs)
            mean, std = process.step(x, eps, grid[k], grid[k + 1], 1.0)
            index = torch.full((rows,), 4 - k)
            torch.testing.assert_close(public.mean(public.net, x, index, obs), mean, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(public.std(index), torch.full((rows, 1, 1), std), atol=1e-6, rtol=1e-5)
            x = mean + std * next(drawn) if k < 4 else mean


def test_the_public_side_has_as_many_products_and_learns():
    """Those of a batch's values, and of the policy; after a step all but the average has moved."""
    agent, experience = sides_of("dql")
    public, textbook = PublicDQL(agent), TextbookDQL(agent)
    batch = experience.sample(256, "proportional", 0.99, agent.generator)
    assert product_flops(lambda: public.learn(batch)) == product_flops(lambda: textbook.learn(batch))
    before = [copy.deepcopy(part) for part in (public.net, public.critics, public.targets, public.average)]
    public.learn(batch)  # the second: the average follows in the first, and then in the sixth
    moved = [
        any(not torch.equal(*pair) for pair in zip(part.parameters(), held.parameters(), strict=True))
        for part, held in zip((public.net, public.critics, public.targets, public.average), before, strict=True)
    ]
    assert moved == [True, True, True, False]
