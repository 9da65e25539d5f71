"""Where experience waits for the update."""

import copy
from dataclasses import dataclass
from typing import Protocol, Self

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
        last_obs: (N, O) what was seen after the last decision, before any reset.
        rewards: (T, N, A) single rewards.
        executed: (T, N) how many actions ran.
        terminated: (T, N) bool.
        truncated: (T, N) bool.
        extras: what the agent's ``act`` gave, (T, N, ...) by name.
    """

    last_obs: Tensor

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
        final_obs: Obs,
    ) -> None:
        """Store one decision of all envs, after which they saw final_obs (N, O); a full buffer starts anew."""
        assert isinstance(obs, Tensor)  # envs with dict observations are not made yet
        assert isinstance(final_obs, Tensor)
        if self._filled == self.decisions:
            self._filled, self._finals = 0, []
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
        self.last_obs = final_obs
        self._filled += 1

    @property
    def final_obs(self) -> Tensor:
        """Observations (F, O) at which episodes were truncated, in the order of ``truncated``'s True entries."""
        return torch.cat(self._finals)

    def seen_as(self, obs: Tensor, last_obs: Tensor, final_obs: Tensor) -> Self:
        """The same decisions in the eyes of who sees something else than the env shows: (T, N, O), (N, O), (F, O)."""
        view = copy.copy(self)
        view.fields = self.fields | {"obs": obs}
        view.last_obs, view._finals = last_obs, [final_obs]
        return view

    def _write(self, store: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            if name not in store:
                store[name] = torch.empty((self.decisions, *value.shape), dtype=value.dtype, device=value.device)
            store[name][self._filled] = value
