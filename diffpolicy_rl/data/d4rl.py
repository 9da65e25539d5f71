"""Read and write transitions in D4RL's hdf5 layout, and in DSRL's, which adds costs.

Datasets ``observations`` (S, O), ``actions`` (S, D), ``rewards`` (S,), ``terminals`` (S,) and ``timeouts`` (S,); S
counts the transitions of all episodes, in order. Vectors may also be (S, 1). DSRL's files have ``costs`` (S,) and
``next_observations`` (S, O) as well. Large files of D4RL keep the same under ``virtual/<id>/``. What else they hold, as
``infos/...`` and ``metadata/...``, is not looked at. The writer adds attributes that say where the data comes from.

D4RL itself never looks at ``next_observations``: where an episode was cut off, its last transition is left out of what
values are learned from. Its files are read likewise, so that results compare. In DSRL's files, and in ours, they say
what was seen last.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.data import hdf5
from diffpolicy_rl.data.files import check_writable as check_writable
from diffpolicy_rl.data.files import replace, require_new
from diffpolicy_rl.data.transitions import Block, ReadOptions, Source, Transitions, finite, flags, load
from diffpolicy_rl.errors import UserError, require_positive

FORMAT_VERSION = 1
_ARRAYS = ("observations", "actions", "rewards", "terminals", "timeouts", "costs")
# What D4RL's tasks of v0 are cut at, whose files do not mark it; by how the file's name begins.
_LIMITS = {
    "halfcheetah": 1000,
    "hopper": 1000,
    "walker": 1000,
    "ant_": 1000,
    "ant-": 1000,
    "pen-": 100,
} | dict.fromkeys(("hammer-", "door-", "relocate-"), 200)
_SAME = 1e-6  # how far a successor may be from the next row's observation, per entry


def read(path: Path, options: ReadOptions | None = None) -> Transitions:
    """Read a whole file; see ``open_source``."""
    return load(open_source(path, options or ReadOptions()))


def open_source(path: Path, options: ReadOptions) -> Source:
    """Check a file's header.

    Raises:
        UserError: if it is missing, not hdf5, cut short, of another format version, or its arrays are absent, misshapen
            or not plain numbers.
    """
    with hdf5.opened(path) as file:
        attributes = hdf5.attributes(file)
        ours = "format_version" in file.attrs
        version = attributes.get("format_version")
        if ours and version != FORMAT_VERSION:
            raise UserError(f"{path} has data format {version}, this version reads {FORMAT_VERSION}")
        parts = [_part(file, place, ours) for place in _places(file)]
        kinds = {(part.widths, part.names) for part in parts}
    rows = sum(part.rows for part in parts)
    if not rows:
        raise UserError(f"{path} holds no transitions")
    if len(kinds) > 1:
        raise UserError(f"{path}: its parts have other arrays, or other widths, than each other")
    limit, notes = _limit(path, parts[0], attributes, options)
    form = "dsrl" if "costs" in parts[0].names else "d4rl"
    return Source(path, form, rows, *parts[0].widths, lambda: _blocks(path, parts, limit), attributes, notes=notes)


@dataclass(frozen=True)
class _Part:
    """The arrays in one group of the file."""

    place: str
    rows: int
    widths: tuple[int, int]
    names: tuple[str, ...]


def _places(file: h5py.File) -> list[str]:
    if "observations" in hdf5.names(file) or "virtual" not in hdf5.names(file):  # broken links among them, too
        return [""]
    chunks = hdf5.names(hdf5.subgroup(file, "virtual"))
    if not all(name.isdecimal() for name in chunks):
        raise UserError(f"{file.filename}: virtual must hold groups 0, 1, ... alone, but has {', '.join(chunks)}")
    return [f"virtual/{name}" for name in sorted(chunks, key=int)]


def _part(file: h5py.File, place: str, ours: bool) -> _Part:
    group = hdf5.subgroup(file, place)
    observations = hdf5.array(group, "observations", 2)
    rows, width = observations.shape
    actions = hdf5.array(group, "actions", 2, rows)
    present = hdf5.names(group)  # broken links among them, too
    optional = [name for name in ("timeouts", "costs") if name in present]
    for name in ("rewards", "terminals", *optional):
        hdf5.array(group, name, 1, rows)
    if "next_observations" in present and ("costs" in present or ours):
        following = hdf5.array(group, "next_observations", 2, rows)
        if following.shape != observations.shape:
            raise UserError(f"{file.filename}: next_observations is {following.shape}, but needs {observations.shape}")
        optional.append("next_observations")
    return _Part(place, rows, (width, actions.shape[1]), ("rewards", "terminals", *optional))


def _limit(
    path: Path, part: _Part, attributes: dict[str, Any], options: ReadOptions
) -> tuple[int | None, tuple[str, ...]]:
    """What episodes are cut at where the file does not mark it, and what is to be said about it."""
    if "timeouts" in part.names:
        if options.max_episode_steps is not None:
            raise UserError(f"max_episode_steps has no effect on {path}, which marks its timeouts; leave it out")
        return None, ()
    known = (limit for prefix, limit in _LIMITS.items() if path.name.lower().startswith(prefix))
    stated = attributes.get("max_episode_steps")
    assumed = stated if isinstance(stated, int) else next(known, None)
    limit = assumed if options.max_episode_steps is None else options.max_episode_steps
    if limit is None:
        return None, ("no timeouts: episodes end at terminals alone; max_episode_steps=<n> cuts them",)
    require_positive(max_episode_steps=limit)
    return limit, (f"no timeouts: episodes are cut after {limit} steps",)


def _blocks(path: Path, parts: list[_Part], limit: int | None) -> Iterator[Block]:
    elapsed = 0  # of an episode, which may go on in the next block, and in the next part
    ranges = ((part, *rows) for part in parts for rows in hdf5.row_ranges(part.rows, 2 * sum(part.widths)))
    with hdf5.opened(path) as file:
        for part, start, stop in ranges:
            group: Any = hdf5.subgroup(file, part.place)

            def vector(name: str, group: Any = group, start: int = start, stop: int = stop) -> NDArray[Any]:
                return hdf5.read_vector(group[name], start, stop)

            def where(name: str, part: _Part = part) -> str:
                return f"{path}: {part.place}/{name}".replace(": /", ": ")

            terminals = flags(vector("terminals"), where("terminals"), start)
            timeouts, finals = np.zeros_like(terminals), None
            if "timeouts" in part.names:
                timeouts = flags(vector("timeouts"), where("timeouts"), start)
            elif limit:
                timeouts, elapsed = _cut(terminals, limit, elapsed)
            observations = finite(group["observations"][start : stop + 1], where("observations"), start)
            if "next_observations" in part.names:
                following = finite(group["next_observations"][start:stop], where("next_observations"), start)
                # Where rows do not follow each other, as in a subset of DSRL's, an episode was cut without a mark.
                jumps = np.abs(following[: len(observations) - 1] - observations[1:]).max(1, initial=0) > _SAME
                timeouts[: len(jumps)] |= jumps & ~terminals[: len(jumps)]
                timeouts[-1] |= stop == part.rows and not terminals[-1]
                finals = following[terminals | timeouts]
            yield Block(
                observations[: stop - start],
                finite(group["actions"][start:stop], where("actions"), start),
                finite(vector("rewards"), where("rewards"), start),
                terminals,
                timeouts,
                finite(vector("costs"), where("costs"), start) if "costs" in part.names else None,
                finals,
            )


def _cut(terminals: NDArray[np.bool_], limit: int, elapsed: int) -> tuple[NDArray[np.bool_], int]:
    """Timeouts (S,) after every ``limit`` steps of an episode, of which ``elapsed`` were before; and what is left."""
    timeouts, start = np.zeros_like(terminals), -elapsed
    for end in (np.flatnonzero(terminals) + 1).tolist():
        timeouts[start + limit - 1 : end : limit] = True
        start = end
    timeouts[start + limit - 1 :: limit] = True
    return timeouts & ~terminals, (len(terminals) - start) % limit


def write(path: Path, transitions: Transitions) -> None:
    """Write a file atomically, compressed.

    Raises:
        UserError: if it exists already or cannot be written, or there are no rewards.
    """
    require_new(path)
    transitions.require_rewards("d4rl")
    returns, costs = transitions.returns(), transitions.episode_costs()
    attributes = {
        **transitions.attributes,
        "format_version": FORMAT_VERSION,
        "episodes": len(returns),
        "return_mean": returns.mean(),
        "return_std": returns.std(),
        "return_min": returns.min(),
        "return_max": returns.max(),
        **({} if costs is None else {"cost_mean": costs.mean(), "cost_min": costs.min(), "cost_max": costs.max()}),
    }
    arrays = {name: getattr(transitions, name) for name in _ARRAYS}
    if transitions.finals is not None:
        following = np.roll(transitions.observations, -1, axis=0)
        following[transitions.episode_ends() - 1] = transitions.finals
        arrays["next_observations"] = following
    content = io.BytesIO()  # built in memory, because HDF5 does not recover from a disk that is full
    with h5py.File(content, "w") as file:
        file.attrs.update(attributes)
        for name, array in arrays.items():
            if array is not None:
                file.create_dataset(name, data=array, compression="gzip", compression_opts=9, shuffle=True)
    replace(path, content.getbuffer())
