import math

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.heads import TanhGaussian, Temperature


def fixed(mean, log_std, bound=1.0):
    """A head of one action element whose mean and log std depend on nothing, in float64."""
    head = TanhGaussian(2, (1,), bound, hidden=(), last_scale=0.0).double()
    with torch.no_grad():
        head.net[-1].bias.copy_(torch.tensor([mean, log_std], dtype=torch.float64))
    return head


@pytest.mark.parametrize("bound", [1.0, 2.5, 0.05])
def test_agrees_with_the_transformed_distribution(bound):
    head = TanhGaussian(3, (4, 2), bound, hidden=(16,)).double()
    features, noise = torch.randn(50, 3).double(), torch.randn(50, 4, 2).double()
    mean, log_std = head(features)
    assert mean.shape == log_std.shape == (50, 4, 2)
    assert log_std.std() > 0.05
    action, log_prob = head.sample(features, noise)
    torch.testing.assert_close(action, bound * torch.tanh(mean + log_std.exp() * noise))
    base = Normal(mean, log_std.exp())
    unscaled = Independent(TransformedDistribution(base, [TanhTransform()]), 2)
    torch.testing.assert_close(log_prob, unscaled.log_prob(action / bound))
    scaled = Independent(TransformedDistribution(base, [TanhTransform(), AffineTransform(0.0, bound)]), 2)
    assert head.log_volume == pytest.approx(8 * math.log(bound))
    torch.testing.assert_close(log_prob - head.log_volume, scaled.log_prob(action))
    torch.testing.assert_close(head.mode(features), bound * torch.tanh(mean))


@pytest.mark.parametrize(("mean", "log_std", "bound"), [(0.3, -0.5, 1.0), (-1.0, 0.4, 2.0)])
def test_density_integrates_to_one(mean, log_std, bound):
    head, noise = fixed(mean, log_std, bound), torch.linspace(-9, 9, 100001).double().unsqueeze(1)
    action, log_prob = head.sample(torch.zeros(1, 2).double(), noise)
    unscaled = torch.trapezoid(log_prob.exp(), action[:, 0] / bound)
    scaled = torch.trapezoid((log_prob - head.log_volume).exp(), action[:, 0])
    assert (unscaled.item(), scaled.item()) == (pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))


def test_far_outside_the_density_is_finite_and_right():
    head, features = fixed(0.0, 0.0).float(), torch.zeros(1, 2)
    noise = torch.tensor([[-60.0], [-25.0], [25.0], [60.0]])
    action, log_prob = head.sample(features, noise)
    # 1 - tanh(u)^2 = 4 exp(-2|u|) there
    u = noise[:, 0].abs()
    torch.testing.assert_close(log_prob, -(u**2) / 2 - math.log(2 * math.pi) / 2 - math.log(4) + 2 * u)
    log_prob.sum().backward()
    # d log_prob / d mean at fixed noise is 2 tanh(u): it cancels over the four
    assert head.net[-1].bias.grad.isfinite().all()
    assert head.net[-1].bias.grad[0].abs() < 1e-6
    assert action.abs().max() <= 1


def test_gradient_through_the_sample_is_the_difference_quotient():
    noise, features = torch.randn(20, 1).double(), torch.zeros(1, 2).double()
    head = fixed(0.4, -0.3, 1.5)

    def objective(mean):
        action, log_prob = fixed(mean, -0.3, 1.5).sample(features, noise)
        return (action.square().sum() + log_prob.sum()).item()

    action, log_prob = head.sample(features, noise)
    (action.square().sum() + log_prob.sum()).backward()
    quotient = (objective(0.4 + 1e-5) - objective(0.4 - 1e-5)) / 2e-5
    assert head.net[-1].bias.grad[0].item() == pytest.approx(quotient, rel=1e-5)


def test_std_is_clamped_and_noise_broadcasts():
    assert fixed(0.0, 9.0)(torch.zeros(1, 2).double())[1].item() == 2
    assert fixed(0.0, -90.0)(torch.zeros(1, 2).double())[1].item() == -20
    head, features, noise = TanhGaussian(3, (2,), hidden=(8,)), torch.randn(5, 3), torch.randn(7, 5, 2)
    action, log_prob = head.sample(features, noise)
    assert (action.shape, log_prob.shape) == ((7, 5, 2), (7, 5))
    torch.testing.assert_close(action[3], head.sample(features, noise[3])[0])


def test_scaled_down_last_layer_starts_at_zero_mean_and_unit_std():
    features = torch.randn(30, 3)
    for scale in (0.0, 0.01):
        mean, log_std = TanhGaussian(3, (2,), hidden=(64, 64), last_scale=scale)(features)
        assert max(mean.abs().max(), log_std.abs().max()) <= 0.4 * scale
    assert TanhGaussian(3, (2,), hidden=(64, 64))(features)[0].abs().max() > 0.02


def test_layers_are_those_asked_for():
    def kinds(**settings):
        return [type(part).__name__ for part in TanhGaussian(3, (2,), hidden=(8, 8), **settings).net]

    assert kinds() == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    expected = ["Linear", "LayerNorm", "Tanh", "Linear", "LayerNorm", "Tanh", "Linear"]
    assert kinds(activation="tanh", layer_norm=True) == expected


def test_temperature_loss_by_hand():
    temperature = Temperature(-2.0, size=2, initial=math.e)
    log_prob = torch.tensor([1.0, 4.0], requires_grad=True)
    loss = temperature.loss(log_prob)
    assert loss.item() == pytest.approx(-1 * (2.5 - 2.0))
    loss.backward()
    assert temperature.log_alpha.grad.item() == pytest.approx(-0.5)  # too little entropy: alpha shall rise
    assert log_prob.grad is None
    assert temperature.alpha.item() == pytest.approx(math.e)
    assert not temperature.alpha.requires_grad


@pytest.mark.parametrize("target", [-1.5, 0.0])
def test_entropy_meets_its_target(target):
    """The reward -4 |a - 0.3|^2 wants no entropy at all; the temperature is what keeps it."""
    head = TanhGaussian(1, (2,), hidden=(), last_scale=0.1)
    temperature = Temperature(target, size=2)
    actor = torch.optim.Adam(head.parameters(), lr=1e-2)
    tuner = torch.optim.Adam(temperature.parameters(), lr=1e-2)
    features, entropies = torch.ones(1, 1), []
    for _ in range(1500):
        action, log_prob = head.sample(features, torch.randn(256, 2))
        actor.zero_grad()
        (temperature.alpha * log_prob + 4 * (action - 0.3).square().sum(1)).mean().backward()
        actor.step()
        tuner.zero_grad()
        temperature.loss(log_prob).backward()
        tuner.step()
        entropies.append(-log_prob.mean().item())
    assert sum(entropies[-300:]) / 300 == pytest.approx(target, abs=0.05)
    assert 0 < temperature.alpha < 10


@pytest.mark.parametrize(("target", "size", "bound"), [(-0.5, 1, 0.3), (2 * math.log(2), 2, 1.0), (-16.0, 32, 0.05)])
def test_entropy_that_no_distribution_has_is_refused(target, size, bound):
    with pytest.raises(UserError, match=r"target_entropy=.* must be below .* without bound"):
        Temperature(target, size, bound)
    Temperature(size * math.log(2 * bound) - 0.01, size, bound)


def test_settings_that_are_not_positive_are_refused():
    with pytest.raises(UserError, match=r"bound=0.0 must be above 0"):
        TanhGaussian(3, (2,), bound=0.0)
    with pytest.raises(UserError, match="initial=0 must be above 0"):
        Temperature(-1.0, 1, initial=0)
