"""The one chunk-window reader: every data format ends here."""

import warnings

import torch
from torch import Tensor

from diffpolicy_rl.data.transitions import Transitions
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.buffers import Batch
from diffpolicy_rl.experience.replay import ReplayBuffer
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
        self._episode = torch.arange(len(ends)).repeat_interleave(lengths).to(device)
        finals = transitions.finals
        self._finals = None if finals is None else torch.from_numpy(finals).to(device)
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

    def decisions(self, execute: int) -> ReplayBuffer:
        """Every window of A actions as a decision to learn values from.

        Where an episode terminated, nothing needs what was seen after its last action. Where it was cut off and the
        data does not have that, the last action is left out, so that its observation is what the window before it led
        to, as in D4RL's q-learning view (Fu et al. 2020, arXiv 2004.07219).

        Args:
            execute: A.

        Raises:
            UserError: if no rewards were recorded, or no decision has a known outcome.
        """
        if not self.transitions.rewarded:
            raise UserError(f"{self.transitions.source} has no rewards to learn values from; clone it, with agent=bc")
        rows = torch.arange(len(self), device=self.device)
        terminals = torch.from_numpy(self.transitions.terminals[: len(self)]).to(self.device)
        terminal = terminals[self._last]
        whole = terminal | (self._finals is not None)
        usable = torch.where(whole, self._last + 1, self._last)  # where the usable transitions of each row end
        starts = rows[rows < usable]
        if not len(starts):
            raise UserError(
                f"{self.transitions.source}: every episode was cut off after one action, of unknown outcome"
            )
        ahead = starts.unsqueeze(1) + torch.arange(execute, device=self.device)
        end, inside = usable[starts], ahead < usable[starts].unsqueeze(1)
        executed = inside.sum(1)
        after = starts + executed
        terminated = terminal[starts] & (after == end)
        windows = ahead.clamp(max=len(self) - 1).where(inside, (end - 1).unsqueeze(1))
        rewards = torch.from_numpy(self.transitions.rewards[: len(self)]).to(self.device)
        place = torch.full((len(self),), -1, device=self.device)
        place[starts] = torch.arange(len(starts), device=self.device)
        successor = place[after.clamp(max=len(self) - 1)].where(after < end, torch.full_like(after, -1))
        buffer = ReplayBuffer(len(starts), self.device)
        extras = {}
        if self.transitions.costs is not None:
            costs = torch.from_numpy(self.transitions.costs[: len(self)]).to(self.device)
            extras["costs"] = costs[windows] * inside
        buffer.append(
            {
                "obs": self.windows(starts).obs,
                "action": self.actions[windows],
                "rewards": rewards[windows] * inside,
                "executed": executed,
                "terminated": terminated,
                "next_obs": self._seen_after(after - 1),
                "successor": successor,
                **extras,
            }
        )
        return buffer

    def _seen_after(self, rows: Tensor) -> Tensor:
        """What was seen after the actions (B,): (B, O), or (B, To, O); the last again where the data does not say."""
        following = self.windows((rows + 1).minimum(self._last[rows])).obs
        if self._finals is None:
            return following
        final = self._finals[self._episode[rows]]
        if following.ndim == 3:
            final = torch.cat([self.windows(rows).obs[:, 1:], final.unsqueeze(1)], 1)
        ended = (rows == self._last[rows]).view(-1, *[1] * (following.ndim - 1))
        return torch.where(ended, final, following)

    def images(self, starts: Tensor) -> dict[str, Tensor]:
        """What the cameras saw where windows start, at transitions (B,): uint8 (B, To, C, height, width) by camera.

        They are read from disk at each call, on the CPU.
        """
        seen = torch.maximum(starts.unsqueeze(1) + self._back, self._first[starts].unsqueeze(1)).cpu()
        return {
            camera: torch.from_numpy(frames.read(seen.flatten().numpy())).unflatten(0, seen.shape)
            for camera, frames in self.transitions.images.items()
        }

    def check_fits(self, spec: Spec) -> None:
        """Raise UserError if the shapes are not the task's; warn if the data says it is of another one."""
        found, needed = (self.obs.shape[1], self.actions.shape[1]), (spec.obs_shape[-1], spec.action_dim)
        if found != needed:
            raise UserError(
                f"{self.transitions.source} has observations and actions of width {found}, {spec.env_id} needs {needed}"
            )
        env_id = self.transitions.attributes.get("env_id")
        if env_id and env_id != spec.env_id:
            warnings.warn(f"{self.transitions.source} was collected in {env_id}, not in {spec.env_id}", stacklevel=2)
