"""The optimiser that agents share, against torch's own."""

import copy

import torch
from torch import nn

from diffpolicy_rl.agents._base import FusedAdamW, adamw


def stepped(optimizer, module, inputs):
    """Take steps; the last layer gets its first gradient late, and none in between."""
    for index, x in enumerate(inputs):
        optimizer.zero_grad()
        first, last = module
        hidden = torch.tanh(first(x))
        (last(hidden) if index in (2, 4) else hidden).square().sum().backward()
        optimizer.step()


def test_it_takes_the_steps_of_torchs_own_bit_for_bit():
    ours = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 1)])
    theirs, inputs = copy.deepcopy(ours), torch.randn(6, 5, 3)
    optimizer = adamw(ours, 0.1, weight_decay=0.2)
    other = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.2, fused=True)
    assert isinstance(optimizer, FusedAdamW)
    stepped(optimizer, ours, inputs)
    stepped(other, theirs, inputs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [float(state["step"]) for state in optimizer.state.values()] == [6, 6, 2, 2]


def test_only_what_requires_a_gradient_is_updated():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert adamw(module, 0.1).param_groups[0]["params"] == [module.weight]
