"""The replay path: decisions kept in a ring, and drawn from it as TD targets need them, mixed with demonstrations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.experience.decisions import Decisions, each
from diffpolicy_rl.experience.returns import chunk_rewards
from diffpolicy_rl.types import Extras, Obs, State

Mixing = Literal["none", "half", "proportional"]
"""Share of demonstrations in a batch: none, half of it (RLPD), or as among all decisions there are (PA-RL)."""

_NONE = -1  # no row: the successor of a decision that ended its episode, or that no other followed yet
_AT_ONCE = 16  # batches
_PIECE = 10_000  # rows that annotations are computed for at once
_OWN = {"obs", "action", "rewards", "executed", "terminated", "next_obs", "successor"}


class ReplayBuffer:
    """A ring of decisions, preallocated on first use.

    Args:
        capacity: rows kept; the oldest are overwritten.
        device: where they lie.

    Attributes:
        added: rows ever added.
    """

    def __init__(self, capacity: int, device: torch.device | str = "cpu") -> None:
        require_positive(capacity=capacity)
        self.capacity, self.device, self.added = capacity, torch.device(device), 0
        self._fields: dict[str, Tensor] = {}
        self._latest = torch.empty(0, dtype=torch.long, device=self.device)
        self._returns_of: tuple[int, float] | None = None  # rows added, and gamma, when returns were last written

    def __len__(self) -> int:
        """Rows to draw from."""
        return min(self.added, self.capacity)

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
        """Store one decision of all N envs, and link each to its env's previous one.

        Args:
            obs: (N, O) acted on.
            extras: what ``act`` gave; ``action`` (N, A, D), normalised, must be among it.
            rewards: (N, A).
            executed: (N,).
            terminated: (N,) bool.
            truncated: (N,) bool.
            final_obs: (N, O) what was seen after the last executed action.
        """
        assert isinstance(obs, Tensor)  # envs with dict observations are not made yet
        assert isinstance(final_obs, Tensor)
        rows = self.append(
            {
                "obs": obs,
                "rewards": rewards,
                "executed": executed,
                "terminated": terminated,
                "next_obs": final_obs,
                "successor": torch.full_like(executed, _NONE),
                **extras,
            }
        )
        if len(self._latest):
            going_on = self._latest != _NONE
            self._fields["successor"][self._latest[going_on]] = rows[going_on]
        self._latest = rows.masked_fill((terminated | truncated).to(self.device), _NONE)

    def cut(self) -> None:
        """Let nothing that is stored next follow what is there, because the envs have started new episodes."""
        self._latest = self._latest.new_full(self._latest.shape, _NONE)

    def append(self, fields: dict[str, Tensor]) -> Tensor:
        """Write rows (n, ...) by name behind the newest; returns where they lie (n,)."""
        count = len(fields["obs"])
        if count > self.capacity:
            raise UserError(f"capacity={self.capacity} is less than the {count} decisions to be stored at once")
        rows = (self.added + torch.arange(count, device=self.device)) % self.capacity
        for name, value in fields.items():
            if name not in self._fields:
                shape = (self.capacity, *value.shape[1:])
                self._fields[name] = torch.zeros(shape, dtype=value.dtype, device=self.device)
            self._fields[name][rows] = value.to(self.device)
        self.added += count
        return rows

    def annotate(self, name: str, values: Callable[[Tensor], Tensor]) -> None:
        """Give every row the extra ``name``, by ``values`` of what was acted on (n, O), unless rows have it already."""
        if name in self._fields:
            return
        extra = torch.cat([values(obs) for obs in self._fields["obs"][: len(self)].split(_PIECE)])
        self._fields[name] = extra.new_zeros((self.capacity, *extra.shape[1:]))
        self._fields[name][: len(self)] = extra

    def sample(self, batch: int, gamma: float, n_step: int, generator: torch.Generator) -> Decisions:
        """Draw B decisions with replacement, with a CPU generator.

        Args:
            batch: B.
            gamma: discount per env step.
            n_step: decisions that a return looks ahead, at most: it ends with the episode and with what is stored.
            generator: of the draw.
        """
        rows = torch.randint(len(self), (batch,), generator=generator).to(self.device)
        return self.decisions(rows, gamma, n_step)

    def decisions(self, rows: Tensor, gamma: float, n_step: int = 1) -> Decisions:
        """The decisions in rows (B,); see ``sample``."""
        stored = self._fields
        last, reward, discount = self._returns(rows, gamma, n_step)
        following = stored["successor"][last]
        extras = {name: stored[name] for name in stored.keys() - _OWN}
        return Decisions(
            obs=stored["obs"][rows],
            action=stored["action"][rows],
            mask=torch.arange(stored["action"].shape[1], device=self.device) < stored["executed"][rows, None],
            reward=reward,
            discount=discount.masked_fill(stored["terminated"][last], 0.0),
            next_obs=stored["next_obs"][last],
            extras={name: field[rows] for name, field in extras.items()},
            next_extras={name: field[following.clamp(min=0)] for name, field in extras.items()},
            followed=following != _NONE,
        )

    def _returns(self, rows: Tensor, gamma: float, n_step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The row that each return ends with, the return, and gamma to the number of its env steps, (B,) each."""
        stored, last = self._fields, rows
        reward = chunk_rewards(stored["rewards"][rows], gamma)
        discount = gamma ** stored["executed"][rows].to(reward.dtype)
        for _ in range(n_step - 1):
            following = stored["successor"][last]
            goes_on, row = following != _NONE, following.clamp(min=0)
            more = discount * chunk_rewards(stored["rewards"][row], gamma)
            reward = torch.where(goes_on, reward + more, reward)
            discount = torch.where(goes_on, discount * gamma ** stored["executed"][row], discount)
            last = torch.where(goes_on, row, last)
        return last, reward, discount

    def write_returns(self, gamma: float) -> None:
        """Give every decision the extra ``return_to_go``, its discounted reward to the end of its episode.

        It is -inf while the end is not known: a bound that holds for any value.

        Args:
            gamma: discount per env step.
        """
        if not len(self) or self._returns_of == (self.added, gamma):
            return
        value = self._to_go(gamma)
        if "return_to_go" not in self._fields:
            self._fields["return_to_go"] = value.new_zeros(self.capacity)
        self._fields["return_to_go"][: len(self)] = value
        self._returns_of = self.added, gamma

    def return_range(self) -> tuple[float, float]:
        """The lowest and the highest undiscounted return of the episodes whose end is stored."""
        following = self._fields["successor"][: len(self)]
        first = torch.ones_like(following, dtype=torch.bool)
        first[following[following != _NONE]] = False
        returns = self._to_go(1.0)[first]
        low, high = returns[returns.isfinite()].aminmax()
        return low.item(), high.item()

    def _to_go(self, gamma: float) -> Tensor:
        """Discounted rewards from each decision to the end of its episode; -inf where that is not known."""
        stored = {name: self._fields[name][: len(self)] for name in ("rewards", "executed", "successor")}
        value, following = chunk_rewards(stored["rewards"], gamma), stored["successor"]
        discount, going_on = gamma ** stored["executed"].to(value.dtype), torch.zeros_like(following, dtype=torch.bool)
        going_on[self._latest[self._latest != _NONE]] = True
        while (linked := following != _NONE).any():  # what is summed up doubles in length each time
            row = following.clamp(min=0)
            value = torch.where(linked, value + discount * value[row], value)
            discount = torch.where(linked, discount * discount[row], discount)
            going_on = torch.where(linked, going_on[row], going_on)
            following = torch.where(linked, following[row], following)
        return value.masked_fill(going_on, -torch.inf)

    def state_dict(self) -> State:
        """The rows that were filled, and where the ring stands."""
        filled = {name: field[: len(self)] for name, field in self._fields.items()}
        return {"added": self.added, "latest": self._latest, "fields": filled}

    def load_state_dict(self, state: State) -> None:
        """Continue where ``state_dict`` was taken."""
        self.added, self._latest = state["added"], state["latest"].to(self.device)
        self._fields = {}
        for name, filled in state["fields"].items():
            shape = (self.capacity, *filled.shape[1:])
            self._fields[name] = torch.zeros(shape, dtype=filled.dtype, device=self.device)
            self._fields[name][: len(filled)] = filled


@dataclass
class Experience:
    """All that a replay agent learns from.

    Attributes:
        online: what it lived through itself.
        demonstrations: what it was shown, if anything.
    """

    online: ReplayBuffer
    demonstrations: ReplayBuffer | None = None

    def batches(
        self, count: int, batch: int, mixing: Mixing, gamma: float, generator: torch.Generator, n_step: int = 1
    ) -> Iterator[Decisions]:
        """Batches of B decisions, several drawn at once, which takes little longer than one.

        While one source is empty, all come from the other.

        Args:
            count: how many batches.
            batch: B.
            mixing: share of demonstrations in each.
            gamma: discount per env step.
            generator: of the draws.
            n_step: see ``ReplayBuffer.sample``.
        """
        for start in range(0, count, _AT_ONCE):
            several = self._several(min(_AT_ONCE, count - start), batch, mixing, gamma, generator, n_step)
            yield from several.split(batch)

    def sample(
        self, batch: int, mixing: Mixing, gamma: float, generator: torch.Generator, n_step: int = 1
    ) -> Decisions:
        """One batch; see ``batches``."""
        return next(self.batches(1, batch, mixing, gamma, generator, n_step))

    def _several(
        self, count: int, batch: int, mixing: Mixing, gamma: float, generator: torch.Generator, n_step: int
    ) -> Decisions:
        """That many batches, one behind the other."""
        online, shown = self.online, self.demonstrations
        if mixing == "none" or shown is None:
            return online.sample(count * batch, gamma, n_step, generator)
        if not len(online):
            return shown.sample(count * batch, gamma, n_step, generator)
        share = 0.5 if mixing == "half" else len(shown) / (len(shown) + len(online))
        of_each = round(share * batch), batch - round(share * batch)
        parts = [
            source.sample(count * rows, gamma, n_step, generator)
            for source, rows in zip((shown, online), of_each, strict=True)
        ]
        rows = torch.arange(count * batch).split([count * part for part in of_each])
        order = torch.cat([part.view(count, -1) for part in rows], dim=1)
        shuffled = torch.rand(order.shape, generator=generator).argsort(1)  # any part of a batch is mixed alike
        order = order.gather(1, shuffled).flatten().to(online.device)
        return each(lambda first, second: torch.cat([first, second])[order], *parts)
