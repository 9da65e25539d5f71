"""The VecEnv contract, implemented once: a backend adds how a chunk runs and how an episode starts."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypedDict, Unpack

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.types import State


class PhysicsError(UserError):
    """A simulation left the numbers: the message names the environment and the row."""


class EnvOptions(TypedDict, total=False):
    """What every backend takes.

    Attributes:
        num_envs: N, 1 by default.
        chunk: A, 1 by default.
        device: where returned tensors lie, the CPU by default.
        seed: seed of the rows' random streams, 0 by default.
        history: To, 1 by default.
        dtype: floating type of what is returned, float32 by default.
    """

    num_envs: int
    chunk: int
    device: torch.device | str
    seed: int
    history: int
    dtype: torch.dtype


@dataclass(slots=True)
class ChunkResult:
    """What one chunk did, before the contract's bookkeeping.

    Attributes:
        obs: (N, A, O) observation after each action; anything where the row was frozen.
        rewards: (N, A), 0 where the row was frozen.
        executed: (N,) int64, actions that ran, 1 to A.
        terminated: (N,) bool.
        truncated: (N,) bool, never set together with ``terminated``.
        first_obs: (N, O) first observation of the next episode where the row's episode ended; anything elsewhere.
        costs: (N, A), 0 where the row was frozen; None if the task has none.
        info: further tensors for ``step``'s info, leading dimension N.
    """

    obs: Tensor
    rewards: Tensor
    executed: Tensor
    terminated: Tensor
    truncated: Tensor
    first_obs: Tensor
    costs: Tensor | None = None
    info: dict[str, Tensor] = field(default_factory=dict)


class ChunkedVecEnv(gymnasium.vector.VectorEnv):
    """N copies of one task that execute whole action chunks; the contract is ``diffpolicy_rl.types.VecEnv``.

    Simulation runs on the CPU; what is returned lies on ``device``. Every row draws its initial states from a random
    stream that depends on (seed, row, episode number) alone.

    Attributes:
        backend: the name ``make_env`` knows this class by.
        restarted_on_load: whether ``load_state_dict`` had to start new episodes, because the simulator cannot be saved.
        history: To, observations per returned stack; the stack's dimension is dropped when it is 1.
    """

    backend: ClassVar[str]
    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"]}  # noqa: RUF012
    restarted_on_load: bool = False

    def __init__(
        self,
        spec_id: str,
        action_space: Box,
        obs_dim: int,
        max_episode_steps: int,
        **options: Unpack[EnvOptions],
    ) -> None:
        """Set up spaces and counters.

        Args:
            spec_id: the id that ``make_env`` takes.
            action_space: Box (D,) of one action.
            obs_dim: O.
            max_episode_steps: time limit, in env steps.
            **options: see ``EnvOptions``.

        Raises:
            UserError: if a count is below 1.
        """
        self.spec_id, self.max_episode_steps = spec_id, max_episode_steps
        self.num_envs, self.chunk = options.get("num_envs", 1), options.get("chunk", 1)
        self.history, self.dtype = options.get("history", 1), options.get("dtype", torch.float32)
        self.device, self._seed = torch.device(options.get("device", "cpu")), options.get("seed", 0)
        require_positive(num_envs=self.num_envs, chunk=self.chunk, history=self.history)
        require_positive(max_episode_steps=max_episode_steps)
        self._set_spaces(action_space, obs_dim)
        self._low, self._high = (torch.from_numpy(bound).double() for bound in (action_space.low, action_space.high))
        self._rows = torch.arange(self.num_envs)
        self._episode = torch.zeros(self.num_envs, dtype=torch.int64)  # number of the next episode
        self._elapsed = torch.zeros(self.num_envs, dtype=torch.int64)
        self._window = torch.zeros(self.num_envs, self.history, obs_dim, dtype=self.dtype)
        self._started = False

    def _set_spaces(self, action_space: Box, obs_dim: int) -> None:
        shape = (obs_dim,) if self.history == 1 else (self.history, obs_dim)
        numpy_dtype = np.float64 if self.dtype == torch.float64 else np.float32
        self.single_observation_space = Box(-np.inf, np.inf, shape, numpy_dtype)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.single_action_space = action_space
        self.action_space = batch_space(batch_space(action_space, self.chunk), self.num_envs)

    @abstractmethod
    def _advance(self, action: Tensor) -> ChunkResult:
        """Run the chunk (N, A, D) float64, already clipped; rows freeze when done, then start new episodes."""

    @abstractmethod
    def _restart(self, rows: Tensor) -> Tensor:
        """Start episode ``_episode`` in ``rows`` (N,) bool; return first observations (N, O), valid in these rows."""

    def reset(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, seed: int | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: restarts every row's random stream.
            mask: (N,) bool, the rows to reset; all if not given.

        Returns:
            Observations (N, O), or (N, To, O) with the first one repeated in the rows just reset, and an empty info.

        Raises:
            UserError: if the mask has another shape or type, or leaves out a row that never started.
        """
        rows = self._reset_rows(mask)
        if seed is not None:
            self._seed = seed
            self._episode.zero_()
        self._begin(rows, self._restart(rows), self._window)
        self._started = True
        return self.observation(), {}

    def observation(self) -> Tensor:
        """The observation to act on next, as the last ``reset`` or ``step`` returned it."""
        return self._stack(self._window)

    def _reset_rows(self, mask: Tensor | None) -> Tensor:
        if mask is None:
            return torch.ones(self.num_envs, dtype=torch.bool)
        if mask.shape != (self.num_envs,) or mask.dtype != torch.bool:
            raise UserError(f"{self.spec_id}: the reset mask must be bool with shape ({self.num_envs},)")
        if not self._started and not mask.all():
            raise UserError(f"{self.spec_id}: the first reset must cover all rows; call reset() without a mask first")
        return mask.cpu()

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, action: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Execute a chunk; finished rows start their next episode before it returns.

        Args:
            action: (N, A, D) in env units, clipped here to the Box.

        Returns:
            obs, reward (N,), terminated (N,), truncated (N,), info; see ``diffpolicy_rl.types.VecEnv``.

        Raises:
            UserError: if the action has another shape or is not finite, or no episode was started.
            PhysicsError: if a simulation diverged.
        """
        result = self._advance(self._checked(action))
        done = result.terminated | result.truncated
        # Row i's newest observation lies at index To - 1 + executed[i] of history and chunk put end to end.
        path = torch.cat([self._window, result.obs.to(self.dtype)], dim=1)
        newest_first = result.executed[:, None] + torch.arange(self.history)
        final = path[self._rows[:, None], newest_first]
        self._check_finite(final, result.rewards)
        self._elapsed += result.executed
        self._begin(done, result.first_obs, final)
        rewards = result.rewards.to(self.dtype)
        info = {"rewards": rewards, "executed": result.executed, "_final_obs": done, **result.info}
        if result.costs is not None:
            costs = result.costs.to(self.dtype)
            info |= {"costs": costs, "cost": costs.sum(dim=1)}
        info = {name: self._out(value) for name, value in info.items()} | {"final_obs": self._stack(final)}
        flags = self._out(result.terminated), self._out(result.truncated)
        return self.observation(), self._out(rewards.sum(dim=1)), *flags, info

    def _checked(self, action: Tensor) -> Tensor:
        """The action as float64 on the CPU, inside the Box."""
        if not self._started:
            raise UserError(f"{self.spec_id}: no episode was started; call reset() before step()")
        shape = (self.num_envs, self.chunk, len(self._low))
        if tuple(action.shape) != shape:
            raise UserError(f"{self.spec_id}: the action has shape {tuple(action.shape)}, but (N, A, D) is {shape}")
        action = action.detach().to("cpu", torch.float64)
        if not torch.isfinite(action).all():
            raise UserError(f"{self.spec_id}: the action of row {_first_bad(action)} is not finite; check the policy")
        return action.clamp(self._low, self._high)

    def _check_finite(self, final: Tensor, rewards: Tensor) -> None:
        for name, value in (("observation", final), ("reward", rewards)):
            if not torch.isfinite(value).all():
                raise PhysicsError(f"{self.spec_id}: the {name} of row {_first_bad(value)} is not finite; reset it")

    def _begin(self, rows: Tensor, first_obs: Tensor, window: Tensor) -> None:
        """Count a new episode in ``rows`` and fill their history with its first observation."""
        first = first_obs.to(self.dtype)[:, None]
        self._window = torch.where(rows[:, None, None], first, window)
        self._elapsed.masked_fill_(rows, 0)
        self._episode += rows

    def _stack(self, window: Tensor) -> Tensor:
        """A copy for the caller, who may write to it."""
        return (window[:, 0] if self.history == 1 else window).to(self.device, copy=True)

    def _out(self, value: Tensor) -> Tensor:
        return value.to(self.device)

    @abstractmethod
    def render(self) -> NDArray[np.uint8]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """RGB frame (height, width, 3) of the first row.

        Raises:
            UserError: if nothing can be rendered.
        """

    def state_dict(self) -> State:
        """All that continuing needs: counters, seed, history, and the backend's own part."""
        counters = {"episode": self._episode.clone(), "elapsed": self._elapsed.clone(), "window": self._window.clone()}
        return {"spec_id": self.spec_id, "backend": self.backend, "seed": self._seed, **counters}

    def load_state_dict(self, state: State) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            UserError: if the state is of another task or backend, or of another number of envs or history length.
        """
        for name in ("spec_id", "backend"):
            if state[name] != getattr(self, name):
                raise UserError(f"{self.spec_id}: the saved {name} is {state[name]!r}, not {getattr(self, name)!r}")
        if state["window"].shape != self._window.shape:
            shapes = f"{tuple(state['window'].shape)}, not {tuple(self._window.shape)}"
            raise UserError(f"{self.spec_id}: the saved (N, To, O) is {shapes}; use the num_envs and history it had")
        self._seed, self._started = int(state["seed"]), True
        self._episode.copy_(state["episode"])
        self._elapsed.copy_(state["elapsed"])
        self._window = state["window"].to("cpu", self.dtype, copy=True)


def _first_bad(value: Tensor) -> int:
    """Index of the first row that holds a number which is not finite."""
    return int((~torch.isfinite(value)).flatten(1).any(dim=1).nonzero()[0])
