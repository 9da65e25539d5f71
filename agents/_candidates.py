"""What agents share that choose among samples of a base policy and go on cloning with it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffpolicy_rl.agents._base import Stateful, adamw, ema_update
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.selectors import argmax, gumbel
from diffpolicy_rl.nets.critics import CriticEnsemble
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import DeployedPolicy, Obs

_TOGETHER = 2048  # rows of each thread whose activations stay in the caches


def draw(policy: GenerativePolicy, features: Tensor, noise: Tensor) -> Tensor:
    """M samples of a policy at each observation, many at once.

    Args:
        policy: the policy.
        features: (B, F), encoded once for all of them.
        noise: (M, B, H, D), what each is made of.

    Returns:
        Normalised chunks (M, B, H, D).
    """
    if torch.compiler.is_exporting():  # the batch is not known then
        return policy.sample(features, noise, features=features)
    together = max(_TOGETHER * torch.get_num_threads() // len(features), 1)
    return torch.cat([policy.sample(features, part, features=features) for part in noise.split(together)])


def refuse_unexecuted(policy: GenerativePolicy) -> None:
    """Raise UserError if a policy predicts more actions than are executed."""
    if policy.horizon != policy.execute:
        raise UserError(
            f"policy.horizon={policy.horizon} must equal policy.execute={policy.execute}, because the base is "
            "trained on replay, which holds only actions that were executed"
        )


class ClonedBase(Stateful):
    """A base policy that goes on cloning, and the moving average of its weights, which acts.

    Args:
        policy: the pretrained policy; it becomes the one that learns.
        lr: its learning rate.
        tau: how far the average moves at each step.

    Attributes:
        online: the policy that learns.
        average: the one that acts.

    Raises:
        UserError: if the policy predicts more actions than are executed.
    """

    _parts = ("online", "optimizer")  # the average is the agent's policy

    def __init__(self, policy: GenerativePolicy, lr: float, tau: float) -> None:
        refuse_unexecuted(policy)
        self.average, self.online, self.tau = policy.frozen_copy(), policy.requires_grad_(True), tau
        self.optimizer = adamw(policy, lr)

    def learn(self, obs: Tensor, action: Tensor, mask: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """One gradient step of the base's own regression loss, and one step of the average.

        Args:
            obs: raw observations (B, O).
            action: (B, A, D).
            mask: (B, A) bool, False where there is nothing to learn.
            generator: of noise and times.
        """
        loss = self.online.loss(obs, action, mask=mask, generator=generator).mean()
        self.step(loss)
        return {"base/loss": loss.detach()}

    def step(self, loss: Tensor) -> None:
        """One gradient step of any loss () that reaches nothing else, and one step of the average."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        ema_update(self.average, self.online, 1 - self.tau)


class Chooser(DeployedPolicy):
    """A policy that makes candidates and executes one of them, by the values that critics give them.

    Args:
        policy: the base.
        critic: values (E, M, N) of actions (M, N, H, D) at features (N, F).
        value: from these to those that choose (M, N).
        noise: shape of one row's noise.
    """

    scores = True

    def __init__(
        self,
        policy: GenerativePolicy,
        critic: nn.Module,
        value: Callable[[Tensor], Tensor],
        noise: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.policy, self.critic, self.execute, self.noise_shape = policy, critic, policy.execute, noise
        self._value = value

    def score(self, obs: Obs, action: Tensor) -> Tensor:
        """What chooses: values (N,) of chunks (N, H, D) in env units, as the critics see them."""
        normalized = self.policy.action_normalizer(action)
        return self._value(self.critic(self.policy.encode(obs), normalized))


class ChosenCandidate(Chooser):
    """The sample with the highest value, or one drawn with probability proportional to exp(value / T), in env units.

    Args:
        policy: what is sampled.
        critic: values (E, M, N) of actions (M, N, H, D) at features (N, F).
        value: from these to those that choose (M, N).
        candidates: M.
        temperature: T; 0 for the best.
    """

    def __init__(
        self,
        policy: GenerativePolicy,
        critic: nn.Module,
        value: Callable[[Tensor], Tensor],
        candidates: int,
        temperature: float = 0.0,
    ) -> None:
        super().__init__(policy, critic, value, (candidates * (1 + (temperature > 0)), *policy.action_shape))
        self.candidates, self.temperature = candidates, temperature

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map raw observations (N, O) and noise (N, M, H, D) to actions (N, H, D) in env units.

        With a temperature, noise is (N, 2M, H, D), and the first number of each of the last M parts helps or hinders
        the candidate of its place.
        """
        assert noise is not None
        features = self.policy.encode(obs)
        noises = self.policy.scaled(noise[:, : self.candidates].transpose(0, 1))
        candidates = draw(self.policy, features, noises)
        luck = candidates.new_zeros(candidates.shape[:2])
        if self.temperature > 0:
            luck = self.temperature * gumbel(noise[:, self.candidates :].flatten(2)[..., 0].transpose(0, 1))
        choice = argmax(self._ranks(features, candidates, luck), candidates)
        return self.policy.action_normalizer.inverse(choice.actions)

    def _ranks(self, features: Tensor, candidates: Tensor, luck: Tensor) -> Tensor:
        """Values and luck (M, N) together, of which the highest decides among candidates (M, N, H, D)."""
        return self._value(self.critic(features, candidates)) + luck


class LeastValueCandidate(ChosenCandidate):
    """The same where the lowest of the critics' values counts: the first critic's is a bound on it.

    So the other critics judge the candidate with the highest bound, and then those with a bound above the value that it
    turned out to have. The choice is the same.

    Args:
        policy: what is sampled.
        critic: E heads.
        candidates: M.
        temperature: T; 0 for the best.
    """

    critic: CriticEnsemble

    def __init__(
        self,
        policy: GenerativePolicy,
        critic: CriticEnsemble,
        candidates: int,
        temperature: float = 0.0,
    ) -> None:
        super().__init__(policy, critic, lambda values: values.amin(0), candidates, temperature)

    def _ranks(self, features: Tensor, candidates: Tensor, luck: Tensor) -> Tensor:
        """The same, -inf for those that cannot win."""
        # What is exported must not branch, and a GPU would wait for what to judge next.
        if torch.compiler.is_exporting() or features.device.type != "cpu" or self.critic.heads == 1:
            return super()._ranks(features, candidates, luck)
        first, others = (self.critic.frozen_view(heads) for heads in (slice(0, 1), slice(1, None)))
        bound = first(features, candidates)[0] + luck
        value = torch.full_like(bound, -torch.inf)

        def judge(places: Tensor, rows: Tensor) -> None:
            rest = others(features[rows], candidates[places, rows]).amin(0) + luck[places, rows]
            value[places, rows] = torch.minimum(rest, bound[places, rows])

        judge(bound.argmax(0), torch.arange(len(features)))
        places, rows = ((bound > value.amax(0)) & value.isinf()).nonzero(as_tuple=True)
        if len(places):
            judge(places, rows)
        return value
