"""The one chunk-window reader: every data format ends here."""

import warnings

import torch
from torch import Tensor

from diffpolicy_rl.data.d4rl import Transitions
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.buffers import Batch
from diffpolicy_rl.types import Spec


class ChunkDataset:
    """Windows of H actions, one starting at every transition.

    Args:
        transitions: the data.
        horizon: H.
        history: To, observations per window; the first of an episode is repeated before its start.
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
        history: int = 1,
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
        # First and last row of each transition's episode.
        self._first = (ends - lengths).repeat_interleave(lengths).to(device)
        self._last = (ends - 1).repeat_interleave(lengths).to(device)
        self._ahead = torch.arange(horizon, device=device)
        self._back = torch.arange(1 - history, 1, device=device)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.obs)

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Batch:
        """Draw B windows with replacement, with a CPU generator."""
        return self.windows(torch.randint(len(self), (batch,), generator=generator).to(self.device))

    def windows(self, starts: Tensor) -> Batch:
        """The windows that start at transitions (B,)."""
        starts = starts.unsqueeze(1)
        seen, rows, last = starts + self._back, starts + self._ahead, self._last[starts]
        obs = self.obs[torch.maximum(seen, self._first[starts])]
        return Batch(
            obs if len(self._back) > 1 else obs.squeeze(1), self.actions[torch.minimum(rows, last)], rows <= last
        )

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
