"""Read LeRobot's data sets of version 3 (https://github.com/huggingface/lerobot), without the library.

A folder holds ``meta/info.json``, which names the features and where files lie, ``meta/episodes/*/*.parquet``, one row
for each episode, ``data/*/*.parquet``, one row for each step, and the cameras' ``videos/<key>/*/*.mp4``; cameras may
also be columns of images. Steps come from ``action``, ``observation.state`` and ``observation.environment_state``, and,
where they were recorded, ``next.reward``, ``next.done`` and ``next.cost``.
"""

import string
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.data import parquet
from diffpolicy_rl.data.files import read_json
from diffpolicy_rl.data.lerobot_images import ImageFrames, VideoFrames
from diffpolicy_rl.data.transitions import Block, Frames, ReadOptions, Source, finite, flags, rows_per_block
from diffpolicy_rl.errors import UserError, did_you_mean

INFO = "meta/info.json"
_USUAL = ("observation.state", "observation.environment_state")
_EPISODES = ("episode_index", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index")
# What a path may name, and how wide: any other format text can read attributes, or fill the memory.
_WIDTHS = {"chunk_index": ("", "03d", "06d"), "file_index": ("", "03d", "06d"), "video_key": ("",)}
_MAX_WIDTH, _MAX_PATH = 2**20, 200


def is_folder(path: Path) -> bool:
    """Whether a folder is a data set of LeRobot's."""
    return (path / INFO).is_file()


def open_source(path: Path, options: ReadOptions) -> Source:
    """Check what a folder's ``meta`` says, and that the files it names are there.

    Raises:
        UserError: if it is of another version, names files outside the folder, or does not hold together; or if pyarrow
            is not installed.
    """
    info = read_json(path / INFO)
    version = info.get("codebase_version")
    if not isinstance(version, str) or not version.startswith("v3."):
        raise UserError(
            f"{path / INFO} has codebase_version {str(version)[:80]!r}, this version reads v3.0; LeRobot's own "
            "convert_dataset_v21_to_v30 brings older ones up to date"
        )
    features = _features(path, info)
    seen = options.keys or tuple(name for name in _USUAL if name in features)
    for name in ("action", *(seen or _USUAL[:1])):
        if name not in features:
            raise UserError(f"{path / INFO} has no feature {name}; {did_you_mean(name, features)}")
    widths = {name: _width(path, name, features) for name in (*seen, "action")}
    episodes = _Episodes(path, info)
    cameras = {name: shape for name in features if (shape := _image_shape(path, name, features[name]))}
    rewarded = "next.reward" in features

    def blocks() -> Iterator[Block]:
        return _blocks(episodes, seen, widths, features)

    return Source(
        path,
        "lerobot",
        episodes.rows,
        sum(widths[name] for name in seen),
        widths["action"],
        blocks,
        _described(info) | episodes.tasks(),
        {name: _camera(episodes, name, features[name], shape) for name, shape in cameras.items()},
        rewarded,
        () if rewarded else ("no rewards: it can be cloned, not learned values from",),
    )


def _features(path: Path, info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise UserError(f"{path / INFO}: features must be an object of features by name")
    return features


def _sizes(path: Path, name: str, feature: Mapping[str, Any], count: int) -> list[int]:
    shape: Any = feature.get("shape")
    whole = isinstance(shape, list) and all(type(size) is int and 0 < size <= _MAX_WIDTH for size in shape)
    if not whole or len(shape) != count:
        raise UserError(
            f"{path / INFO}: {name} has shape {str(shape)[:80]}, but needs {count} size(s) of 1 to {_MAX_WIDTH}"
        )
    return shape


def _width(path: Path, name: str, features: Mapping[str, dict[str, Any]]) -> int:
    return _sizes(path, name, features[name], 1)[0]


def _image_shape(path: Path, name: str, feature: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """(C, height, width) of a camera, or None if the feature is none."""
    if feature.get("dtype") not in ("image", "video"):
        return None
    sizes = _sizes(path, name, feature, 3)
    channels_first = sizes[0] in (1, 3, 4) and sizes[2] not in (1, 3, 4)
    channels, height, width = sizes if channels_first else (sizes[2], sizes[0], sizes[1])
    if channels not in (1, 3, 4) or height * width > 2**25:
        raise UserError(f"{path / INFO}: {name} has shape {sizes}, which is no camera's")
    return channels, height, width


def _described(info: Mapping[str, Any]) -> dict[str, Any]:
    told = ("codebase_version", "robot_type", "fps", "total_tasks", "env_id")
    return {name: info[name] for name in told if isinstance(info.get(name), str | int | float)}


class _Episodes:
    """Where each episode lies.

    Attributes:
        root: the folder.
        fps: frames per second.
        rows: S.
        ends: (E,) the row after each episode's last.
        columns: what the files on episodes say, by column.
        files: data files in order, with their numbers of rows.
    """

    def __init__(self, root: Path, info: Mapping[str, Any]) -> None:
        self.root, self._info = root, info
        fps = info.get("fps")
        if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < 10**6:
            raise UserError(f"{root / INFO}: fps is {str(fps)[:20]}, but must be a number above 0, in Hz")
        self.fps = float(fps)
        self._files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
        if not self._files:
            raise UserError(f"{root} has no meta/episodes/chunk-000/file-000.parquet; download it again")
        self.columns = self.numbers(_EPISODES)
        starts, self.ends = self.columns["dataset_from_index"], self.columns["dataset_to_index"]
        expected = np.concatenate([[0], self.ends[:-1]])
        bad = np.flatnonzero((starts != expected) | (self.ends <= starts))
        if len(bad):
            raise UserError(
                f"{self._files[0]}: episode {bad[0]} claims rows {starts[bad[0]]} to {self.ends[bad[0]]}, "
                f"but must begin at row {expected[bad[0]]} and not be empty"
            )
        self.rows = int(self.ends[-1])
        if info.get("total_frames") != self.rows:
            total = str(info.get("total_frames"))[:80]
            raise UserError(f"{root / INFO} says total_frames={total}, episodes have {self.rows}")
        pairs = zip(self.columns["data/chunk_index"].tolist(), self.columns["data/file_index"].tolist(), strict=True)
        self.files = {
            path: parquet.rows_of(path) for path in (self.file("data_path", *pair) for pair in dict.fromkeys(pairs))
        }
        if sum(self.files.values()) != self.rows:
            raise UserError(f"{root} has {sum(self.files.values())} rows of data, episodes have {self.rows}")

    def numbers(self, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Columns (E,) on episodes; UserError if what ends in index is not whole, or anything not finite."""
        parts = [parquet.read_columns(path, dict.fromkeys(names, 1)) for path in self._files]
        columns = {name: np.concatenate([part[name][:, 0] for part in parts]) for name in names}
        for name, column in columns.items():
            if not np.isfinite(column).all() or (name.endswith("index") and column.dtype.kind not in "iu"):
                raise UserError(f"{self._files[0]}: {name} must hold {'whole ' * name.endswith('index')}numbers")
        return columns

    def tasks(self) -> dict[str, Any]:
        """What is done in all of them, in words, and how many tasks there are if they differ."""
        found = set.union(*(parquet.texts(path, "tasks") for path in self._files))
        return {"task": found.pop()} if len(found) == 1 else {"total_tasks": len(found)} if found else {}

    def file(self, template: str, chunk: int, index: int, camera: str = "") -> Path:
        """A file that a template in ``info.json`` names; UserError if it leads out of the folder, or is missing."""
        text = str(self._info.get(template))[:_MAX_PATH]
        where = f"{self.root / INFO}: {template}"
        values = {"chunk_index": int(chunk), "file_index": int(index), "video_key": camera}
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError:
            parts = []
        fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
        if not fields or any(spec not in _WIDTHS.get(name, ()) or conversion for name, spec, conversion in fields):
            raise UserError(f"{where} is {text!r}, but must be a path with {{chunk_index:03d}} and {{file_index:03d}}")
        place = PurePosixPath(text.format(**values))
        if place.is_absolute() or ".." in place.parts or "\\" in str(place):
            raise UserError(f"{where} leads out of the data set, to {place}; such a data set is not to be trusted")
        if not (self.root / place).is_file():
            raise UserError(f"{self.root} has no {place}, which {INFO} names; download it again")
        return self.root / place


def _blocks(
    episodes: _Episodes, seen: tuple[str, ...], widths: Mapping[str, int], features: Mapping[str, Any]
) -> Iterator[Block]:
    optional = {name: 1 for name in ("next.reward", "next.done", "next.cost") if name in features}
    wanted, first = {**widths, **optional, "episode_index": 1}, 0
    for path in episodes.files:
        for columns in parquet.batches(path, wanted, rows_per_block(sum(wanted.values()))):
            rows = np.arange(first, first + len(columns["action"]))
            expected = np.searchsorted(episodes.ends, rows, side="right")
            strays = np.flatnonzero(columns["episode_index"][:, 0] != expected)
            if len(strays):
                raise UserError(f"{path}: row {rows[strays[0]]} is not of episode {expected[strays[0]]}, as meta says")
            values = {
                name: finite(columns[name], f"{path}: {name}", first)
                for name in (*widths, *optional)
                if name != "next.done"
            }
            ended = np.isin(rows + 1, episodes.ends)
            done = np.zeros_like(ended)
            if "next.done" in optional:
                done = flags(columns["next.done"][:, 0], f"{path}: next.done", first)
            yield Block(
                np.concatenate([values[name] for name in seen], 1),
                values["action"],
                values["next.reward"][:, 0] if "next.reward" in values else np.zeros(len(rows), np.float32),
                done & ended,
                ended & ~done,
                values["next.cost"][:, 0] if "next.cost" in values else None,
            )
            first += len(rows)


def _camera(episodes: _Episodes, name: str, feature: Mapping[str, Any], shape: tuple[int, int, int]) -> Frames:
    if feature["dtype"] == "image":
        return ImageFrames(episodes.files, name, shape)
    place = [f"videos/{name}/{column}" for column in ("chunk_index", "file_index", "from_timestamp")]
    columns = episodes.numbers(tuple(place))
    files = [
        episodes.file("video_path", chunk, index, name)
        for chunk, index in zip(columns[place[0]], columns[place[1]], strict=True)
    ]
    return VideoFrames(files, columns[place[2]], episodes.ends, episodes.fps, shape)
