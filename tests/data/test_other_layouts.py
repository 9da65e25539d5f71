"""What is special about Minari, robomimic and LeRobot."""

import dataclasses
import json

import h5py
import made_files as made
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from made_files import equal

from diffpolicy_rl.data.dataset import ChunkDataset
from diffpolicy_rl.data.formats import WRITERS, open_source, read
from diffpolicy_rl.data.transitions import ReadOptions
from diffpolicy_rl.errors import UserError


def test_robomimic_keeps_what_makes_the_environment(tmp_path):
    args = '{"env_name": "Lift", "type": 1, "env_kwargs": {"robots": ["Panda"]}}'
    data = dataclasses.replace(read(made.d4rl(tmp_path / "set")), attributes={"env_args": args})
    WRITERS["robomimic"](tmp_path / "new", data)
    assert read(tmp_path / "new").attributes["env_args"] == args


def test_frames_per_second_that_no_reader_takes_are_not_written(tmp_path):
    data = dataclasses.replace(read(made.d4rl(tmp_path / "set")), attributes={"fps": float("nan")})
    with pytest.raises(UserError, match="fps=nan must be a number above 0, and below a million"):
        WRITERS["lerobot"](tmp_path / "new", data)


def test_a_description_too_deep_to_read_says_nothing(tmp_path):
    path = made.robomimic(tmp_path / "set")
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = "[" * 10**4
    assert "env_id" not in open_source(path).attributes


def test_both_arms_are_seen(tmp_path):
    keys = ["object", *(f"robot{arm}_{part}" for arm in (0, 1) for part in ("eef_pos", "eef_quat", "gripper_qpos"))]
    path = made.robomimic(tmp_path / "set", images=False, keys=("object", "robot0_eef_pos"))
    with h5py.File(path, "r+") as file:
        for group in (demo[seen] for demo in file["data"].values() for seen in ("obs", "next_obs")):
            for key in keys[2:]:
                group[key] = group["object"][:]
    source = open_source(path)
    assert source.attributes["observation_keys"] == ", ".join(keys)


def test_minari_leaves_out_what_nobody_knows_the_end_of(tmp_path):
    data = read(made.d4rl(tmp_path / "set"))
    WRITERS["minari"](tmp_path / "new", data)
    back = read(tmp_path / "new")
    equal(back.observations, made.OBSERVATIONS[:4])
    equal(back.finals[1], made.OBSERVATIONS[4])
    assert back.timeouts.tolist() == [False, False, False, True]


def test_usual_keys_and_chosen_ones(tmp_path):
    path = made.robomimic(tmp_path / "set", keys=("gripper_states", "joint_states"))
    with h5py.File(path, "r+") as file:
        for demo in ("demo_0", "demo_10"):
            file[f"data/{demo}/obs/aaa"] = np.zeros((len(file[f"data/{demo}/actions"]), 2))
    usual = read(path)
    assert usual.observations[1].tolist() == [11, 12, 10]  # joints, then gripper
    assert usual.attributes["observation_keys"] == "joint_states, gripper_states"
    assert usual.attributes["env_id"] == "Lift"
    assert read(path, ReadOptions(("gripper_states",))).observations.tolist() == made.OBSERVATIONS[:, :1].tolist()
    train = read(path, ReadOptions(mask="train"))
    equal(train.actions, made.ACTIONS[3:])
    with pytest.raises(UserError, match=r"no subset mask/trian; did you mean 'train'\?"):
        read(path, ReadOptions(mask="trian"))
    with pytest.raises(UserError, match=r"no vectors obs/joint_state; did you mean 'joint_states'\?"):
        read(path, ReadOptions(("joint_state",)))


def test_dones_before_the_end_do_not_cut(tmp_path):
    path = made.robomimic(tmp_path / "set")
    with h5py.File(path, "r+") as file:
        file["data/demo_0/dones"][:] = 1
    assert read(path).terminals.tolist() == made.TERMINALS.tolist()


def test_dones_before_the_end_do_not_cut_lerobot(tmp_path):
    path = made.lerobot(tmp_path / "set")
    file = path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(3, "next.done", [[True, False, True, True, False]]), file)
    assert read(path).terminals.tolist() == made.TERMINALS.tolist()


def test_minari_says_where_it_comes_from(tmp_path):
    data = read(made.minari(tmp_path / "set"))
    assert data.attributes["env_id"] == "Toy-v0"
    assert (data.attributes["ref_min_score"], data.attributes["ref_max_score"]) == (2.0, 10.0)
    for place in ("set/data", "set/data/main_data.hdf5"):
        equal(read(tmp_path / place).observations, data.observations)
    assert read(tmp_path / "set", ReadOptions(("observation",))).observations.shape == (5, 2)


def test_parts_of_a_tuple_are_joined_by_number(tmp_path):
    path = made.minari(tmp_path / "set")
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        for episode in file.values():
            del episode["observations"]
            for part in range(11):
                rows = len(episode["actions"]) + 1
                episode[f"observations/_index_{part}"] = np.full((rows, 1), part, np.float32)
    equal(read(path).observations, np.tile(np.arange(11, dtype=np.float32), (5, 1)))


def test_images_stay_on_disk_and_fit_their_rows(tmp_path):
    rows = np.array([4, 0, 3, 0])
    data = read(made.robomimic(tmp_path / "robomimic"))
    assert data.images["agentview_image"].shape == (3, 8, 6)
    equal(data.images["agentview_image"].read(rows), made.IMAGES[rows].transpose(0, 3, 1, 2))
    data = read(made.lerobot(tmp_path / "lerobot", images="png", files=2))
    equal(data.images["observation.images.top"].read(rows), made.IMAGES[rows].transpose(0, 3, 1, 2))
    windows = ChunkDataset(data, horizon=1, history=2).images(torch.tensor([3, 4]))["observation.images.top"]
    equal(windows.numpy(), made.IMAGES[[[3, 3], [3, 4]]].transpose(0, 1, 4, 2, 3))
    data = read(made.minari(tmp_path / "minari", images=True))
    jpeg = data.images["camera"].read(np.array([3, 4]))
    assert np.abs(jpeg[0].astype(int) - made.IMAGES[3].transpose(2, 0, 1)).mean() < 60  # noise does not suit JPEG
    equal(jpeg[0], jpeg[1])
    assert data.observations.shape == (5, 3)


@pytest.mark.parametrize("video", [False, True])
def test_lerobot_writes_images(tmp_path, video):
    smooth = np.add.outer(np.arange(16), np.arange(12)).astype(np.uint8)

    class Camera:
        shape = (3, 16, 12)

        def read(self, rows):
            return np.stack([np.stack([smooth + 30 * row] * 3) for row in rows]).astype(np.uint8)

    data = dataclasses.replace(read(made.dsrl(tmp_path / "set")), images={"top": Camera()})
    data = dataclasses.replace(data, attributes={"fps": 10, "task": "push the block", "video": video})
    WRITERS["lerobot"](tmp_path / "new", data)
    rows = np.array([4, 1, 1, 3, 0, 2])
    found = read(tmp_path / "new").images["observation.images.top"].read(rows)
    assert np.abs(found.astype(int) - Camera().read(rows)).max() <= (6 if video else 0)
    assert bool(list((tmp_path / "new").rglob("*.mp4"))) == video
    statistics = json.loads((tmp_path / "new/meta/stats.json").read_text())
    assert np.shape(statistics["observation.images.top"]["mean"]) == (3, 1, 1)
    expected = Camera().read(np.arange(5)) / 255
    assert statistics["observation.images.top"]["mean"][0][0][0] == pytest.approx(expected.mean())
    assert statistics["observation.images.top"]["std"][1][0][0] == pytest.approx(expected.std())
    assert statistics["action"]["max"] == pytest.approx(made.ACTIONS.max(0).tolist())
    tasks = pq.read_table(tmp_path / "new/meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0], "task": ["push the block"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    steps = pq.read_table(tmp_path / "new/data/chunk-000/file-000.parquet")
    assert steps["timestamp"].to_pylist() == pytest.approx([0, 0.1, 0.2, 0, 0.1])
    assert steps["index"].to_pylist() == [0, 1, 2, 3, 4]


def test_names_of_cameras_lead_nowhere(tmp_path):
    data = read(made.robomimic(tmp_path / "set"))
    data = dataclasses.replace(
        data, images={"../../../../cam": data.images["agentview_image"]}, attributes={"video": True}
    )
    WRITERS["lerobot"](tmp_path / "deep" / "new", data)
    assert [path.name for path in tmp_path.rglob("file-000.mp4")] == ["file-000.mp4"]
    assert next(tmp_path.rglob("*.mp4")).is_relative_to(tmp_path / "deep" / "new" / "videos")
