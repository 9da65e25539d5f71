"""Regression of a one-step student on what a teacher makes of the same noise, where the student itself gets to.

The student is a flow that makes one Euler step: z + v(z, 0) is regressed on the teacher's action from z, as FQL distils
(Park et al. 2025, arXiv 2502.02538, eq. 8) and as reflow straightens (Liu et al. 2022, arXiv 2209.03003). Observations
are half those of demonstrations, if there are any, and half those the student meets, which the teacher labels anew
(DAgger, Ross et al. 2011, arXiv 1011.0686). A teacher whose noise is not one chunk, as one that selects among
candidates, has a student without noise: the mean of what it does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffpolicy_rl.agents._cloning import CloningAgent, CloningConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.replay import Experience, Mixing
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.policies.policy import GenerativePolicy, SampledPolicy
from diffpolicy_rl.types import DeployedPolicy, Extras, Obs


@dataclass(frozen=True)
class RegressConfig(CloningConfig):
    """Settings of regression on a teacher, beside those of ``CloningConfig``.

    Attributes:
        mixing: share of demonstrations' observations in a batch.
    """

    final_lr: float = 1e-5
    steps: int = 200
    mixing: Mixing = "half"


class Regress(CloningAgent):
    """A student of one step.

    Raises:
        UserError: if the policy makes more steps than one.
    """

    Config = RegressConfig
    data: ClassVar[Literal["rollout", "replay"]] = "replay"
    phases: ClassVar[tuple[str, ...]] = ("online",)
    config: RegressConfig
    teacher: DeployedPolicy | None = None

    def __init__(self, policy: GenerativePolicy, config: RegressConfig, *, iterations: int, seed: int) -> None:
        if policy.steps != 1:
            raise UserError(f"policy.steps={policy.steps}, but students make one step; set policy.steps=1")
        super().__init__(policy, config, iterations=iterations, seed=seed)

    def learn_from(self, teacher: DeployedPolicy) -> None:
        """Take a teacher, without the noise of its single moves: only what it starts from tells its samples apart."""
        if teacher.per_step:
            raise UserError("the teacher corrects every single action, which a student of chunks cannot; use its base")
        self.teacher = teacher.policy.deploy() if isinstance(teacher, SampledPolicy) else teacher

    @torch.inference_mode()
    def act(self, obs: Obs, *, explore: bool) -> tuple[Tensor, Extras]:
        """What the teacher does, until there was an update, then what the student does (N, A, D)."""
        if self.updates or not explore:
            return super().act(obs, explore=explore)
        action = self._taught(obs, self._noise(len(obs)))[:, : self.chunk]
        return self.policy.action_normalizer.inverse(action), {"action": action}

    def update(self, buffer: Experience) -> Mapping[str, Tensor]:
        """``config.steps`` gradient steps."""
        config, steps = self.config, []
        for batch in buffer.batches(config.steps, config.batch, config.mixing, 1.0, self.generator):
            noise = self._noise(len(batch))
            loss = self.online.loss(
                batch.obs, self._taught(batch.obs, noise), noise=noise, t=torch.zeros_like(batch.reward)
            ).mean()
            steps.append({"loss": loss.detach(), "grad_norm": self._descend(loss)})
        self.updates += 1
        return self._means(steps)

    @torch.no_grad()
    def _taught(self, obs: Obs, noise: Tensor) -> Tensor:
        """Normalised chunks (B, H, D) of the teacher at observations (B, O), from noise (B, H, D) if it takes such."""
        teacher = self.teacher
        if teacher is None:
            raise UserError("agent=regress needs a teacher; set teacher=<run>, or use diffpolicy_rl.distill")
        same = teacher.noise_shape == self.policy.action_shape
        given = noise if same else teacher.sample_noise(len(obs), self.generator)
        with fixed_weights(teacher):
            return self.policy.action_normalizer(teacher(obs, None if given is None else given.to(noise.device)))

    def _noise(self, rows: int) -> Tensor:
        """Standard normal numbers (rows, H, D) from the agent's own stream."""
        return torch.randn((rows, *self.policy.action_shape), generator=self.generator).to(self.policy.device)
