import dataclasses

import pytest
import torch

from diffpolicy_rl.agents._ppo import clipped_surrogate, reduce_log_prob
from diffpolicy_rl.agents.reinflow import ReinFlow, ReinFlowConfig
from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.policies.flow import RectifiedFlow
from tests.agents.bandit import bandit_rollout, distance

SMALL = ReinFlowConfig(minibatch=64, epochs=4, lr=1e-3, final_lr=1e-3, critic_hidden=(32, 32, 32), clip=0.2)


def test_learns_a_bandit(make_policy):
    agent = ReinFlow(make_policy(RectifiedFlow(), 4), SMALL, iterations=60, seed=0)
    before = distance(agent)
    for _ in range(60):
        agent.update(bandit_rollout(agent))
    assert before > 0.25
    assert distance(agent) < 0.05


@pytest.mark.parametrize("reduction", ["chain_mean", "move_mean", "chain_sum"])
def test_the_first_ratio_of_an_update_is_one(make_policy, reduction):
    config = dataclasses.replace(SMALL, reduction=reduction, epochs=1, minibatch=10_000)
    agent = ReinFlow(make_policy(RectifiedFlow(), 4), config, iterations=10, seed=0)
    for _ in range(4):  # the noise bound decays from the fourth on
        metrics = agent.update(bandit_rollout(agent))
        assert metrics["ppo/first_ratio_error"] < (1e-6 if reduction.endswith("mean") else 3e-5)


def test_reductions_by_hand():
    log_prob = torch.arange(12.0).view(1, 2, 3, 2)  # K' = 2, A = 3, D = 2
    assert reduce_log_prob(log_prob, "chain_sum").tolist() == [[66.0]]
    assert reduce_log_prob(log_prob, "chain_mean").tolist() == [[5.5]]
    assert reduce_log_prob(log_prob, "move_sum").tolist() == [[15.0, 51.0]]
    assert reduce_log_prob(log_prob, "move_mean").tolist() == [[2.5, 8.5]]


def test_surrogate_by_hand():
    ratio, advantage = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert clipped_surrogate(ratio, advantage, 0.2).tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8])


def test_a_rollout_is_split_evenly_so_that_no_minibatch_is_too_small(make_policy):
    config = ReinFlowConfig(minibatch=19)
    agent = ReinFlow(make_policy(RectifiedFlow(), 4), config, iterations=1, seed=0)
    for rows, sizes in ((20, [10, 10]), (19, [19])):
        batch = {"obs": torch.zeros(rows, 3), "advantage": torch.randn(rows)}
        assert [len(part["obs"]) for part in agent._minibatches(batch)] == sizes


def test_noise_bound_is_held_and_then_decays(make_policy):
    agent = ReinFlow(make_policy(RectifiedFlow(), 4), SMALL, iterations=20, seed=0)
    bounds = []
    for _ in range(20):
        bounds.append(agent.policy.std_rule.high.item())
        agent.updates += 1
        agent._schedule()
    assert bounds[:8] == pytest.approx([0.24] * 8)
    assert bounds[8] < 0.24
    assert agent.policy.std_rule.high.item() == pytest.approx(0.24 - 0.3 * (0.24 - 0.10))


def test_critic_warmup_leaves_the_policy_alone(make_policy):
    config = dataclasses.replace(SMALL, critic_warmup=1)
    agent = ReinFlow(make_policy(RectifiedFlow(), 4), config, iterations=5, seed=0)
    before, value = distance(agent), agent.value(torch.zeros(1, 3)).item()
    agent.update(bandit_rollout(agent))
    assert distance(agent) == before
    assert agent.value(torch.zeros(1, 3)).item() != value
    agent.update(bandit_rollout(agent))
    assert distance(agent) != before


def test_target_kl_ends_the_epochs(make_policy):
    def steps(target_kl):
        config = dataclasses.replace(SMALL, epochs=10, target_kl=target_kl)
        agent = ReinFlow(make_policy(RectifiedFlow(), 4), config, iterations=5, seed=0)
        agent.update(bandit_rollout(agent))
        return agent.gradient_steps

    assert steps(1.0) == 40
    assert steps(0.0) == 4


def test_truncated_rows_bootstrap_from_their_final_observation(make_policy):
    agent = ReinFlow(make_policy(RectifiedFlow(), 4), SMALL, iterations=5, seed=0)
    obs, final = torch.randn(2, 3), torch.randn(2, 3)
    buffer = RolloutBuffer(1)
    _, extras = agent.act(obs, explore=True)
    flags = torch.tensor([True, False])
    buffer.add(obs, extras, torch.ones(2, 2), torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool), flags, final)
    batch = agent._prepare(buffer)
    gamma, std = SMALL.gamma, agent.reward_scaler.std
    reward = (1 + gamma) / std
    with torch.no_grad():
        values = agent.value(final).tolist()
    expected = [reward + gamma * values[0], reward + gamma**2 * values[1]]
    assert batch["returns"].tolist() == pytest.approx(expected, rel=1e-5)
