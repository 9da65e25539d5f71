"""Where experience waits for the update."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffpolicy_rl.types import Extras, Obs


@dataclass(frozen=True)
class Batch:
    """Windows drawn from demonstrations.

    Attributes:
        obs: (B, O), or (B, To, O) with history, raw observations at which the windows start.
        action: (B, H, D) the actions from there on, in the units the data holds.
        mask: (B, H) bool, False past the episode's end, where the last action is repeated.
    """

    obs: Tensor
    action: Tensor
    mask: Tensor


class Demonstrations(Protocol):
    """What agents know of a data set."""

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Batch:
        """Draw B windows."""
        ...


class RolloutBuffer:
    """T decisions of N envs, preallocated on first use and overwritten by the next iteration.

    Attributes:
        obs: (T, N, O) observations acted on.
        last_obs: (N, O) observations after the last decision.
        rewards: (T, N, A) single rewards.
        executed: (T, N) how many actions ran.
        terminated: (T, N) bool.
        truncated: (T, N) bool.
        final_obs: observations (F, O) at which episodes were truncated, in the order of ``truncated``'s True entries.
        extras: what the agent's ``act`` gave, (T, N, ...) by name.
    """

    last_obs: Tensor
    final_obs: Tensor

    def __init__(self, decisions: int) -> None:
        self.decisions = decisions
        self.fields: dict[str, Tensor] = {}
        self.extras: dict[str, Tensor] = {}
        self._finals: list[Tensor] = []
        self._filled = 0

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None

    def add(
        self,
        obs: Obs,
        extras: Extras,
        rewards: Tensor,
        executed: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        final_obs: Tensor,
    ) -> None:
        """Store one decision of all envs; final_obs (N, O) is read where truncated."""
        assert isinstance(obs, Tensor)  # envs with dict observations are not made yet
        step = {
            "obs": obs,
            "rewards": rewards,
            "executed": executed,
            "terminated": terminated,
            "truncated": truncated,
        }
        self._write(self.fields, step)
        self._write(self.extras, extras)
        self._finals.append(final_obs[truncated])
        self._filled += 1

    def finish(self, last_obs: Obs) -> None:
        """Close the rollout with the observations (N, O) after its last decision."""
        assert self._filled == self.decisions
        assert isinstance(last_obs, Tensor)
        self.last_obs, self.final_obs = last_obs, torch.cat(self._finals)

    def clear(self) -> None:
        """Start the next rollout, keeping the memory."""
        self._filled = 0
        self._finals = []

    def _write(self, store: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            if name not in store:
                store[name] = torch.empty((self.decisions, *value.shape), dtype=value.dtype, device=value.device)
            store[name][self._filled] = value
