import dataclasses
import subprocess
import sys

import h5py
import made_files as made
import numpy as np
import pytest
from made_files import equal

from diffpolicy_rl.data import transitions
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


def test_without_rewards_there_is_nothing_to_learn_values_from(tmp_path):
    path = made.robomimic(tmp_path / "set")
    with h5py.File(path, "r+") as file:
        for demo in ("demo_0", "demo_10"):
            del file[f"data/{demo}/rewards"]
    dataset = ChunkDataset(read(path), horizon=2)
    assert len(dataset.sample(4).obs) == 4
    with pytest.raises(UserError, match="set has no rewards to learn values from; clone it"):
        dataset.decisions(1)


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
