"""PPO on sampling chains: the update that ReinFlow, DPPO and Gaussian PPO share.

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

_PIECE = 5000  # moves whose activations are alive at once


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO on chains.

    Attributes:
        gamma: discount per env step (0.9975 is 0.99 per chunk of four).
        lam: GAE's trace parameter, per decision.
        epochs: passes over a rollout.
        minibatch: PPO samples per gradient step, at most; a rollout is split evenly.
        repeats: how often an epoch passes over a decision, in minibatches drawn anew; repeats within one only weigh.
        lr: the policy's learning rate at the start.
        final_lr: the policy's learning rate at the end of the cosine.
        critic_lr: the critic's learning rate.
        critic_hidden: widths of the critic.
        critic_activation: its activation.
        critic_warmup: first iterations in which only the critic learns.
        clip: PPO's epsilon.
        reduction: which log-densities make one ratio (a chain's or a move's), and whether they are summed or averaged.
        entropy: weight of the entropy bonus, per action element.
        target_kl: end an update's epochs when the estimated KL of the ratios exceeds it.
        max_grad_norm: gradients are scaled down to this norm.
        precision: of the policy's matrix products; bf16 pays where the processor has it in hardware.
    """

    gamma: float = 0.9975
    lam: float = 0.95
    epochs: int = 5
    minibatch: int = 1000
    repeats: int = 1
    lr: float = 1e-4
    final_lr: float = 1e-5
    critic_lr: float = 1e-3
    critic_hidden: tuple[int, ...] = (256, 256, 256)
    critic_activation: Literal["relu", "mish", "gelu", "tanh"] = "mish"
    critic_warmup: int = 0
    clip: float = 0.01
    reduction: Literal["chain_mean", "chain_sum", "move_mean", "move_sum"] = "chain_mean"
    entropy: float = 0.0
    target_kl: float = 1.0
    max_grad_norm: float = 10.0
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        """Refuse settings that no update could be made with."""
        require_positive(epochs=self.epochs, repeats=self.repeats, max_grad_norm=self.max_grad_norm)
        require_positive(lr=self.lr, critic_lr=self.critic_lr)
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


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: Tensor) -> Tensor:
    """PPO's pessimistic objective as a loss, per sample (Schulman et al. 2017, eq. 7)."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def standardized(values: Tensor, weight: Tensor) -> Tensor:
    """Values (B,) moved and scaled to mean 0 and std 1 under weights (B,) that sum to 1."""
    centred = values - values @ weight
    return centred / ((centred.square() @ weight).sqrt() + 1e-8)


class ChainPPO(BaseAgent):
    """PPO over the last moves of a policy's chains.

    Args:
        policy: pretrained policy; fine-tuned in place.
        std_rule: the noise it explores with.
        config: settings.
        iterations: updates that the schedules are laid out for.
        seed: of exploration and minibatches.
        trained_moves: K', how many of the last moves are trained; all if not given.

    Attributes:
        start: K - K', index of the first move that is trained.
        clips: epsilon of each of a decision's S PPO samples, (S,).
        discounts: factor on the advantage of each of them, (S,).
    """

    data: ClassVar[Literal["rollout", "replay"]] = "rollout"
    phases: ClassVar[tuple[str, ...]] = ("bc", "online")
    _parts = ("policy", "generator", "critic", "actor_optimizer", "critic_optimizer", "reward_scaler")

    def __init__(
        self,
        policy: GenerativePolicy,
        std_rule: StdRule,
        config: PPOConfig,
        *,
        iterations: int,
        seed: int,
        trained_moves: int | None = None,
    ) -> None:
        super().__init__(policy, iterations, seed)
        moves = policy.steps if trained_moves is None else trained_moves
        self.config, self.start = config, policy.steps - moves
        policy.requires_grad_(True).std_rule = std_rule.to(policy.device)
        policy.freeze_early(moves)
        samples = 1 if config.reduction.startswith("chain") else moves
        self.clips = torch.full((samples,), config.clip, device=policy.device)
        self.discounts = torch.ones(samples, device=policy.device)
        self.critic = ValueNet(policy.features, config.critic_hidden, config.critic_activation).to(policy.device)
        self.actor_optimizer = adamw(policy, config.lr)
        self.critic_optimizer = adamw(self.critic, config.critic_lr)
        self.reward_scaler = RewardScaler()

    @torch.inference_mode()
    def act(self, obs: Obs, *, explore: bool) -> tuple[Tensor, Extras]:
        """Draw a chain (explore) or the deployed sample; actions (N, A, D) in env units."""
        if not explore:
            return self._deployed_action(obs), {}
        with self._precision():
            chain, log_prob = self.policy.sample_chain(obs, generator=self.generator)
        extras = {
            "chain": chain.states[:, self.start :],
            "log_prob": self._reduced(log_prob[:, self.start :]),
            "value": self.value(obs),
        }
        return self.policy.action_normalizer.inverse(chain.states[:, -1, : self.chunk]), extras

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

    def _precision(self) -> torch.autocast:
        """Run the policy's matrix products in the configured precision."""
        return torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _reduced(self, log_prob: Tensor) -> Tensor:
        """Log-densities of moves (B, K', H, D) to those of PPO samples (B, S), executed actions only."""
        return reduce_log_prob(log_prob[:, :, : self.chunk], self.config.reduction)

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
        batch = {name: field.flatten(0, 1) for name, field in fields.items()}
        if config.precision == "bf16":  # its products round differently in batches of N and in those of the update
            batch["log_prob"] = torch.cat([self._log_prob(piece)[0] for piece in self._pieces(batch)])
        return batch

    def _log_prob(self, piece: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-densities (B, S) of PPO samples and, broadcastable to (B, K', H, D), the entropies of the moves."""
        with self._precision():
            log_prob, entropy = self.policy.chain_log_prob(piece["obs"], Chain(piece["chain"], self.start))
        return self._reduced(log_prob), entropy

    def _minibatches(self, batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Random parts of the rollout, in which a decision that was drawn several times weighs more."""
        decisions, repeats = len(batch["obs"]), self.config.repeats
        order = torch.randperm(decisions * repeats, generator=self.generator) % decisions
        for drawn in order.tensor_split(math.ceil(len(order) * len(self.clips) / self.config.minibatch)):
            indices, counts = drawn.unique(return_counts=True)
            minibatch = {name: field[indices] for name, field in batch.items()}
            weight = counts.to(minibatch["obs"].dtype) / len(drawn)
            minibatch["advantage"] = standardized(minibatch["advantage"], weight)
            yield minibatch | {"weight": weight}

    def _gradient_step(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of policy and critic; gradients of pieces that fit the caches add up to the minibatch's."""
        learns = self.updates >= self.config.critic_warmup
        pieces = [self._backward(piece, learns) for piece in self._pieces(minibatch)]
        metrics = {name: torch.stack([piece[name] for piece in pieces]).sum() for name in pieces[0]}
        metrics["ppo/ratio_error"] = torch.stack([piece["ppo/ratio_error"] for piece in pieces]).max()
        if learns:
            metrics["ppo/grad_norm"] = self._descend(self.actor_optimizer)
            self.gradient_steps += 1
        return metrics | {"critic/grad_norm": self._descend(self.critic_optimizer)}

    def _pieces(self, minibatch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        count = math.ceil(len(minibatch["obs"]) * (self.policy.steps - self.start) / _PIECE)
        parts = {name: field.tensor_split(count) for name, field in minibatch.items()}
        for index in range(count):
            yield {name: part[index] for name, part in parts.items()}

    def _backward(self, piece: dict[str, Tensor], learns: bool) -> dict[str, Tensor]:
        """Add a piece's share to the gradients."""
        value_loss = 0.5 * (self.value(piece["obs"]) - piece["returns"]).square() @ piece["weight"]
        loss, metrics = value_loss, {"ppo/kl": torch.zeros(()), "ppo/ratio_error": torch.zeros(())}
        if learns:
            policy_loss, metrics = self._policy_loss(piece)
            loss = loss + policy_loss
        loss.backward()
        return metrics | {"critic/loss": value_loss.detach()}

    def _policy_loss(self, piece: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """A piece's share of the loss: its weights sum to 1 over the minibatch, not here."""
        log_prob, entropy = self._log_prob(piece)
        log_ratio = log_prob - piece["log_prob"]
        ratio, weight = log_ratio.exp(), piece["weight"]
        losses = clipped_surrogate(ratio, piece["advantage"].unsqueeze(1) * self.discounts, self.clips)
        entropy = (entropy[:, :, : self.chunk].flatten(1).mean(1) * weight).sum()
        loss = losses.mean(1) @ weight - self.config.entropy * entropy
        with torch.no_grad():
            metrics = {
                "ppo/loss": loss,
                "ppo/kl": (ratio - 1 - log_ratio).mean(1) @ weight,  # Schulman's k3 estimator
                "ppo/clip_fraction": ((ratio - 1).abs() > self.clips).to(weight.dtype).mean(1) @ weight,
                "ppo/ratio_error": (ratio - 1).abs().max(),
                "ppo/entropy": entropy,
            }
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _descend(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step; returns the gradient's norm, whose being infinite is what ruins weights under a finite loss."""
        norm = clip_grad_norm_(optimizer.param_groups[0]["params"], self.config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()
