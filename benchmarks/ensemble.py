"""A gradient step of ten critics at once, against one network after another."""

import copy

import torch
from torch import Tensor, nn

from benchmarks.measure import Figures, against_textbook, gemm_floor
from diffpolicy_rl.agents._base import adamw
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.critics import CriticEnsemble
from diffpolicy_rl.nets.ensemble import EnsembleLayerNorm, EnsembleLinear
from diffpolicy_rl.training.threads import torch_threads

_FEATURES, _ACTION, _BATCH = 11, (1, 3), 256  # Hopper's, and RLPD's batch
_WIDTHS, _LR = (64, 256), 3e-4

Batch = tuple[Tensor, Tensor, Tensor]


def compare(threads: int, repeats: int) -> dict[str, Figures]:
    """For each width: milliseconds of forward, backward and AdamW on both sides, and their ratios.

    Ten critics of three hidden layers with LayerNorm and ReLU, a batch of 256.

    Args:
        threads: torch threads.
        repeats: turns.
    """
    with torch_threads(threads):
        return {f"width_{width}": _compare_width(width, repeats) for width in _WIDTHS}


def _compare_width(width: int, repeats: int) -> Figures:
    critic = CriticEnsemble(_FEATURES, _ACTION, heads=10, hidden=(width,) * 3)
    batch = torch.randn(_BATCH, _FEATURES), torch.randn(_BATCH, *_ACTION), torch.randn(_BATCH)
    networks = one_by_one(critic)
    check_equal_work(critic, networks, batch)
    ours, theirs = OurStep(critic, batch), TextbookStep(networks, batch)
    figures = against_textbook(ours, theirs, repeats, calls=10)
    return figures | gemm_floor(ours, _BATCH, "fp32", turns=50)


class OurStep:
    """Forward, backward and optimiser step of the ensemble, as an agent makes them."""

    def __init__(self, critic: CriticEnsemble, batch: Batch) -> None:
        self.critic, self.batch, self.optimizer = critic, batch, adamw(critic, _LR)

    def __call__(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        self.critic.loss(*self.batch).mean().backward()
        self.optimizer.step()


class TextbookStep:
    """The same with a list of networks."""

    def __init__(self, networks: nn.ModuleList, batch: Batch) -> None:
        self.networks, self.batch = networks, batch
        self.optimizer = torch.optim.AdamW(networks.parameters(), _LR, weight_decay=0.0)

    def __call__(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        textbook_loss(self.networks, self.batch).backward()
        self.optimizer.step()


def one_by_one(critic: CriticEnsemble) -> nn.ModuleList:
    """The heads of an ensemble as plain networks over (features, action) with copies of its weights."""
    return nn.ModuleList(_head(critic, head) for head in range(critic.heads))


def _head(critic: CriticEnsemble, head: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for part in (critic.first, *critic.trunk):
        if isinstance(part, EnsembleLinear):
            layers.append(_linear(part.weight[head], part.bias, head))
        elif isinstance(part, EnsembleLayerNorm):
            layers.append(_with(nn.LayerNorm(part.weight.shape[-1]), part.weight[head, 0], part.bias, head))
        else:
            layers.append(copy.deepcopy(part))
    return nn.Sequential(*layers)


def _linear(weight: Tensor, bias: Tensor, head: int) -> nn.Module:
    inputs, outputs = weight.shape
    return _with(nn.Linear(inputs, outputs), weight.T, bias, head)


def _with(layer: nn.Module, weight: Tensor, bias: Tensor, head: int) -> nn.Module:
    layer.to(weight.dtype).load_state_dict({"weight": weight.detach(), "bias": bias[head, 0].detach()})
    return layer


def textbook_loss(networks: nn.ModuleList, batch: Batch) -> Tensor:
    """Mean squared error over all networks."""
    features, action, target = batch
    x = torch.cat([features, action.flatten(1)], dim=1)
    values = torch.stack([network(x).squeeze(-1) for network in networks])
    return (values - target).square().mean()


def check_equal_work(critic: CriticEnsemble, networks: nn.ModuleList, batch: Batch) -> None:
    """Raise UserError unless both sides have equal losses and gradients, within 1e-9 in float64."""
    critic, networks = copy.deepcopy(critic).double(), copy.deepcopy(networks).double()
    features, action, target = (part.double() for part in batch)
    ours, theirs = critic.loss(features, action, target).mean(), textbook_loss(networks, (features, action, target))
    pairs = [(ours, theirs), *gradients(critic, ours, networks, theirs)]
    difference = max((a - b).abs().max().item() for a, b in pairs)
    if not difference < 1e-9:
        raise UserError(f"the two sides do not do the same work: losses or gradients differ by {difference:.1e}")


def gradients(
    critic: CriticEnsemble, ours: Tensor, networks: nn.ModuleList, theirs: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Gradients of two losses with respect to the weights of both sides, paired."""
    held = copy.deepcopy(critic)
    gradient = torch.autograd.grad(ours, list(critic.parameters()))
    with torch.no_grad():
        for parameter, value in zip(held.parameters(), gradient, strict=True):
            parameter.copy_(value)
    as_networks = [parameter.detach() for parameter in one_by_one(held).parameters()]
    return list(zip(as_networks, torch.autograd.grad(theirs, list(networks.parameters())), strict=True))
