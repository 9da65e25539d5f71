"""Behaviour cloning: regress the policy on demonstrations, deploy the moving average of its weights.

Settings are DPPO's pre-training (Ren et al. 2024, appendix D), with a larger batch and the average updated from the
start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from diffpolicy_rl.agents._base import BaseAgent, adamw, cosine, ema_update, set_lr
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.experience.buffers import Demonstrations
from diffpolicy_rl.nets.base import Watched
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.process import dispersive_loss
from diffpolicy_rl.types import Extras, Obs


@dataclass(frozen=True)
class BCConfig:
    """Settings of behaviour cloning.

    Attributes:
        lr: learning rate at the start.
        final_lr: learning rate at the end of the cosine.
        batch: chunks per gradient step.
        steps: gradient steps per iteration.
        weight_decay: AdamW's.
        ema_decay: decay of the weight average per update of it.
        ema_every: gradient steps between updates of the average.
        max_grad_norm: gradients are scaled down to this norm.
        dispersive: weight of the dispersive loss on the net's hidden features; D2PPO takes 0.3 to 0.9.
        temperature: its temperature.
    """

    lr: float = 1e-3
    final_lr: float = 1e-4
    batch: int = 512
    steps: int = 100
    weight_decay: float = 1e-6
    ema_decay: float = 0.995
    ema_every: int = 10
    max_grad_norm: float = 10.0
    dispersive: float = 0.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        """Refuse settings that no update could be made with."""
        require_positive(lr=self.lr, batch=self.batch, steps=self.steps, ema_every=self.ema_every)
        require_positive(temperature=self.temperature)
        if self.dispersive < 0:
            raise UserError(f"dispersive={self.dispersive} must not be negative")


class BC(BaseAgent):
    """Behaviour cloning of a generative policy."""

    Config = BCConfig
    data: ClassVar[Literal["rollout", "replay"]] = "replay"
    phases: ClassVar[tuple[str, ...]] = ("bc",)
    _parts = ("policy", "generator", "online", "optimizer")

    def __init__(self, policy: GenerativePolicy, config: BCConfig, *, iterations: int, seed: int) -> None:
        super().__init__(policy.frozen_copy(), iterations, seed)
        self.config, self.online = config, policy
        self.watched = Watched(policy.net) if config.dispersive else None
        self.optimizer = adamw(policy, config.lr, config.weight_decay)

    def act(self, obs: Obs, *, explore: bool) -> tuple[Tensor, Extras]:
        """A sample of the averaged policy (N, A, D); cloning explores no further."""
        noise = torch.randn((len(obs), *self.policy.action_shape), generator=self.generator).to(self.policy.device)
        chunk = self.policy.sample(obs, noise)[:, : self.chunk]
        return self.policy.action_normalizer.inverse(chunk), {}

    def update(self, buffer: Demonstrations) -> Mapping[str, Tensor]:
        """``config.steps`` gradient steps on random windows."""
        steps = [self._gradient_step(buffer) for _ in range(self.config.steps)]
        self.updates += 1
        return {f"bc/{name}": torch.stack([step[name] for step in steps]).mean() for name in steps[0]}

    def _gradient_step(self, buffer: Demonstrations) -> dict[str, Tensor]:
        """One step on one batch; returns its regression loss, dispersive loss if there is one, and gradient norm."""
        config, horizon = self.config, self.iterations * self.config.steps
        set_lr(self.optimizer, cosine(self.gradient_steps / horizon, config.lr, config.final_lr))
        batch = buffer.sample(config.batch, self.generator)
        losses = self.online.loss(batch.obs, batch.action, mask=batch.mask, net=self.watched, generator=self.generator)
        loss = total = losses.mean()
        metrics = {"loss": loss.detach()}
        if self.watched is not None:
            spread = dispersive_loss(self.watched.hidden, config.temperature)
            total = loss + config.dispersive * spread
            metrics["dispersive"] = spread.detach()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        metrics["grad_norm"] = clip_grad_norm_(self.online.parameters(), config.max_grad_norm).detach()
        self.optimizer.step()
        self.gradient_steps += 1
        if self.gradient_steps % config.ema_every == 0:
            updates = self.gradient_steps // config.ema_every
            # A short memory at first, so that the average forgets the random initial weights.
            ema_update(self.policy, self.online, min(config.ema_decay, (1 + updates) / (10 + updates)))
        return metrics
