"""What one-step students of another run's policy share: their teacher, and where they meet what it labels.

Observations are half those of demonstrations, if there are any, and half those the student meets, so that it is taught
where it gets to (DAgger, Ross et al. 2011, arXiv 1011.0686).
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffpolicy_rl.agents._cloning import CloningAgent, CloningConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.experience.replay import Experience, Mixing
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.policies.policy import GenerativePolicy, SampledPolicy
from diffpolicy_rl.types import DeployedPolicy, Extras, Obs


@dataclass(frozen=True)
class StudentConfig(CloningConfig):
    """Settings of students, beside those of ``CloningConfig``.

    Attributes:
        mixing: share of demonstrations' observations in a batch.
    """

    final_lr: float = 1e-5
    steps: int = 200
    mixing: Mixing = "half"


class StudentAgent(CloningAgent):
    """A policy of one step that learns from a teacher.

    Raises:
        UserError: if the policy makes more steps than one.
    """

    data: ClassVar[Literal["rollout", "replay"]] = "replay"
    phases: ClassVar[tuple[str, ...]] = ("online",)
    config: StudentConfig
    teacher: DeployedPolicy | None = None

    def __init__(self, policy: GenerativePolicy, config: StudentConfig, *, iterations: int, seed: int) -> None:
        if policy.steps != 1:
            raise UserError(f"policy.steps={policy.steps}, but students make one step; set policy.steps=1")
        super().__init__(policy, config, iterations=iterations, seed=seed)

    def learn_from(self, teacher: DeployedPolicy) -> None:
        """Take a teacher, without the noise of its single moves: only what it starts from tells its samples apart."""
        assert not teacher.per_step
        if isinstance(teacher, SampledPolicy):
            teacher = teacher.policy.deploy()
        self.teacher = teacher

    @torch.inference_mode()
    def act(self, obs: Obs, *, explore: bool) -> tuple[Tensor, Extras]:
        """What the teacher does, until there was an update, then what the student does (N, A, D)."""
        if self.updates or not explore:
            return super().act(obs, explore=explore)
        action = self._taught(obs, self._noise(len(obs), *self.policy.action_shape))[:, : self.chunk]
        return self.policy.action_normalizer.inverse(action), {"action": action}

    def update(self, buffer: Experience) -> Mapping[str, Tensor]:
        """``config.steps`` gradient steps."""
        config = self.config
        batches = buffer.batches(config.steps, config.batch, config.mixing, 1.0, self.generator)
        steps = [self._learn(batch) for batch in batches]
        self.updates += 1
        return self._means(steps)

    @abstractmethod
    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        """One gradient step at the batch's observations."""

    def _regression(self, batch: Decisions, noise: Tensor) -> Tensor:
        """Mean squared distance () of z + v(z, 0) to the teacher's action from the same noise z (B, H, D).

        As FQL distils (Park et al. 2025, arXiv 2502.02538, eq. 8), and reflow straightens (Liu et al. 2022, arXiv
        2209.03003).
        """
        start = torch.zeros_like(batch.reward)
        return self.online.loss(batch.obs, self._taught(batch.obs, noise), noise=noise, t=start).mean()

    @torch.no_grad()
    def _taught(self, obs: Obs, noise: Tensor) -> Tensor:
        """Normalised chunks (B, H, D) of the teacher at observations (B, O), from noise (B, H, D) if it takes such."""
        teacher = self._known_teacher()
        same = teacher.noise_shape == self.policy.action_shape
        given = noise if same else teacher.sample_noise(len(obs), self.generator)
        with fixed_weights(teacher):
            return self.policy.action_normalizer(teacher(obs, None if given is None else given.to(noise.device)))

    def _known_teacher(self) -> DeployedPolicy:
        if self.teacher is None:
            raise UserError("students need a teacher; set teacher=<run>, or use diffpolicy_rl.distill")
        return self.teacher
