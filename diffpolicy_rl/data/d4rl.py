"""Read and write transitions in D4RL's hdf5 layout.

Datasets ``observations`` (S, O), ``actions`` (S, D), ``rewards`` (S,), ``terminals`` (S,), ``timeouts`` (S,) and, in
data for safe learning, ``costs`` (S,), as DSRL has them; S counts the transitions of all episodes, in order. The writer
adds attributes that say where the data comes from.
"""

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.errors import UserError, did_you_mean

FORMAT_VERSION = 1
_DIMENSIONS = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1, "costs": 1}
_REQUIRED = ("observations", "actions", "rewards", "terminals")
_MAX_BYTES = 64 * 2**30


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
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminals: NDArray[np.bool_]
    timeouts: NDArray[np.bool_]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: str = "data"
    costs: NDArray[np.float32] | None = None

    def episode_ends(self) -> NDArray[np.int64]:
        """Index after each episode's last transition; what follows the last flag counts as an episode too."""
        ends = np.flatnonzero(self.terminals | self.timeouts) + 1
        return ends if len(ends) and ends[-1] == len(self.rewards) else np.append(ends, len(self.rewards))

    def returns(self) -> NDArray[np.float64]:
        """Undiscounted return of each episode."""
        return self._per_episode(self.rewards)

    def episode_costs(self) -> NDArray[np.float64] | None:
        """What each episode cost; None where the data has no costs."""
        return None if self.costs is None else self._per_episode(self.costs)

    def _per_episode(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        starts = np.concatenate([[0], self.episode_ends()[:-1]])
        return np.add.reduceat(values.astype(np.float64), starts)


def concatenate(sets: Sequence[Transitions]) -> Transitions:
    """Several sets of one task end to end; costs only where all have them."""

    def joined(name: str) -> Any:
        arrays = [getattr(part, name) for part in sets]
        return None if any(array is None for array in arrays) else np.concatenate(arrays)

    return Transitions(**{name: joined(name) for name in _DIMENSIONS})


def read(path: Path) -> Transitions:
    """Read a file.

    Raises:
        UserError: if it is missing, not hdf5, cut short, or its arrays are absent, misshapen, not finite or not plain
            numbers.
    """
    if not path.is_file():
        raise UserError(f"there is no data file {path}")
    try:
        with h5py.File(path, "r") as file:
            attributes = {key: _plain(value) for key, value in file.attrs.items()}
            version = attributes.get("format_version", FORMAT_VERSION)
            if version != FORMAT_VERSION:
                raise UserError(f"{path} has data format {version}, this version reads {FORMAT_VERSION}")
            present = {*file, *_REQUIRED}
            arrays = {name: _read_array(file, name, path) for name in _DIMENSIONS if name in present}
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a readable hdf5 file, perhaps cut short in a download: {reason}") from error
    length = len(arrays["observations"])
    for name, array in arrays.items():
        if len(array) != length:
            raise UserError(f"{path}: {name} has {len(array)} rows, observations has {length}")
    if length == 0:
        raise UserError(f"{path} holds no transitions")
    flags = {name: arrays.pop(name, np.zeros(length)).astype(bool) for name in ("terminals", "timeouts")}
    return Transitions(**arrays, **flags, attributes=attributes, source=path.name)


def _read_array(file: h5py.File, name: str, path: Path) -> NDArray[np.float32]:
    """One array as float32, refused unless it is a plain finite array of the right rank inside this very file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink | None):
        raise UserError(f"{path}: {name} is a link, perhaps to another file; copy what it leads to into this one")
    item = file.get(name)
    if item is None:
        raise UserError(f"{path} has no {name}; {did_you_mean(name, file.keys())}")
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub" or item.external or item.is_virtual:
        raise UserError(f"{path}: {name} is not a plain array of numbers")
    if item.ndim != _DIMENSIONS[name]:
        raise UserError(f"{path}: {name} has shape {item.shape}, but needs {_DIMENSIONS[name]} dimension(s)")
    if 4 * int(np.prod(item.shape, dtype=object)) > _MAX_BYTES:
        raise UserError(f"{path}: {name} claims {item.shape} entries, more than {_MAX_BYTES >> 30} GiB")
    array = item.astype(np.float32)[()]
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise UserError(f"{path}: {name} holds NaN or infinity, first in row {bad[0, 0]}; drop that episode")
    return array


def check_writable(path: Path) -> None:
    """Raise UserError if a new file cannot be written there: better before the work than after it."""
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or delete it")
    _replace(path, b"")
    path.unlink()


def write(path: Path, transitions: Transitions) -> None:
    """Write a file atomically, compressed; UserError if it exists already or cannot be written."""
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or delete it")
    returns, costs = transitions.returns(), transitions.episode_costs()
    attributes = {
        "format_version": FORMAT_VERSION,
        "episodes": len(returns),
        "return_mean": returns.mean(),
        "return_std": returns.std(),
        "return_min": returns.min(),
        "return_max": returns.max(),
        **({} if costs is None else {"cost_mean": costs.mean(), "cost_min": costs.min(), "cost_max": costs.max()}),
        **transitions.attributes,
    }
    content = io.BytesIO()  # built in memory, because HDF5 does not recover from a disk that is full
    with h5py.File(content, "w") as file:
        file.attrs.update(attributes)
        for name in _DIMENSIONS:
            array = getattr(transitions, name)
            if array is not None:
                file.create_dataset(name, data=array, compression="gzip", compression_opts=9, shuffle=True)
    _replace(path, content.getbuffer())


def _replace(path: Path, content: "bytes | memoryview") -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
