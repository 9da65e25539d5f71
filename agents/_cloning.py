"""What agents share that regress a policy on actions they are shown: a schedule, one step, the average that acts."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from diffpolicy_rl.agents._base import BaseAgent, adamw, cosine, ema_update, set_lr
from diffpolicy_rl.errors import require_positive
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import Extras, Obs


@dataclass(frozen=True)
class CloningConfig:
    """Settings of regression.

    Attributes:
        lr: learning rate at the start.
        final_lr: learning rate at the end of the cosine.
        batch: chunks per gradient step.
        steps: gradient steps per iteration.
        weight_decay: AdamW's.
        ema_decay: decay of the weight average per update of it.
        ema_every: gradient steps between updates of the average.
        max_grad_norm: gradients are scaled down to this norm.
    """

    lr: float = 1e-3
    final_lr: float = 1e-4
    batch: int = 512
    steps: int = 100
    weight_decay: float = 1e-6
    ema_decay: float = 0.995
    ema_every: int = 10
    max_grad_norm: float = 10.0

    def __post_init__(self) -> None:
        """Refuse settings that no update could be made with."""
        require_positive(lr=self.lr, batch=self.batch, steps=self.steps, ema_every=self.ema_every)


class CloningAgent(BaseAgent):
    """Regression of a policy, of which the moving average of the weights is deployed.

    Attributes:
        online: the policy that learns; ``policy`` is the average.
    """

    _parts = ("policy", "generator", "online", "optimizer")

    def __init__(self, policy: GenerativePolicy, config: CloningConfig, *, iterations: int, seed: int) -> None:
        super().__init__(policy.frozen_copy(), iterations, seed)
        self.config, self.online = config, policy
        self.optimizer = adamw(policy, config.lr, config.weight_decay)

    def act(self, obs: Obs, *, explore: bool) -> tuple[Tensor, Extras]:
        """A sample of the averaged policy (N, A, D) in env units and, beside it, normalised; nothing explores."""
        action = self.policy.sample(obs, generator=self.generator)[:, : self.chunk]
        return self.policy.action_normalizer.inverse(action), {"action": action}

    def _descend(self, loss: Tensor) -> Tensor:
        """One gradient step of a loss (), and what is due of the average; returns the gradient's norm ()."""
        config = self.config
        set_lr(self.optimizer, self._rate(self.gradient_steps / (self.iterations * config.steps)))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = clip_grad_norm_(self.online.parameters(), config.max_grad_norm).detach()
        self.optimizer.step()
        self.gradient_steps += 1
        if self.gradient_steps % config.ema_every == 0:
            updates = self.gradient_steps // config.ema_every
            # A short memory at first, so that the average forgets the random initial weights.
            ema_update(self.policy, self.online, min(config.ema_decay, (1 + updates) / (10 + updates)))
        return norm

    def _rate(self, progress: float) -> float:
        """The learning rate at a share of all gradient steps."""
        return cosine(progress, self.config.lr, self.config.final_lr)

    @staticmethod
    def _means(steps: list[dict[str, Tensor]]) -> Mapping[str, Tensor]:
        """The mean of each metric over the steps of an update."""
        return {f"bc/{name}": torch.stack([step[name] for step in steps]).mean() for name in steps[0]}
