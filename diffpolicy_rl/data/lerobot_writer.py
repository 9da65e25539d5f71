"""Write LeRobot's data sets of version 3; see ``lerobot`` for the layout."""

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.data.files import new_folder
from diffpolicy_rl.data.lerobot_images import encode
from diffpolicy_rl.data.parquet import require_pyarrow
from diffpolicy_rl.data.transitions import Frames, Transitions, rows_per_block
from diffpolicy_rl.errors import UserError

_FILE_BYTES = 100 * 2**20  # LeRobot's own limit, after which it begins the next file
_FPS = 30
_PLACE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def write(path: Path, transitions: Transitions) -> None:
    """Write a folder, with the images of one episode in memory at a time, as PNG.

    Attributes of the transitions say the rest: ``fps``, how many frames per second there are, 30 if it is missing;
    ``task``, what is done, in words; ``video``, whether images become mp4 files, which lose some detail, or PNG in the
    data files. What was seen after an episode's last action has no place in this format.

    Raises:
        UserError: if it exists already or cannot be written, or pyarrow, or PyAV for videos, is not installed.
    """
    require_pyarrow()
    attributes = transitions.attributes
    fps = attributes.get("fps", _FPS)
    if not isinstance(fps, int | float) or not 0 < fps < 10**6:
        raise UserError(f"fps={fps} must be a number above 0, and below a million")
    task = str(attributes.get("task", attributes.get("env_id", "task")))
    video = bool(attributes.get("video", False))
    columns = _columns(transitions)
    transitions = dataclasses.replace(transitions, images=_named(transitions.images))
    with new_folder(path) as folder:
        moments = {camera: _Moments() for camera in transitions.images}
        if video:
            for camera in moments:
                _write_video(folder, transitions, camera, fps, moments[camera])
        places = _write_data(folder, transitions, columns, fps, {} if video else moments)
        _write_episodes(folder, transitions, places, task, fps if video else None)
        _write_tasks(folder, task)
        statistics = {name: _statistics(values) for name, values in columns.items()}
        statistics |= {camera: one.statistics() for camera, one in moments.items()}
        _write_json(folder / "meta" / "stats.json", statistics)
        _write_json(folder / "meta" / "info.json", _info(transitions, columns, fps, video))


def _named(images: Mapping[str, Frames]) -> dict[str, Frames]:
    """Cameras under names that LeRobot's policies look for, and that lead nowhere as the names of folders."""
    own = "observation.images."
    named = {own + name.removeprefix(own).replace("/", "."): frames for name, frames in images.items()}
    if len(named) < len(images):
        raise UserError(f"cameras {', '.join(images)} would share names, as / becomes . in this format; rename one")
    return named


def _columns(transitions: Transitions) -> dict[str, NDArray[Any]]:
    columns = {
        "observation.state": transitions.observations,
        "action": transitions.actions,
        "next.done": transitions.terminals[:, None],
    }
    if transitions.rewarded:
        columns["next.reward"] = transitions.rewards[:, None]
    if transitions.costs is not None:
        columns["next.cost"] = transitions.costs[:, None]
    return columns


def _counters(rows: slice, episode: int, fps: float) -> dict[str, NDArray[Any]]:
    frames = np.arange(rows.stop - rows.start)
    values = ((frames / fps).astype(np.float32), frames, np.full_like(frames, episode), frames + rows.start, 0 * frames)
    return dict(zip(_COUNTERS, values, strict=True))


def _write_data(
    folder: Path,
    transitions: Transitions,
    columns: Mapping[str, NDArray[Any]],
    fps: float,
    images: "Mapping[str, _Moments]",
) -> list[int]:
    """One row group for each episode; returns which file each went to."""
    import pyarrow as pa

    places = []
    with contextlib.ExitStack() as stack:
        file, writer, number = None, None, -1
        for episode, rows in enumerate(transitions.episodes()):
            arrays = {name: _arrow(values[rows]) for name, values in columns.items()}
            for camera, moments in images.items():
                arrays[camera] = _pictures(transitions, camera, rows, moments)
            arrays |= {name: pa.array(values) for name, values in _counters(rows, episode, fps).items()}
            table = pa.table(arrays)
            if file is None or writer is None or file.tell() > _FILE_BYTES:
                stack.close()
                number += 1
                file = stack.enter_context(_file(folder / "data", number).open("wb"))
                writer = stack.enter_context(require_pyarrow().ParquetWriter(file, table.schema))
            writer.write_table(table, row_group_size=len(table))
            places.append(number)
    return places


def _file(folder: Path, number: int) -> Path:
    path = folder / _PLACE.format(chunk_index=number // 1000, file_index=number % 1000)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _arrow(values: NDArray[Any]) -> Any:
    """A column of vectors, or of numbers where they have one entry, as LeRobot has it."""
    import pyarrow as pa

    flat = pa.array(values.ravel())
    return flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _pictures(transitions: Transitions, camera: str, rows: slice, moments: "_Moments") -> Any:
    import pyarrow as pa

    def encoded() -> Iterator[dict[str, Any]]:
        for number, image in enumerate(_images(transitions.images[camera], rows)):
            moments.add(image)
            yield {"bytes": _png(image), "path": f"frame-{number:06d}.png"}

    return pa.array(list(encoded()), pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def _images(frames: Frames, rows: slice) -> Iterator[NDArray[np.uint8]]:
    """Images one by one; read in blocks, because a file may have to be unpacked from far ahead of each."""
    step = rows_per_block(math.prod(frames.shape) // 4)
    for start in range(rows.start, rows.stop, step):
        yield from frames.read(np.arange(start, min(start + step, rows.stop)))


def _png(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    content, pixels = io.BytesIO(), image.transpose(1, 2, 0)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(content, "PNG")
    return content.getvalue()


def _write_video(folder: Path, transitions: Transitions, camera: str, fps: float, moments: "_Moments") -> None:
    """All episodes of a camera in one mp4 file."""
    frames, path = transitions.images[camera], folder / "videos" / camera / "chunk-000" / "file-000.mp4"
    path.parent.mkdir(parents=True)

    def images() -> Iterator[NDArray[np.uint8]]:
        for image in _images(frames, slice(0, len(transitions.rewards))):
            moments.add(image)
            yield image

    encode(path, images(), fps, frames.shape)


def _write_episodes(
    folder: Path, transitions: Transitions, places: list[int], task: str, video_fps: float | None
) -> None:
    import pyarrow as pa

    ends = transitions.episode_ends()
    starts, numbers = np.concatenate([[0], ends[:-1]]), np.array(places)
    columns = {
        "episode_index": np.arange(len(ends)),
        "tasks": pa.array([[task]] * len(ends)),
        "length": ends - starts,
        "data/chunk_index": numbers // 1000,
        "data/file_index": numbers % 1000,
        "dataset_from_index": starts,
        "dataset_to_index": ends,
        "meta/episodes/chunk_index": 0 * ends,
        "meta/episodes/file_index": 0 * ends,
    }
    for camera in transitions.images:
        if video_fps is None:
            break
        columns[f"videos/{camera}/chunk_index"] = columns[f"videos/{camera}/file_index"] = 0 * ends
        columns[f"videos/{camera}/from_timestamp"] = starts / video_fps
        columns[f"videos/{camera}/to_timestamp"] = ends / video_fps
    require_pyarrow().write_table(pa.table(columns), _file(folder / "meta" / "episodes", 0))


def _write_tasks(folder: Path, task: str) -> None:
    """One row; LeRobot reads it with pandas and wants the words as its index, which these metadata say."""
    import pyarrow as pa

    table = pa.table({"task_index": pa.array([0]), "task": pa.array([task])})
    described = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
    table = table.replace_schema_metadata({"pandas": json.dumps(pandas)})
    require_pyarrow().write_table(table, folder / "meta" / "tasks.parquet")


def _statistics(values: NDArray[Any]) -> dict[str, Any]:
    numbers = values.astype(np.float64)
    found = {name: getattr(numbers, name)(0).tolist() for name in ("min", "max", "mean", "std")}
    return {**found, "count": [len(values)]}


class _Moments:
    """Statistics of images, channel by channel, taken in one by one; pixels are 0 to 1."""

    def __init__(self) -> None:
        self._count, self._sums, self._low, self._high = 0, np.zeros((2, 1)), np.array(np.inf), np.array(-np.inf)

    def add(self, image: NDArray[np.uint8]) -> None:
        pixels = image.reshape(len(image), -1) / 255
        self._count += 1
        self._sums = self._sums + np.stack([pixels.mean(1), (pixels**2).mean(1)])
        self._low, self._high = np.minimum(self._low, pixels.min(1)), np.maximum(self._high, pixels.max(1))

    def statistics(self) -> dict[str, Any]:
        mean, square = self._sums / self._count
        std = np.sqrt(np.maximum(square - mean**2, 0))
        values = {"min": self._low, "max": self._high, "mean": mean, "std": std}
        return {name: value[:, None, None].tolist() for name, value in values.items()} | {"count": [self._count]}


def _info(transitions: Transitions, columns: Mapping[str, NDArray[Any]], fps: float, video: bool) -> dict[str, Any]:
    features: dict[str, Any] = {
        name: {"dtype": values.dtype.name, "shape": [values.shape[1]], "names": None}
        for name, values in columns.items()
    }
    for camera, frames in transitions.images.items():
        channels, height, width = frames.shape
        names = ["height", "width", "channels"]
        features[camera] = {"dtype": "video" if video else "image", "shape": [height, width, channels], "names": names}
    kinds = {"timestamp": "float32"}
    features |= {name: {"dtype": kinds.get(name, "int64"), "shape": [1], "names": None} for name in _COUNTERS}
    episodes = len(transitions.episode_ends())
    info = {
        "codebase_version": "v3.0",
        "robot_type": transitions.attributes.get("robot_type"),
        "total_episodes": episodes,
        "total_frames": len(transitions.rewards),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": f"data/{_PLACE}",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if video else None,
        "features": features,
    }
    env_id = transitions.attributes.get("env_id")
    return info | ({"env_id": env_id} if env_id else {})


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4))
