"""Updates and decisions of DQL and OFQL: against the public DQL's way of doing the same, and against each other."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ensemble import one_by_one
from benchmarks.measure import Figures, against_textbook, gemm_floor, product_flops, several, take_turns
from benchmarks.replay_update import Pairs, check_equal_work
from benchmarks.textbook import TextbookNet
from diffpolicy_rl.agents.dql import DQL
from diffpolicy_rl.agents.ofql import OFQL
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.training.build import build_env, build_policy, spec_of
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.phase import Phase
from diffpolicy_rl.training.threads import torch_threads

_STEPS = 20  # gradient steps per update
_ENVS = 50  # observations that are acted on at once, as in the paper's evaluation
_DECISIONS = 30  # for each of them


def compare(threads: int, repeats: int) -> dict[str, Figures]:
    """Milliseconds of updates of 20 gradient steps and of decisions in 50 envs, and their ratios.

    Hopper's packaged demonstrations and the agents' own settings: 3 layers of 256, batches of 256, DQL with K = 5.

    Args:
        threads: torch threads.
        repeats: turns.
    """
    (dql, experience), (ofql, _) = sides_of("dql"), sides_of("ofql")
    with torch_threads(threads):
        figures = _updates(dql, ofql, experience, repeats)
    with torch_threads(1), torch.inference_mode():
        obs = experience.sample(_ENVS, "half", 1.0, dql.generator).obs
        return figures | _decisions(dql, ofql, obs, repeats)


def _updates(dql: DQL, ofql: OFQL, experience: Experience, repeats: int) -> dict[str, Figures]:
    textbook, config = TextbookDQL(dql), dql.config
    check_equal_work(dql, TextbookDQL, experience)

    def theirs() -> None:
        for _ in range(_STEPS):
            textbook.learn(experience.sample(config.batch, config.mixing, config.gamma, textbook.generator))

    def ours() -> object:
        return dql.update(experience)

    def one_step() -> object:
        return ofql.update(experience)

    figures = {"dql": against_textbook(ours, theirs, repeats) | gemm_floor(ours, config.batch, "fp32")}
    pair = _versus({"dql": ours, "ofql": one_step}, repeats)
    pair["ofql_updates_per_s"] = 1e3 * _STEPS / pair["ofql_ms"]
    return figures | {"ofql_update": pair | gemm_floor(one_step, ofql.config.batch, "fp32")}


def _decisions(dql: DQL, ofql: OFQL, obs: Tensor, repeats: int) -> dict[str, Figures]:
    textbook = TextbookDQL(dql)
    check_equal_actions(dql, textbook, obs)
    sides = {"dql": _acting(dql._deployed(), obs), "ofql": _acting(ofql._deployed(), obs)}
    theirs = _acting(textbook, obs)
    alone = {"dql": _acting(dql.policy.deploy(), obs), "ofql": _acting(ofql.policy.deploy(), obs)}
    return {
        "acting": _versus(sides, repeats),
        "acting_dql_against_textbook_dql": against_textbook(sides["dql"], theirs, repeats),
        "acting_ofql_against_textbook_dql": against_textbook(sides["ofql"], theirs, repeats),
        "acting_without_candidates": _versus(alone, repeats),
    }


def _versus(sides: Mapping[str, Callable[[], object]], repeats: int) -> Figures:
    """Milliseconds of both, how many times longer DQL takes, and how many times the arithmetic its products have."""
    seconds = take_turns(sides, repeats)
    figures = {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
    work = product_flops(sides["dql"]) / product_flops(sides["ofql"])
    return figures | {"dql/ofql": seconds["dql"] / seconds["ofql"], "dql/ofql_work": work}


def _acting(policy: Any, obs: Tensor) -> Callable[[], None]:
    noise = policy.sample_noise(len(obs))
    return several(lambda: policy(obs, noise), _DECISIONS)


def check_equal_actions(agent: DQL, textbook: "TextbookDQL", obs: Tensor) -> None:
    """Raise UserError unless equal noise makes both sides choose equal actions, within 1e-4.

    Args:
        agent: our side.
        textbook: the other one.
        obs: raw observations (N, O).
    """
    noise = textbook.sample_noise(len(obs))
    ours = agent.policy.action_normalizer(agent._deployed()(obs, noise))
    error = (ours - textbook(obs, noise)).abs().max().item()
    if not error < 1e-4:
        raise UserError(f"the two sides do not do the same work: their actions differ by {error:.1e}")


def sides_of(name: str) -> tuple[Any, Experience]:
    """An agent about to learn offline, and what it learns from."""
    (run,) = compose([f"agent={name}", "env=hopper", f"agent.steps={_STEPS}"], sweep=False)
    env = build_env(run, run.env.num_envs)
    spec = spec_of(env)
    phase = Phase(run, "offline", build_policy(run.policy, spec, run.seed), env, spec)
    agent: Any = phase.agent
    assert isinstance(agent, DQL | OFQL)
    return agent, phase.experience


class TextbookDQL:
    """DQL step by step as its public code goes about it: two critics, one after the other; the chain moved by a net
    that sees time and observation anew at every step, also where only its outcome is used; every gradient computed.

    Args:
        agent: the agent whose weights and settings are copied.
    """

    def __init__(self, agent: DQL) -> None:
        policy, self.config = agent.policy, agent.config
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
        self.follow(self.average, self.net, self.config.policy_tau)

    def sample_noise(self, rows: int) -> Tensor:
        """Noise (N, M + 1, A, D) for decisions."""
        return torch.randn(rows, self.config.candidates + 1, *self.action_shape)

    @torch.no_grad()
    def __call__(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Normalised actions (N, A, D) at raw observations (N, O), each one of M candidates, drawn by exp(Q / T).

        Of the noise (N, M + 1, A, D) all but the last become candidates, and the last draws one of them.
        """
        count = noise.shape[1] - 1
        repeated = self.normalizer(obs).repeat_interleave(count, dim=0)
        action = self.moved(self.average, repeated, noise[:, :count].flatten(0, 1))
        value = torch.min(*(target(self.joined(repeated, action)).squeeze(-1) for target in self.targets))
        shares = (value / self.config.temperature).view(-1, count).softmax(dim=1).cumsum(dim=1)
        drawn = torch.searchsorted(shares, torch.special.ndtr(noise[:, count, 0, :1])).clamp(max=count - 1)
        return action.unflatten(0, (-1, count))[torch.arange(len(obs)), drawn.squeeze(1)]

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
        self.optimizers[index].zero_grad()
        loss.backward()
        self.optimizers[index].step()

    @staticmethod
    def follow(slow: nn.Module, fast: nn.Module, tau: float) -> None:
        """Move a copy towards what it follows."""
        for mine, other in zip(slow.parameters(), fast.parameters(), strict=True):
            mine.data.copy_(tau * other.data + (1 - tau) * mine.data)
