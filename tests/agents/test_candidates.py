"""Choosing among candidates without judging those that cannot win."""

import contextlib

import pytest
import torch

from diffpolicy_rl.agents import _candidates
from diffpolicy_rl.agents._candidates import ChosenCandidate, LeastValueCandidate, draw
from diffpolicy_rl.nets.critics import CriticEnsemble
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.policies.flow import RectifiedFlow
from tests.agents.offline_bandit import deterministic

ROWS = 300


class Counting(CriticEnsemble):
    """Counts the products of its hidden layers by the rows that pass through any of its heads."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.rows = []

    def _rest(self, hidden):
        self.rows.append(hidden.shape[0] * hidden[0, ..., 0].numel())
        return super()._rest(hidden)


@pytest.mark.parametrize("together", [1, 20, 1000])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("noisy", [True, False])
def test_candidates_are_what_the_policy_makes_of_the_noise_of_each(make_policy, monkeypatch, together, fixed, noisy):
    monkeypatch.setattr(_candidates, "_TOGETHER", together)
    policy = make_policy(RectifiedFlow(), 2) if noisy else deterministic()
    features, noise = torch.randn(5, 3), torch.randn(7, 5, *policy.action_shape)
    alone = [policy.sample(features, of_one, features=features) for of_one in noise]
    with torch.no_grad(), fixed_weights(policy) if fixed else contextlib.nullcontext():
        torch.testing.assert_close(draw(policy, features, noise), torch.stack(alone))


def sides(make_policy, heads, temperature, scale=1.0):
    """Both ways to choose, with critics whose values differ by ``scale`` or so."""
    policy = make_policy(RectifiedFlow(), 2, horizon=1, execute=1)
    critic = Counting(3, (1, 2), heads, (16, 16), layer_norm=False).requires_grad_(False)
    for parameter in critic.parameters():
        parameter.mul_(2)
    critic.trunk[-1].weight.mul_(scale)
    lazy = LeastValueCandidate(policy, critic, 16, temperature)
    return lazy, ChosenCandidate(policy, critic, lambda values: values.amin(0), 16, temperature)


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_choice_is_that_of_all_values(make_policy, heads, temperature, scale):
    lazy, whole = sides(make_policy, heads, temperature, scale)
    obs, noise = torch.randn(ROWS, 3), lazy.sample_noise(ROWS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(lazy(obs, noise), whole(obs, noise))


def test_what_cannot_win_is_not_judged_by_the_second_critic(make_policy):
    lazy, _ = sides(make_policy, 2, 1.0, scale=0.01)
    obs, noise = torch.randn(ROWS, 3), lazy.sample_noise(ROWS)
    for view in (slice(0, 1), slice(1, None)):
        lazy.critic.frozen_view(view).rows = []
    with torch.no_grad():
        lazy(obs, noise)
    first, second = (lazy.critic.frozen_view(view).rows for view in (slice(0, 1), slice(1, None)))
    assert first == [16 * ROWS]
    assert second[0] == ROWS
    assert sum(second[1:]) < 0.1 * 16 * ROWS  # those that could still win
    assert not lazy.critic.rows


def test_choosing_while_nothing_can_be_differentiated_leaves_critics_that_can(make_policy):
    """Views are kept for later, and later is training."""
    lazy, _ = sides(make_policy, 2, 0.0)
    with torch.inference_mode():
        lazy(torch.randn(2, 3), lazy.sample_noise(2))
    action = torch.randn(5, 1, 2, requires_grad=True)
    lazy.critic.frozen_view(slice(0, 1))(torch.randn(5, 3), action).sum().backward()
    assert action.grad.abs().max() > 0
