import pytest
import torch
import torch.nn.functional as F

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.unet1d import ConditionalUNet1d, FilmBlock


@pytest.mark.parametrize(
    ("horizon", "widths"),
    [(4, (16, 32)), (2, (16, 32)), (6, (32, 16)), (1, (16,)), (5, (16,)), (16, (16, 32, 64)), (4, (16,) * 3)],
)
def test_every_horizon_that_divides(horizon, widths):
    net = ConditionalUNet1d(horizon, 3, 5, False, widths=widths, hidden=(16,))
    out = net(torch.randn(2, horizon, 3), torch.rand(2), torch.rand(2), torch.randn(2, 5))
    assert out.shape == (2, horizon, 3)
    assert (out[0] - out[1]).abs().min() > 0


@pytest.mark.parametrize(
    ("horizon", "settings", "message"),
    [
        (5, {}, r"policy.horizon=5 must be divisible by 2, because the 2 levels of widths=\[64, 128\] halve it"),
        (6, {"widths": (8, 16, 32), "groups": 2}, "policy.horizon=6 must be divisible by 4"),
        (4, {"kernel": 4}, "kernel=4, but only an odd one"),
        (4, {"kernel": -1}, "kernel=-1 must be above 0"),
        (4, {"groups": 0}, "groups=0 must be above 0"),
        (4, {"groups": 5}, r"widths=\[64, 128\] must be multiples of groups=5"),
        (4, {"groups": 64}, "must be multiples of groups=64, and larger"),
        (4, {"widths": ()}, "needs at least one level"),
        (4, {"widths": (0, 16)}, "must be multiples"),
        (4, {"hidden": (8, 8)}, "odd number of equal widths"),
        (4, {"time_dim": 3}, "time_dim=3"),
    ],
)
def test_refusals(horizon, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        ConditionalUNet1d(horizon, 3, 5, False, **settings)
    assert "\n" not in str(caught.value)


def test_film_by_hand():
    block, x = FilmBlock(3, 8, kernel=5, groups=2), torch.randn(2, 3, 6)
    first, second = block.first, block.second
    seen = F.mish(F.group_norm(first[0](x), 2, first[1].weight, first[1].bias))
    plain = block.shortcut(x) + second(seen)
    torch.testing.assert_close(block(x, torch.zeros(2, 16)), plain)
    scale, shift = torch.randn(2, 8), torch.randn(2, 8)
    expected = block.shortcut(x) + second((1 + scale.unsqueeze(-1)) * seen + shift.unsqueeze(-1))
    torch.testing.assert_close(block(x, torch.cat([scale, shift], dim=1)), expected)
    blind = block(x, torch.cat([-torch.ones(2, 8), shift], dim=1))  # a scale of 0 leaves the shift alone
    torch.testing.assert_close(blind, block.shortcut(x) + second(shift.unsqueeze(-1).expand(2, 8, 6)))


def test_each_block_has_modulation_of_its_own():
    net = ConditionalUNet1d(4, 3, 5, False, widths=(16, 32), hidden=(16,))
    assert net.modulation.sizes == [64, 128, 64]  # down, bottom, up: two blocks each, scale and shift per channel
    x, neutral = torch.randn(4, 3), torch.zeros(256)
    base, seen = net.denoise(x, (neutral,)), []
    for start in range(0, 256, 16):
        parameters = neutral.clone()
        parameters[start : start + 16] = 0.5
        seen.append(net.denoise(x, (parameters,)))
        assert not torch.allclose(seen[-1], base)
    assert len({tuple(out.flatten().tolist()) for out in seen}) == 16


@pytest.mark.parametrize("cut", [slice(0, 16), slice(16, 32)], ids=["down", "across"])
def test_features_go_down_and_across(cut):
    """Without one way the chunk is still seen through the other; without both it is not."""
    net, x = ConditionalUNet1d(4, 3, 5, False, widths=(16, 32), hidden=(16,)), torch.randn(2, 4, 3)
    joined = (net.up[0].first.first[0].weight.data, net.up[0].first.shortcut.weight.data)
    for weight in joined:
        weight[:, cut] = 0
    one, other = net.denoise(x, (torch.zeros(2, 256),))
    assert not torch.allclose(one, other)
    for weight in joined:
        weight.zero_()
    one, other = net.denoise(x, (torch.zeros(2, 256),))
    assert torch.equal(one, other)
