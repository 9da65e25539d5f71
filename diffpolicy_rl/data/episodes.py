"""hdf5 files with one group for each episode, as Minari and robomimic write them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.data import hdf5
from diffpolicy_rl.data.transitions import Block, finite, flags
from diffpolicy_rl.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where the arrays of an episode lie in its group.

    Attributes:
        seen: arrays (T, ...) joined into the observation, or (T + 1, ...) where the last is what was seen at the end.
        last: arrays whose last row was seen at the episode's end; none if the format does not keep it.
        terminal: the flags (T,) whose last one says that the episode ended in a state without future.
        images: arrays of images by camera.
        rewarded: whether there are rewards.
    """

    seen: tuple[str, ...]
    last: tuple[str, ...]
    terminal: str | None
    images: dict[str, str] = field(default_factory=dict)
    rewarded: bool = True


@dataclass(frozen=True)
class Episode:
    """One of the groups: its path, and its number of actions T."""

    place: str
    rows: int


def measure(file: h5py.File, place: str, layout: Layout) -> tuple[Episode, tuple[int, int]]:
    """Check the arrays of an episode; returns it, and the widths O and D."""
    group = hdf5.subgroup(file, place)
    actions = hdf5.array(group, "actions", 2)
    rows, extra = len(actions), layout.last == layout.seen
    if not rows:
        raise UserError(f"{file.filename}: {place} has no actions; leave this episode out")
    width = sum(_width(hdf5.array(group, name, None, rows + extra)) for name in layout.seen)
    if layout.last and width != sum(_width(hdf5.array(group, name, None, rows + extra)) for name in layout.last):
        raise UserError(f"{file.filename}: {place}/next_obs has other widths than obs, which is {width} wide")
    for name in ("rewards" if layout.rewarded else None, layout.terminal):
        if name:
            hdf5.array(group, name, 1, rows)
    for name in layout.images.values():
        _check_images(group, name, rows + extra)
    return Episode(place, rows), (width, actions.shape[1])


def _width(item: h5py.Dataset) -> int:
    return int(np.prod(item.shape[1:]))


def blocks(path: Path, episodes: list[Episode], layout: Layout, width: int) -> Iterator[Block]:
    """The episodes end to end; ``width`` is O + D."""
    with hdf5.opened(path) as file:
        for episode in episodes:
            group = hdf5.subgroup(file, episode.place)
            for start, stop in hdf5.row_ranges(episode.rows, width):
                ended = stop == episode.rows
                yield _block(group, layout, start, stop, ended)


def _block(group: h5py.Group, layout: Layout, start: int, stop: int, ended: bool) -> Block:
    arrays: Any = group

    def values(name: str, first: int, end: int) -> NDArray[np.float32]:
        where = f"{group.file.filename}: {group.name}/{name}".replace(": /", ": ")
        return finite(arrays[name][first:end].reshape(end - first, -1), where, first)

    terminals, timeouts, finals = np.zeros(stop - start, bool), np.zeros(stop - start, bool), None
    if ended:
        where = f"{group.file.filename}: {group.name}/{layout.terminal}".replace(": /", ": ")
        # Flags before the end, as robomimic has where a task stays solved, would cut windows of actions short.
        terminals[-1] = flags(arrays[layout.terminal][-1:], where, stop - 1).any() if layout.terminal else False
        timeouts[-1] = not terminals[-1]
        if layout.last:
            finals = np.concatenate([values(name, len(arrays[name]) - 1, len(arrays[name])) for name in layout.last], 1)
    return Block(
        np.concatenate([values(name, start, stop) for name in layout.seen], 1),
        values("actions", start, stop),
        values("rewards", start, stop)[:, 0] if layout.rewarded else np.zeros(stop - start, np.float32),
        terminals,
        timeouts,
        finals=finals,
    )


def is_image(item: Any) -> bool:
    """Whether an array holds images: uint8 of shape (T, height, width, 1, 3 or 4), or their files as bytes."""
    if hdf5.kind_of(item) not in ("u", "O") or item.shape is None:
        return False
    raw = item.dtype == np.uint8 and (len(item.shape) == 2 or (len(item.shape) == 4 and item.shape[3] in (1, 3, 4)))
    return raw or h5py.check_vlen_dtype(item.dtype) == np.uint8


def _check_images(group: h5py.Group, name: str, rows: int) -> None:
    item, where = hdf5.member(group, name), f"{group.file.filename}: {str(group.name).lstrip('/')}/{name}"
    if not is_image(item) or item.external or item.is_virtual:
        raise UserError(f"{where} must hold images, uint8 of shape (T, height, width, channels)")
    if len(item) != rows:
        raise UserError(f"{where} has {len(item)} rows, but needs {rows}, as many as what it goes with")
    hdf5.check_size(item, math.prod(item.shape[1:]))


class EpisodeFrames:
    """Images that lie in one array for each episode, raw or as JPEG.

    Args:
        path: the hdf5 file.
        episodes: in order.
        name: the array's path in an episode's group.
    """

    def __init__(self, path: Path, episodes: list[Episode], name: str) -> None:
        self._path, self._name = path, name
        self._places = [episode.place for episode in episodes]
        self._starts = np.cumsum([0, *(episode.rows for episode in episodes)])
        with hdf5.opened(path) as file:
            array: Any = hdf5.member(file, f"{self._places[0]}/{name}")
            first = _decoded(array[0], f"{path}: {self._places[0]}/{name}: row 0")
        height, width, channels = first.shape
        self.shape = channels, height, width

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (B, C, height, width)."""
        images = np.empty((len(rows), *self.shape), np.uint8)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        with hdf5.opened(self._path) as file:
            for episode in np.unique(which):
                wanted = np.flatnonzero(which == episode)
                item = hdf5.member(file, f"{self._places[episode]}/{self._name}")
                for place in wanted:
                    row = int(rows[place] - self._starts[episode])
                    where = f"{self._path}: {self._places[episode]}/{self._name}: row {row}"
                    image = _decoded(item[row], where).transpose(2, 0, 1)
                    if image.shape != self.shape:
                        raise UserError(f"{where} is an image {image.shape}, but the first is {self.shape}")
                    images[place] = image
        return images


def _decoded(value: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    return value if value.ndim == 3 else decode_image(value.tobytes(), where)


def decode_image(content: bytes, where: str) -> NDArray[np.uint8]:
    """An image (height, width, C) from the bytes of its file; UserError if they are not one, or it is huge."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > 2**25:
                raise UserError(f"{where} is an image of {image.width} x {image.height} pixels; that is no camera's")
            pixels = np.asarray(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{where} is not a readable JPEG or PNG image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} is not a readable JPEG or PNG image: {error}") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
