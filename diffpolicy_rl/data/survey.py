"""Look through a data set block by block, whatever its size."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.data.transitions import Source


@dataclass
class Survey:
    """Figures on all episodes.

    Attributes:
        low: (D,) smallest actions.
        high: (D,) largest actions.
        lengths: steps of each episode; one that the file's end cut short counts.
        returns: undiscounted return of each.
        costs: summed cost of each; empty if the data has none.
        terminated: how many ended in a state without future.
        unmarked: whether the file ends within an episode.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    terminated: int = 0
    unmarked: bool = False

    def add(self, steps: float, gain: float, cost: float | None) -> None:
        """Take in an episode."""
        self.lengths.append(int(steps))
        self.returns.append(gain)
        if cost is not None:
            self.costs.append(cost)


def survey(source: Source) -> Survey:
    """Read every value once, a block at a time.

    Raises:
        UserError: at the first value that is not sound.
    """
    found = Survey(np.full(source.action_dim, np.inf, np.float32), np.full(source.action_dim, -np.inf, np.float32))
    open_episode = np.zeros(3)  # steps, return and cost of the episode that goes on in the next block
    costly = False
    for block in source.blocks():
        costly = block.costs is not None
        costs = block.costs if block.costs is not None else np.zeros_like(block.rewards)
        columns = np.stack([np.ones_like(costs), block.rewards, costs], axis=1).astype(np.float64)
        *ended, rest = np.split(columns, np.flatnonzero(block.terminals | block.timeouts) + 1)
        for part in ended:
            steps, gain, cost = open_episode + part.sum(0)
            found.add(steps, gain, cost if costly else None)
            open_episode = np.zeros(3)
        open_episode = open_episode + rest.sum(0)
        found.terminated += int(block.terminals.sum())
        found.low = np.minimum(found.low, block.actions.min(0))
        found.high = np.maximum(found.high, block.actions.max(0))
    steps, gain, cost = open_episode
    found.unmarked = bool(steps)
    if found.unmarked:
        found.add(steps, gain, cost if costly else None)
    return found
