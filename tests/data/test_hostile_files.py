"""Damaged and hostile files: each is refused in one sentence that names the file, and nothing of it is ever run."""

import pickle
import re
import resource

import h5py
import made_files as made
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spoiled import (
    ACTIONS,
    DATA,
    EPISODES,
    MAIN,
    VIDEO,
    Evil,
    absurd,
    chunks,
    column,
    cut,
    feature,
    hdf5,
    huge_chunks,
    info,
    inside,
    link,
    pickled,
    put,
    ran,
    twice,
    value,
    virtual,
)

from diffpolicy_rl.data.formats import open_source, read
from diffpolicy_rl.data.survey import survey
from diffpolicy_rl.errors import UserError

CASES = {
    "d4rl truncated": (made.d4rl, cut(0.6), "not a readable hdf5 file"),
    "d4rl text": (made.d4rl, lambda path: path.write_text("observations"), "not a readable hdf5 file"),
    "d4rl missing key": (made.d4rl, hdf5(lambda file: file.move("actions", "action")), "no actions; did you mean"),
    "d4rl NaN": (
        made.d4rl,
        value("observations", (3, 1), np.nan),
        "observations holds NaN or infinity, first in row 3",
    ),
    "d4rl text dtype": (made.d4rl, put("rewards", data=[b"1"] * 5), "rewards is not a plain array"),
    "d4rl empty rows": (made.d4rl, put("actions", shape=(5, 0), dtype="f4"), "so that its rows are empty"),
    "d4rl object dtype": (
        made.d4rl,
        put("rewards", data=["1"] * 5, dtype=h5py.string_dtype()),
        "rewards is not a plain",
    ),
    "d4rl pickles": (made.d4rl, hdf5(pickled), "rewards is not a plain array"),
    "d4rl references": (made.d4rl, put("rewards", shape=(5,), dtype=h5py.ref_dtype), "rewards is not a plain array"),
    "d4rl soft link": (made.d4rl, link("rewards", h5py.SoftLink("/elsewhere")), "rewards is a link"),
    "d4rl external link": (made.d4rl, link("actions", h5py.ExternalLink("/etc/passwd", "/")), "actions is a link"),
    "d4rl external bytes": (
        made.d4rl,
        put("rewards", shape=(5,), dtype="f4", external=[("/etc/passwd", 0, 20)]),
        "rewards is not a plain array",
    ),
    "d4rl virtual": (made.d4rl, hdf5(virtual), "rewards is not a plain array"),
    "d4rl absurd size": (made.d4rl, hdf5(absurd), "observations claims .*, more than"),
    "d4rl size that was never written": (
        made.d4rl,
        put("observations", shape=(10**6, 3), dtype="f4", chunks=(1024, 3)),
        "observations claims .* none was ever written",
    ),
    "d4rl piece that unpacks to much": (made.d4rl, hdf5(huge_chunks), "stored in pieces"),
    "d4rl wrong length": (made.d4rl, put("terminals", data=np.zeros(4)), "terminals has 4 rows, but needs 5"),
    "d4rl wrong rank": (made.d4rl, put("actions", data=np.zeros((5, 2, 1))), "actions has shape .* needs 2 dim"),
    "d4rl flag": (made.d4rl, value("timeouts", 2, 0.5), r"timeouts must be 0 or 1, but row 2 is 0\.5"),
    "d4rl NaN flag": (made.d4rl, value("terminals", 4, np.nan), "terminals must be 0 or 1, but row 4 is nan"),
    "d4rl empty": (
        lambda path: made.d4rl(
            path,
            observations=np.zeros((0, 3)),
            actions=np.zeros((0, 2)),
            rewards=np.zeros(0),
            terminals=np.zeros(0),
            timeouts=None,
        ),
        lambda path: None,
        "holds no transitions",
    ),
    "d4rl nothing": (made.d4rl, hdf5(lambda file: file.clear()), "has no observations"),
    "d4rl chunk names": (
        made.d4rl,
        hdf5(lambda file: (file.clear(), file.create_group("virtual/../x"))),
        "virtual must hold groups 0, 1",
    ),
    "d4rl version": (made.d4rl, hdf5(lambda file: file.attrs.update(format_version=9)), "data format 9"),
    "d4rl unlike chunks": (made.d4rl, hdf5(chunks), "its parts have other arrays"),
    "dsrl successors": (made.dsrl, put("next_observations", data=np.zeros((5, 2))), "next_observations is"),
    "dsrl costs": (made.dsrl, value("costs", 1, np.inf), "costs holds NaN or infinity, first in row 1"),
    "minari not JSON": (made.minari, inside("data/metadata.json", cut(0.5)), "metadata.json is not JSON"),
    "minari JSON list": (
        made.minari,
        inside("data/metadata.json", lambda path: path.write_text("[" * 10**5)),
        "metadata.json is not JSON",
    ),
    "minari number": (made.minari, inside("data/metadata.json", lambda path: path.write_text("3")), "a JSON object"),
    "minari arrow": (
        made.minari,
        inside("data/metadata.json", lambda path: made.change_json(path, data_format="arrow")),
        "is stored as arrow",
    ),
    "minari totals": (
        made.minari,
        inside("data/metadata.json", lambda path: made.change_json(path, total_steps=10**12)),
        "says total_steps=1000000000000, but main_data.hdf5 has 5",
    ),
    "minari file missing": (made.minari, inside(MAIN, lambda path: path.unlink()), "there is no data file"),
    "minari truncated": (made.minari, inside(MAIN, cut(0.5)), "not a readable hdf5 file"),
    "minari no last observation": (
        made.minari,
        inside(MAIN, put("episode_1/observations/observation", data=np.zeros((2, 2)))),
        "episode_1/observations/observation has 2 rows, but needs 3",
    ),
    "minari link": (
        made.minari,
        inside(MAIN, link("episode_0/observations/observation", h5py.ExternalLink("x", "y"))),
        "episode_0/observations/observation is a link",
    ),
    "minari NaN": (
        made.minari,
        inside(MAIN, value("episode_1/actions", (1, 0), np.nan)),
        "episode_1/actions holds NaN or infinity, first in row 1",
    ),
    "minari discrete actions": (
        made.minari,
        inside(MAIN, put("episode_0/actions", data=np.arange(3))),
        "episode_0/actions has shape",
    ),
    "minari empty episode": (
        made.minari,
        inside(MAIN, put("episode_0/actions", data=np.zeros((0, 2)))),
        "episode_0 has no actions",
    ),
    "robomimic without obs": (
        made.robomimic,
        hdf5(lambda file: [file.pop(f"data/{name}/obs") for name in ("demo_0", "demo_10")]),
        "has states, but no observations .* dataset_states_to_obs",
    ),
    "robomimic key missing in one": (
        made.robomimic,
        hdf5(lambda file: file["data/demo_10/obs"].pop("object")),
        "has no data/demo_10/obs/object",
    ),
    "robomimic other width": (
        made.robomimic,
        put("data/demo_10/actions", data=np.zeros((2, 3))),
        "demonstrations have widths",
    ),
    "robomimic no demonstrations": (
        made.robomimic,
        hdf5(lambda file: [file.pop(f"data/{name}") for name in ("demo_0", "demo_10")]),
        "has no demonstrations",
    ),
    "robomimic done": (made.robomimic, value("data/demo_0/dones", 2, 7), "demo_0/dones must be 0 or 1, but row 2 is 7"),
    "robomimic other successors": (
        made.robomimic,
        put("data/demo_10/next_obs/object", data=np.zeros((2, 9))),
        "demo_10/next_obs has other widths than obs",
    ),
    "robomimic images": (
        made.robomimic,
        put("data/demo_10/obs/agentview_image", data=np.zeros((2, 8, 6, 3))),
        "agentview_image must hold images",
    ),
    "lerobot version": (
        made.lerobot,
        info(codebase_version="v2.1"),
        "codebase_version 'v2.1', this version reads v3.0",
    ),
    "lerobot newer": (made.lerobot, info(codebase_version=4), "codebase_version '4'"),
    "lerobot path traversal": (
        made.lerobot,
        info(data_path="../../{chunk_index}/{file_index}"),
        "leads out of the data set",
    ),
    "lerobot absolute path": (
        made.lerobot,
        info(data_path="/etc/{chunk_index}"),
        "leads out of the data set, to /etc/0",
    ),
    "lerobot format string": (
        made.lerobot,
        info(data_path="{chunk_index.__class__.__mro__}"),
        "must be a path with",
    ),
    "lerobot conversion": (made.lerobot, info(data_path="{chunk_index!z:03d}"), "must be a path with"),
    "lerobot numbered camera": (made.lerobot, info(data_path="{chunk_index}/{video_key:03d}"), "must be a path with"),
    "lerobot wide format": (made.lerobot, info(data_path="{chunk_index:0999999999d}"), "must be a path with"),
    "lerobot long path": (made.lerobot, info(data_path="x" * 10**6), "must be a path with"),
    "lerobot episode numbers": (
        made.lerobot,
        column(EPISODES, "data/chunk_index", pa.array([0.0, np.nan])),
        "data/chunk_index must hold whole numbers",
    ),
    "lerobot no path": (made.lerobot, info(data_path=None), "data_path is 'None', but must be a path"),
    "lerobot absurd shape": (made.lerobot, feature("action", shape=[10**15]), "action has shape"),
    "lerobot shape of text": (made.lerobot, feature("action", shape="2"), "action has shape 2"),
    "lerobot features": (made.lerobot, info(features=[1]), "features must be an object"),
    "lerobot no action": (made.lerobot, info(features={"observation.state": {"shape": [3]}}), "has no feature action"),
    "lerobot fps": (made.lerobot, info(fps=0), "fps is 0, but must be"),
    "lerobot huge fps": (made.lerobot, info(fps=10**400), "fps is .*, but must be"),
    "lerobot total": (made.lerobot, info(total_frames=10**15), "total_frames=1000000000000000, episodes have 5"),
    "lerobot data missing": (
        made.lerobot,
        lambda path: next(path.glob(DATA)).unlink(),
        r"has no data/chunk-000/file-000.parquet",
    ),
    "lerobot data truncated": (
        made.lerobot,
        lambda path: cut(0.5)(next(path.glob(DATA))),
        "not a readable parquet file",
    ),
    "lerobot pickles": (
        made.lerobot,
        column(DATA, "action", pa.array([pickle.dumps(Evil())] * 5, pa.binary())),
        "action is of type binary, not of numbers",
    ),
    "lerobot empty place": (
        made.lerobot,
        column(DATA, "action", pa.array([*ACTIONS[:3], [None, 0.0], [0.0, 0.0]])),
        "action is empty in row 3",
    ),
    "lerobot empty row": (
        made.lerobot,
        column(DATA, "action", pa.array([*ACTIONS[:4], None])),
        "action is empty in row 4",
    ),
    "lerobot column twice": (made.lerobot, twice(DATA, "action"), "has 2 columns action"),
    "lerobot ragged": (
        made.lerobot,
        column(DATA, "action", pa.array([*ACTIONS[:4], [0.0]])),
        "action has 1 numbers in row 4, but needs 2",
    ),
    "lerobot NaN": (
        made.lerobot,
        column(DATA, "next.reward", pa.array([0.0, 0.0, np.nan, 0.0, 0.0])),
        "next.reward holds NaN or infinity, first in row 2",
    ),
    "lerobot column missing": (made.lerobot, column(DATA, "next.done", None), "has no column next.done"),
    "lerobot rows missing": (
        made.lerobot,
        lambda path: pq.write_table(pq.read_table(next(path.glob(DATA)))[:4], next(path.glob(DATA))),
        "has 4 rows of data, episodes have 5",
    ),
    "lerobot other episode": (
        made.lerobot,
        column(DATA, "episode_index", pa.array([0, 0, 1, 1, 1])),
        "row 2 is not of episode 0",
    ),
    "lerobot overlapping episodes": (
        made.lerobot,
        column(EPISODES, "dataset_from_index", pa.array([0, 2])),
        "episode 1 claims rows 2 to 5, but must begin at row 3",
    ),
    "lerobot no episodes": (made.lerobot, lambda path: next(path.glob(EPISODES)).unlink(), "has no meta/episodes"),
    "lerobot mp4 missing": (
        made.lerobot,
        lambda path: (
            feature("cam", **VIDEO)(path),
            *(
                column(EPISODES, f"videos/cam/{name}", pa.array([0, 0]))(path)
                for name in ("chunk_index", "file_index", "from_timestamp")
            ),
        ),
        "has no videos/cam/chunk-000/file-000.mp4",
    ),
    "lerobot camera named to lead out": (
        made.lerobot,
        lambda path: (
            feature("../../cam", **VIDEO)(path),
            *(
                column(EPISODES, f"videos/../../cam/{name}", pa.array([0, 0]))(path)
                for name in ("chunk_index", "file_index", "from_timestamp")
            ),
        ),
        "leads out of the data set",
    ),
    "folder": (lambda path: path.mkdir() or path, lambda path: None, "is a folder without"),
    "nothing there": (made.d4rl, lambda path: path.unlink(), "there is no data file"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(tmp_path, case):
    make, spoil, message = CASES[case]
    path = make(tmp_path / "the_set")
    spoil(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        read(path)
    said = str(caught.value)
    assert re.search(message, said), said
    assert "the_set" in said
    assert "\n" not in said
    assert len(said) < 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 * 1024  # KiB
    assert not ran


def test_there_are_enough_cases():
    assert len(CASES) >= 25


@pytest.mark.parametrize("case", ["d4rl NaN", "minari NaN", "robomimic done", "lerobot NaN"])
def test_looking_through_finds_the_same(tmp_path, case):
    make, spoil, message = CASES[case]
    path = make(tmp_path / "the_set")
    spoil(path)
    with pytest.raises(UserError, match=message):
        survey(open_source(path))
