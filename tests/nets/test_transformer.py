import pytest
import torch
import torch.nn.functional as F

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.transformer import DiffusionTransformer, DiTBlock


def net_with_output():
    """Blocks as they start, but an output layer that shows what leaves them."""
    net = DiffusionTransformer(4, 2, 3, False, width=16, depth=3, heads=2, hidden=(16,))
    torch.nn.init.normal_(net.out.weight)
    return net


def test_starts_as_the_identity():
    x, cond, t = torch.randn(5, 4, 2), torch.randn(5, 3), torch.rand(5)
    fresh = DiffusionTransformer(4, 2, 3, False, width=16, depth=3, heads=2, hidden=(16,))
    assert not fresh(x, t, t, cond).any()
    net = net_with_output()
    straight = net.out(F.layer_norm(net.tokens(x) + net.positions, (16,)))
    assert torch.equal(net(x, t, t, cond), straight)
    net.modulation.trunk[-1].bias.data[-32:] = torch.tensor([0.5] * 16 + [2.0] * 16)  # scale and shift before it
    modulated = net.out(1.5 * F.layer_norm(net.tokens(x) + net.positions, (16,)) + 2)
    torch.testing.assert_close(net(x, t, t, cond), modulated)


def test_a_block_by_hand():
    block, x = DiTBlock(16, heads=2, expansion=4), torch.randn(5, 4, 16)
    one = torch.ones(5, 1, 16)
    scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = (k * one for k in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    query, key, value = block.mix_in(1.1 * F.layer_norm(x, (16,)) + 0.2).chunk(3, dim=-1)
    heads = [
        (query[..., part] @ key[..., part].mT / 8**0.5).softmax(-1) @ value[..., part]
        for part in (slice(0, 8), slice(8, 16))
    ]
    mixed = x + 0.3 * block.mix_out(torch.cat(heads, dim=-1))
    expected = mixed + 0.6 * block.mlp(1.4 * F.layer_norm(mixed, (16,)) + 0.5)
    modulation = torch.cat([scale, shift, gate, mlp_scale, mlp_shift, mlp_gate], dim=-1).squeeze(1)
    torch.testing.assert_close(block(x, modulation), expected)
    assert torch.equal(block(x, torch.zeros(5, 96)), x)


def test_only_positions_tell_the_actions_apart():
    net, x = net_with_output(), torch.randn(5, 4, 2)
    context = (torch.randn(5, sum(net.modulation.sizes)),)
    turned = net.denoise(x.flip(1), context).flip(1)
    assert not torch.allclose(turned, net.denoise(x, context), atol=1e-3)
    net.positions.data.zero_()
    torch.testing.assert_close(net.denoise(x.flip(1), context).flip(1), net.denoise(x, context))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "width=128 must be a multiple of heads=3"),
        ({"heads": 0}, "heads=0 must be above 0"),
        ({"width": 0}, "width=0 must be above 0"),
        ({"depth": 0}, "depth=0 must be above 0"),
        ({"expansion": 0}, "expansion=0 must be above 0"),
        ({"hidden": ()}, "odd number of equal widths"),
        ({"time_dim": 3}, "time_dim=3"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        DiffusionTransformer(4, 2, 3, False, **settings)
