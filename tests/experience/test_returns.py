import pytest
import torch

from diffpolicy_rl.experience.returns import RewardScaler, chunk_rewards, gae


def column(*values, kind=torch.float32):
    return torch.tensor(values, dtype=kind).unsqueeze(1)


def test_chunk_rewards_discount_inside_the_chunk():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]])
    assert chunk_rewards(rewards, 0.5).tolist() == [1 + 0.5 * 2 + 0.25 * 4, 3.0]


def run(terminated, truncated, next_values):
    # r = 1, 2, 3; V = 10, 20, 30; four actions per chunk at gamma = 0.5 ** 0.25, so 0.5 per chunk; lambda = 0.5
    return gae(
        column(1.0, 2.0, 3.0),
        column(10.0, 20.0, 30.0),
        column(*next_values),
        column(0.5, 0.5, 0.5),
        column(*terminated, kind=torch.bool),
        column(*truncated, kind=torch.bool),
        0.5,
    )[:, 0].tolist()


def test_gae_by_hand_without_episode_ends():
    d2 = 3 + 0.5 * 40 - 30  # -7
    d1 = 2 + 0.5 * 30 - 20  # -3
    d0 = 1 + 0.5 * 20 - 10  # 1
    a1 = d1 + 0.25 * d2  # gamma * lambda = 0.25
    assert run((0, 0, 0), (0, 0, 0), (20.0, 30.0, 40.0)) == [d0 + 0.25 * a1, a1, d2]


def test_termination_cuts_value_and_trace():
    d1 = 2 - 20  # no future
    d0 = 1 + 0.5 * 20 - 10
    assert run((0, 1, 0), (0, 0, 0), (20.0, 999.0, 40.0)) == [d0 + 0.25 * d1, d1, -7.0]


def test_truncation_bootstraps_from_the_final_observation_and_cuts_the_trace():
    d1 = 2 + 0.5 * 8 - 20  # V(final_obs) = 8
    d0 = 1 + 0.5 * 20 - 10
    assert run((0, 0, 0), (0, 1, 0), (20.0, 8.0, 40.0)) == [d0 + 0.25 * d1, d1, -7.0]


def test_a_chunk_cut_short_is_discounted_by_what_ran():
    # one action ran before the time limit: gamma ** 1
    gamma = 0.9
    advantage = gae(
        column(1.0), column(0.0), column(10.0), column(gamma), torch.tensor([[False]]), torch.tensor([[True]]), 0.95
    )
    assert advantage.item() == pytest.approx(1 + 0.9 * 10)


def test_reward_scaler_divides_by_the_std_of_running_returns():
    rewards = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    discounts = torch.full((3, 2), 0.5)
    done = torch.tensor([[False, True], [False, False], [False, False]])
    # env 0: 1, 3.5, 6.75; env 1: 2 (ended), 4, 8
    returns = torch.tensor([1.0, 2.0, 3.5, 4.0, 6.75, 8.0], dtype=torch.float64)
    std = returns.std(correction=0).item()
    scaler = RewardScaler(clip=2.0)
    scaled = scaler(rewards, discounts, done)
    assert scaler.std == pytest.approx(std)
    torch.testing.assert_close(scaled, (rewards / std).clamp(max=2.0), atol=1e-6, rtol=0)


def test_reward_scaler_in_two_parts_equals_one():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(20, 3, generator=generator)
    discounts = torch.rand(20, 3, generator=generator)
    done = torch.rand(20, 3, generator=generator) < 0.2
    whole, parts = RewardScaler(), RewardScaler()
    whole(rewards, discounts, done)
    parts(rewards[:7], discounts[:7], done[:7])
    resumed = RewardScaler()
    resumed.load_state_dict(parts.state_dict())
    resumed(rewards[7:], discounts[7:], done[7:])
    assert resumed.std == pytest.approx(whole.std, rel=1e-12)
