"""What every data format becomes: episodes end to end, read block by block, with images left on disk."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.errors import UserError

_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
BLOCK_BYTES = 16 * 2**20
"""How much of a file is in memory at once while it is looked through, beside what is kept of it."""


@dataclass(frozen=True)
class ReadOptions:
    """What a file does not say itself.

    Attributes:
        keys: names of the observations to join, where the format has several; by default the usual ones.
        mask: a subset of the episodes by the name that a robomimic file gives it, as in train.
        max_episode_steps: where episodes are cut, in files of D4RL that do not mark it.
    """

    keys: tuple[str, ...] = ()
    mask: str | None = None
    max_episode_steps: int | None = None


class Frames(Protocol):
    """Images of one camera, one for each transition, which stay on disk until they are asked for."""

    shape: tuple[int, int, int]
    """(C, height, width)."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (B, C, height, width) of rows (B,), in any order and with repeats."""
        ...


@dataclass(frozen=True)
class Block:
    """Consecutive transitions.

    Attributes:
        observations: (S, O) float32.
        actions: (S, D) float32.
        rewards: (S,) float32.
        terminals: (S,) bool.
        timeouts: (S,) bool.
        costs: (S,) float32, or None.
        finals: (E, O) float32, what was seen after the last action of each of the E episodes that end here, or None.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminals: NDArray[np.bool_]
    timeouts: NDArray[np.bool_]
    costs: NDArray[np.float32] | None = None
    finals: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Source:
    """A data file whose header was read and found sound; its transitions come block by block.

    Attributes:
        path: the file or folder.
        format: its name among the formats.
        rows: S.
        obs_dim: O.
        action_dim: D.
        blocks: reads the file once from its start, in order; raises UserError at the first unsound value.
        attributes: what the file says about itself.
        images: by camera.
        rewarded: whether rewards were recorded; they are 0 otherwise.
        notes: sentences on what the reader had to assume.
    """

    path: Path
    format: str
    rows: int
    obs_dim: int
    action_dim: int
    blocks: Callable[[], Iterator[Block]]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Frames] = field(default_factory=dict)
    rewarded: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Transitions:
    """Episodes end to end, in raw units.

    Attributes:
        observations: (S, O) float32.
        actions: (S, D) float32.
        rewards: (S,) float32.
        terminals: (S,) bool, the episode ended in a state without future.
        timeouts: (S,) bool, the episode was cut off.
        attributes: what the file says about itself.
        source: the file's name, for messages.
        costs: (S,) float32, what each step cost beside its reward, where the task says so.
        finals: (E, O) float32, what was seen after the last action of each of the E episodes, where the file has it.
        images: by camera, S of them each, on disk.
        rewarded: whether rewards were recorded; they are 0 otherwise.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminals: NDArray[np.bool_]
    timeouts: NDArray[np.bool_]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: str = "data"
    costs: NDArray[np.float32] | None = None
    finals: NDArray[np.float32] | None = None
    images: Mapping[str, Frames] = field(default_factory=dict)
    rewarded: bool = True

    def require_rewards(self, form: str) -> None:
        """Raise UserError if no rewards were recorded, which files of this form must have."""
        if not self.rewarded:
            raise UserError(f"{self.source} has no rewards, which {form} demands; convert it to robomimic or lerobot")

    def episode_ends(self) -> NDArray[np.int64]:
        """Index after each episode's last transition; what follows the last flag counts as an episode too."""
        ends = np.flatnonzero(self.terminals | self.timeouts) + 1
        return ends if len(ends) and ends[-1] == len(self.rewards) else np.append(ends, len(self.rewards))

    def episodes(self) -> Iterator[slice]:
        """Rows of each episode."""
        start = 0
        for end in self.episode_ends().tolist():
            yield slice(start, end)
            start = end

    def returns(self) -> NDArray[np.float64]:
        """Undiscounted return of each episode."""
        return self._per_episode(self.rewards)

    def episode_costs(self) -> NDArray[np.float64] | None:
        """What each episode cost; None where the data has no costs."""
        return None if self.costs is None else self._per_episode(self.costs)

    def costing_at_most(self, limit: float) -> "Transitions":
        """The episodes that cost no more, without images; UserError if there are none, or costs are not known."""
        costs = self.episode_costs()
        if costs is None:
            raise UserError(f"{self.source} has no costs; leave out data.max_cost")
        keep, ends = costs <= limit, self.episode_ends()
        if not keep.any():
            raise UserError(f"no episode of {self.source} costs {limit:g} or less, the cheapest {costs.min():g}")
        rows = np.repeat(keep, np.diff(ends, prepend=0))
        names = ("observations", "actions", "rewards", "terminals", "timeouts", "costs")
        arrays = {name: getattr(self, name)[rows] for name in names}
        finals = None if self.finals is None else self.finals[keep]
        return replace(self, **arrays, finals=finals, images={})

    def _per_episode(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        starts = np.concatenate([[0], self.episode_ends()[:-1]])
        return np.add.reduceat(values.astype(np.float64), starts)


def concatenate(sets: Sequence[Transitions]) -> Transitions:
    """Several sets of one task end to end, without their images; costs, and what was seen last, only where all have it.

    The last episode of each ends there, if by nothing else by a timeout.
    """

    def joined(name: str) -> Any:
        arrays = [getattr(part, name) for part in sets]
        return None if any(array is None for array in arrays) else np.concatenate(arrays)

    arrays = {name: joined(name) for name in ("observations", "actions", "rewards", "terminals", "costs", "finals")}
    timeouts = np.concatenate([np.append(part.timeouts[:-1], not part.terminals[-1]) for part in sets])
    return Transitions(**arrays, timeouts=timeouts, rewarded=all(part.rewarded for part in sets))


def load(source: Source) -> Transitions:
    """Read all transitions into memory, 4 (O + D + 1) + 2 bytes for each; images stay where they are.

    Raises:
        UserError: if a value is not sound, with its place, or if all together are more than this machine's memory.
    """
    needed = 4 * source.rows * (source.obs_dim + source.action_dim + 1)
    if needed > _MEMORY:
        raise UserError(
            f"{source.path} takes {needed >> 30} GiB of memory, this machine has {_MEMORY >> 30}; info and check read "
            "it block by block, and mask chooses a subset where the file has any"
        )
    rows, filled, costs, finals = source.rows, 0, [], []
    arrays = {
        "observations": np.empty((rows, source.obs_dim), np.float32),
        "actions": np.empty((rows, source.action_dim), np.float32),
        "rewards": np.empty(rows, np.float32),
        "terminals": np.empty(rows, bool),
        "timeouts": np.empty(rows, bool),
    }
    for block in source.blocks():
        following = filled + len(block.rewards)
        for name, array in arrays.items():
            array[filled:following] = getattr(block, name)
        filled = following
        costs += [] if block.costs is None else [block.costs]
        finals += [] if block.finals is None else [block.finals]
    return Transitions(
        **arrays,  # type: ignore[arg-type]
        attributes=source.attributes,
        source=source.path.name,
        costs=np.concatenate(costs) if costs else None,
        finals=np.concatenate(finals) if finals else None,
        images=source.images,
        rewarded=source.rewarded,
    )


def finite(array: NDArray[Any], where: str, first_row: int = 0) -> NDArray[np.float32]:
    """The values as float32; UserError, naming the row in the file, if one is NaN or infinite."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found so
        values = np.ascontiguousarray(array, np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise UserError(f"{where} holds NaN or infinity, first in row {first_row + bad[0, 0]}; drop that episode")
    return values


def flags(array: NDArray[Any], where: str, first_row: int = 0) -> NDArray[np.bool_]:
    """The values as bool; UserError, naming the row in the file, if one is neither 0 nor 1."""
    bad = np.argwhere((array != 0) & (array != 1))
    if len(bad):
        raise UserError(f"{where} must be 0 or 1, but row {first_row + bad[0, 0]} is {array[tuple(bad[0])]}")
    return array.astype(bool)


def rows_per_block(width: int) -> int:
    """How many rows of ``width`` numbers to read at once."""
    return max(1, BLOCK_BYTES // (4 * max(width, 1)))
