"""Images of LeRobot's cameras, decoded when they are asked for: from mp4 files, or from columns of PNG or JPEG."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.data import parquet
from diffpolicy_rl.data.episodes import decode_image
from diffpolicy_rl.errors import UserError


class ImageFrames:
    """Images in a column of the data files.

    Args:
        files: data files in order, with their numbers of rows.
        column: the camera's name.
        shape: (C, height, width).

    Raises:
        UserError: if a file lacks the column.
    """

    def __init__(self, files: Mapping[Path, int], column: str, shape: tuple[int, int, int]) -> None:
        self._files, self._column, self.shape = list(files), column, shape
        self._starts = np.cumsum([0, *files.values()])
        for path in files:
            parquet.require_columns(path, (column,))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (B, C, height, width)."""
        images = np.empty((len(rows), *self.shape), np.uint8)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for index in np.unique(which):
            self._read_file(index, rows, np.flatnonzero(which == index), images)
        return images

    def _read_file(self, index: int, rows: NDArray[Any], wanted: NDArray[Any], images: NDArray[np.uint8]) -> None:
        path = self._files[index]
        with parquet.opened(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            starts = self._starts[index] + np.cumsum([0, *sizes])
            groups = np.searchsorted(starts, rows[wanted], side="right") - 1
            for group in np.unique(groups):
                column = file.read_row_group(group, columns=[self._column]).column(0)
                for place in wanted[groups == group]:
                    where = f"{path}: {self._column}, row {rows[place]}"
                    offset = int(rows[place] - starts[group])
                    value = column[offset].as_py() if offset < len(column) else None
                    content = value.get("bytes") if isinstance(value, dict) else None
                    if not isinstance(content, bytes):
                        raise UserError(f"{where} holds no image; write the data set anew with images embedded")
                    images[place] = fitting(decode_image(content, where).transpose(2, 0, 1), self.shape, where)


class VideoFrames:
    """Images in mp4 files, several episodes in each.

    Args:
        files: of each episode.
        starts: (E,) time in the file at which each episode starts, in s.
        ends: (E,) the row after each episode's last.
        fps: frames per second.
        shape: (C, height, width).
    """

    def __init__(
        self,
        files: Sequence[Path],
        starts: NDArray[Any],
        ends: NDArray[Any],
        fps: float,
        shape: tuple[int, int, int],
    ) -> None:
        self._files, self._starts, self._ends, self._fps, self.shape = files, starts, ends, fps, shape

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (B, C, height, width)."""
        images = np.empty((len(rows), *self.shape), np.uint8)
        which = np.searchsorted(self._ends, rows, side="right")
        first = np.concatenate([[0], self._ends[:-1]])
        for episode in np.unique(which):
            wanted = np.flatnonzero(which == episode)
            frames, places = np.unique(rows[wanted] - first[episode], return_inverse=True)
            times = self._starts[episode] + frames / self._fps
            images[wanted] = _decode(self._files[episode], times, 0.5 / self._fps, self.shape)[places]
        return images


def _decode(path: Path, times: NDArray[np.float64], tolerance: float, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The frames nearest to ascending times in s, (n, C, height, width)."""
    av = require_av()
    found = np.empty((len(times), *shape), np.uint8)
    place = 0
    try:
        # The format is given, because what a file's content suggests may be a list of other files to open.
        with av.open(str(path), format="mp4") as container:
            stream = container.streams.video[0]
            container.seek(int(max(times[0] - tolerance, 0) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time is None or frame.time < times[place] - tolerance:
                    continue
                if frame.time <= times[place] + tolerance:
                    found[place] = _pixels(frame, shape, str(path))
                    place += 1
                    if place == len(times):
                        return found
                else:
                    break
    except (OSError, av.FFmpegError, IndexError) as error:
        raise UserError(f"{path} is not a readable mp4 file: {str(error).partition(chr(10))[0]}") from error
    raise UserError(f"{path} has no frame at {times[place]:.3f} s, which its episodes need; download it again")


def _pixels(frame: Any, shape: tuple[int, int, int], where: str) -> NDArray[np.uint8]:
    if (frame.height, frame.width) != shape[1:]:
        raise UserError(f"{where} has frames of {frame.height} x {frame.width}, but meta/info.json says {shape[1:]}")
    return fitting(frame.to_ndarray(format="rgb24").transpose(2, 0, 1), shape, where)


def fitting(image: NDArray[np.uint8], shape: tuple[int, int, int], where: str) -> NDArray[np.uint8]:
    """The image, if its shape is (C, height, width); else UserError."""
    if image.shape != shape:
        raise UserError(f"{where} is an image {image.shape}, but meta/info.json says {shape}")
    return image


def encode(path: Path, images: Iterable[NDArray[np.uint8]], fps: float, shape: tuple[int, int, int]) -> None:
    """Write images (C, height, width) as an mp4 file, from every second of whose frames decoding can begin.

    Raises:
        UserError: if PyAV is not installed, or the images' sizes are odd or they are not RGB, which H.264 cannot hold.
    """
    av = require_av()
    channels, height, width = shape
    if channels != 3 or height % 2 or width % 2:
        raise UserError(f"images of shape {shape} do not fit into an mp4 file; leave out video=true")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"g": "2", "crf": "18"}
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image.transpose(1, 2, 0)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def require_av() -> Any:
    """The module ``av``; UserError if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise UserError("LeRobot's videos need an extra package: pip install 'diffpolicy_rl[lerobot]'") from error
    return av
