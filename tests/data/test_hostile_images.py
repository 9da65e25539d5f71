"""Images and videos that are none: each is refused in one sentence that names the file."""

import dataclasses
import struct
import zlib

import h5py
import made_files as made
import numpy as np
import pyarrow as pa
import pytest
from spoiled import DATA, EPISODES, VIDEO, column, feature

from diffpolicy_rl.data import lerobot_writer
from diffpolicy_rl.data.formats import read
from diffpolicy_rl.errors import UserError


def png_bomb(side):
    """A PNG file that claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


IMAGES = {
    "text": (b"not an image", "is not a readable JPEG or PNG image"),
    "cut": (made.encoded(made.IMAGES[0], "PNG")[:60], "is not a readable JPEG or PNG image"),
    "bomb": (png_bomb(40_000), "JPEG or PNG image|that is no camera's"),
    "large": (png_bomb(9_000), "that is no camera's"),
    "other format": (made.encoded(made.IMAGES[0], "GIF"), "is not a readable JPEG or PNG image"),
    "other size": (made.encoded(made.IMAGES[0][:4], "PNG"), r"is an image \(3, 4, 6\), but meta/info.json says"),
    "nothing": (None, "holds no image"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images_refused(tmp_path, case):
    content, message = IMAGES[case]
    path = made.lerobot(tmp_path / "the_set", images="png")
    rows = [{"bytes": content, "path": "/etc/passwd"}] * 5
    column(DATA, "observation.images.top", pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()})))(path)
    frames = read(path).images["observation.images.top"]
    with pytest.raises(UserError, match=message) as caught:
        frames.read(np.array([1]))
    assert "the_set" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"\0\0\0\x18ftypmp42" + bytes(500)]
)
def test_videos_refused(tmp_path, content):
    path = made.lerobot(tmp_path / "the_set")
    feature("cam", **VIDEO)(path)
    for name in ("chunk_index", "file_index", "from_timestamp"):
        column(EPISODES, f"videos/cam/{name}", pa.array([0, 0]))(path)
    video = path / "videos/cam/chunk-000/file-000.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(content)
    frames = read(path).images["cam"]
    with pytest.raises(UserError, match=r"the_set.*file-000\.mp4 is not a readable mp4 file"):
        frames.read(np.array([0]))


def test_a_camera_without_its_column_is_refused_at_once(tmp_path):
    path = made.lerobot(tmp_path / "the_set")
    feature("observation.images.top", dtype="image", shape=[3, 8, 6])(path)
    with pytest.raises(UserError, match=r"file-000\.parquet has no column observation\.images\.top"):
        read(path)


def test_cameras_are_not_merged(tmp_path):
    path = made.lerobot(tmp_path / "the_set", images="png")
    transitions = read(path)
    frames = transitions.images["observation.images.top"]
    both = dataclasses.replace(transitions, images={"a/b": frames, "a.b": frames})
    with pytest.raises(UserError, match=r"cameras a/b, a\.b would share names"):
        lerobot_writer.write(tmp_path / "new", both)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("told", [{"jpeg_encoding": False}, {}])
def test_bytes_are_numbers_where_images_are_not_encoded(tmp_path, told):
    path = made.minari(tmp_path / "the_set")
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        for index, length in enumerate(made.LENGTHS):
            file[f"episode_{index}/observations/ram"] = np.full((length + 1, 4), 7, np.uint8)
    made.change_json(path / "data" / "metadata.json", **told)
    if told:
        assert read(path).observations[:, 3:].tolist() == [[7.0] * 4] * made.ROWS
    else:
        with pytest.raises(UserError, match=r"episode_0/observations/ram: row 0 is not a readable JPEG or PNG image$"):
            read(path)


def test_links_do_not_multiply(tmp_path):
    path = made.minari(tmp_path / "the_set")
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        group = file["episode_0/observations"]
        for _ in range(40):
            below = group.create_group("a")
            group["b"] = below
            group = below
        group["x"] = np.zeros((4, 1))
    with pytest.raises(UserError, match=r"main_data\.hdf5: observations have more than 1000 parts"):
        read(path)
