"""Shortcut, mean flow and consistency: their losses by hand, and their moves where the answer is known."""

from itertools import pairwise

import pytest
import torch

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.nets.mlp import DenoisingMLP
from diffpolicy_rl.policies.consistency import Consistency
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.meanflow import MeanFlow
from diffpolicy_rl.policies.shortcut import Shortcut

PROCESSES = [Shortcut(clip=None), MeanFlow(clip=None), Consistency(clip=None)]
ids = {"ids": lambda process: type(process).__name__}


def point(x, t, s, cond):
    """The flow to a single point 0.4 is straight: the velocity of a path is its average between any two times."""
    return (0.4 - x) / (1 - t.view(-1, 1, 1)).clamp(min=1e-12)


def bent(x, t, s, cond):
    """A net without meaning that depends on everything it is given."""
    t, s = t.view(-1, 1, 1), s.view(-1, 1, 1)
    return 0.5 * x + t * x**2 + 2 * t + s * (1 + x)


class Net(DenoisingNet):
    """A function of (x, t, s, cond) as a net."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def column(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, **ids)
def test_loss_of_the_exact_average_velocity_of_a_point_is_zero(process):
    t, s = process.sample_times(200, torch.Generator().manual_seed(0))
    t, s = t.double(), s.double()
    noise = torch.randn(200, 3, 2, dtype=torch.float64)
    loss = process.loss(Net(point), torch.full_like(noise, 0.4), noise, t, s, torch.zeros(200, 1), None)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-10, rtol=0)
    wrong = process.loss(
        Net(lambda *a: -point(*a)), torch.full_like(noise, 0.4), noise, t, s, torch.zeros(200, 1), None
    )
    assert (wrong > 1e-3).double().mean() > 0.9


@pytest.mark.parametrize("process", PROCESSES, **ids)
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_sampler_reaches_a_point(process, steps, eta):
    x = torch.randn(5, 3, 2)
    for t, s in pairwise(process.grid(steps)):
        x, std = process.step(x, point(x, torch.tensor([t]), None, None), t, s, eta)
        x = x + std * torch.randn_like(x)
    assert std == 0
    torch.testing.assert_close(x, torch.full_like(x, 0.4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("process", PROCESSES[:2], **ids)
def test_moves_are_those_of_rectified_flow(process):
    x, pred = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    for eta in (0.0, 0.5, 1.0):
        for t, s in ((0.0, 0.25), (0.25, 0.5), (0.5, 1.0)):
            ours, theirs = process.step(x, pred, t, s, eta), RectifiedFlow(None).step(x, pred, t, s, eta)
            assert torch.equal(ours[0], theirs[0])
            assert ours[1] == theirs[1]


@pytest.mark.parametrize("process", [Shortcut(), MeanFlow(), Consistency()], **ids)
def test_scalar_and_tensor_times_give_the_same_clipped_move(process):
    x, pred = 2 * torch.randn(2, 3, 2, 4, 2)
    t, s = torch.tensor([0.25, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.75], dtype=torch.float64)
    together, stds = process.step(x, pred, t.view(-1, 1, 1), s.view(-1, 1, 1), 0.7)
    assert together.abs().max() == 1.0
    for k in range(2):
        alone, std = process.step(x[:, k], pred[:, k], t[k].item(), s[k].item(), 0.7)
        torch.testing.assert_close(together[:, k], alone, atol=1e-6, rtol=0)
        assert stds.flatten()[k].item() == pytest.approx(std, rel=1e-12)


@pytest.mark.parametrize("process", PROCESSES, **ids)
def test_only_valid_rows_count(process):
    noise, action = torch.randn(2, 8, 3, 2, dtype=torch.float64)
    t, s = times(*[0.25] * 8), times(*[0.5] * 4, *[0.25] * 4)
    net = DenoisingMLP(3, 2, 1, True, (16,) * 3, "mish").double()
    mask, cond = torch.tensor([[True, True, False]]).expand(8, 3), torch.zeros(8, 1, dtype=torch.float64)
    before = process.loss(net, action, noise, t, s, cond, mask)
    full = process.loss(net, action, noise, t, s, cond, None)
    assert before.shape == full.shape == (8,)
    assert not torch.allclose(before, full)
    # Of a net that treats rows alone, what stands in the masked ones must not matter.
    first = process.loss(Net(bent), action, noise, t, s, cond, mask)
    action, noise = action.clone(), noise.clone()
    action[:, 2], noise[:, 2] = 7.0, -7.0
    torch.testing.assert_close(process.loss(Net(bent), action, noise, t, s, cond, mask), first)


@pytest.mark.parametrize("process", PROCESSES, **ids)
def test_gradient_flows_through_the_prediction_alone(process):
    net = DenoisingMLP(3, 2, 1, process.two_times, (16,) * 3, "mish").double()
    noise, action, cond = torch.randn(6, 3, 2).double(), torch.rand(6, 3, 2).double(), torch.rand(6, 1).double()
    t, s = times(0, 0.25, 0.5, 0.25, 0, 0.5), times(1, 0.5, 0.5, 0.25, 0.5, 1)
    targets, inside = [], []

    def spy(x, t, s, cond):
        out = net(x, t, s, cond)
        (inside if torch.is_grad_enabled() else targets).append(out)
        return out

    process.loss(Net(spy), action, noise, t, s, cond, None).mean().backward()
    assert (len(inside), bool(targets)) == (1, True)
    assert net.action_in.weight.grad.abs().sum() > 0


def test_shortcut_loss_by_hand():
    process, seen = Shortcut(levels=3), []

    def net(x, t, s, cond):
        seen.append((t.tolist(), s.tolist()))
        return bent(x, t, s, cond)

    action, noise = column(0.6, 0.6, -0.2), column(-1.0, 0.5, 0.3)
    t, s = times(0.5, 0.25, 0.5), times(0.5, 0.5, 1.0)  # a velocity, a move of the shortest length, one of twice that
    loss = process.loss(net, action, noise, t, s, torch.zeros(3, 1), None)
    targets = [1.6]
    for row, stops in ((1, (0.25, 0.375)), (2, (0.75, 1.0))):
        start, stop = t[row].item(), s[row].item()
        half = (stop - start) / 2
        x = (1 - start) * noise[row].item() + start * action[row].item()
        first = bent(column(x), times(start), times(stops[0]), None).item()
        second = bent(column(x + half * first), times(start + half), times(stops[1]), None).item()
        targets.append((first + second) / 2)
    x = torch.lerp(noise, action, t.view(-1, 1, 1))
    torch.testing.assert_close(loss, (bent(x, t, s, None) - column(*targets)).square().flatten(), atol=1e-12, rtol=0)
    # Two forwards of the rows that need them, one of all.
    assert seen == [([0.25, 0.5], [0.25, 0.75]), ([0.375, 0.75], [0.375, 1.0]), (t.tolist(), s.tolist())]


def test_shortcut_times():
    t, s = Shortcut().sample_times(40_000, torch.Generator().manual_seed(0))
    move = s > t
    assert move.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert t[~move].mean().item() == pytest.approx(0.5, abs=0.01)
    length = (s - t)[move]
    assert length.unique().tolist() == [1 / 8, 1 / 4, 1 / 2, 1]
    assert torch.equal(t[move] % length, torch.zeros_like(length))
    for d in (1 / 8, 1 / 4, 1 / 2, 1):
        assert (length == d).float().mean().item() == pytest.approx(0.25, abs=0.02)
        assert t[move][length == d].unique().tolist() == [k * d for k in range(round(1 / d))]
    assert s.max() == 1


def test_shortcut_takes_the_numbers_of_steps_it_trains():
    assert Shortcut().grid(8) == [k / 8 for k in range(9)]
    assert Shortcut(levels=1).grid(1) == [0.0, 1.0]
    for steps in (3, 16):
        with pytest.raises(UserError, match=f"policy.steps={steps} must be one of "):
            Shortcut().grid(steps)


@pytest.mark.parametrize("bad", [{"fraction": 0.0}, {"fraction": 1.0}, {"levels": 0}])
def test_shortcut_refuses_what_cannot_be_learned(bad):
    with pytest.raises(UserError):
        Shortcut(**bad)


def test_meanflow_target_against_finite_differences():
    """The net's only part in the target is its slope along (x, t) -> (x + h v, t + h), the stop time fixed."""
    net = DenoisingMLP(3, 2, 1, True, (32,) * 3, "mish", time_scale=3.0).double()
    noise, action, cond = torch.randn(6, 3, 2).double(), torch.rand(6, 3, 2).double(), torch.rand(6, 1).double()
    t, s = times(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), times(0.1, 0.9, 1.0, 0.4, 0.6, 0.7)
    x, v, h = torch.lerp(noise, action, t.view(-1, 1, 1)), action - noise, 1e-5
    with torch.no_grad():
        slope = (net(x + h * v, t + h, s, cond) - net(x - h * v, t - h, s, cond)) / (2 * h)
        target = v + (s - t).view(-1, 1, 1) * slope
        expected = (net(x, t, s, cond) - target).square().mean((1, 2))
    loss = MeanFlow().loss(net, action, noise, t, s, cond, None)
    torch.testing.assert_close(loss, expected, atol=1e-8, rtol=1e-7)
    assert slope.abs().mean() > 1e-3


def test_meanflow_identity_of_a_gaussian():
    """Actions N(0, c^2): x_s / x_t = sd(s) / sd(t) along a path, so the average velocity is known in closed form."""

    def sd(t):
        return ((1 - t) ** 2 + (0.5 * t) ** 2) ** 0.5

    def average(x, t, s, cond):
        t, s = t.view(-1, 1, 1), s.view(-1, 1, 1)
        return x * (sd(s) / sd(t) - 1) / (s - t)

    def loss_at(average, t, s):
        # The regression's optimum is where the mean residual at every x is 0: project the residual on x.
        noise, action = torch.randn(2, 400_000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        action, start = 0.5 * action, torch.full((len(noise),), t, dtype=torch.float64)
        scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
        process = MeanFlow()
        net = Net(lambda x, t, s, cond: average(x, t, s, cond) + scale * x)
        loss = process.loss(net, action, noise, start, torch.full_like(start, s), torch.zeros(len(noise), 1), None)
        loss.mean().backward()
        return scale.grad.item()

    assert loss_at(average, 0.2, 0.9) == pytest.approx(0, abs=0.02)
    assert abs(loss_at(lambda x, t, s, cond: 1.2 * average(x, t, s, cond), 0.2, 0.9)) > 0.1


def test_meanflow_weights():
    action, noise, t = torch.zeros(2, 1, 1), column(1.0, 2.0).float(), torch.tensor([0.3, 0.3])
    x = torch.lerp(noise, action, t.view(-1, 1, 1)).requires_grad_()

    def net(*_):
        return x - x.detach()

    plain = MeanFlow().loss(net, action, noise, t, t, torch.zeros(2, 1), None)
    assert plain.tolist() == [1.0, 4.0]
    weighted = MeanFlow(power=0.5, offset=0.25).loss(net, action, noise, t, t, torch.zeros(2, 1), None)
    assert weighted.tolist() == pytest.approx([1 / 1.25**0.5, 4 / 4.25**0.5])
    (grad,) = torch.autograd.grad(weighted.sum(), x)  # the weight is a constant: 2 * error * weight
    assert grad.flatten().tolist() == pytest.approx([2 / 1.25**0.5, 4 / 4.25**0.5])


@pytest.mark.parametrize("kind", ["logit_normal", "uniform"])
def test_meanflow_times(kind):
    t, s = MeanFlow(times=kind).sample_times(40_000, torch.Generator().manual_seed(0))
    assert bool((t <= s).all())
    assert (s == t).float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert bool(((t > 0) & (s < 1)).all() if kind == "logit_normal" else ((t >= 0) & (s < 1)).all())
    pair = torch.stack([t, s])[:, s > t]
    middle = torch.logit(pair).mean() if kind == "logit_normal" else pair.mean()
    assert middle.item() == pytest.approx(0.4 if kind == "logit_normal" else 0.5, abs=0.02)


@pytest.mark.parametrize("bad", [{"instant": 0.0}, {"instant": 1.0}, {"power": -1.0}, {"offset": 0.0}])
def test_meanflow_refuses_what_cannot_be_learned(bad):
    with pytest.raises(UserError):
        MeanFlow(**bad)


def test_consistency_loss_by_hand():
    process = Consistency(levels=4, huber=0.3)
    action, noise, t = column(0.6, -0.2), column(-1.0, 0.5), times(0.25, 0.75)
    loss = process.loss(bent, action, noise, t, t, torch.zeros(2, 1), None)

    def f(x, t):
        return x + (1 - t) * bent(column(x), times(t), times(1.0), None).item()

    first = f(0.75 * -1.0 + 0.25 * 0.6, 0.25) - f(0.5 * -1.0 + 0.5 * 0.6, 0.5)
    last = f(0.25 * 0.5 + 0.75 * -0.2, 0.75) - -0.2  # the boundary: seen from t = 1, the action is itself
    assert loss.tolist() == pytest.approx([(d**2 + 0.09) ** 0.5 - 0.3 for d in (first, last)])


def test_consistency_times_are_the_grid_without_the_action():
    t, s = Consistency(levels=4).sample_times(4000, torch.Generator().manual_seed(0))
    assert torch.equal(t, s)
    assert t.unique().tolist() == [0.0, 0.25, 0.5, 0.75]


def test_consistency_samples_at_times_that_it_trains():
    assert Consistency().grid(4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    with pytest.raises(UserError, match="steps=3 must divide the 20"):
        Consistency().grid(3)


def test_consistency_moves():
    """Eta = 0 keeps the noise of x; eta = 1 forgets it; the action is the same."""
    process, action, noise = Consistency(clip=None), torch.rand(2, 3, 1), torch.randn(2, 3, 1)
    x = torch.lerp(noise, action, 0.5)
    pred = (action - x) / 0.5
    kept, none = process.step(x, pred, 0.5, 0.75, 0.0)
    torch.testing.assert_close(kept, torch.lerp(noise, action, 0.75))
    fresh, std = process.step(x, pred, 0.5, 0.75, 1.0)
    torch.testing.assert_close(fresh, 0.75 * action)
    assert (none, std) == (0, 0.25)
    some, std = process.step(x, pred, 0.5, 0.75, 0.6)
    torch.testing.assert_close(some, 0.75 * action + 0.2 * noise)
    assert std == pytest.approx(0.15)
