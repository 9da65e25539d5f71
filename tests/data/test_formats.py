import dataclasses
import json
import subprocess
import sys

import h5py
import made_files as made
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from diffpolicy_rl.data import d4rl, transitions
from diffpolicy_rl.data.dataset import ChunkDataset
from diffpolicy_rl.data.formats import WRITERS, open_source, read
from diffpolicy_rl.data.survey import survey
from diffpolicy_rl.data.transitions import ReadOptions
from diffpolicy_rl.errors import UserError

MAKERS = {
    "d4rl": made.d4rl,
    "dsrl": made.dsrl,
    "minari": made.minari,
    "robomimic": made.robomimic,
    "lerobot": made.lerobot,
}
KEEPS_FINALS = ("dsrl", "minari", "robomimic")


@pytest.fixture(params=MAKERS)
def form(request):
    return request.param


@pytest.fixture
def path(form, tmp_path):
    return MAKERS[form](tmp_path / "set")


def equal(found, expected):
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.asarray(expected).dtype


def test_every_format_ends_in_the_same_transitions(form, path, tmp_path):
    data = read(path, ReadOptions(("robot0_eef_pos", "object") if form == "robomimic" else ()))
    equal(data.observations, made.OBSERVATIONS)
    equal(data.actions, made.ACTIONS)
    equal(data.rewards, made.REWARDS)
    equal(data.terminals, made.TERMINALS)
    equal(data.timeouts, made.TIMEOUTS)
    assert data.returns().tolist() == [4.5, 8.0]
    if form in KEEPS_FINALS:
        equal(data.finals, made.FINALS)
    else:
        assert data.finals is None
    assert open_source(path).format == form
    assert data.source == "set"


def test_blocks_of_any_size_are_the_same_data(form, path, monkeypatch):
    whole, figures = read(path), survey(open_source(path))
    monkeypatch.setattr(transitions, "BLOCK_BYTES", 1)
    source = open_source(path)
    assert [len(block.rewards) for block in source.blocks()] == [1] * 5
    pieces = read(path)
    for field in dataclasses.fields(whole):
        if field.name not in ("images", "attributes"):
            np.testing.assert_array_equal(getattr(pieces, field.name), getattr(whole, field.name))
    again = survey(source)
    assert (again.lengths, again.terminated, again.unmarked) == (figures.lengths, 1, False) == ([3, 2], 1, False)
    assert again.returns == figures.returns == [4.5, 8.0]
    assert (again.low.tolist(), again.high.tolist()) == (whole.actions.min(0).tolist(), whole.actions.max(0).tolist())
    assert again.costs == ([1.0, 1.0] if source.format == "dsrl" else [])


@pytest.mark.parametrize("target", WRITERS)
@pytest.mark.parametrize("costs", [False, True])
def test_round_trip(tmp_path, target, costs):
    data = read(made.dsrl(tmp_path / "set.hdf5"))
    data = dataclasses.replace(data, costs=data.costs if costs else None, attributes={"env_id": "Hopper-v5"})
    WRITERS[target](tmp_path / "new" / "a.hdf5", data)
    back = read(tmp_path / "new" / "a.hdf5")
    for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
        equal(getattr(back, name), getattr(data, name))
    if target == "lerobot":
        assert back.finals is None
    else:
        equal(back.finals, data.finals)
    if target in ("d4rl", "lerobot") and costs:
        equal(back.costs, data.costs)
    assert back.attributes["env_id"] == "Hopper-v5"
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["a.hdf5"]
    with pytest.raises(UserError, match=r"a\.hdf5 exists already"):
        WRITERS[target](tmp_path / "new" / "a.hdf5", data)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    data = read(made.robomimic(tmp_path / "set"))

    class Broken:
        shape = (3, 8, 6)

        def read(self, rows):
            raise OSError(5, "the camera's file is gone")

    data = dataclasses.replace(data, images={"camera": Broken()})
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match=r"^cannot write .*a: the camera's file is gone$"):
        WRITERS["lerobot"](tmp_path / "new" / "a", data)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("target", WRITERS)
def test_rewards_that_nobody_recorded_are_not_made_up(tmp_path, target):
    data = dataclasses.replace(read(made.d4rl(tmp_path / "set")), rewarded=False)
    if target in ("d4rl", "minari"):
        with pytest.raises(UserError, match=f"has no rewards, which {target} demands; convert it to robomimic"):
            WRITERS[target](tmp_path / "new", data)
        assert not (tmp_path / "new").exists()
    else:
        WRITERS[target](tmp_path / "new", data)
        assert not read(tmp_path / "new").rewarded


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


@pytest.mark.parametrize(
    ("form", "option"),
    [
        (made.d4rl, {"mask": "train"}),
        (made.d4rl, {"keys": ("nothing",)}),
        (made.d4rl, {"max_episode_steps": 1}),
        (made.minari, {"mask": "train"}),
        (made.lerobot, {"max_episode_steps": 1}),
        (made.robomimic, {"max_episode_steps": 1}),
    ],
)
def test_options_without_effect_are_refused(tmp_path, form, option):
    arrays = {"timeouts": np.array([0, 0, 1, 0, 1], bool)} if form is made.d4rl else {}
    with pytest.raises(UserError, match=f"{next(iter(option))} has no effect on .*; leave it out"):
        open_source(form(tmp_path / "set", **arrays), ReadOptions(**option))


def test_minari_leaves_out_what_nobody_knows_the_end_of(tmp_path):
    data = read(made.d4rl(tmp_path / "set"))
    WRITERS["minari"](tmp_path / "new", data)
    back = read(tmp_path / "new")
    equal(back.observations, made.OBSERVATIONS[:4])
    equal(back.finals[1], made.OBSERVATIONS[4])
    assert back.timeouts.tolist() == [False, False, False, True]


def test_flags_and_rewards_may_be_columns(tmp_path):
    columns = {name: getattr(made, name.upper())[:, None] for name in ("rewards", "terminals", "timeouts")}
    data = read(made.d4rl(tmp_path / "set", **columns))
    equal(data.rewards, made.REWARDS)
    equal(data.terminals, made.TERMINALS)


def test_what_else_a_file_of_d4rl_holds_is_not_looked_at(tmp_path):
    path = made.d4rl(tmp_path / "set", next_observations=np.full((5, 3), np.nan))
    with h5py.File(path, "r+") as file:
        file["infos/qpos"] = np.full((5, 4), np.nan)
        file["metadata/algorithm"] = "SAC"
        file["metadata/policy/fc0/weight"] = h5py.SoftLink("/nowhere")
    assert read(path).finals is None


@pytest.mark.parametrize(
    ("name", "attributes", "given", "limit"),
    [
        ("hopper-medium-v0", {}, 3, 3),
        ("mine", {}, 2, 2),
        ("mine", {"max_episode_steps": 4}, None, 4),
        ("mine", {}, None, None),
        ("pen-human-v0", {}, None, 100),
        ("relocate-human-v0", {}, None, 200),
        ("walker_mixed", {}, None, 1000),
    ],
)
@pytest.mark.parametrize("block_bytes", [60, 2**20])
def test_unmarked_episodes_are_cut_where_the_task_cuts_them(
    tmp_path, monkeypatch, name, attributes, given, limit, block_bytes
):
    monkeypatch.setattr(transitions, "BLOCK_BYTES", block_bytes)
    rows, terminals = 412, np.zeros(412)
    terminals[[3, 7, 11, 30, 31]] = 1
    arrays = {"observations": np.zeros((rows, 3)), "actions": np.zeros((rows, 2)), "rewards": np.zeros(rows)}
    path = made.d4rl(tmp_path / f"{name}.hdf5", **arrays, terminals=terminals, timeouts=None)
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)
    expected, steps = np.zeros(rows, bool), 0
    for row in range(rows):  # as D4RL counts
        steps += 1
        expected[row] = limit is not None and steps == limit and not terminals[row]
        steps = 0 if terminals[row] or expected[row] else steps
    source = open_source(path, ReadOptions(max_episode_steps=given))
    np.testing.assert_array_equal(transitions.load(source).timeouts, expected)
    assert (f"cut after {limit} steps" if limit else "episodes end at terminals alone") in source.notes[0]


def test_chunked_file(tmp_path):
    with h5py.File(tmp_path / "set", "w") as file:
        for part, rows in ((10, slice(3, 5)), (9, slice(0, 3))):
            for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
                file[f"virtual/{part}/{name}"] = getattr(made, name.upper())[rows]
    data = read(tmp_path / "set")
    equal(data.observations, made.OBSERVATIONS)
    equal(data.timeouts, made.TIMEOUTS)


def test_episodes_go_on_in_the_next_part(tmp_path):
    with h5py.File(tmp_path / "set", "w") as file:
        for part, rows in enumerate((slice(0, 2), slice(2, 5))):
            for name in ("observations", "actions", "rewards"):
                file[f"virtual/{part}/{name}"] = getattr(made, name.upper())[rows]
            file[f"virtual/{part}/terminals"] = np.zeros(len(made.REWARDS[rows]))
    data = read(tmp_path / "set", ReadOptions(max_episode_steps=3))
    assert data.timeouts.tolist() == [False, False, True, False, False]


def test_rows_of_dsrl_that_do_not_follow_each_other_are_cut(tmp_path):
    following = np.roll(made.OBSERVATIONS, -1, axis=0)
    following[[2, 3, 4]] = [[7, 7, 7], [8, 8, 8], [9, 9, 9]]
    data = read(made.dsrl(tmp_path / "set", next_observations=following, timeouts=np.zeros(5)))
    assert data.timeouts.tolist() == [False, False, False, True, True]
    assert data.finals[:, 0].tolist() == [7, 8, 9]


def test_q_learning_view_of_three_episodes(tmp_path):
    """D4RL's own loop over a file whose episodes end by a terminal, a timeout and the end of the file."""
    ends = {"terminals": [0, 0, 1, 0, 0, 0, 0, 0], "timeouts": [0, 0, 0, 0, 0, 1, 0, 0]}
    obs, index = np.arange(16.0).reshape(8, 2), np.arange(8.0)
    arrays = {"observations": obs, "actions": np.stack([index, -index], 1), "rewards": 10 + index}
    data = read(made.d4rl(tmp_path / "set", **arrays, **{name: np.array(flags) for name, flags in ends.items()}))
    expected = [
        (obs[row], [[row, -row]], 10 + row, obs[row + 1], ends["terminals"][row])
        for row in range(7)
        if not ends["timeouts"][row]
    ]
    view = ChunkDataset(data, horizon=1).decisions(1)
    assert len(view) == len(expected) == 6
    drawn = view.decisions(torch.arange(6), gamma=0.9)
    for row, (seen, action, reward, following, terminal) in enumerate(expected):
        assert drawn.obs[row].tolist() == seen.tolist()
        assert drawn.action[row].tolist() == action
        assert drawn.reward[row] == reward
        assert drawn.discount[row] == pytest.approx(0 if terminal else 0.9)
        if not terminal:  # D4RL has the next episode's first observation there, which nothing uses
            assert drawn.next_obs[row].tolist() == following.tolist()


@pytest.mark.parametrize("history", [1, 2])
def test_known_ends_are_bootstrapped_from(tmp_path, history):
    """By hand: chunks of 2 in episodes of 3 (terminated) and 2 (cut off)."""
    data = read(made.dsrl(tmp_path / "set"))
    buffer = ChunkDataset(data, horizon=2, history=history).decisions(2)
    drawn = buffer.decisions(torch.arange(len(buffer)), gamma=0.5)
    assert len(buffer) == 5  # no action is left out
    assert drawn.reward.tolist() == [0.5 + 0.75, 1.5 + 1.25, 2.5, 3.5 + 2.25, 4.5]
    assert drawn.discount.tolist() == [0.25, 0, 0, 0.25, 0.5]
    newest = drawn.next_obs.view(5, history, 3)[:, -1, 0]
    assert newest.tolist() == [20, 1000, 1000, 2000, 2000]
    if history == 2:
        assert drawn.next_obs[:, 0, 0].tolist() == [10, 20, 20, 40, 40]


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


def test_without_rewards_there_is_nothing_to_learn_values_from(tmp_path):
    path = made.robomimic(tmp_path / "set")
    with h5py.File(path, "r+") as file:
        for demo in ("demo_0", "demo_10"):
            del file[f"data/{demo}/rewards"]
    dataset = ChunkDataset(read(path), horizon=2)
    assert len(dataset.sample(4).obs) == 4
    with pytest.raises(UserError, match="set has no rewards to learn values from; clone it"):
        dataset.decisions(1)


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


@pytest.mark.parametrize("place", [("observations", 4), ("actions", 3), ("rewards", 4)])
def test_rows_are_counted_from_the_file_s_start(tmp_path, monkeypatch, place):
    name, row = place
    values = getattr(made, name.upper()).copy()
    values[row] = np.nan
    path = made.d4rl(tmp_path / "set", **{name: values})
    monkeypatch.setattr(transitions, "BLOCK_BYTES", 1)
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity, first in row {row}"):
        read(path)


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


def test_reading_hdf5_needs_no_extra(tmp_path):
    made.d4rl(tmp_path / "set.hdf5")
    made.lerobot(tmp_path / "lerobot")
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["pyarrow", "pyarrow.parquet", "av"]))
from pathlib import Path
from diffpolicy_rl.data.formats import read
from diffpolicy_rl.errors import UserError
read(Path({str(tmp_path / "set.hdf5")!r}))
try:
    read(Path({str(tmp_path / "lerobot")!r}))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "LeRobot's files need an extra package: pip install 'diffpolicy_rl[lerobot]'\n"


def test_sets_end_to_end(tmp_path):
    costly = read(made.dsrl(tmp_path / "a"))
    open_ended = read(made.d4rl(tmp_path / "b", timeouts=np.zeros(5)))
    assert costly.episode_costs().tolist() == [1, 1]
    both = transitions.concatenate([open_ended, costly])
    assert both.episode_ends().tolist() == [3, 5, 8, 10]
    assert both.terminals.tolist() == [*made.TERMINALS, *made.TERMINALS]
    assert both.costs is None
    assert both.finals is None
    twice = transitions.concatenate([costly, costly])
    assert twice.episode_costs().tolist() == [1, 1, 1, 1]
    equal(twice.finals, np.concatenate([made.FINALS, made.FINALS]))


def test_d4rl_reads_what_it_wrote(tmp_path):
    data = read(made.dsrl(tmp_path / "set"))
    d4rl.write(tmp_path / "new.hdf5", dataclasses.replace(data, costs=None))
    assert open_source(tmp_path / "new.hdf5").format == "d4rl"
    equal(read(tmp_path / "new.hdf5").finals, made.FINALS)
