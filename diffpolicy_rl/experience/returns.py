"""Returns and advantages over action chunks, with truncation and termination apart."""

import torch
from torch import Tensor

from diffpolicy_rl.policies.normalize import RunningMoments


def chunk_rewards(rewards: Tensor, gamma: float) -> Tensor:
    """Discounted reward of each chunk: sum of gamma^i r_i.

    Args:
        rewards: single rewards (..., A), 0 for actions that were not executed.
        gamma: discount per env step.
    """
    return rewards @ gamma ** torch.arange(rewards.shape[-1], dtype=rewards.dtype, device=rewards.device)


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    discounts: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    lam: float,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2015, eq. 16) with one discount per decision.

    A terminated chunk has no future; a truncated one bootstraps from the value of its final observation; neither lets
    the advantage of the next episode flow back.

    Args:
        rewards: discounted chunk rewards (T, N).
        values: V of the observations acted on (T, N).
        next_values: V of what followed (T, N): of the final observation where truncated, else of the next one.
        discounts: gamma^executed (T, N).
        terminated: (T, N) bool.
        truncated: (T, N) bool.
        lam: the trace parameter, per decision.
    """
    deltas = rewards + discounts * next_values * ~terminated - values
    traces = lam * discounts * ~(terminated | truncated)
    advantages = torch.empty_like(deltas)
    following = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        following = deltas[t] + traces[t] * following
        advantages[t] = following
    return advantages


class RewardScaler:
    """Divides rewards by the running std of the discounted return (Engstrom et al. 2020, section 3), without centring.

    Args:
        clip: bound on the scaled reward.
    """

    def __init__(self, clip: float = 10.0) -> None:
        self.clip = clip
        self._returns = torch.zeros(1, dtype=torch.float64)  # (N,) once rewards have been seen
        self._moments = RunningMoments()

    @property
    def std(self) -> float:
        """Standard deviation of the discounted returns seen so far; 1 before there are any."""
        return self._moments.std.item() or 1.0

    def __call__(self, rewards: Tensor, discounts: Tensor, done: Tensor) -> Tensor:
        """Take in a rollout and scale it.

        Args:
            rewards: chunk rewards (T, N).
            discounts: gamma^executed (T, N).
            done: whether the episode ended with the chunk (T, N) bool.
        """
        returns = torch.empty(rewards.shape, dtype=torch.float64)
        for t, (reward, discount, ended) in enumerate(zip(rewards.cpu(), discounts.cpu(), done.cpu(), strict=True)):
            self._returns = self._returns * discount + reward
            returns[t] = self._returns
            self._returns = self._returns * ~ended
        self._moments.absorb(returns.flatten())
        return (rewards / (self.std + 1e-8)).clamp(-self.clip, self.clip)

    def state_dict(self) -> dict[str, Tensor]:
        """Running returns and moments."""
        return {"returns": self._returns, **self._moments.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state_dict`` was taken."""
        self._returns = state["returns"].clone()
        self._moments.load_state_dict(state)
