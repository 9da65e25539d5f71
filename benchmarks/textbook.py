"""ReinFlow as a tutorial would write it: the same mathematics, one step at a time. The other side of the ratios."""

import copy

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from diffpolicy_rl.agents._ppo import standardized
from diffpolicy_rl.agents.reinflow import ReinFlow
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.mlp import DenoisingMLP
from diffpolicy_rl.policies.std import LearnedStd

Batch = dict[str, Tensor]


class TextbookNet(nn.Module):
    """The velocity field over the concatenation of noisy chunk, time embedding and observation."""

    def __init__(self, net: DenoisingMLP) -> None:
        super().__init__()
        self.time, self.trunk = copy.deepcopy(net.time), copy.deepcopy(net.trunk)
        weight = torch.cat([net.action_in.weight, net.time_in.weight, net.cond_in.weight], dim=1).detach()
        self.first = nn.Linear(weight.shape[1], weight.shape[0])
        self.first.load_state_dict({"weight": weight, "bias": net.action_in.bias.detach()})

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Velocity (B, H, D) at chunks (B, H, D), times (B,) and observations (B, O)."""
        features = torch.cat([x.flatten(1), self.time(t, t), cond], dim=1)
        return self.trunk(self.first(features)).view(x.shape)


class TextbookReinFlow:
    """Sampling and update of a ReinFlow agent whose weights it copies.

    Args:
        agent: the agent; its policy is a clipped rectified flow.
    """

    def __init__(self, agent: ReinFlow) -> None:
        policy = agent.policy
        assert isinstance(policy.net, DenoisingMLP)
        assert isinstance(policy.std_rule, LearnedStd)
        self.config, self.steps, self.action_shape = agent.config, policy.steps, policy.action_shape
        self.normalizer = copy.deepcopy(policy.obs_normalizer)
        self.net, self.noise_net = TextbookNet(policy.net), copy.deepcopy(policy.std_rule.net)
        self.low, self.high = policy.std_rule.low, policy.std_rule.high.item()
        self.critic = copy.deepcopy(agent.critic)
        self.actor_optimizer = torch.optim.Adam([*self.net.parameters(), *self.noise_net.parameters()], agent.config.lr)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), agent.config.critic_lr)

    def mean(self, x: Tensor, k: int, cond: Tensor) -> Tensor:
        """Where move k leads from states (B, H, D) without noise."""
        t = torch.full((len(x),), k / self.steps, dtype=x.dtype)
        return (x + self.net(x, t, cond) / self.steps).clamp(-1, 1)

    def move(self, x: Tensor, k: int, cond: Tensor) -> Normal:
        """Distribution of the state after move k, from states (B, H, D)."""
        squashed = (1 + torch.tanh(self.noise_net(torch.tensor([k / self.steps]), cond)[:, 0])) / 2
        return Normal(self.mean(x, k, cond), self.low * (self.high / self.low) ** squashed)

    @torch.no_grad()
    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Chunks (B, H, D) without exploration, from initial noise (B, H, D)."""
        cond, x = self.normalizer(obs), noise
        for k in range(self.steps):
            x = self.mean(x, k, cond)
        return x

    @torch.no_grad()
    def sample_chain(self, obs: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Chain (B, K+1, H, D) and log-densities (B, K, H, D) for unit noise (B, K+1, H, D)."""
        cond = self.normalizer(obs)
        states, log_probs = [unit[:, 0]], []
        for k in range(self.steps):
            move = self.move(states[-1], k, cond)
            states.append(move.mean + move.stddev * unit[:, k + 1].clamp(-3, 3))
            log_probs.append(move.log_prob(states[-1]))
        return torch.stack(states, dim=1), torch.stack(log_probs, dim=1)

    def policy_loss(self, batch: Batch) -> Tensor:
        """PPO's clipped loss over a minibatch; one PPO sample is a chain, its log-density the mean of its elements."""
        cond, chain = self.normalizer(batch["obs"]), batch["chain"]
        log_probs = [self.move(chain[:, k], k, cond).log_prob(chain[:, k + 1]) for k in range(self.steps)]
        log_prob = torch.stack(log_probs, dim=1).flatten(1).mean(dim=1)
        ratio = torch.exp(log_prob - batch["log_prob"].squeeze(1))
        advantage = batch["advantage"]
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        clipped = torch.clamp(ratio, 1 - self.config.clip, 1 + self.config.clip)
        return -torch.min(advantage * ratio, advantage * clipped).mean()

    def update(self, batch: Batch) -> list[float]:
        """Epochs of minibatches over a prepared rollout (advantages and returns are given); returns the losses."""
        losses, rows = [], len(batch["obs"])
        for _ in range(self.config.epochs):
            for indices in torch.randperm(rows).split(min(self.config.minibatch, rows)):
                minibatch = {name: field[indices] for name, field in batch.items()}
                loss = self.policy_loss(minibatch)
                self._descend(self.actor_optimizer, loss)
                values = self.critic(self.normalizer(minibatch["obs"]))
                value_loss = 0.5 * (values - minibatch["returns"]).square().mean()
                self._descend(self.critic_optimizer, value_loss)
                losses += [loss.item(), value_loss.item()]
        return losses

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.config.max_grad_norm)
        optimizer.step()


def check_equal_samples(agent: ReinFlow, textbook: TextbookReinFlow, obs: Tensor) -> None:
    """Raise UserError unless equal noise gives both sides equal chains, densities and samples, within 1e-5.

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
    _require("chains differ", (chain.states - states).abs().max().item(), 1e-5)
    _require("log-densities differ", (log_prob - densities).abs().max().item(), 1e-5)
    _require("noise-free samples differ", (chunks - textbook.sample(obs, unit[:, 0])).abs().max().item(), 1e-5)


def as_minibatch(batch: Batch) -> Batch:
    """Rows of a prepared rollout as our side draws them: weighted, with standardised advantages."""
    weight = torch.full_like(batch["advantage"], 1 / len(batch["advantage"]))
    return batch | {"weight": weight, "advantage": standardized(batch["advantage"], weight)}


def check_equal_gradients(agent: ReinFlow, textbook: TextbookReinFlow, batch: Batch) -> None:
    """Raise UserError unless a minibatch gives both sides equal policy gradients, within 1e-8 of each tensor's norm.

    In float64, since the clipped means have kinks, beside which fp32's rounding decides whether there is a gradient.
    """
    modules = (agent.policy, textbook.net, textbook.noise_net, textbook.normalizer)
    for module in modules:
        module.double()
    batch = {name: field.double() for name, field in batch.items()}
    agent._policy_loss(as_minibatch(batch))[0].backward()
    textbook.policy_loss(batch).backward()
    for name, (ours, theirs) in gradients(agent, textbook).items():
        error = (ours - theirs).norm() / theirs.norm().clamp(min=1e-12)
        _require(f"gradients of {name} differ", error.item(), 1e-8)
    for module in modules:
        module.float().zero_grad()


def gradients(agent: ReinFlow, textbook: TextbookReinFlow) -> dict[str, tuple[Tensor, Tensor]]:
    """The gradients that both sides hold, ours and theirs, by name."""
    net, rule = agent.policy.net, agent.policy.std_rule
    assert isinstance(net, DenoisingMLP)
    assert isinstance(rule, LearnedStd)
    parts = (net.action_in, net.time_in, net.cond_in)
    first = torch.cat([_gradient(part.weight) for part in parts], dim=1), _gradient(textbook.net.first.weight)
    bias = _gradient(net.action_in.bias), _gradient(textbook.net.first.bias)
    pairs = {"the first layer": first, "the first layer's bias": bias}
    modules = {
        "time": (net.time, textbook.net.time),
        "trunk": (net.trunk, textbook.net.trunk),
        "noise net": (rule.net, textbook.noise_net),
    }
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
