import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.ddpm import DDPM, cosine_betas, linear_betas, vp_betas

T, S = 0.5, 0.55  # adjacent times of a 20-level chain: levels 10 and 9


def test_vp_schedule_has_the_published_values():
    assert vp_betas(5) == pytest.approx([0.19587, 0.45882, 0.63578, 0.75488, 0.83503], abs=1e-5)
    process = DDPM(5, "vp")
    abar = [process.alpha_bar(1 - level / 5) for level in range(1, 6)]
    assert abar == pytest.approx([0.804125, 0.435178, 0.158500, 0.038852, 0.006409], abs=1e-6)


def test_cosine_schedule_is_the_one_of_diffusers():
    theirs = DDPMScheduler(20, beta_schedule="squaredcos_cap_v2").betas
    assert cosine_betas(20) == pytest.approx(theirs.tolist(), abs=1e-6)


def test_linear_schedule_reaches_noise_with_few_levels():
    assert linear_betas(1000)[0] == pytest.approx(1e-4)
    assert linear_betas(1000)[-1] == pytest.approx(2e-2)
    assert DDPM(20, "linear").alpha_bar(0.0) < 1e-3


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_the_right_prediction_recovers_the_action(prediction):
    action, noise = torch.rand(8, 4, 2) * 2 - 1, torch.randn(8, 4, 2)
    process = DDPM(20, prediction=prediction)
    abar = process.alpha_bar(T)
    x = abar**0.5 * action + (1 - abar) ** 0.5 * noise
    mean, std = process.step(x, noise if prediction == "eps" else action, T, 1.0, eta=1.0)
    assert std == 0
    torch.testing.assert_close(mean, action, atol=2e-6, rtol=0)


@pytest.mark.parametrize("schedule", ["cosine", "vp", "linear"])
def test_eta_one_on_adjacent_levels_is_the_ddpm_posterior(schedule):
    process = DDPM(20, schedule)
    x, pred = torch.randn(8, 4, 2, dtype=torch.float64), torch.randn(8, 4, 2, dtype=torch.float64)
    abar, before = process.alpha_bar(T), process.alpha_bar(S)
    alpha = abar / before
    x0 = ((x - math.sqrt(1 - abar) * pred) / math.sqrt(abar)).clamp(-1, 1)
    posterior = (math.sqrt(before) * (1 - alpha) * x0 + math.sqrt(alpha) * (1 - before) * x) / (1 - abar)
    mean, std = process.step(x, pred, T, S, eta=1.0)
    torch.testing.assert_close(mean, posterior, atol=1e-12, rtol=0)
    assert std**2 == pytest.approx((1 - alpha) * (1 - before) / (1 - abar), rel=1e-12)


@pytest.mark.parametrize("steps", [20, 10, 5, 1])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_sampling_equals_diffusers_ddim_with_trailing_spacing(steps, eta):
    theirs = DDIMScheduler(20, beta_schedule="squaredcos_cap_v2", clip_sample=True, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    ours, grid = DDPM(20, "cosine"), DDPM(20).grid(steps)
    x = reference = torch.randn(6, 4, 2)
    for k, timestep in enumerate(theirs.timesteps):
        pred, unit = torch.randn(6, 4, 2), torch.randn(6, 4, 2)
        reference = theirs.step(
            pred, timestep, reference, eta=eta, use_clipped_model_output=True, variance_noise=unit
        ).prev_sample
        mean, std = ours.step(x, pred, grid[k], grid[k + 1], eta)
        x = mean + std * unit
    torch.testing.assert_close(x, reference, atol=2e-5, rtol=0)


def test_adjacent_moves_equal_diffusers_ddpm():
    theirs = DDPMScheduler(20, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    process = DDPM(20, "cosine")
    x, pred = torch.randn(8, 4, 2), torch.randn(8, 4, 2)
    for level in range(20, 1, -1):
        generator = torch.Generator().manual_seed(level)
        unit = torch.randn(x.shape, generator=generator)
        generator.manual_seed(level)
        reference = theirs.step(pred, level - 1, x, generator=generator).prev_sample
        mean, std = process.step(x, pred, 1 - level / 20, 1 - (level - 1) / 20, eta=1.0)
        torch.testing.assert_close(mean + std * unit, reference, atol=2e-5, rtol=1e-5)


def test_scalar_and_tensor_times_give_the_same_move():
    process, x, pred = DDPM(20), torch.randn(3, 2, 4, 2), torch.randn(3, 2, 4, 2)
    t, s = torch.tensor([0.2, 0.6], dtype=torch.float64), torch.tensor([0.25, 0.65], dtype=torch.float64)
    together, stds = process.step(x, pred, t.view(-1, 1, 1), s.view(-1, 1, 1), 1.0)
    for k in range(2):
        alone, std = process.step(x[:, k], pred[:, k], t[k].item(), s[k].item(), 1.0)
        torch.testing.assert_close(together[:, k], alone, atol=1e-7, rtol=0)
        assert stds[k].item() == pytest.approx(std, rel=1e-12)


def test_loss_is_the_masked_mean_square_of_the_noise_error():
    class Zero:
        def __call__(self, x, t, s, cond):
            return torch.zeros_like(x)

    noise = torch.tensor([[[1.0], [2.0], [10.0]]])
    mask = torch.tensor([[True, True, False]])
    loss = DDPM(20).loss(Zero(), torch.zeros(1, 3, 1), noise, *2 * (torch.tensor([0.5]),), torch.zeros(1, 1), mask)
    assert loss.item() == pytest.approx((1 + 4) / 2)


def test_steps_that_do_not_divide_the_levels_are_refused():
    with pytest.raises(UserError, match="must divide the 20"):
        DDPM(20).grid(3)
