"""What all agents have in common that learn a policy from data."""

import pytest

from diffpolicy_rl.errors import UserError
from tests.agents.offline_bandit import corners, learned
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


def test_a_negative_final_learning_rate_is_refused(make_policy):
    with pytest.raises(UserError, match="policy_final_lr=-1"):
        dql(make_policy, policy_final_lr=-1.0)
