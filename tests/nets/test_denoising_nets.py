"""What every denoising net promises; H = 4, D = 2, F = 3."""

import pytest
import torch

from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.nets.chi_unet1d import ChiUNet1d
from diffpolicy_rl.nets.mlp import DenoisingMLP
from diffpolicy_rl.nets.transformer import DiffusionTransformer
from diffpolicy_rl.nets.unet1d import ConditionalUNet1d
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.std import FloorStd

SMALL = {
    DenoisingMLP: {"hidden": (64,) * 3, "activation": "mish"},
    ConditionalUNet1d: {"widths": (16, 32), "groups": 4, "hidden": (32,) * 3},
    ChiUNet1d: {"widths": (16, 32), "time_dim": 8},
    DiffusionTransformer: {"width": 32, "depth": 2, "heads": 2, "hidden": (32,) * 3},
}


@pytest.fixture(params=SMALL, ids=lambda cls: cls.__name__)
def build(request):
    """Builds a small net as it starts, or with the weights drawn that start at zero."""

    def build(two_times=False, as_it_starts=False, horizon=4):
        net = request.param(horizon, 2, 3, two_times, **SMALL[request.param])
        for parameter in net.parameters():
            if not as_it_starts and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
        return net

    return build


def inputs(rows=5, steps=3):
    t = torch.rand(steps)
    return torch.randn(rows, steps, 4, 2), t, (t + 0.2).clamp(max=1), torch.randn(rows, 3)


def test_steps_at_once_are_the_steps_one_by_one(build):
    net, (x, t, s, cond) = build(two_times=True), inputs()
    context = net.context(t, s, cond.unsqueeze(1))
    context = [part.expand(5, 3, -1) for part in context]
    at_once = net.denoise(x, context)
    assert at_once.shape == (5, 3, 4, 2)
    for k in range(3):
        of_move = tuple(part[:, k] for part in context)
        torch.testing.assert_close(net.denoise(x[:, k], of_move), at_once[:, k])
        alone = net(x[:, k], t[k].expand(5), s[k].expand(5), cond)
        torch.testing.assert_close(alone, at_once[:, k])
        assert alone.std() > 0.01  # equal, but not because all is zero


@pytest.mark.parametrize(
    ("chunks", "contexts", "expected"),
    [
        ((), (), ()),
        ((5,), (1,), (5,)),
        ((1,), (5,), (5,)),
        ((5, 3), (5, 1), (5, 3)),
        ((0,), (0,), (0,)),
        ((3,), (), (3,)),
    ],
)
def test_leading_dimensions_broadcast(build, chunks, contexts, expected):
    net, x = build(), torch.randn(*chunks, 4, 2)
    context = net.context(torch.rand(contexts), torch.rand(contexts), torch.randn(*contexts, 3))
    out = net.denoise(x, context)
    assert out.shape == (*expected, 4, 2)
    x, context = x.expand(*expected, 4, 2), [part.expand(*expected, part.shape[-1]) for part in context]
    if expected and all(expected):
        each = zip(x.reshape(-1, 4, 2), *(part.flatten(0, -2) for part in context), strict=True)
        rows = [net.denoise(a, of_row) for a, *of_row in each]
        torch.testing.assert_close(out.reshape(-1, 4, 2), torch.stack(rows))


def test_what_the_prediction_depends_on(build):
    x, t, s, cond = torch.randn(5, 4, 2), torch.rand(5), torch.rand(5), torch.randn(5, 3)
    for two_times in (False, True):
        net = build(two_times)
        out = net(x, t, s, cond)
        assert torch.equal(net(x, t, s + 0.1, cond), out) != two_times
        for changed in ((x, t + 0.1, s + 0.1, cond), (x, t, s, cond + 0.1), (x + 0.1, t, s, cond)):
            assert ((net(*changed) - out).abs().amax((1, 2)) > 1e-4).all()
    for h in range(4):  # every action of the prediction sees every noisy one
        changed = x.clone()
        changed[:, h] += 1
        assert ((net(changed, t, s, cond) - out).abs().amax(2) > 1e-5).all()


def test_gradients_reach_every_parameter(build):
    net = build(two_times=True, as_it_starts=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(3):  # output, then gates, then what is behind the gates leave zero
        optimizer.zero_grad()
        x, t, s, cond = torch.randn(8, 4, 2), torch.rand(8), torch.rand(8), torch.randn(8, 3)
        (net(x, t, s, cond) - torch.randn(8, 4, 2)).square().mean().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad.any(), name


def test_forward_derivative_is_the_difference_quotient(build):
    """Mean flow differentiates along (v, dt, ds) = (v, 1, 0)."""
    net = build(two_times=True).double()
    x, v = torch.randn(2, 5, 4, 2, dtype=torch.float64)
    cond, t = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    point, direction = (x, t, t + 0.3), (v, torch.ones_like(t), torch.zeros_like(t))

    def predict(x, t, s):
        return net(x, t, s, cond)

    out, slope = torch.func.jvp(predict, point, direction)
    torch.testing.assert_close(out, predict(*point))
    torch.testing.assert_close(net.slope(x, t, t + 0.3, cond, v), slope)
    ahead, behind = (predict(*(a + h * d for a, d in zip(point, direction, strict=True))) for h in (1e-6, -1e-6))
    assert slope.abs().min() > 1e-6
    torch.testing.assert_close(slope, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-6)

    out.square().sum().backward()  # and its value still trains the weights
    through_jvp = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    predict(*point).square().sum().backward()
    for gradient, parameter in zip(through_jvp, net.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("activation", ["relu", "mish", "gelu", "tanh"])
@pytest.mark.parametrize("embedding", ["sinusoidal", "fourier"])
@pytest.mark.parametrize("two_times", [True, False])
def test_slope_by_hand_is_that_of_forward_mode(activation, embedding, two_times):
    net = DenoisingMLP(4, 2, 3, two_times, (32,) * 5, activation, time_embedding=embedding, time_scale=3.0).double()
    x, v = torch.randn(2, 7, 4, 2).double()
    t, s, cond = torch.rand(7).double(), torch.rand(7).double(), torch.randn(7, 3).double()
    slope = net.slope(x, t, s, cond, v)
    torch.testing.assert_close(slope, DenoisingNet.slope(net, x, t, s, cond, v))
    assert slope.abs().min() > 1e-6


@pytest.mark.parametrize(("process", "steps"), [(RectifiedFlow(), 4), (DDPM(20), 10)])
def test_chains_have_the_likelihood_they_were_drawn_with(build, process, steps):
    policy = GenerativePolicy(build(), process, Normalizer((3,)), Normalizer((2,)), 4, 2, steps)
    policy.std_rule = FloorStd(0.1)
    obs = torch.randn(40, 3)
    chain, drawn = policy.sample_chain(obs)
    log_prob, _ = policy.chain_log_prob(obs, chain)
    ratio = (log_prob.flatten(1).mean(1) - drawn.flatten(1).mean(1)).exp()
    torch.testing.assert_close(ratio, torch.ones(40), atol=1e-6, rtol=0)


def test_learns_a_function_of_the_state(build):
    """Each state has one right chunk, which nothing but the condition tells; without it the errors are 0.3 and 1.3."""
    policy = GenerativePolicy(build(as_it_starts=True), RectifiedFlow(), Normalizer((3,)), Normalizer((2,)), 4, 2, 4)
    phase = torch.arange(4.0).unsqueeze(1) + torch.tensor([0.0, 1.5])

    def right_chunks(obs):
        return 0.8 * torch.sin(2 * obs[:, :1, None] + phase)

    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    for _ in range(400):
        obs = torch.randn(128, 3)
        optimizer.zero_grad()
        policy.loss(obs, right_chunks(obs)).mean().backward()
        optimizer.step()
    obs = torch.randn(500, 3)
    right, noise, t = right_chunks(obs), torch.randn(500, 4, 2), torch.rand(500)
    constant = (right - noise).var()
    with torch.no_grad():
        assert policy.loss(obs, right, noise=noise, t=t).mean() < 0.2 * constant
        assert (policy.sample(obs, noise) - right).square().mean() < 0.4 * right.var()
