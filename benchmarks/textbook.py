"""PPO on chains as a tutorial would write it, one step at a time: the other side of the ratios."""

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from diffpolicy_rl.agents._ppo import ChainPPO, standardized
from diffpolicy_rl.agents.dppo import DPPO
from diffpolicy_rl.agents.reinflow import ReinFlow
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.nets.mlp import DenoisingMLP
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.std import FloorStd, LearnedStd

Batch = dict[str, Tensor]


class TextbookNet(nn.Module):
    """A denoising net over the concatenation of noisy chunk, time embedding and observation."""

    def __init__(self, net: DenoisingNet | None) -> None:
        super().__init__()
        assert isinstance(net, DenoisingMLP)
        self.time, self.trunk = copy.deepcopy(net.time), copy.deepcopy(net.trunk)
        weight = torch.cat([net.action_in.weight, net.time_in.weight, net.cond_in.weight], dim=1).detach()
        self.first = nn.Linear(weight.shape[1], weight.shape[0])
        self.first.load_state_dict({"weight": weight, "bias": net.action_in.bias.detach()})

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Prediction (B, H, D) at chunks (B, H, D), times (B,) and observations (B, O)."""
        features = torch.cat([x.flatten(1), self.time(t, t), cond], dim=1)
        return self.trunk(self.first(features)).view(x.shape)


class Textbook(ABC):
    """Sampling and update of an agent whose weights it copies.

    Args:
        agent: the agent.
    """

    def __init__(self, agent: ChainPPO) -> None:
        policy = agent.policy
        self.config, self.steps, self.action_shape = agent.config, policy.steps, policy.action_shape
        self.normalizer, self.critic = copy.deepcopy(policy.obs_normalizer), copy.deepcopy(agent.critic)
        self.net = TextbookNet(policy.net)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), agent.config.critic_lr)
        self.actor_optimizer = torch.optim.Adam(self.parameters(), agent.config.lr)

    def parameters(self) -> list[nn.Parameter]:
        """What PPO trains of the policy."""
        return list(self.net.parameters())

    @abstractmethod
    def noise_free(self, x: Tensor, k: int, cond: Tensor) -> Tensor:
        """The states (B, H, D) that the deployed policy moves to from x in move k."""

    @abstractmethod
    def move(self, x: Tensor, k: int, cond: Tensor) -> Normal:
        """Distribution of the state after move k of the exploring policy, from states (B, H, D)."""

    @abstractmethod
    def policy_loss(self, batch: Batch) -> Tensor:
        """PPO's clipped loss over a minibatch."""

    def samples(self, batch: Batch) -> int:
        """How many PPO samples a prepared rollout holds."""
        return len(batch["obs"])

    def minibatch(self, batch: Batch, indices: Tensor) -> Batch:
        """The PPO samples with these indices."""
        return {name: field[indices] for name, field in batch.items()}

    @torch.no_grad()
    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Chunks (B, H, D) without exploration, from initial noise (B, H, D)."""
        cond, x = self.normalizer(obs), noise
        for k in range(self.steps):
            x = self.noise_free(x, k, cond)
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

    def surrogate(self, ratio: Tensor, advantage: Tensor, clip: Tensor) -> Tensor:
        """PPO's clipped objective as a loss."""
        return -torch.min(advantage * ratio, advantage * torch.clamp(ratio, 1 - clip, 1 + clip)).mean()

    def update(self, batch: Batch) -> list[float]:
        """Epochs of minibatches over a prepared rollout (advantages and returns are given); returns the losses."""
        losses, rows = [], self.samples(batch)
        for _ in range(self.config.epochs):
            order = torch.randperm(rows * self.config.repeats) % rows
            for indices in order.split(min(self.config.minibatch, len(order))):
                minibatch = self.minibatch(batch, indices)
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


class TextbookReinFlow(Textbook):
    """ReinFlow on a clipped rectified flow: one PPO sample is a chain, its log-density the mean of its elements."""

    def __init__(self, agent: ReinFlow) -> None:
        rule = agent.policy.std_rule
        assert isinstance(rule, LearnedStd)
        self.noise_net, self.low, self.high = copy.deepcopy(rule.net), rule.low, rule.high.item()
        super().__init__(agent)

    def parameters(self) -> list[nn.Parameter]:
        """The velocity's and the noise net's."""
        return [*self.net.parameters(), *self.noise_net.parameters()]

    def noise_free(self, x: Tensor, k: int, cond: Tensor) -> Tensor:
        """An Euler step."""
        t = torch.full((len(x),), k / self.steps, dtype=x.dtype)
        return (x + self.net(x, t, cond) / self.steps).clamp(-1, 1)

    def move(self, x: Tensor, k: int, cond: Tensor) -> Normal:
        """An Euler step with learned noise."""
        squashed = (1 + torch.tanh(self.noise_net(torch.tensor([k / self.steps]), cond)[:, 0])) / 2
        return Normal(self.noise_free(x, k, cond), self.low * (self.high / self.low) ** squashed)

    def policy_loss(self, batch: Batch) -> Tensor:
        """Over chains."""
        cond, chain = self.normalizer(batch["obs"]), batch["chain"]
        log_probs = [self.move(chain[:, k], k, cond).log_prob(chain[:, k + 1]) for k in range(self.steps)]
        log_prob = torch.stack(log_probs, dim=1).flatten(1).mean(dim=1)
        ratio = torch.exp(log_prob - batch["log_prob"].squeeze(1))
        advantage = batch["advantage"]
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        return self.surrogate(ratio, advantage, torch.tensor(self.config.clip))


class TextbookDPPO(Textbook):
    """DPPO on a DDPM with as many levels as moves, in the posterior's own words (Ho et al. 2020, eq. 7).

    One PPO sample is a (decision, move) pair; minibatches mix them at random.
    """

    def __init__(self, agent: DPPO) -> None:
        policy = agent.policy
        process, rule = policy.process, policy.std_rule
        assert isinstance(process, DDPM)
        assert isinstance(rule, FloorStd)
        assert process.levels == policy.steps
        super().__init__(agent)
        self.start, self.clips, self.discounts = agent.start, agent.clips.double(), agent.discounts.double()
        self.frozen = TextbookNet(policy.frozen_net) if self.start else self.net
        self.floor = rule.floor
        levels = torch.arange(policy.steps + 1) / policy.steps
        self.alpha_bar = process.alpha_bar(1 - levels.double())  # by level, noise last

    def clean(self, x: Tensor, k: Tensor, cond: Tensor, net: TextbookNet) -> Tensor:
        """The predicted clean chunks (B, H, D) at states (B, H, D) before moves k (B,)."""
        alpha_bar = self.alpha_bar[self.steps - k].to(x.dtype).view(-1, 1, 1)
        eps = net(x, k.to(x.dtype) / self.steps, cond)
        return ((x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()).clamp(-1, 1)

    def posterior(self, x: Tensor, k: Tensor, cond: Tensor, net: TextbookNet) -> Normal:
        """Distribution of the states after moves k (B,)."""
        now, then = (self.alpha_bar[self.steps - k - i].view(-1, 1, 1) for i in (0, 1))
        alpha, beta = now / then, 1 - now / then
        of_clean = (then.sqrt() * beta / (1 - now)).to(x.dtype)
        of_noisy = (alpha.sqrt() * (1 - then) / (1 - now)).to(x.dtype)
        std = (beta * (1 - then) / (1 - now)).sqrt().clamp(min=self.floor).to(x.dtype)
        return Normal(of_clean * self.clean(x, k, cond, net) + of_noisy * x, std)

    def noise_free(self, x: Tensor, k: int, cond: Tensor) -> Tensor:
        """A DDIM step (Song et al. 2020, eq. 12)."""
        now, then = self.alpha_bar[self.steps - k].item(), self.alpha_bar[self.steps - k - 1].item()
        clean = self.clean(x, torch.full((len(x),), k), cond, self.net if k >= self.start else self.frozen)
        noise = (x - now**0.5 * clean) / (1 - now) ** 0.5
        return then**0.5 * clean + (1 - then) ** 0.5 * noise

    def move(self, x: Tensor, k: int, cond: Tensor) -> Normal:
        """A DDPM step with at least ``floor`` noise."""
        return self.posterior(x, torch.full((len(x),), k), cond, self.net if k >= self.start else self.frozen)

    def samples(self, batch: Batch) -> int:
        """(decision, move) pairs."""
        return batch["log_prob"].numel()

    def minibatch(self, batch: Batch, indices: Tensor) -> Batch:
        """Pairs by decision and move."""
        decisions, moves = indices // len(self.clips), indices % len(self.clips)
        pairs = {name: batch[name][decisions] for name in ("obs", "advantage", "returns")}
        chain = batch["chain"]
        pairs |= {"before": chain[decisions, moves], "after": chain[decisions, moves + 1]}
        return pairs | {"log_prob": batch["log_prob"][decisions, moves], "move": moves}

    def policy_loss(self, batch: Batch) -> Tensor:
        """Over pairs."""
        moves, dtype = batch["move"], batch["obs"].dtype
        cond = self.normalizer(batch["obs"])
        move = self.posterior(batch["before"], self.start + moves, cond, self.net)
        ratio = torch.exp(move.log_prob(batch["after"]).flatten(1).mean(dim=1) - batch["log_prob"])
        advantage = batch["advantage"]
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        return self.surrogate(ratio, advantage * self.discounts[moves].to(dtype), self.clips[moves].to(dtype))


def as_minibatch(batch: Batch) -> Batch:
    """Rows of a prepared rollout as our side draws them: weighted, with standardised advantages."""
    weight = torch.full_like(batch["advantage"], 1 / len(batch["advantage"]))
    return batch | {"weight": weight, "advantage": standardized(batch["advantage"], weight)}
