"""Packed weights: the same numbers, in their scope only."""

import torch
from torch import nn

from diffpolicy_rl.nets.linear import Linear, fixed_weights
from diffpolicy_rl.nets.mlp import ResidualMLP


def test_packed_products_are_the_plain_ones():
    torch.manual_seed(0)
    layer, x = Linear(96, 160), torch.randn(40, 96)
    plus, bias = torch.randn(40, 160), torch.randn(160)
    expected = x @ layer.weight.T + layer.bias
    for block in (nn.Module(), layer):  # without, then with packed weights
        with torch.no_grad(), fixed_weights(block):
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(layer.plus(x, plus), expected + plus, rtol=1e-5, atol=1e-5)
            other = expected - layer.bias + plus + bias
            torch.testing.assert_close(layer.weighted(x, plus, bias), other, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(layer.weighted(x[:1], plus[:1], bias), other[:1], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(layer.weighted(x, plus[0], bias), other - plus + plus[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(layer.relu(x), expected.clamp(min=0), rtol=1e-5, atol=1e-5)


def test_changed_weights_are_seen_by_the_next_block():
    net, x = ResidualMLP(3, (32, 32, 32), 2, "relu"), torch.randn(5, 3)
    with torch.no_grad():
        with fixed_weights(net):
            before = net(x)
        for parameter in net.parameters():
            parameter.mul_(2.0)
        plain = net(x)
        with fixed_weights(net):
            torch.testing.assert_close(net(x), plain)
    assert not torch.allclose(plain, before)


def test_gradients_flow_inside_the_block():
    layer, x = Linear(4, 3), torch.randn(6, 4, requires_grad=True)
    with fixed_weights(layer):
        layer.plus(x, torch.ones(6, 3)).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(6, 4))
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(3, 4))


def test_lower_precision_is_respected_inside_the_block():
    layer, x = Linear(8, 8), torch.randn(2, 8)
    with torch.no_grad(), fixed_weights(layer), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
