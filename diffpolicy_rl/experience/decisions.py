"""A batch of decisions, with what followed them, as TD targets need it."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from diffpolicy_rl.types import Extras


@dataclass(frozen=True)
class Decisions:
    """Decisions drawn from replay, with what followed them folded into n-step returns.

    Truncation and termination stay apart: only termination makes ``discount`` 0, and where an episode was truncated
    ``next_obs`` is its final observation.

    Attributes:
        obs: (B, O), or (B, To, O) with history, what was acted on.
        action: (B, A, D) normalised actions.
        mask: (B, A) bool, which of them were executed.
        reward: (B,) sum of gamma^i r_i over the executed actions of up to n decisions.
        discount: (B,) gamma^executed of the same, 0 where the episode terminated.
        next_obs: like obs, what to bootstrap from.
        extras: what the agent's ``act`` gave beside the action, (B, ...) by name.
        next_extras: the same of the decision that followed at ``next_obs``; anything where there is none.
        followed: (B,) bool, whether there is one.
    """

    obs: Tensor
    action: Tensor
    mask: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Tensor
    extras: Extras
    next_extras: Extras
    followed: Tensor

    def __len__(self) -> int:
        """B."""
        return len(self.obs)

    def split(self, size: int) -> list["Decisions"]:
        """Parts of that size, which share its memory."""
        return [each(operator.itemgetter(slice(start, start + size)), self) for start in range(0, len(self), size)]


def each(function: Callable[..., Tensor], *batches: Decisions) -> Decisions:
    """Apply to every tensor of several batches; extras that only some of them have are left out."""

    def apply(values: list[Any]) -> Any:
        if not isinstance(values[0], dict):
            return function(*values)
        shared = [name for name in values[0] if all(name in value for value in values)]
        return {name: function(*(value[name] for value in values)) for name in shared}

    return Decisions(
        **{field.name: apply([getattr(batch, field.name) for batch in batches]) for field in fields(Decisions)}
    )
