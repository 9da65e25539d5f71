"""Diffusion-QL as others write it: the other sides of the offline ratios (Wang et al. 2022, arXiv 2208.06193).

``TextbookDQL`` does what our DQL does, with our nets, one after the other, so that both sides can be held equal.
``PublicDQL`` does what the public code does, nets and sampler included: Mish instead of ReLU, no normalised layers, the
posterior's moves with noise of their own, factors gathered by each row's time, clipped gradients, and an average that
follows every fifth step. Its products are as many.
"""

import copy
import math

import torch
from torch import Tensor, nn

from benchmarks.ensemble import one_by_one
from benchmarks.replay_update import Pairs
from benchmarks.textbook import TextbookNet
from diffpolicy_rl.agents.dql import DQL
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.selectors import gumbel
from diffpolicy_rl.nets.embeddings import TimeEncoding
from diffpolicy_rl.nets.mlp import MLP
from diffpolicy_rl.policies.ddpm import DDPM

_HIDDEN = (256, 256, 256)


class TextbookDQL:
    """DQL step by step as its public code goes about it: two critics, one after the other; the chain moved by a net
    that sees time and observation anew at every step, also where only its outcome is used; every gradient computed.

    Args:
        agent: the agent whose weights and settings are copied.
    """

    grad_norm = math.inf
    average_every = 1  # steps

    def __init__(self, agent: DQL) -> None:
        policy, self.config, self.learned = agent.policy, agent.config, 0
        assert isinstance(policy.process, DDPM)
        self.steps, self.process, self.action_shape = policy.steps, policy.process, policy.action_shape
        self.normalizer, self.generator = copy.deepcopy(policy.obs_normalizer), copy.deepcopy(agent.generator)
        self.net, self.average = TextbookNet(agent.base.online.net), TextbookNet(policy.net)
        self.critics, self.targets = one_by_one(agent.critics.online), one_by_one(agent.critics.target)
        learners = ((self.net, self.config.policy_lr), (self.critics, self.config.critic_lr))
        self.optimizers = [torch.optim.Adam(module.parameters(), lr) for module, lr in learners]

    def pairs(self, agent: DQL) -> Pairs:
        """Policy, its average, critics, target critics."""
        return {
            "critics": (one_by_one(agent.critics.online), self.critics),
            "target critics": (one_by_one(agent.critics.target), self.targets),
            "policies": (TextbookNet(agent.base.online.net), self.net),
            "averages": (TextbookNet(agent.policy.net), self.average),
        }

    def learn(self, batch: Decisions) -> None:
        """Critics, policy, and what follows them."""
        obs, after = self.normalizer(batch.obs), self.normalizer(batch.next_obs)
        action = self.sample(self.average, after)
        future = torch.min(*(target(self.joined(after, action)).squeeze(-1) for target in self.targets))
        target = (batch.reward + batch.discount * future).detach()
        values = [critic(self.joined(obs, batch.action)).squeeze(-1) for critic in self.critics]
        self.descend(1, sum(((value - target).square().mean() for value in values), torch.zeros(())))
        action, cloning = self.sample(self.net, obs), self.cloning_loss(obs, batch.action)
        values = [critic(self.joined(obs, action)).squeeze(-1) for critic in self.critics]
        value = values[int(torch.randint(len(values), (1,), generator=self.generator))]
        self.descend(0, cloning - self.config.eta * value.mean() / value.abs().mean().detach())
        self.follow(self.targets, self.critics, self.config.tau)
        if self.learned % self.average_every == 0:
            self.follow(self.average, self.net, self.config.policy_tau)
        self.learned += 1

    def sample_noise(self, rows: int) -> Tensor:
        """Noise (N, 2M, A, D) for decisions."""
        return torch.randn(rows, 2 * self.config.candidates, *self.action_shape)

    @torch.no_grad()
    def __call__(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Normalised actions (N, A, D) at raw observations (N, O), each one of M candidates, drawn by exp(Q / T).

        Of the noise (N, 2M, A, D) the first half becomes candidates, and the second draws one of them.
        """
        count = noise.shape[1] // 2
        repeated = self.normalizer(obs).repeat_interleave(count, dim=0)
        action = self.moved(self.average, repeated, noise[:, :count].flatten(0, 1))
        value = torch.min(*(target(self.joined(repeated, action)).squeeze(-1) for target in self.targets))
        luck = gumbel(noise[:, count:, 0, 0])
        drawn = (value.view(-1, count) / self.config.temperature + luck).argmax(dim=1)
        return action.unflatten(0, (-1, count))[torch.arange(len(obs)), drawn]

    def sample(self, net: TextbookNet, obs: Tensor) -> Tensor:
        """Actions (B, A, D) at the end of chains from new noise."""
        return self.moved(net, obs, torch.randn((len(obs), *self.action_shape), generator=self.generator))

    def moved(self, net: TextbookNet, obs: Tensor, x: Tensor) -> Tensor:
        """Actions (B, A, D) at the end of the chains that start at x."""
        for k in range(self.steps):
            signal, following = (self.signal(torch.full((len(obs),), i / self.steps)) for i in (k, k + 1))
            eps = net(x, torch.full((len(obs),), k / self.steps), obs)
            clean = ((x - (1 - signal).sqrt() * eps) / signal.sqrt()).clamp(-1, 1)
            eps = (x - signal.sqrt() * clean) / (1 - signal).sqrt()
            x = following.sqrt() * clean + (1 - following).sqrt() * eps
        return x

    def cloning_loss(self, obs: Tensor, action: Tensor) -> Tensor:
        """Mean squared error of the noise."""
        noise = torch.randn(action.shape, generator=self.generator)
        t = 1 - torch.randint(1, self.steps + 1, (len(obs),), generator=self.generator) / self.steps
        signal = self.signal(t)
        x = signal.sqrt() * action + (1 - signal).sqrt() * noise
        return (self.net(x, t, obs) - noise).square().mean()

    def signal(self, t: Tensor) -> Tensor:
        """Abar (B, 1, 1) at times (B,)."""
        return self.process.alpha_bar(t.double()).to(t.dtype).view(-1, 1, 1)

    @staticmethod
    def joined(obs: Tensor, action: Tensor) -> Tensor:
        """What a critic sees."""
        return torch.cat([obs, action.flatten(1)], dim=1)

    def descend(self, index: int, loss: Tensor) -> None:
        """One step of one of the optimisers."""
        optimizer = self.optimizers[index]
        optimizer.zero_grad()
        loss.backward()
        if self.grad_norm < math.inf:
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.grad_norm)
        optimizer.step()

    @staticmethod
    def follow(slow: nn.Module, fast: nn.Module, tau: float) -> None:
        """Move a copy towards what it follows."""
        for mine, other in zip(slow.parameters(), fast.parameters(), strict=True):
            mine.data.copy_(tau * other.data + (1 - tau) * mine.data)


class PublicNet(nn.Module):
    """Noise predicted from the concatenation of noisy action, time embedding and observation.

    Args:
        obs_dim: O.
        size: A D.
    """

    def __init__(self, obs_dim: int, size: int) -> None:
        super().__init__()
        self.time, self.layers = TimeEncoding(16), MLP(obs_dim + size + 16, _HIDDEN, size, "mish")

    def forward(self, x: Tensor, t: Tensor, obs: Tensor) -> Tensor:
        """Prediction (B, A, D) at actions (B, A, D), times (B,) and observations (B, O)."""
        return self.layers(torch.cat([x.flatten(1), self.time(t, t), obs], dim=1)).view(x.shape)


class PublicDQL(TextbookDQL):
    """Its updates and decisions, from weights of its own.

    Args:
        agent: whose task, settings and noise schedule are taken.
    """

    grad_norm = 4.0
    average_every = 5

    def __init__(self, agent: DQL) -> None:
        super().__init__(agent)
        obs_dim, size = agent.policy.features, self.action_shape[0] * self.action_shape[1]
        self.net, self.average = (PublicNet(obs_dim, size) for _ in range(2))
        self.critics, self.targets = (
            nn.ModuleList(MLP(obs_dim + size, _HIDDEN, 1, "mish") for _ in range(2)) for _ in range(2)
        )
        self.average.load_state_dict(self.net.state_dict())
        self.targets.load_state_dict(self.critics.state_dict())
        learners = ((self.net, self.config.policy_lr), (self.critics, self.config.critic_lr))
        self.optimizers = [torch.optim.Adam(module.parameters(), lr) for module, lr in learners]
        beta = torch.tensor(self.process.betas, dtype=torch.float64)
        after = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), after[:-1]])
        # By level, the least noisy first, as Ho et al. 2020 have them in eq. 7.
        self.of_x, self.of_eps = (after**-0.5).float(), (1 / after - 1).sqrt().float()
        self.of_clean = (beta * before.sqrt() / (1 - after)).float()
        self.of_noisy = ((1 - before) * (1 - beta).sqrt() / (1 - after)).float()
        self.log_variance = (beta * (1 - before) / (1 - after)).clamp(min=1e-20).log().float()

    def moved(self, net: nn.Module, obs: Tensor, x: Tensor) -> Tensor:
        """Actions (B, A, D) at the end of the chains that start at x, with new noise in every move but the last."""
        for level in reversed(range(self.steps)):
            index = torch.full((len(obs),), level)
            x = self.mean(net, x, index, obs) + self.std(index) * torch.randn(x.shape, generator=self.generator)
        return x.clamp(-1, 1)

    def mean(self, net: nn.Module, x: Tensor, level: Tensor, obs: Tensor) -> Tensor:
        """Mean (B, A, D) of the posterior at actions (B, A, D) of levels (B,)."""
        eps = net(x, 1 - (level + 1) / self.steps, obs)
        clean = (_rows(self.of_x, level) * x - _rows(self.of_eps, level) * eps).clamp(-1, 1)
        return _rows(self.of_clean, level) * clean + _rows(self.of_noisy, level) * x

    def std(self, level: Tensor) -> Tensor:
        """Standard deviations (B, 1, 1) of the posterior at levels (B,), 0 for the last move."""
        return (level > 0).view(-1, 1, 1) * (0.5 * _rows(self.log_variance, level)).exp()


def _rows(table: Tensor, level: Tensor) -> Tensor:
    """The factors (B, 1, 1) of levels (B,)."""
    return table.gather(0, level).view(-1, 1, 1)
