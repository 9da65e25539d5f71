"""What a training lived through, as data: D4RL's "replay" sets are made of it (Fu et al. 2020, arXiv 2004.07219)."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_rl.data.transitions import Transitions
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.types import State


def episodes(replay: State, to_env: Callable[[Tensor], Tensor], source: str) -> Transitions:
    """The episodes that a replay buffer holds, in the order in which they began.

    Args:
        replay: state of a ``ReplayBuffer``, whose decisions are single actions.
        to_env: from normalised actions (..., D) to env units.
        source: where it comes from, for messages.

    Returns:
        Transitions; an episode that did not terminate, because of its time limit or because training ended first, ends
        with a timeout.

    Raises:
        UserError: if decisions are chunks, between whose actions nothing was seen.
    """
    fields = replay["fields"]
    chunk = fields["action"].shape[1]
    if chunk > 1:
        raise UserError(f"{source} acted in chunks of {chunk} and saw nothing inside them; train with policy.execute=1")
    rows, lengths = _ordered(fields["successor"].cpu().numpy(), replay["added"])
    obs, ends = fields["obs"][rows].cpu(), np.cumsum(lengths) - 1
    terminals = fields["terminated"][rows].cpu().numpy()
    timeouts = np.zeros_like(terminals)
    timeouts[ends] = ~terminals[ends]
    costs = fields["costs"][rows, 0].float().cpu().numpy() if "costs" in fields else None
    return Transitions(
        (obs if obs.ndim == 2 else obs[:, -1]).float().numpy(),
        to_env(fields["action"][rows, 0]).float().cpu().numpy(),
        fields["rewards"][rows, 0].float().cpu().numpy(),
        terminals,
        timeouts,
        costs=costs,
    )


def _ordered(successor: NDArray[np.int64], added: int) -> tuple[Tensor, list[int]]:
    """Rows, episode by episode, oldest first, and the episodes' lengths; -1 in ``successor`` ends an episode."""
    age = (np.arange(len(successor)) - added) % len(successor)  # 0 is the oldest row of the ring
    first = np.setdiff1d(np.arange(len(successor)), successor)
    following, rows, lengths = successor.tolist(), [], []
    for row in first[np.argsort(age[first])].tolist():
        before = len(rows)
        while row != -1:
            rows.append(row)
            row = following[row]
        lengths.append(len(rows) - before)
    return torch.tensor(rows), lengths
