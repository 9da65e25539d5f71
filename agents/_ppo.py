"""PPO on sampling chains: the update that ReinFlow and DPPO share.

The chain that drew an action is a sequence of Gaussian moves with known likelihood, so PPO's ratio is exact. Methods
differ in the noise of the moves (the policy's StdRule) and in what counts as one PPO sample: the whole chain, or each
move of it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from diffpolicy_rl.agents._base import BaseAgent, adamw, cosine, set_lr
from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.experience.returns import RewardScaler, chunk_rewards, gae
from diffpolicy_rl.nets.critics import ValueNet
from diffpolicy_rl.nets.mlp import width_of
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.std import StdRule
from diffpolicy_rl.types import Chain, Extras, Obs


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO on chains.

    Attributes:
        gamma: discount per env step (0.9975 is 0.99 per chunk of four).
        lam: GAE's trace parameter, per decision.
        epochs: passes over a rollout.
        minibatch: decisions per gradient step, at most; a rollout is split evenly.
        lr: the policy's learning rate at the start.
        final_lr: the policy's learning rate at the end of the cosine.
        critic_lr: the critic's learning rate.
        critic_hidden: widths of the critic.
        critic_warmup: first iterations in which only the critic learns.
        clip: PPO's epsilon.
        reduction: which log-densities make one ratio (a chain's or a move's), and whether they are summed or averaged.
        entropy: weight of the entropy bonus, per action element.
        target_kl: end an update's epochs when the estimated KL of the ratios exceeds it.
        max_grad_norm: gradients are scaled down to this norm.
    """

    gamma: float = 0.9975
    lam: float = 0.95
    epochs: int = 5
    minibatch: int = 1000
    lr: float = 1e-4
    final_lr: float = 1e-5
    critic_lr: float = 1e-3
    critic_hidden: tuple[int, ...] = (256, 256, 256)
    critic_warmup: int = 0
    clip: float = 0.01
    reduction: Literal["chain_mean", "chain_sum", "move_mean", "move_sum"] = "chain_mean"
    entropy: float = 0.0
    target_kl: float = 1.0
    max_grad_norm: float = 10.0

    def __post_init__(self) -> None:
        """Refuse settings that no update could be made with."""
        require_positive(epochs=self.epochs, lr=self.lr, critic_lr=self.critic_lr, max_grad_norm=self.max_grad_norm)
        width_of(self.critic_hidden)
        if self.minibatch < 2:
            raise UserError(f"minibatch={self.minibatch}, but advantages are normalised over at least 2")
        if not (0 < self.gamma <= 1 and 0 <= self.lam <= 1):
            raise UserError(f"gamma={self.gamma} and lam={self.lam} must lie in (0, 1] and [0, 1]")


def reduce_log_prob(log_prob: Tensor, reduction: str) -> Tensor:
    """Log-densities (B, K', A, D) of executed actions to one per PPO sample: (B, 1) per chain or (B, K') per move."""
    unit, how = reduction.split("_")
    per_sample = log_prob.flatten(1).unsqueeze(1) if unit == "chain" else log_prob.flatten(2)
    return per_sample.sum(-1) if how == "sum" else per_sample.mean(-1)


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's pessimistic objective as a loss, per sample (Schulman et al. 2017, eq. 7)."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


class ChainPPO(BaseAgent):
    """PPO over the chains of a policy with a StdRule.

    Args:
        policy: pretrained policy; fine-tuned in place.
        std_rule: the noise it explores with.
        config: settings.
        iterations: updates that the schedules are laid out for.
        seed: of exploration and minibatches.
    """

    data: ClassVar[Literal["rollout", "replay"]] = "rollout"
    phases: ClassVar[tuple[str, ...]] = ("bc", "online")
    _parts = ("policy", "generator", "critic", "actor_optimizer", "critic_optimizer", "reward_scaler")

    def __init__(
        self, policy: GenerativePolicy, std_rule: StdRule, config: PPOConfig, *, iterations: int, seed: int
    ) -> None:
        super().__init__(policy, iterations, seed)
        self.config = config
        policy.requires_grad_(True).std_rule = std_rule.to(policy.device)
        self.critic = ValueNet(policy.features, config.critic_hidden).to(policy.device)
        self.actor_optimizer = adamw(policy, config.lr)
        self.critic_optimizer = adamw(self.critic, config.critic_lr)
        self.reward_scaler = RewardScaler()

    @torch.inference_mode()
    def act(self, obs: Obs, *, explore: bool) -> tuple[Tensor, Extras]:
        """Draw a chain (explore) or the noise-free sample; actions (N, A, D) in env units."""
        if not explore:
            noise = torch.randn((len(obs), *self.policy.action_shape), generator=self.generator).to(self.policy.device)
            return self._to_env(self.policy.sample(obs, noise)), {}
        chain, log_prob = self.policy.sample_chain(obs, generator=self.generator)
        extras = {
            "chain": chain.states,
            "log_prob": reduce_log_prob(log_prob[:, :, : self.chunk], self.config.reduction),
            "value": self.value(obs),
        }
        return self._to_env(chain.states[:, -1]), extras

    def value(self, obs: Obs) -> Tensor:
        """V (B,) of raw observations, in scaled rewards."""
        return self.critic(self.policy.encode(obs).detach())

    def update(self, buffer: RolloutBuffer) -> Mapping[str, Tensor]:
        """Epochs of minibatches over one rollout."""
        batch, lr = self._prepare(buffer), self._lr()
        history: list[dict[str, Tensor]] = []
        for _ in range(self.config.epochs):
            history += [self._gradient_step(minibatch) for minibatch in self._minibatches(batch)]
            if history[-1]["ppo/kl"] > self.config.target_kl:
                break
        self.updates += 1
        self._schedule()
        metrics = {name: torch.stack([step[name] for step in history]).mean() for name in history[0]}
        metrics["ppo/first_ratio_error"] = history[0]["ppo/ratio_error"]
        explained = 1 - (batch["returns"] - batch["value"]).var() / batch["returns"].var().clamp(min=1e-8)
        return metrics | {"critic/explained_variance": explained, "ppo/lr": torch.tensor(lr)}

    def _to_env(self, chunk: Tensor) -> Tensor:
        return self.policy.action_normalizer.inverse(chunk[:, : self.chunk])

    def _lr(self) -> float:
        return cosine(self.updates / self.iterations, self.config.lr, self.config.final_lr)

    def _schedule(self) -> None:
        """Set what changes from iteration to iteration, once a rollout has been used up."""
        set_lr(self.actor_optimizer, self._lr())

    @torch.no_grad()
    def _prepare(self, buffer: RolloutBuffer) -> dict[str, Tensor]:
        """Advantages and returns, and everything a minibatch needs with (T, N) flattened to (T N)."""
        config, values = self.config, buffer.extras["value"]
        discounts = config.gamma ** buffer.executed.to(values.dtype)
        done = buffer.terminated | buffer.truncated
        rewards = self.reward_scaler(chunk_rewards(buffer.rewards, config.gamma), discounts, done)
        next_values = torch.cat([values[1:], self.value(buffer.last_obs).unsqueeze(0)])
        if len(buffer.final_obs):
            next_values[buffer.truncated] = self.value(buffer.final_obs)
        advantages = gae(rewards, values, next_values, discounts, buffer.terminated, buffer.truncated, config.lam)
        fields = {"obs": buffer.obs, "advantage": advantages, "returns": advantages + values, **buffer.extras}
        return {name: field.flatten(0, 1) for name, field in fields.items()}

    def _minibatches(self, batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        rows = len(batch["obs"])
        order = torch.randperm(rows, generator=self.generator)
        for indices in order.tensor_split(math.ceil(rows / self.config.minibatch)):
            yield {name: field[indices] for name, field in batch.items()}

    def _gradient_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, metrics = self.config, {}
        if self.updates >= config.critic_warmup:
            loss, metrics = self._policy_loss(batch)
            metrics["ppo/grad_norm"] = self._descend(self.actor_optimizer, loss)
            self.gradient_steps += 1
        else:
            metrics = {"ppo/kl": torch.zeros(()), "ppo/ratio_error": torch.zeros(())}
        value_loss = 0.5 * (self.value(batch["obs"]) - batch["returns"]).square().mean()
        grad_norm = self._descend(self.critic_optimizer, value_loss)
        return metrics | {"critic/loss": value_loss.detach(), "critic/grad_norm": grad_norm}

    def _policy_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        log_prob, entropy = self.policy.chain_log_prob(batch["obs"], Chain(batch["chain"]))
        log_ratio = reduce_log_prob(log_prob[:, :, : self.chunk], config.reduction) - batch["log_prob"]
        ratio = log_ratio.exp()
        advantage = batch["advantage"]
        advantage = ((advantage - advantage.mean()) / (advantage.std() + 1e-8)).unsqueeze(1)
        entropy = entropy[:, :, : self.chunk].mean()
        loss = clipped_surrogate(ratio, advantage, config.clip).mean() - config.entropy * entropy
        with torch.no_grad():
            metrics = {
                "ppo/loss": loss,
                "ppo/kl": (ratio - 1 - log_ratio).mean(),  # Schulman's k3 estimator
                "ppo/clip_fraction": ((ratio - 1).abs() > config.clip).float().mean(),
                "ppo/ratio_error": (ratio - 1).abs().max(),
                "ppo/entropy": entropy,
            }
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """One step; returns the gradient's norm, whose being infinite is what ruins weights under a finite loss."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = clip_grad_norm_(optimizer.param_groups[0]["params"], self.config.max_grad_norm)
        optimizer.step()
        return norm.detach()
