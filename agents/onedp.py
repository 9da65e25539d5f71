"""OneDP: a one-step student whose noised samples the teacher finds as likely as its own (Wang et al. 2024, 2410.21257).

The gradient of KL(student || teacher) at a noise level is the difference of their scores at the student's noised
samples. The teacher's net tells its own; the student's is learned beside it, by ordinary denoising of its samples
(OneDP-S); for a student without noise it is the noise itself (OneDP-D). The student starts by regression.

It is for teachers that were cloned: fine-tuning changes the moves of a chain, not the scores between them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_rl.agents._base import adamw
from diffpolicy_rl.agents._student import StudentAgent, StudentConfig
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.experience.decisions import Decisions
from diffpolicy_rl.nets.base import Remembering
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.policy import GenerativePolicy, SampledPolicy
from diffpolicy_rl.types import DeployedPolicy


@dataclass(frozen=True)
class OneDPConfig(StudentConfig):
    """Settings of OneDP, beside those of ``StudentConfig``.

    Attributes:
        warm_up: share of the updates that only regress; the rate of regression falls over these.
        student_lr: learning rate of the student afterwards.
        score_lr: of the student's score; in the paper, 20 times the other.
    """

    warm_up: float = 0.5
    student_lr: float = 1e-4
    score_lr: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse rates that learn nothing."""
        super().__post_init__()
        require_positive(student_lr=self.student_lr, score_lr=self.score_lr)
        if not 0 < self.warm_up < 1:
            raise UserError(f"warm_up={self.warm_up} must lie between 0 and 1: the student starts by regression")


class OneDP(StudentAgent):
    """A student by score distillation.

    Raises:
        UserError: if the teacher's net tells no scores.
    """

    Config = OneDPConfig
    config: OneDPConfig

    def learn_from(self, teacher: DeployedPolicy) -> None:
        """Take a teacher, and a copy of its net to become the student's score."""
        super().learn_from(teacher)
        process = getattr(getattr(teacher, "policy", None), "process", None)
        known = type(process) is RectifiedFlow or (isinstance(process, DDPM) and process.prediction == "eps")
        if not isinstance(self.teacher, SampledPolicy) or not known:
            raise UserError(
                "method onedp needs a teacher that samples a rectified flow, or a diffusion that predicts noise, and "
                "selects nothing; use method=regress"
            )
        if not self._certain:
            self.score = self.teacher.policy.frozen_copy().requires_grad_(True)
            self.score_optimizer = adamw(self.score, self.config.score_lr)
            self._parts = (*self._parts, "score", "score_optimizer")

    @property
    def _certain(self) -> bool:
        """Whether the student has no noise."""
        return isinstance(self.online.process, Gaussian)

    def _learn(self, batch: Decisions) -> dict[str, Tensor]:
        noise = self._noise(len(batch), *self.policy.action_shape)
        if self._warming_up:
            loss = self._regression(batch, noise)
            return {"loss": loss.detach(), "grad_norm": self._descend(loss), "score_loss": torch.zeros(())}
        features = self.policy.encode(batch.obs)
        action = self._sampled(features, noise)
        direction, score_loss = self._direction(batch, action.detach(), features)
        loss = (direction * action).mean()
        return {"loss": direction.square().mean(), "grad_norm": self._descend(loss), "score_loss": score_loss}

    def _sampled(self, features: Tensor, noise: Tensor) -> Tensor:
        """The student's actions (B, H, D), not clipped: what is beyond a clip could not come back."""
        start = noise.new_zeros(len(noise))
        pred = self.online.net(noise, start, start, features)
        return pred if self._certain else noise + pred

    def _direction(self, batch: Decisions, action: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Where actions become less likely to the teacher than to the student (B, H, D), and the score's loss ()."""
        teacher = self._known_teacher().policy
        assert isinstance(teacher, GenerativePolicy)
        noise = self._noise(len(batch), *self.policy.action_shape)
        student = teacher if self._certain else self.score
        seen = Remembering(student.net)
        loss = student.loss(
            batch.obs, action, noise=noise, t=self._times(teacher, batch), net=seen, features=features
        ).mean()
        predicts_noise = isinstance(teacher.process, DDPM)
        if self._certain:
            theirs, ours = seen.pred, noise if predicts_noise else action - noise
        else:
            with torch.no_grad():
                theirs, ours = teacher.net(seen.x, seen.t, seen.t, features), seen.pred.detach()
            self.score_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.score_optimizer.step()
        apart = (theirs - ours).detach()
        return apart if predicts_noise else -apart, loss.detach()

    def _times(self, teacher: GenerativePolicy, batch: Decisions) -> Tensor:
        return teacher.process.sample_times(len(batch), self.generator)[0].to(batch.reward.device)

    @property
    def _warming_up(self) -> bool:
        return self.updates < self.config.warm_up * self.iterations

    def _rate(self, progress: float) -> float:
        return super()._rate(progress / self.config.warm_up) if self._warming_up else self.config.student_lr
