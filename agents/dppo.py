"""DPPO: PPO fine-tuning of a diffusion policy, move by move (Ren et al. 2024, arXiv 2409.00588).

Denoising is a Markov decision process inside the environment's: every Gaussian move of the last K' is one PPO sample,
whose advantage is that of the decision it leads to. A frozen copy makes the earlier moves. With a flow policy, whose
moves are stochastic at eta > 0, this is flow-SDE PPO.

Differences from the public code: all K' moves of a decision share a minibatch, so that what depends on the observation
is computed once; truncated episodes bootstrap; log-densities are those of sampling and are not clamped; K' = 1 works.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffpolicy_rl.agents._ppo import ChainPPO, PPOConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.std import FloorStd
from diffpolicy_rl.types import DeployedPolicy


@dataclass(frozen=True)
class DPPOConfig(PPOConfig):
    """Settings of DPPO, beside those of ``PPOConfig``.

    Attributes:
        trained_moves: K', how many of the last moves are trained.
        std_floor: least std of a move, in normalised action units.
        eta: stochasticity of the moves while exploring: 1 for DDPM's, or DDIM's with as much noise.
        deploy_eta: that of the deployed policy.
        clip_first: PPO's epsilon of the first trained move, from where it grows exponentially to ``clip``.
        denoising_discount: factor on the advantage per move before the last.
        bc_weight: weight of the log-density of the pretrained policy's moves.
    """

    minibatch: int = 2500
    final_lr: float = 3e-5
    reduction: Literal["chain_mean", "chain_sum", "move_mean", "move_sum"] = "move_mean"
    trained_moves: int = 5
    std_floor: float = 0.1
    eta: float = 1.0
    deploy_eta: float = 0.0
    clip_first: float = 0.01
    denoising_discount: float = 0.99
    bc_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings under which moves have no likelihood or are not PPO samples."""
        super().__post_init__()
        if not self.reduction.startswith("move"):
            raise UserError(f"reduction={self.reduction}, but DPPO's samples are moves; use move_mean or move_sum")
        if self.std_floor <= 0:
            raise UserError(f"std_floor={self.std_floor}, but moves without noise have no likelihood; set it above 0")


class DPPO(ChainPPO):
    """PPO on the last K' moves of a chain; each move is one PPO sample."""

    Config = DPPOConfig

    def __init__(self, policy: GenerativePolicy, config: DPPOConfig, *, iterations: int, seed: int) -> None:
        rule, moves = FloorStd(config.std_floor, config.eta), config.trained_moves
        super().__init__(policy, rule, config, iterations=iterations, seed=seed, trained_moves=moves)
        self.dppo = config
        progress = torch.arange(moves) / (moves - 1) if moves > 1 else torch.ones(1)
        growth = torch.expm1(3 * progress) / torch.expm1(torch.tensor(3.0))
        self.clips = (config.clip_first + (config.clip - config.clip_first) * growth).to(policy.device)
        self.discounts = (config.denoising_discount ** torch.arange(moves).flip(0)).to(policy.device)
        if config.bc_weight:
            self.base = policy.frozen_copy()
            self._parts = (*self._parts, "base")

    def deploy(self) -> DeployedPolicy:
        """The policy with the stochasticity it is shipped with."""
        return self.policy.deploy(self.dppo.deploy_eta)

    def _prepare(self, buffer: RolloutBuffer) -> dict[str, Tensor]:
        batch = super()._prepare(buffer)
        if self.dppo.bc_weight:
            with torch.no_grad():
                chain, _ = self.base.sample_chain(batch["obs"], generator=self.generator)
            batch["base_chain"] = chain.states[:, self.start :]
        return batch

    def _policy_loss(self, piece: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super()._policy_loss(piece)
        if self.dppo.bc_weight:
            log_prob, _ = self._log_prob(piece | {"chain": piece["base_chain"]})
            base_log_prob = log_prob.mean(1) @ piece["weight"]
            loss = loss - self.dppo.bc_weight * base_log_prob
            metrics["ppo/base_log_prob"] = base_log_prob.detach()
        return loss, metrics
