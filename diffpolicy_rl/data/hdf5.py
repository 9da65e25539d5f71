"""Read hdf5 files that somebody else made: plain arrays inside this very file, of a size that was checked first."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.data.transitions import rows_per_block
from diffpolicy_rl.errors import UserError, did_you_mean

_MAX_AT_ONCE = 2**31  # bytes that may be read together
_MAX_PACKED = 1032  # bytes that deflate makes of one at most
_MAX_ATTRIBUTE = 2**20
_MAX_CHUNK = 256 * 2**20  # read as a whole, however few of its rows are wanted


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, for reading; what HDF5 says about a damaged one becomes a UserError."""
    if not path.is_file():
        raise UserError(f"there is no data file {path}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        reason = str(error).strip("'\"").partition("\n")[0]
        raise UserError(f"{path} is not a readable hdf5 file, perhaps cut short in a download: {reason}") from error


def member(group: h5py.Group, name: str) -> Any:
    """What a group holds by a path inside it, or None; UserError if a link on the way leads elsewhere."""
    for part in name.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            place = f"{group.name}/{part}".lstrip("/")
            raise UserError(f"{group.file.filename}: {place} is a link, perhaps to another file; copy what it leads to")
        group = group[part]  # type: ignore[assignment]
    return group


def names(group: h5py.Group) -> list[str]:
    """What a group holds, broken links among it, by name."""
    return [str(name) for name in group]


def subgroup(group: h5py.Group, name: str) -> h5py.Group:
    """A group by its path inside another, itself by an empty one; UserError if it is not there, or not a group."""
    item = member(group, name) if name else group
    if not isinstance(item, h5py.Group):
        raise UserError(f"{group.file.filename} has no group {_place(group, name)}; {_suggest(group, name)}")
    return item


def array(group: h5py.Group, name: str, rank: int | None, rows: int | None = None) -> h5py.Dataset:
    """An array that is safe to read.

    Args:
        group: where it lies.
        name: its path in there.
        rank: how many dimensions it must have; an (S, 1) array passes as one of rank 1. None: at least one.
        rows: how long it must be.

    Raises:
        UserError: if it is absent, or reached through a link, or not plain numbers in this file, or of another shape,
            or claims more than it can hold.
    """
    file, place = group.file.filename, _place(group, name)
    item = member(group, name)
    if item is None:
        raise UserError(f"{file} has no {place}; {_suggest(group, name)}")
    if kind_of(item) not in ("f", "i", "u", "b") or item.external or item.is_virtual:
        raise UserError(f"{file}: {place} is not a plain array of numbers")
    shape = item.shape
    fits = shape and (rank in (None, len(shape)) or (rank == 1 and shape[1:] == (1,)))
    if not fits:
        raise UserError(f"{file}: {place} has shape {shape}, but needs {rank or 'some'} dimension(s)")
    if 0 in shape[1:]:
        raise UserError(f"{file}: {place} has shape {shape}, so that its rows are empty")
    if rows is not None and len(item) != rows:
        raise UserError(f"{file}: {place} has {len(item)} rows, but needs {rows}, as many as what it goes with")
    check_size(item, 4 * math.prod(shape[1:]))
    return item


def kind_of(item: Any) -> str | None:
    """NumPy's letter for the kind of what an array holds; None if it is no array, or NumPy knows no such kind."""
    try:
        return item.dtype.kind if isinstance(item, h5py.Dataset) else None
    except (TypeError, ValueError):
        return None


def check_size(item: h5py.Dataset, at_once: int) -> None:
    """UserError if an array claims more than its bytes in the file can hold, or was never written.

    Args:
        item: the array; it may be larger than this machine's memory.
        at_once: bytes of it that are read together.
    """
    place, stored = f"{item.file.filename}: {str(item.name).lstrip('/')}", item.id.get_storage_size()
    if at_once > _MAX_AT_ONCE:
        raise UserError(f"{place} claims {item.shape} entries, of which {at_once >> 30} GiB would be read at once")
    if item.chunks and math.prod(item.chunks) * item.dtype.itemsize > _MAX_CHUNK:
        raise UserError(f"{place} is stored in pieces {item.chunks}, of more than {_MAX_CHUNK >> 20} MiB each")
    claimed = math.prod(item.shape) * item.dtype.itemsize
    if claimed and not stored:
        raise UserError(f"{place} claims {item.shape} entries, but none was ever written; record the file again")
    if claimed > _MAX_PACKED * stored:
        raise UserError(f"{place} claims {item.shape} entries, more than {stored:,} bytes can hold; download it again")


def read_vector(item: h5py.Dataset, start: int, stop: int) -> NDArray[Any]:
    """Some entries of an array of shape (S,) or (S, 1), as a vector."""
    return item[start:stop].reshape(stop - start)


def row_ranges(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """First row of each block, and the row after its last, where a row has ``width`` numbers."""
    step = rows_per_block(width)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def attributes(group: h5py.Group) -> dict[str, Any]:
    """Its attributes as Python values; what is neither number, text nor an array of these is left out."""
    found = {}
    for name in group.attrs:
        with contextlib.suppress(TypeError, ValueError, OSError):  # types that NumPy cannot represent
            if group.attrs.get_id(name).get_storage_size() > _MAX_ATTRIBUTE:
                continue
            value = group.attrs[name]
            value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
            if isinstance(value, bool | int | float | str | list):
                found[name] = value
    return found


def _place(group: h5py.Group, name: str) -> str:
    return f"{group.name}/{name}".lstrip("/")


def _suggest(group: h5py.Group, name: str) -> str:
    folder, _, leaf = name.rpartition("/")
    inside = member(group, folder) if folder else group
    return did_you_mean(leaf, names(inside) if isinstance(inside, h5py.Group) else ())
