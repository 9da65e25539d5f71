"""Values by expectile regression: IQL, IDQL."""

import pytest
import torch

from diffpolicy_rl.agents._implicit import expectile_loss
from diffpolicy_rl.agents.idql import IDQL, IDQLConfig
from diffpolicy_rl.agents.iql import IQL, IQLConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from tests.agents.offline_bandit import PAY, SMALL, corners, deterministic, learned, shares
from tests.agents.test_guided import batch


def exact_expectile(sample, level):
    """Where level E[(x - e)+] = (1 - level) E[(e - x)+] (Newey & Powell 1987), by bisection."""
    low, high = sample.min(), sample.max()
    for _ in range(60):
        middle = (low + high) / 2
        above, below = (sample - middle).clamp(min=0).mean(), (middle - sample).clamp(min=0).mean()
        low, high = (middle, high) if level * above > (1 - level) * below else (low, middle)
    return low.item()


@pytest.mark.parametrize("level", [0.1, 0.5, 0.7, 0.9])
def test_minimum_is_the_expectile(level):
    sample = torch.randn(1000, dtype=torch.float64).exp()
    guess = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([guess], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = expectile_loss(sample - guess, level).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert guess.item() == pytest.approx(exact_expectile(sample, level), rel=1e-4)


def plain(agent):
    """With rewards as they are."""
    agent.reward_scale = 1.0
    return agent


def idql(make_policy, **changes):
    policy = make_policy(DDPM(levels=5, schedule="vp"), 5, horizon=1, execute=1)
    config = IDQLConfig(**(SMALL | {"steps": 200, "policy_tau": 0.05} | changes))
    return plain(IDQL(policy, config, iterations=1, seed=0))


def test_rewards_are_scaled_so_that_returns_span_1000(make_policy):
    agent = idql(make_policy, steps=1)
    agent.reward_scale = 0.0
    agent.update(corners(rows=8))
    assert agent.reward_scale == pytest.approx(200)


def test_td_target_by_hand(make_policy, monkeypatch):
    """Scaled rewards, and the state value of what followed."""
    agent, data, seen = idql(make_policy), batch(), []
    agent.reward_scale = 3.0
    with torch.no_grad():
        expected = 3 * data.reward + data.discount * agent.values.value(data.next_obs).squeeze(-1)
    monkeypatch.setattr(agent.values.critics, "learn", lambda *arguments: seen.append(arguments) or {})
    agent._learn(data)
    torch.testing.assert_close(seen[0][2], expected)


def test_values_are_the_expectile_of_what_the_corners_pay(make_policy):
    agent = learned(idql(make_policy, expectile=0.7), corners())
    with torch.no_grad():
        value = agent.values.value(torch.zeros(1, 3)).item()
    assert value == pytest.approx(exact_expectile(PAY.double(), 0.7), rel=0.05)


def test_the_best_of_candidates_acts_and_a_single_one_is_cloned(make_policy):
    agent = learned(idql(make_policy), corners())
    assert shares(agent.deploy())[3] > 0.95
    torch.testing.assert_close(shares(agent.policy.deploy()), torch.full((4,), 0.25), atol=0.08, rtol=0)


def test_weights_tilt_what_is_cloned_by_the_exponential_of_the_advantage(make_policy, monkeypatch):
    """With values that are known, corners are cloned in proportion to exp(beta A), capped."""
    config = IQLConfig(**SMALL, steps=200, policy_tau=0.05, temperature=0.4, max_weight=1.5)
    policy = make_policy(RectifiedFlow(), 5, horizon=1, execute=1)
    agent = plain(IQL(policy, config, iterations=1, seed=0))
    learn = agent.values.learn

    def known(features, after, action, backup):
        reward = backup(torch.zeros(len(features)))
        return learn(features, after, action, backup)._replace(q=reward, value=torch.full_like(reward, 2))

    monkeypatch.setattr(agent.values, "learn", known)
    learned(agent, corners())
    weights = (0.4 * (PAY - 2)).exp().clamp(max=1.5)
    torch.testing.assert_close(shares(agent.deploy()), weights / weights.sum(), atol=0.05, rtol=0)


def test_iql_moves_towards_what_pays():
    agent = plain(IQL(deterministic(), IQLConfig(**SMALL, steps=200, policy_tau=0.05), iterations=1, seed=0))
    assert shares(learned(agent, corners()).deploy())[3] == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: IQLConfig(expectile=1.0), "expectile=1.0 must lie between 0 and 1"),
        (lambda: IDQLConfig(aggregation="mean"), "aggregation=mean has no effect here"),
        (lambda: IQLConfig(temperature=0.0), "temperature=0.0"),
        (lambda: IQLConfig(max_weight=0.0), "max_weight=0.0"),
        (lambda: IQLConfig(policy_tau=0.0), "policy_tau=0.0"),
        (lambda: IQLConfig(policy_final_lr=-1e-4), "policy_final_lr=-0.0001 must not be negative"),
        (lambda: IDQLConfig(candidates=0), "candidates=0"),
    ],
)
def test_what_makes_no_sense_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        config()
