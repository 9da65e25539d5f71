"""The one chunk-window reader: every data format ends here."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_rl.data.d4rl import Transitions
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.types import Spec


@dataclass(frozen=True)
class Batch:
    """Windows drawn from a data set.

    Attributes:
        obs: (B, O) raw observations at which the windows start.
        action: (B, H, D) the actions from there on, in the units the data set holds.
        mask: (B, H) bool, False past the episode's end, where the last action is repeated.
    """

    obs: Tensor
    action: Tensor
    mask: Tensor


class ChunkDataset:
    """Windows of H actions, one starting at every transition.

    Args:
        transitions: the data.
        horizon: H.
        episodes: use the first so many episodes, all by default.
        device: where the data lies.

    Attributes:
        obs: (S, O).
        actions: (S, D).

    Raises:
        UserError: if no episode is left.
    """

    def __init__(
        self,
        transitions: Transitions,
        horizon: int,
        episodes: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if episodes is not None and episodes < 1:
            raise UserError(f"data.episodes={episodes} leaves no demonstrations; use at least 1")
        ends = torch.from_numpy(transitions.episode_ends())[:episodes]
        rows = int(ends[-1])
        self.transitions, self.device = transitions, torch.device(device)
        self.obs = torch.from_numpy(transitions.observations[:rows]).to(device)
        self.actions = torch.from_numpy(transitions.actions[:rows]).to(device)
        lengths = torch.diff(ends, prepend=torch.zeros(1, dtype=ends.dtype))
        self._last = (ends - 1).repeat_interleave(lengths).to(device)  # last row of each transition's episode
        self._offsets = torch.arange(horizon, device=device)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.obs)

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Batch:
        """Draw B windows with replacement, with a CPU generator."""
        return self.windows(torch.randint(len(self), (batch,), generator=generator).to(self.device))

    def windows(self, starts: Tensor) -> Batch:
        """The windows that start at transitions (B,)."""
        rows, last = starts.unsqueeze(1) + self._offsets, self._last[starts].unsqueeze(1)
        return Batch(self.obs[starts], self.actions[torch.minimum(rows, last)], rows <= last)

    def check_fits(self, spec: Spec) -> None:
        """Raise UserError if the shapes are not the task's; warn if the data says it is of another one."""
        found, needed = (self.obs.shape[1], self.actions.shape[1]), (spec.obs_shape[-1], spec.action_dim)
        if found != needed:
            raise UserError(
                f"{self.transitions.source} has observations and actions of width {found}, {spec.env_id} needs {needed}"
            )
        env_id = self.transitions.attributes.get("env_id", spec.env_id)
        if env_id != spec.env_id:
            warnings.warn(f"{self.transitions.source} was collected in {env_id}, not in {spec.env_id}", stacklevel=2)
