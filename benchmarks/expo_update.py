"""EXPO's update, against one that draws its candidates and asks its critics one after another."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.ensemble import one_by_one
from benchmarks.measure import Figures, against_textbook, gemm_floor
from benchmarks.textbook import TextbookNet
from diffpolicy_rl.agents.expo import EXPO, EXPOConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer
from diffpolicy_rl.nets.mlp import DenoisingMLP
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.training.threads import torch_threads

_OBS, _ACTION, _STEPS, _ROWS = 11, (4, 3), 4, 2000  # Hopper's, with the flow's defaults
_UTD = 4


def compare(threads: int, repeats: int) -> Figures:
    """Milliseconds of an update of four critic steps and one of base, edit and temperature, and the sides' ratios.

    Args:
        threads: torch threads.
        repeats: turns.
    """
    with torch_threads(threads):
        with double_precision():
            check_equal_work(*make_sides(width=64))
        agent, textbook, experience = make_sides()
        ours, theirs = lambda: our_update(agent, experience), lambda: textbook.update(experience)
        figures = against_textbook(ours, theirs, repeats)
        return figures | gemm_floor(ours, 8 * 256, "fp32")


def make_sides(width: int = 512, critic_width: int = 256) -> tuple[EXPO, "TextbookEXPO", Experience]:
    """An agent on Hopper's shapes with random weights, the textbook's with the same, and what they learn from."""
    net = DenoisingMLP(*_ACTION, _OBS, two_times=False, hidden=(width,) * 3)
    normalizers = Normalizer((_OBS,)), Normalizer(_ACTION[1:])
    policy = GenerativePolicy(net, RectifiedFlow(), *normalizers, _ACTION[0], _ACTION[0], _STEPS)
    hidden = (critic_width,) * 3
    config = EXPOConfig(actor_every=_UTD, utd=1, prefill=1, critic_hidden=hidden, actor_hidden=hidden)
    agent = EXPO(policy, config, iterations=1, seed=0)
    return agent, TextbookEXPO(agent), make_experience()


def make_experience() -> Experience:
    """Random decisions, in both buffers."""
    buffers = ReplayBuffer(_ROWS), ReplayBuffer(_ROWS)
    for buffer in buffers:
        obs, flags = torch.randn(_ROWS, _OBS), torch.rand(_ROWS) < 0.1
        action, rewards = torch.rand(_ROWS, *_ACTION) * 2 - 1, torch.rand(_ROWS, _ACTION[0])
        executed = torch.full((_ROWS,), _ACTION[0])
        buffer.add(obs, {"action": action}, rewards, executed, flags, torch.zeros_like(flags), torch.randn(_ROWS, _OBS))
    return Experience(*buffers)


def our_update(agent: EXPO, experience: Experience) -> None:
    """What ``EXPO.update`` does for four decisions."""
    agent.online_steps = experience.online.added - agent.config.prefill - _UTD
    agent.update(experience)


class TextbookEXPO:
    """The same learning rule with a list of networks, copied from an agent's.

    It computes the target critics that were drawn and no others, as the ensemble does.

    Args:
        agent: the agent.
    """

    def __init__(self, agent: EXPO) -> None:
        self.config, self.generator = agent.config, torch.Generator()
        self.generator.set_state(agent.generator.get_state())
        self.base, self.average = TextbookNet(agent.base.online.net), TextbookNet(agent.policy.net)
        self.edit, self.temperature = copy.deepcopy(agent.edit.actor), copy.deepcopy(agent.edit.temperature)
        self.critics, self.targets = one_by_one(agent.critics.online), one_by_one(agent.critics.target)
        self.normalizer = copy.deepcopy(agent.policy.obs_normalizer)
        learners = (self.base, self.edit, self.temperature, self.critics)
        rates = (agent.config.base_lr, agent.config.actor_lr, agent.config.alpha_lr, agent.config.critic_lr)
        self.optimizers = [
            torch.optim.AdamW(module.parameters(), lr, weight_decay=0.0)
            for module, lr in zip(learners, rates, strict=True)
        ]

    def update(self, experience: Experience) -> None:
        """Four critic steps, then one of everything else."""
        config = self.config
        batches = experience.batches(_UTD, config.batch, config.mixing, config.gamma, self.generator)
        for index, batch in enumerate(batches):
            obs, after = self.normalizer(batch.obs), self.normalizer(batch.next_obs)
            self.learn_critics(obs, batch.action, batch.reward + batch.discount * self.future(after))
            if index == _UTD - 1:
                self.learn_base(obs, batch)
                self.learn_edit(obs, batch.action)

    @torch.no_grad()
    def future(self, obs: Tensor) -> Tensor:
        """Values (B,) of the best candidates."""
        count = self.config.candidates
        noise = torch.randn((2 * count, len(obs), *_ACTION), generator=self.generator)
        samples = [self.sample(obs, noise[i]) for i in range(count)]
        edited = [
            samples[i] + self.edit.sample(torch.cat([obs, samples[i].flatten(1)], 1), noise[count + i])[0]
            for i in range(count)
        ]
        candidates, drawn = samples + edited, self.drawn()
        values = torch.stack([self.least(drawn, obs, candidate) for candidate in candidates])
        chosen = torch.stack(candidates)[values.argmax(0), torch.arange(len(obs))]
        return self.least(self.drawn(), obs, chosen)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Chunks (B, H, D), by Euler steps."""
        x = noise
        for k in range(_STEPS):
            velocity = self.base(x, torch.full((len(obs),), k / _STEPS), obs)
            x = (x + velocity / _STEPS).clamp(-1, 1)
        return x

    def drawn(self) -> list[int]:
        """Which critics a target sees."""
        return torch.randperm(len(self.targets), generator=self.generator)[: self.config.subset].tolist()

    def least(self, drawn: list[int], obs: Tensor, action: Tensor) -> Tensor:
        """The least value (B,) of some target critics."""
        x = torch.cat([obs, action.flatten(1)], dim=1)
        return torch.stack([self.targets[head](x).squeeze(-1) for head in drawn]).amin(0)

    def learn_critics(self, obs: Tensor, action: Tensor, target: Tensor) -> None:
        """One step of each critic, and of each target."""
        x = torch.cat([obs, action.flatten(1)], dim=1)
        loss = torch.stack([(critic(x).squeeze(-1) - target).square().mean() for critic in self.critics]).sum()
        self.descend(loss, 3)
        with torch.no_grad():
            pairs = zip(self.targets.parameters(), self.critics.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, self.config.tau)

    def learn_base(self, obs: Tensor, batch: Decisions) -> None:
        """One step of flow matching, and of the average."""
        noise = torch.randn(batch.action.shape, generator=self.generator)
        t = torch.rand(len(obs), generator=self.generator)
        x = torch.lerp(noise, batch.action, t.view(-1, 1, 1))
        error = (self.base(x, t, obs) - (batch.action - noise)).square().mean(-1)
        self.descend(((error * batch.mask).sum(-1) / batch.mask.sum(-1)).mean(), 0)
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.base.parameters(), strict=True):
                slow.lerp_(fast, self.config.base_tau)

    def learn_edit(self, obs: Tensor, action: Tensor) -> None:
        """One step of the edit, and of the temperature."""
        noise = torch.randn(action.shape, generator=self.generator)
        edit, log_prob = self.edit.sample(torch.cat([obs, action.flatten(1)], dim=1), noise)
        x = torch.cat([obs, (action + edit).flatten(1)], dim=1)
        value = torch.stack([critic(x).squeeze(-1) for critic in self.critics]).mean(0)
        self.descend((self.temperature.alpha * log_prob - value).mean(), 1)
        self.descend(self.temperature.loss(log_prob), 2)

    def descend(self, loss: Tensor, index: int) -> None:
        """One step of one of the optimisers."""
        self.optimizers[index].zero_grad()
        loss.backward()
        self.optimizers[index].step()


def check_equal_work(agent: EXPO, textbook: TextbookEXPO, experience: Experience) -> None:
    """Raise UserError unless an update leaves both sides with equal weights, within 1e-9 in float64.

    Args:
        agent: our side.
        textbook: the other one.
        experience: what is learned from.
    """
    our_update(agent, experience)
    textbook.update(experience)
    pairs = [
        *zip(TextbookNet(agent.base.online.net).parameters(), textbook.base.parameters(), strict=True),
        *zip(TextbookNet(agent.policy.net).parameters(), textbook.average.parameters(), strict=True),
        *zip(agent.edit.actor.parameters(), textbook.edit.parameters(), strict=True),
        *zip(one_by_one(agent.critics.online).parameters(), textbook.critics.parameters(), strict=True),
        *zip(one_by_one(agent.critics.target).parameters(), textbook.targets.parameters(), strict=True),
        (agent.edit.temperature.log_alpha, textbook.temperature.log_alpha),
    ]
    difference = max((a - b).abs().max().item() for a, b in pairs)
    if not difference < 1e-9:
        raise UserError(f"the two sides do not do the same work: weights differ by {difference:.1e} after one update")


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """A block in which everything new is float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
