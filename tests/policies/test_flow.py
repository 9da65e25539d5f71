from itertools import pairwise

import pytest
import torch

from diffpolicy_rl.policies.flow import RectifiedFlow


class Velocity:
    """The exact marginal velocity of a flow to a single point c: (c - x) / (1 - t)."""

    def __init__(self, c):
        self.c = c

    def __call__(self, x, t, s, cond):
        return (self.c - x) / (1 - t.view(-1, 1, 1))


def test_loss_of_the_exact_velocity_of_a_point_is_zero():
    action, noise, t = torch.full((5, 3, 2), 0.4), torch.randn(5, 3, 2), torch.rand(5) * 0.9
    loss = RectifiedFlow().loss(Velocity(0.4), action, noise, t, t, torch.zeros(5, 1), None)
    torch.testing.assert_close(loss, torch.zeros(5), atol=1e-10, rtol=0)


def test_loss_against_hand_arithmetic():
    class Zero:
        def __call__(self, x, t, s, cond):
            return torch.zeros_like(x)

    action, noise = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.5], [2.0]]])
    loss = RectifiedFlow().loss(Zero(), action, noise, *2 * (torch.tensor([0.3]),), torch.zeros(1, 1), None)
    assert loss.item() == (0.5**2 + 2.0**2) / 2


def test_euler_reaches_a_point_in_any_number_of_steps():
    for steps in (1, 4, 7):
        process, x = RectifiedFlow(clip=None), torch.randn(5, 3, 2)
        grid = process.grid(steps)
        for t, s in pairwise(grid):
            x, std = process.step(x, Velocity(0.4)(x, torch.tensor([t]), None, None), t, s, 0.0)
            assert std == 0
        torch.testing.assert_close(x, torch.full_like(x, 0.4), atol=1e-6, rtol=0)


def test_grid_is_the_papers_k_over_K():
    assert RectifiedFlow().grid(4) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_every_mean_is_clipped():
    mean, _ = RectifiedFlow(clip=1.0).step(torch.full((1, 1, 1), 3.0), torch.zeros(1, 1, 1), 0.0, 0.5, 0.0)
    assert mean.item() == 1.0


def test_stochastic_moves_keep_the_marginal():
    """From x_t = (1 - t) z + t c, every eta leads to mean s c and std 1 - s: the flow-SDE has the flow's marginals."""
    process, t, s, c = RectifiedFlow(clip=None), 0.25, 0.5, 0.4
    z = torch.randn(200_000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (1 - t) * z + t * c
    for eta in (0.0, 0.5, 1.0):
        mean, std = process.step(x, c - z, t, s, eta)
        assert std == pytest.approx(eta * 0.5 * (1 - (0.5 * 0.5 / 0.75) ** 2) ** 0.5)
        assert mean.mean().item() == pytest.approx(s * c, abs=5e-3)
        assert mean.var().item() + std**2 == pytest.approx((1 - s) ** 2, abs=5e-3)


def test_the_last_move_of_a_flow_has_no_noise_and_the_first_is_all_noise():
    assert RectifiedFlow().std(0.75, 1.0, 1.0) == 0
    assert RectifiedFlow().std(0.0, 0.25, 1.0) == 0.75
