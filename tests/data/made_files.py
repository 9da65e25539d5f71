"""Tiny files of each format, made by hand and not by the writers under test.

All hold the same two episodes, of 3 steps (terminated) and 2 (cut off): observation i is 10 i + (0, 1, 2), action i is
(i, -i) / 10, reward i is i + 0.5; what was seen after the last actions is 1000 and 2000 + (0, 1, 2).
"""

import io
import json

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LENGTHS = (3, 2)
ENDS = np.cumsum(LENGTHS)
ROWS = int(ENDS[-1])
INDEX = np.arange(ROWS, dtype=np.float32)
OBSERVATIONS = 10 * INDEX[:, None] + np.arange(3, dtype=np.float32)
ACTIONS = np.stack([INDEX, -INDEX], 1) / 10
REWARDS = INDEX + 0.5
TERMINALS = np.array([0, 0, 1, 0, 0], bool)
TIMEOUTS = np.array([0, 0, 0, 0, 1], bool)
FINALS = np.array([[1000], [2000]], np.float32) + np.arange(3, dtype=np.float32)
COLUMNS = ("observations", "actions", "rewards", "terminals", "timeouts")
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 6, 3), dtype=np.uint8)


def episodes():
    """Index and rows of both."""
    return enumerate((slice(0, 3), slice(3, 5)))


def d4rl(path, **arrays):
    """A file of D4RL; more arrays by name, or None for one to leave out."""
    columns = {
        "observations": OBSERVATIONS.astype(np.float64),
        "actions": ACTIONS,
        "rewards": REWARDS,
        "terminals": TERMINALS,
        "timeouts": TIMEOUTS,
    }
    with h5py.File(path, "w") as file:
        for name, array in (columns | arrays).items():
            if array is not None:
                file[name] = array
    return path


def dsrl(path, **arrays):
    """A file of DSRL, whose costs are 1 in row 1 and 3."""
    following = np.roll(OBSERVATIONS, -1, axis=0)
    following[ENDS - 1] = FINALS
    costs = np.array([0, 1, 0, 1, 0], np.float64)
    return d4rl(path, **{"next_observations": following, "costs": costs, **arrays})


def minari(folder, images=False):
    """A folder of Minari with a Dict space, the first entry of the observation in a key of its own."""
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for index, rows in episodes():
            group = file.create_group(f"episode_{index}")
            group.attrs.update({"id": index, "total_steps": LENGTHS[index], "seed": 7})
            seen = np.concatenate([OBSERVATIONS[rows], FINALS[index : index + 1]])
            group["observations/achieved_goal"] = seen[:, :1].astype(np.float64)
            group["observations/observation"] = seen[:, 1:]
            if images:
                jpeg = [np.frombuffer(encoded(IMAGES[rows.start], "JPEG"), np.uint8)] * len(seen)
                item = group.create_dataset("observations/camera", (len(seen),), h5py.vlen_dtype(np.uint8))
                for row, content in enumerate(jpeg):
                    item[row] = content
            group["actions"], group["rewards"] = ACTIONS[rows], REWARDS[rows].astype(np.float64)
            group["terminations"], group["truncations"] = TERMINALS[rows], TIMEOUTS[rows]
            group["infos/qpos"] = np.zeros((LENGTHS[index] + 1, 4))
    metadata = {
        "dataset_id": "toy/made-v0",
        "total_episodes": 2,
        "total_steps": ROWS,
        "data_format": "hdf5",
        "env_spec": json.dumps({"id": "Toy-v0", "entry_point": "os:system"}),
        "minari_version": "0.5.3",
        "ref_min_score": 2.0,
        "ref_max_score": 10.0,
    }
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata))
    return folder


def robomimic(path, images=True, keys=("robot0_eef_pos", "object")):
    """A file of robomimic, the first entry of the observation under the first key; ten demonstrations apart."""
    first, second = keys
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = ROWS
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for index, rows in episodes():
            demo = data.create_group(f"demo_{10 * index}")
            demo.attrs["num_samples"] = LENGTHS[index]
            following = np.concatenate([OBSERVATIONS[rows][1:], FINALS[index : index + 1]])
            for group, seen in (("obs", OBSERVATIONS[rows]), ("next_obs", following)):
                demo[f"{group}/{first}"], demo[f"{group}/{second}"] = seen[:, :1].astype(np.float64), seen[:, 1:]
            if images:
                demo["obs/agentview_image"] = IMAGES[rows]
            demo["actions"], demo["rewards"] = ACTIONS[rows].astype(np.float64), REWARDS[rows]
            demo["dones"], demo["states"] = TERMINALS[rows].astype(np.int64), np.zeros((LENGTHS[index], 9))
        file["mask/train"] = np.array([b"demo_10"])
    return path


def lerobot(folder, images=None, files=1):
    """A folder of LeRobot v3; images as a column of PNG if ``images`` is "png"."""
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    for number in range(files):
        rows = np.arange(ROWS) if files == 1 else np.flatnonzero((np.arange(ROWS) >= 3) == bool(number))
        columns = {
            "observation.state": pa.array(OBSERVATIONS[rows].tolist(), pa.list_(pa.float32())),
            "action": pa.FixedSizeListArray.from_arrays(pa.array(ACTIONS[rows].ravel()), 2),
            "next.reward": pa.array(REWARDS[rows]),
            "next.done": pa.array(TERMINALS[rows]),
            "episode_index": pa.array((rows >= 3).astype(np.int64)),
        }
        if images == "png":
            content = [{"bytes": encoded(IMAGES[row], "PNG"), "path": None} for row in rows]
            columns["observation.images.top"] = pa.array(
                content, pa.struct({"bytes": pa.binary(), "path": pa.string()})
            )
        pq.write_table(
            pa.table(columns), folder / "data" / "chunk-000" / f"file-{number:03d}.parquet", row_group_size=2
        )
    starts = ENDS - LENGTHS
    about = {
        "episode_index": [0, 1],
        "tasks": [["push"], ["push"]],
        "dataset_from_index": starts,
        "dataset_to_index": ENDS,
        "data/chunk_index": [0, 0],
        "data/file_index": [0, files - 1],
        "stats/action/min": [[0.0, 0.0], [0.0, 0.0]],
    }
    pq.write_table(pa.table(about), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    features = {"observation.state": [3], "action": [2], "next.reward": [1], "next.done": [1]}
    info = {
        "codebase_version": "v3.0",
        "fps": 10,
        "total_episodes": 2,
        "total_frames": ROWS,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {name: {"dtype": "float32", "shape": shape} for name, shape in features.items()},
    }
    if images == "png":
        info["features"]["observation.images.top"] = {"dtype": "image", "shape": [3, 8, 6]}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return folder


def encoded(image, form):
    """The bytes of an image file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, form)
    return content.getvalue()


def change_json(path, **changes):
    """Set members of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def equal(found, expected):
    """The same values, in the same type."""
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.asarray(expected).dtype
