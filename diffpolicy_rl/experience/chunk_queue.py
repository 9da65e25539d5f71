"""Executing action chunks one action at a time."""

import torch
from torch import Tensor

from diffpolicy_rl.types import State


class ChunkQueue:
    """The remaining actions of one chunk per env.

    Args:
        execute: A, actions executed of each chunk.
        num_envs: N.
    """

    def __init__(self, execute: int, num_envs: int) -> None:
        self.execute = execute
        self._next = torch.full((num_envs,), execute)
        self._rows = torch.arange(num_envs)
        self._chunks: Tensor | None = None

    def needs(self) -> Tensor:
        """Which envs (N,) bool have nothing left to execute."""
        return self._next == self.execute

    def put(self, mask: Tensor, chunks: Tensor) -> None:
        """Replace the chunks of the envs in mask (N,) bool by (n, H, D), one for each of them."""
        if self._chunks is None:
            self._chunks = chunks.new_zeros((len(self._next), self.execute, chunks.shape[-1]))
        self._chunks[mask] = chunks[:, : self.execute]
        self._next = self._next.masked_fill(mask.cpu(), 0)

    def pop(self) -> Tensor:
        """The next action (N, D) of every env; ``needs`` must be False everywhere."""
        assert self._chunks is not None
        assert not self.needs().any()
        actions = self._chunks[self._rows, self._next]
        self._next = self._next + 1
        return actions

    def peek(self) -> tuple[Tensor, Tensor]:
        """What ``pop`` would give (N, D), and for which envs (N,) bool; anything for those that have nothing left."""
        assert self._chunks is not None
        left = ~self.needs()
        return self._chunks[self._rows, self._next.where(left, 0)], left.to(self._chunks.device)

    def reset(self, mask: Tensor) -> None:
        """Forget what is left in the envs of mask (N,) bool."""
        self._next = self._next.masked_fill(mask.cpu(), self.execute)  # anew: inference mode's cannot be written to

    def state_dict(self) -> State:
        """The chunks, if there were any yet, and where in them each env is."""
        return {"next": self._next} | ({} if self._chunks is None else {"chunks": self._chunks})

    def load_state_dict(self, state: State) -> None:
        """Continue where ``state_dict`` was taken."""
        self._next = state["next"]
        self._chunks = state["chunks"].clone() if "chunks" in state else None
