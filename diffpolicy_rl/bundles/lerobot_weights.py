"""A ChiUNet1d's weights under LeRobot's names; what the two write differently is folded into them."""

import torch
from torch import Tensor, nn

from diffpolicy_rl.nets.chi_unet1d import ChiUNet1d
from diffpolicy_rl.nets.embeddings import TimeEncoding, Waves
from diffpolicy_rl.nets.modulation import LinearModulation
from diffpolicy_rl.nets.unet1d import ConvBlock, FilmBlock, Level

Named = dict[str, Tensor]


@torch.no_grad()
def weights_of(net: ChiUNet1d, levels: int) -> dict[str, Tensor]:
    """The state of LeRobot's ``DiffusionPolicy`` that computes what a net does.

    Args:
        net: the net, with frequencies of ``levels`` over the time axis.
        levels: number of noise levels.
    """
    modulation = net.modulation
    assert isinstance(modulation, LinearModulation)
    named = _time(modulation.time, levels)
    stages = [*net.down, net.middle, *net.up]
    names = [f"down_modules.{i}" for i in range(len(net.down))]
    names += ["mid_modules", *(f"up_modules.{i}" for i in range(len(net.up)))]
    films = [
        part.split(modulation.sizes)
        for part in (modulation.time_out.weight, modulation.cond_out.weight, modulation.time_out.bias)
    ]
    for stage, name, *film in zip(stages, names, *films, strict=True):
        assert isinstance(stage, Level)
        halves = zip(*(part.chunk(2) for part in film), strict=True)
        for index, (block, (time, cond, bias)) in enumerate(zip((stage.first, stage.second), halves, strict=True)):
            named |= _block(f"{name}.{index}", block, torch.cat([time, cond], 1), bias)
    for kind, convs in (("down", net.shorten), ("up", net.lengthen)):
        for index, conv in enumerate(convs):
            named |= _layer(f"{kind}_modules.{index}.2", conv)
    block, last = net.out
    assert isinstance(block, ConvBlock)
    named |= _conv_block("final_conv.0", block) | _layer("final_conv.1", last)
    return {f"diffusion.unet.{name}": weight.cpu().contiguous().clone() for name, weight in named.items()}


def _time(time: TimeEncoding, levels: int) -> Named:
    """LeRobot embeds the number j - 1 of the level j = levels (1 - t) that a move starts from, we embed t.

    Where our angle is a = levels f t, its angle is b - a, with b = (levels - 1) f. Our sine and cosine of a are linear
    in those of b - a, so that the first layer takes care of it. LeRobot's hidden layer is twice as wide as ours.
    """
    embedding, first, _, last = time
    assert isinstance(embedding, Waves)
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    angle = (levels - 1) / levels * embedding.rates().double()
    of_sine, of_cosine = first.weight.double().chunk(2, dim=1)
    sine = of_cosine * angle.sin() - of_sine * angle.cos()
    cosine = of_sine * angle.sin() + of_cosine * angle.cos()
    weight = torch.cat([sine, cosine], dim=1).to(first.weight.dtype)
    return {
        "diffusion_step_encoder.1.weight": torch.cat([weight, torch.zeros_like(weight)]),
        "diffusion_step_encoder.1.bias": torch.cat([first.bias, torch.zeros_like(first.bias)]),
        "diffusion_step_encoder.3.weight": torch.cat([last.weight, torch.zeros_like(last.weight)], dim=1),
        "diffusion_step_encoder.3.bias": last.bias,
    }


def _block(name: str, block: FilmBlock, film: Tensor, bias: Tensor) -> Named:
    """A FiLM block; LeRobot's scales are those themselves, ours their distance from 1."""
    one = torch.cat([torch.ones(len(bias) // 2), torch.zeros(len(bias) // 2)]).to(bias)
    named = _conv_block(f"{name}.conv1", block.first) | _conv_block(f"{name}.conv2", block.second)
    named |= {f"{name}.cond_encoder.1.weight": film, f"{name}.cond_encoder.1.bias": bias + one}
    return named if isinstance(block.shortcut, nn.Identity) else named | _layer(f"{name}.residual_conv", block.shortcut)


def _conv_block(name: str, block: ConvBlock) -> Named:
    conv, norm, _ = block
    return _layer(f"{name}.block.0", conv) | _layer(f"{name}.block.1", norm)


def _layer(name: str, layer: nn.Module) -> Named:
    return {f"{name}.{key}": weight for key, weight in layer.named_parameters()}
