import dataclasses

import pytest
import torch

from diffpolicy_rl.agents.fisor import FISOR, FISORConfig, best, feasibility_target, fisor_weights
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.ddpm import DDPM
from tests.agents.offline_bandit import SMALL, corners, learned, shares, stored
from tests.agents.test_guided import batch


def test_feasibility_on_a_chain_is_the_largest_violation_to_come():
    """Iterated to its fixed point, as gamma goes to 1: dynamic programming over the largest h ahead."""
    h = torch.tensor([-1.0, -1.0, 25.0, -1.0, -1.0], dtype=torch.float64)
    discount = torch.tensor([0.9999] * 4 + [0.0], dtype=torch.float64)
    value = torch.zeros(5, dtype=torch.float64)
    for _ in range(20):
        value = feasibility_target(h, discount, torch.cat([value[1:], value[:1]]))
    torch.testing.assert_close(value, torch.tensor([25.0, 25, 25, -1, -1]).double(), atol=0.01, rtol=0)


def test_feasibility_by_hand():
    target = feasibility_target(
        torch.tensor([-1.0, 25.0, 25.0]), torch.tensor([0.9, 0.9, 0.0]), torch.tensor([4.0] * 3)
    )
    torch.testing.assert_close(target, torch.tensor([0.1 * -1 + 0.9 * 4, 25.0, 25.0]))


@pytest.mark.parametrize(
    ("q", "value", "q_h", "value_h", "weight"),
    [
        (1.0, 0.9, -0.5, -0.2, torch.tensor(0.3).exp()),  # safe state, safe action: by reward
        (9.0, 0.0, -0.5, -0.2, 100.0),  # the same, capped
        (9.0, 0.0, 0.1, -0.2, 0.0),  # safe state, unsafe action: never
        (9.0, 0.0, 0.1, 0.2, torch.tensor(0.5).exp()),  # unsafe state: by how much safer, whatever the reward
        (9.0, 0.0, -9.0, 0.2, 150.0),  # the same, capped
    ],
)
def test_weights(q, value, q_h, value_h, weight):
    numbers = (torch.tensor([number]) for number in (q, value, q_h, value_h))
    torch.testing.assert_close(fisor_weights(*numbers, FISORConfig()), torch.as_tensor([weight]).float())


def test_without_temperatures_all_counts_alike_but_unsafe_actions_of_safe_states():
    numbers = (torch.tensor(row) for row in ([9.0] * 3, [0.0] * 3, [-0.5, 0.1, 9.0], [-0.2, -0.2, 0.2]))
    config = FISORConfig(reward_temperature=0.0, cost_temperature=0.0)
    assert fisor_weights(*numbers, config).tolist() == [1.0, 0.0, 1.0]


def test_rewards_count_late_if_that_is_asked_for(make_policy, monkeypatch):
    """In the third of four updates and the last."""
    agent, seen = fisor(make_policy, reward_after=0.5, steps=1), []
    agent.iterations = 4
    monkeypatch.setattr(agent, "_clone", lambda batch, weights: seen.append(weights) or {})
    with torch.no_grad():
        agent.feasibility.value[-1].bias -= 5.0  # everything can be kept safe
        agent.feasibility.critics.target.trunk[-1].bias -= 5.0
    learned(agent, corners(costs=torch.zeros(4)), updates=4)
    assert [bool((weights == 1).all()) for weights in seen] == [True, True, False, False]


def fisor(make_policy, **changes):
    policy = make_policy(DDPM(levels=5, schedule="vp"), 5, horizon=1, execute=1)
    config = FISORConfig(**(SMALL | {"steps": 200, "policy_tau": 0.05} | changes))
    agent = FISOR(policy, config, iterations=1, seed=0)
    agent.reward_scale = 1.0
    return agent


def test_takes_the_best_paid_corner_that_costs_nothing(make_policy):
    """The last corner pays 5 and costs; the first pays 3 and does not."""
    agent = learned(fisor(make_policy, violation=5.0), corners(costs=torch.tensor([0.0, 0.0, 0.0, 1.0])))
    assert shares(agent.deploy())[3] < 0.01
    cloned = shares(agent.policy.deploy())
    assert cloned[0] > 0.8
    assert cloned[3] < 0.02


@pytest.mark.parametrize("noise_scale", [1.0, 0.5])
@pytest.mark.parametrize("choice", ["safest", "best", "rewarding"])
def test_the_candidate_acts_that_is_chosen_by_the_worse_of_two_critics(make_policy, choice, noise_scale):
    agent = fisor(make_policy, choice=choice)
    agent.policy.noise_scale = noise_scale
    obs = torch.linspace(-3, 3, 15).view(5, 3)
    agent.critic_steps, critics, rewards = 1, agent.feasibility.critics.target, agent.values.critics.target
    deployed = agent.deploy()
    noise = deployed.sample_noise(5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        candidates = torch.stack([agent.policy.sample(obs, noise_scale * noise[:, i]) for i in range(16)])
        critics.trunk[-1].bias -= critics(obs, candidates).amax(0).median()  # half of all can be kept safe
        rewards.trunk[-1].bias -= 100.0  # values may well be below 0
        violation, reward = critics(obs, candidates).amax(0), rewards(obs, candidates).amin(0)
        acted = deployed(obs, noise)
    shares = (violation <= 0).float().mean(0)
    assert (shares == 0).any()
    assert ((shares > 0) & (shares < 1)).any()
    among = torch.where(violation <= 0, reward, -torch.inf).argmax(0)
    chosen = {
        "safest": violation.argmin(0),
        "best": torch.where(shares > 0, among, violation.argmin(0)),
        "rewarding": reward.argmax(0),
    }[choice]
    assert (chosen != among).any() or choice == "best"
    torch.testing.assert_close(acted, candidates[chosen, torch.arange(5)])


def test_rewards_rank_only_what_can_be_kept_safe():
    """In fp32, over more than the range that rewards are scaled to."""
    reward = torch.tensor([-5000.0, -4999.0, -1.0, 0.0, 1e-3, 5000.0, 5001.0, 9e9, 9e9])
    violation = torch.tensor([0.0, -1.0, -1.0, 0.0, -9.0, -1.0, -1.0, 1e-6, 25.0])
    ranks = best(torch.stack([reward, violation]))
    assert ranks.argsort().tolist() == [8, 7, 0, 1, 2, 3, 4, 5, 6]
    assert (ranks > 0).tolist() == [True] * 7 + [False] * 2


def test_learns_the_reversed_expectile_of_feasibility(make_policy):
    """Half of the actions cost: what is safe is what the safest actions of the data are."""
    costs = torch.tensor([1.0, 1.0, 0.0, 0.0])
    agent = learned(fisor(make_policy, expectile=0.99, critic_lr=1e-2), corners(costs=costs))
    with torch.no_grad():
        value = agent.feasibility.value(torch.zeros(1, 3)).item()
        both = torch.tensor([[[0.8, 0.8]], [[0.8, -0.8]]])
        of_actions = agent.feasibility.critics.online(torch.zeros(2, 3), both).mean(0)
    assert -1.2 < value < 0
    torch.testing.assert_close(of_actions, torch.tensor([25.0, -1.0]), atol=1.0, rtol=0)


def test_a_decision_violates_if_any_of_its_actions_costs(make_policy, monkeypatch):
    agent, seen = fisor(make_policy), []
    learn = agent.feasibility.learn
    monkeypatch.setattr(agent.feasibility, "learn", lambda *arguments: seen.append(arguments) or learn(*arguments))
    data = batch(4)
    data.extras["costs"] = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
    agent._learn(data)
    backup = seen[0][3]
    violation = torch.tensor([-1.0, 25.0, 25.0, 25.0])
    torch.testing.assert_close(backup(torch.zeros(4)), feasibility_target(violation, data.discount, torch.zeros(4)))


@pytest.mark.parametrize(("ends_safely", "ended"), [(True, -1.0), (False, 25.0)])
def test_what_ends_an_episode_violates_only_where_that_is_not_safe(make_policy, ends_safely, ended):
    data = dataclasses.replace(batch(3), discount=torch.tensor([0.9, 0.0, 0.0]))
    data.extras["costs"] = torch.tensor([[0.0], [0.0], [1.0]])
    violation = fisor(make_policy, ends_safely=ends_safely)._violation(data)
    torch.testing.assert_close(violation, torch.tensor([-1.0, ended, 25.0]))


def test_data_without_costs_is_refused(make_policy):
    with pytest.raises(UserError, match="learns from costs, which the data does not have"):
        fisor(make_policy).update(stored(torch.zeros(4, 1, 2), torch.arange(4.0)))


def test_returns_of_several_decisions_are_refused():
    """Their target would forget what the later ones violate."""
    with pytest.raises(UserError, match="n_step=2, but agent=fisor learns the violations of single decisions"):
        FISORConfig(n_step=2)


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        *((name, 0, "must be above 0") for name in ("violation", "max_cost_weight", "candidates")),
        *((name, -1.0, "must not be negative") for name in ("reward_temperature", "cost_temperature")),
        ("reward_after", 1.0, "must lie in .0, 1.: it is a share of the run"),
    ],
)
def test_what_makes_no_sense_is_refused(name, number, message):
    with pytest.raises(UserError, match=f"{name}={number} {message}"):
        FISORConfig(**{name: number})
