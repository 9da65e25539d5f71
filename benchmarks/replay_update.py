"""A full update of the agents that learn from replay, against a plain implementation of the same."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from benchmarks.ensemble import one_by_one
from benchmarks.measure import Figures, against_textbook, gemm_floor
from benchmarks.textbook import TextbookNet
from diffpolicy_rl.agents._replay import ReplayAgent
from diffpolicy_rl.agents.dsrl import DSRL
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.training.build import build_env, build_policy, spec_of
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.phase import Phase
from diffpolicy_rl.training.threads import torch_threads

_STEPS = 20  # critic steps per update
_LIVED = 1000  # decisions to learn from

Pairs = dict[str, tuple[nn.Module, nn.Module]]


class Textbook(Protocol):
    """The other side of a ratio, made from an agent whose weights it copies."""

    def learn(self, batch: Decisions) -> None:
        """One critic step, and what goes with it."""
        ...

    def pairs(self, agent: Any) -> Pairs:
        """What both sides have learned, by name: plain networks with the agent's weights, and the textbook's own."""
        ...


def compare(threads: int, repeats: int) -> dict[str, Figures]:
    """For each agent: milliseconds of an update of 20 critic steps on both sides, and their ratios.

    Hopper, the agent's own settings, a flow policy of the default size.

    Args:
        threads: torch threads.
        repeats: turns.
    """
    return {name: _compare_agent(name, threads, repeats) for name in TEXTBOOKS}


def _compare_agent(name: str, threads: int, repeats: int) -> Figures:
    agent, experience = sides_of(name)
    textbook = TEXTBOOKS[name](agent)
    check_equal_work(agent, TEXTBOOKS[name], experience)

    def theirs() -> None:
        for _ in range(_STEPS):
            textbook.learn(_batch(agent, experience))

    with torch_threads(threads):
        figures = against_textbook(lambda: agent.update(experience), theirs, repeats)
        return figures | gemm_floor(lambda: agent.update(experience), agent.config.batch, "fp32")


def sides_of(name: str) -> tuple[Any, Experience]:
    """An agent about to learn on Hopper, and what it lived through, which its updates take for demonstrations.

    So every update makes the same number of critic steps, and no decisions have to be made in between.
    """
    words = [f"agent={name}", "env=hopper", f"budget.decisions={_LIVED // 4}", "env.num_envs=4"]
    (run,) = compose([*words, f"agent.steps={_STEPS}"], sweep=False)
    env = build_env(run, run.env.num_envs)
    spec = spec_of(env)
    phase = Phase(run, "online", build_policy(run.policy, spec, run.seed), env, spec)
    assert phase.rollout is not None
    with torch_threads(1):
        phase.rollout.collect(phase.agent)
    agent: Any = phase.agent
    agent.config = dataclasses.replace(agent.config, mixing="half")
    return agent, Experience(ReplayBuffer(1), phase.experience.online)


def _batch(agent: ReplayAgent, experience: Experience) -> Decisions:
    config = agent.config
    return experience.sample(config.batch, config.mixing, config.gamma, agent.generator, config.n_step)


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_equal_work(agent: Any, textbook: Callable[[Any], Textbook], experience: Experience) -> None:
    """Raise UserError unless equal batches and noise leave both sides equal weights after steps in float64.

    Args:
        agent: our side, which stays as it is.
        textbook: makes the other one.
        experience: to learn from.
    """
    with _float64():
        ours = copy.deepcopy(agent)
        for module in _modules(ours):
            module.double()
        theirs = textbook(ours)
        for _ in range(4):
            batch = _doubled(_batch(agent, experience))
            ours._learn(batch)
            ours.critic_steps += 1
            theirs.learn(batch)
        errors = {name: _distance(*pair) for name, pair in theirs.pairs(ours).items()}
        worst = max(errors, key=lambda name: errors[name])
        if not errors[worst] < 1e-7:
            raise UserError(f"the two sides do not do the same work: their {worst} differ by {errors[worst]:.1e}")


def _distance(mine: nn.Module, other: nn.Module) -> float:
    weights = zip(mine.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().nan_to_num(torch.inf).item() for a, b in weights)


def _modules(agent: Any) -> list[nn.Module]:
    owners = [agent, *(getattr(agent, name) for name in ("critics", "soft_actor", "base") if hasattr(agent, name))]
    return [part for owner in owners for part in vars(owner).values() if isinstance(part, nn.Module)]


def _doubled(batch: Decisions) -> Decisions:
    names = ("obs", "action", "reward", "discount", "next_obs")
    return dataclasses.replace(batch, **{name: getattr(batch, name).double() for name in names})


class TextbookDSRL:
    """DSRL's noise-aliased variant with one network after another, and the policy run for each use by itself.

    Args:
        agent: the agent.
    """

    def __init__(self, agent: DSRL) -> None:
        policy, self.config = agent.policy, agent.config
        assert agent.aliased
        assert self.config.distill <= 1
        assert isinstance(policy.process, RectifiedFlow)
        self.steps, self.chunk, self.noise_shape = policy.steps, agent.chunk, agent.noise_shape
        self.normalizer, self.net = copy.deepcopy(policy.obs_normalizer), TextbookNet(policy.net)
        self.critics, self.targets = one_by_one(agent.critics.online), one_by_one(agent.critics.target)
        self.noise_critics = one_by_one(agent.noise_critic)
        self.actor = copy.deepcopy(agent.soft_actor.actor.net)
        self.temperature = copy.deepcopy(agent.soft_actor.temperature)
        self.generator, self.taken = copy.deepcopy(agent.generator), agent.critic_steps
        rate = self.config.critic_lr
        self.critic_optimizers = [torch.optim.Adam(network.parameters(), rate) for network in self.critics]
        self.noise_optimizers = [torch.optim.Adam(network.parameters(), rate) for network in self.noise_critics]
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), self.config.actor_lr)
        self.temperature_optimizer = torch.optim.Adam(self.temperature.parameters(), self.config.alpha_lr)

    def pairs(self, agent: DSRL) -> Pairs:
        """Critics, target critics, noise critics, actor, temperature."""
        return {
            "critics": (one_by_one(agent.critics.online), self.critics),
            "target critics": (one_by_one(agent.critics.target), self.targets),
            "noise critics": (one_by_one(agent.noise_critic), self.noise_critics),
            "actors": (agent.soft_actor.actor.net, self.actor),
            "temperatures": (agent.soft_actor.temperature, self.temperature),
        }

    def learn(self, batch: Decisions) -> None:
        """Critics by TD, then their targets, the noise critics where they are due, the actor and the temperature."""
        obs, next_obs = self.normalizer(batch.obs), self.normalizer(batch.next_obs)
        with torch.no_grad():
            noise, log_prob = self.draw(next_obs)
            future = self.values(self.targets, next_obs, self.act(next_obs, noise)).min(dim=0).values
            if self.config.soft_backup:
                future = future - self.temperature.log_alpha.exp() * log_prob
            target = batch.reward + batch.discount * future
        self.taken += 1
        distils = self.taken * self.config.distill % 1 < self.config.distill
        prior = self.unit(len(obs)) if distils else None
        for critic, optimizer in zip(self.critics, self.critic_optimizers, strict=True):
            self.regress(critic, optimizer, obs, batch.action, target)
        for mine, other in zip(self.critics.parameters(), self.targets.parameters(), strict=True):
            other.data.mul_(1 - self.config.tau).add_(self.config.tau * mine.data)
        if prior is not None:
            self.distil(obs, prior)
        self.improve(obs)

    def unit(self, rows: int) -> Tensor:
        """Standard normal noise (rows, *noise_shape)."""
        return torch.randn((rows, *self.noise_shape), generator=self.generator)

    def draw(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The actor's noise (B, *noise_shape), and its log-probabilities (B,) before the bound."""
        mean, log_std = self.actor(obs).chunk(2, dim=-1)
        normal = Normal(mean, log_std.clamp(-20, 2).exp())
        u = mean + normal.stddev * self.unit(len(obs)).flatten(1)
        slope = 2 * (torch.log(torch.tensor(2.0)) - u - nn.functional.softplus(-2 * u))
        log_prob = (normal.log_prob(u) - slope).sum(dim=-1)
        return self.config.bound * torch.tanh(u).unflatten(1, self.noise_shape), log_prob

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Executed actions (B, A, D): Euler steps of the flow."""
        x = noise
        for k in range(self.steps):
            t = torch.full((len(x),), k / self.steps)
            x = (x + self.net(x, t, obs) / self.steps).clamp(-1, 1)
        return x[:, : self.chunk]

    @staticmethod
    def values(critics: nn.ModuleList, obs: Tensor, action: Tensor) -> Tensor:
        """Values (E, B)."""
        x = torch.cat([obs, action.flatten(1)], dim=1)
        return torch.stack([critic(x).squeeze(-1) for critic in critics])

    @staticmethod
    def regress(
        critic: nn.Module, optimizer: torch.optim.Optimizer, obs: Tensor, action: Tensor, target: Tensor
    ) -> None:
        """One step of one network towards targets (B,)."""
        loss = (critic(torch.cat([obs, action.flatten(1)], dim=1)).squeeze(-1) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def distil(self, obs: Tensor, prior: Tensor) -> None:
        """One step of every noise critic towards its twin."""
        action = self.act(obs, prior)
        with torch.no_grad():
            twins = self.values(self.critics, obs, action)
        for critic, optimizer, target in zip(self.noise_critics, self.noise_optimizers, twins, strict=True):
            self.regress(critic, optimizer, obs, prior / self.config.bound, target)

    def improve(self, obs: Tensor) -> None:
        """One step of the actor, and of the temperature."""
        noise, log_prob = self.draw(obs)
        value = self.values(self.noise_critics, obs, noise / self.config.bound).min(dim=0).values
        loss = (self.temperature.log_alpha.exp().detach() * log_prob - value).mean()
        self.actor_optimizer.zero_grad()
        loss.backward()
        self.actor_optimizer.step()
        self.temperature_optimizer.zero_grad()
        self.temperature.loss(log_prob).backward()
        self.temperature_optimizer.step()


TEXTBOOKS: dict[str, Callable[[Any], Textbook]] = {"dsrl": TextbookDSRL}
"""The plain implementations, by the name of the agent in configs/agent."""
