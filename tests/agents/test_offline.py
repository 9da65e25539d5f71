"""What all agents have in common that learn a policy from data."""

import copy

import pytest
import torch

from diffpolicy_rl.errors import UserError
from tests.agents.offline_bandit import corners, learned
from tests.agents.test_fisor import fisor
from tests.agents.test_fql import fql
from tests.agents.test_guided import dql
from tests.agents.test_implicit import idql


@pytest.mark.parametrize("make", [dql, fql, idql])
def test_the_policys_learning_rate_follows_half_a_cosine_or_stays(make, make_policy):
    seen = {None: [], 1e-3: []}
    for end, rates in seen.items():
        agent = make(make_policy, steps=1, policy_final_lr=end)
        agent.iterations = 4
        for _ in range(5):
            learned(agent, corners(rows=8), updates=1)
            optimizer = agent.optimizer if make is fql else agent.base.optimizer
            rates.append(optimizer.param_groups[0]["lr"])
    # 1e-3 + (3e-3 - 1e-3) (1 + cos(pi k / 4)) / 2
    assert seen == {None: [3e-3] * 5, 1e-3: pytest.approx([3e-3, 2.7071e-3, 2e-3, 1.2929e-3, 1e-3], rel=1e-4)}


@pytest.mark.parametrize("make", [dql, fql, idql, fisor])
def test_so_does_that_of_all_that_learns_values(make, make_policy):
    """2e-3 (1 + cos(pi k / 2)) / 2; the policy's stays."""
    agent = make(make_policy, steps=1, critic_lr=2e-3, critic_final_lr=0.0)
    agent.iterations = 2
    optimizers, rates = agent._critic_optimizers, []
    assert len(optimizers) == {dql: 1, fql: 1, idql: 2, fisor: 4}[make]
    for _ in range(3):
        before = [copy.deepcopy(optimizer.param_groups[0]["params"]) for optimizer in optimizers]
        learned(agent, corners(rows=8, costs=torch.zeros(4)), updates=1)
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
    assert rates == [[pytest.approx(rate)] * len(optimizers) for rate in (2e-3, 1e-3, 0.0)]
    for optimizer, held in zip(optimizers, before, strict=True):  # at last, at a rate of 0, nothing moved
        assert all(torch.equal(*pair) for pair in zip(optimizer.param_groups[0]["params"], held, strict=True))
    assert agent._policy_optimizer.param_groups[0]["lr"] == 3e-3


@pytest.mark.parametrize("name", ["policy_final_lr", "critic_final_lr"])
def test_a_negative_final_learning_rate_is_refused(make_policy, name):
    with pytest.raises(UserError, match=f"{name}=-1"):
        dql(make_policy, **{name: -1.0})
