"""Before two sides are timed: do they compute the same?"""

import torch
from torch import Tensor, nn

from benchmarks.textbook import Batch, Textbook, TextbookReinFlow, as_minibatch
from diffpolicy_rl.agents._ppo import ChainPPO
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.mlp import DenoisingMLP
from diffpolicy_rl.policies.std import LearnedStd


def check_equal_samples(agent: ChainPPO, textbook: Textbook, obs: Tensor) -> None:
    """Raise UserError unless equal noise gives both sides equal chains, densities and samples, within 1e-4.

    Args:
        agent: our side.
        textbook: the other one.
        obs: raw observations (B, O).
    """
    policy = agent.policy
    shape = (len(obs), policy.steps + 1, *policy.action_shape)
    unit = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    chain, log_prob = policy.sample_chain(obs, generator=torch.Generator().manual_seed(0))
    states, densities = textbook.sample_chain(obs, unit)
    with torch.no_grad():
        chunks = policy.sample(obs, unit[:, 0])
    _require("chains differ", (chain.states - states).abs().max().item(), 1e-4)
    _require("log-densities differ", (log_prob - densities).abs().max().item(), 1e-4)
    _require("noise-free samples differ", (chunks - textbook.sample(obs, unit[:, 0])).abs().max().item(), 1e-4)


def check_equal_gradients(agent: ChainPPO, textbook: Textbook, batch: Batch) -> None:
    """Raise UserError unless decisions give both sides equal policy gradients, within 1e-8 of each tensor's norm.

    In float64, since the clipped means have kinks, beside which fp32's rounding decides whether there is a gradient.

    Args:
        agent: our side.
        textbook: the other one.
        batch: a prepared rollout, or some rows of it.
    """
    modules = [agent.policy, *(part for part in vars(textbook).values() if isinstance(part, nn.Module))]
    for module in modules:
        module.double()
    batch = {name: field.double() for name, field in batch.items()}
    agent._policy_loss(as_minibatch(batch))[0].backward()
    textbook.policy_loss(textbook.minibatch(batch, torch.arange(textbook.samples(batch)))).backward()
    for name, (ours, theirs) in gradients(agent, textbook).items():
        error = (ours - theirs).norm() / theirs.norm().clamp(min=1e-12)
        _require(f"gradients of {name} differ", error.item(), 1e-8)
    for module in modules:
        module.float().zero_grad()


def gradients(agent: ChainPPO, textbook: Textbook) -> dict[str, tuple[Tensor, Tensor]]:
    """The gradients that both sides hold, ours and theirs, by name."""
    net, rule = agent.policy.net, agent.policy.std_rule
    assert isinstance(net, DenoisingMLP)
    parts = (net.action_in, net.time_in, net.cond_in)
    first = torch.cat([_gradient(part.weight) for part in parts], dim=1), _gradient(textbook.net.first.weight)
    bias = _gradient(net.action_in.bias), _gradient(textbook.net.first.bias)
    pairs = {"the first layer": first, "the first layer's bias": bias}
    modules: dict[str, tuple[nn.Module, nn.Module]] = {
        "time": (net.time, textbook.net.time),
        "trunk": (net.trunk, textbook.net.trunk),
    }
    if isinstance(textbook, TextbookReinFlow):
        assert isinstance(rule, LearnedStd)
        modules["noise net"] = rule.net, textbook.noise_net
    for name, (ours, theirs) in modules.items():
        for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            pairs[f"{name} {key}"] = _gradient(a), _gradient(b)
    return pairs


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _require(what: str, error: float, tolerance: float) -> None:
    if not error <= tolerance:
        raise UserError(f"the two sides do not do the same work: their {what} by {error:.1e}, above {tolerance:.0e}")
