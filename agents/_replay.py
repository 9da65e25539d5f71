"""What agents that learn values from replay share: when they act and learn, and their ensemble of critics."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffpolicy_rl.agents._base import BaseAgent, Stateful, adamw, compiled, ema_update
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience, Mixing
from diffpolicy_rl.nets.critics import Aggregation, CriticEnsemble, Readout, aggregate
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import DeployedPolicy, Extras, Obs


@dataclass(frozen=True)
class ReplayConfig:
    """Settings of agents with an ensemble of critics.

    Attributes:
        gamma: discount per env step.
        batch: decisions per gradient step.
        utd: critic steps per decision made.
        steps: critic steps per iteration of an offline phase.
        prefill: decisions to make before the first is learned from.
        mixing: share of demonstrations in a batch.
        n_step: decisions that a TD target looks ahead.
        critics: E, heads of the ensemble.
        critic_hidden: widths of each.
        critic_lr: their learning rate.
        layer_norm: whether critics normalise between each linear layer and its activation.
        tau: how far the target critics move to the critics at each step.
        aggregation: how heads become one value.
        subset: heads that aggregation=subset_min draws.
        rho: weight of the std in aggregation=pessimistic.
        compile: whether to compile losses of critics, and of policies that climb them: the first update takes half a
            minute longer, those after it less time.
    """

    gamma: float = 0.99
    batch: int = 256
    utd: float = 1.0
    steps: int = 100
    prefill: int = 1000
    mixing: Mixing = "none"
    n_step: int = 1
    critics: int = 2
    critic_hidden: tuple[int, ...] = (256, 256, 256)
    critic_lr: float = 3e-4
    layer_norm: bool = True
    tau: float = 0.005
    aggregation: Aggregation = "min"
    subset: int = 2
    rho: float = 0.5
    compile: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that no critic could learn with."""
        require_positive(batch=self.batch, utd=self.utd, steps=self.steps, prefill=self.prefill, n_step=self.n_step)
        require_positive(critics=self.critics, critic_lr=self.critic_lr, tau=self.tau)
        if not 0 < self.gamma <= 1:
            raise UserError(f"gamma={self.gamma} must lie in (0, 1]")
        if self.aggregation == "subset_min" and not 1 <= self.subset <= self.critics:
            raise UserError(f"subset={self.subset} must lie between 1 and critics={self.critics}")


class Critics(Stateful):
    """An ensemble of critics, its slowly following targets, and their optimiser.

    Args:
        features: F.
        action_shape: of one action.
        config: settings.
        device: where they are.
        readout: what the heads' outputs mean; values, if not given.

    Attributes:
        online: the critics that learn.
        target: those that TD targets are read from.
    """

    _parts = ("online", "target", "optimizer")

    def __init__(
        self,
        features: int,
        action_shape: tuple[int, ...],
        config: ReplayConfig,
        device: torch.device,
        readout: Readout | None = None,
    ) -> None:
        self.config = config
        heads, hidden, norm = config.critics, config.critic_hidden, config.layer_norm
        self.online, self.target = (
            CriticEnsemble(features, action_shape, heads, hidden, layer_norm=norm, readout=readout).to(device)
            for _ in range(2)
        )
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self.optimizer = adamw(self.online, config.critic_lr)
        self._judge = compiled(self._judge, config.compile)

    def value(self, values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One value (...) from those of the heads (E, ...), as the config says; a random subset needs a generator."""
        config = self.config
        return aggregate(values, config.aggregation, subset=config.subset, rho=config.rho, generator=generator)

    def hope(self, values: Tensor) -> Tensor:
        """What an actor maximises (...): the same, but the mean where targets see a random subset (REDQ, RLPD)."""
        return values.mean(0) if self.config.aggregation == "subset_min" else self.value(values)

    def target_value(self, features: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """The target critics' value (..., B) of actions (..., B, A, D) at features (B, F), computing what it needs.

        A random subset is drawn before its heads are computed, not after all.
        """
        config = self.config
        if config.aggregation != "subset_min":
            return self.value(self.target(features, action))
        drawn = torch.randperm(config.critics, generator=generator)[: config.subset]
        return self.target.some(drawn.to(features.device), features, action).amin(0)

    def learn(
        self, features: Tensor, action: Tensor, target: Tensor, penalty: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One gradient step of every head towards the targets (B,), then one step of the target critics.

        A penalty () of what the heads say elsewhere is added to the sum of their losses.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss, outputs = self._judge(features, action, target)
        total = loss.sum()  # a head learns as it would alone
        (total if penalty is None else total + penalty).backward()
        self.optimizer.step()
        ema_update(self.target, self.online, 1 - self.config.tau)
        values = self.online.readout.mean(outputs.detach())
        return {"critic/loss": loss.detach().mean(), "critic/value": values.mean()}

    def _judge(self, features: Tensor, action: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Every head's loss (E,), and its outputs (E, B, readout.width)."""
        outputs = self.online.outputs(features, action)
        return self.online.readout.loss(outputs, target).mean(-1), outputs


class ReplayAgent(BaseAgent):
    """An agent that learns from replay; subclasses say how it acts and what one critic step teaches.

    Args:
        policy: the base policy; what becomes of it is the subclass's.
        config: settings.
        iterations: updates that the schedules are laid out for.
        seed: of exploration and batches.

    Attributes:
        made: decisions made while exploring.
        critic_steps: critic steps so far, in all phases.
        online_steps: critic steps so far that decisions made were paid with.
    """

    data: ClassVar[Literal["rollout", "replay"]] = "replay"
    phases: ClassVar[tuple[str, ...]] = ("bc", "online")
    _counters = (*BaseAgent._counters, "made", "critic_steps", "online_steps")

    def __init__(self, policy: GenerativePolicy, config: ReplayConfig, *, iterations: int, seed: int) -> None:
        super().__init__(policy, iterations, seed)
        self.config = config
        self.made = self.critic_steps = self.online_steps = 0
        if self.per_step:
            self.chunk = 1

    @torch.inference_mode()
    def act(self, obs: Obs, *, explore: bool) -> tuple[Tensor, Extras]:
        """Actions (N, A, D) in env units, and beside them normalised ones and what else the update needs."""
        if not explore:
            return self._deployed_action(obs), {}
        action, extras = self._first_decision(obs) if self.made < self.config.prefill else self._decision(obs)
        self.made += len(action)
        return self.policy.action_normalizer.inverse(action), {"action": action, **extras}

    @abstractmethod
    def _decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        """Explore: normalised actions (N, A, D), and what the update needs beside them."""

    @abstractmethod
    def _first_decision(self, obs: Obs) -> tuple[Tensor, Extras]:
        """The same before anything was learned."""

    @abstractmethod
    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        """One critic step, and what goes with it."""

    def update(self, buffer: Experience) -> Mapping[str, Tensor]:
        """As many critic steps as the decisions made since the last call pay for, or ``steps`` in an offline phase."""
        online = buffer.online.added
        due = int(self.config.utd * max(online - self.config.prefill, 0)) - self.online_steps
        history: list[dict[str, Tensor]] = []
        config, steps = self.config, due if online else self.config.steps
        for batch in buffer.batches(steps, config.batch, config.mixing, config.gamma, self.generator, config.n_step):
            history.append(self._learn(batch))
            self.critic_steps += 1
        self.updates += 1
        self.online_steps += due
        names = {name for step in history for name in step}
        return {name: torch.stack([step[name] for step in history if name in step]).mean() for name in sorted(names)}

    def _encode(self, batch: Decisions) -> tuple[Tensor, Tensor]:
        """Features (B, F) at the batch's observations and at what followed, in one call."""
        features, after = self.policy.encode(torch.cat([batch.obs, batch.next_obs])).chunk(2)
        return features, after

    def deploy(self) -> DeployedPolicy:
        """What was learned, or the base policy before anything was."""
        return self._deployed() if self.critic_steps else self.policy.deploy()

    @abstractmethod
    def _deployed(self) -> DeployedPolicy:
        """The policy without exploration."""
