import contextlib
import subprocess
import sys

import h5py
import made_files as made
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from diffpolicy_rl.data import __main__ as command
from diffpolicy_rl.data.catalog import resolve
from diffpolicy_rl.data.formats import read
from diffpolicy_rl.envs.make import make_env
from diffpolicy_rl.errors import UserError


@pytest.fixture
def run(capsys):
    def run(*argv):
        command.main([str(word) for word in argv])
        return capsys.readouterr().out

    return run


def test_info(run):
    printed = run("info", "hopper")
    assert "hopper.hdf5: d4rl, 40 episodes, 15,445 transitions" in printed
    assert "observations (15445, 11), actions (15445, 3)" in printed
    assert "episodes of 284 to 1000 steps, 38 terminated" in printed
    assert "return 1418.2 ± 565.0, 1026.3 to 3697.4" in printed
    assert "env_id: Hopper-v5" in printed


def test_info_on_each_format(run, tmp_path):
    assert "cost 1.0 ± 0.0, 1.0 to 1.0, 10/25/50/75/90 %" in run("info", made.dsrl(tmp_path / "dsrl"))
    # returns of 4.5 and 8, where 2 is 0 and 10 is 100
    said = run("info", made.minari(tmp_path / "minari"))
    assert "return 6.2 ± 1.8, 4.5 to 8.0," in said
    assert "normalised score of the mean 53.1, where 2.0 is 0" in said
    assert "images agentview_image: 5 of (3, 8, 6)" in run("info", made.robomimic(tmp_path / "robomimic"))
    assert "1 episodes, 2 transitions" in run("info", tmp_path / "robomimic", "mask=train")
    path = made.d4rl(tmp_path / "old", timeouts=None)
    assert "the last one is not marked as ended" in run("info", path)
    note = "note: no timeouts: episodes are cut after 2 steps"
    assert note in run("info", path, "max_episode_steps=2")
    assert note in run("convert", path, tmp_path / "new.hdf5", "format=d4rl", "max_episode_steps=2")


def test_check_replays_what_is_packaged(run):
    printed = run("check", "hopper")
    assert "checked: all 15,445 rows are finite" in printed
    assert "checked: actions are -1 to 1" in printed
    assert "checked: shapes and bounds of actions are those of Hopper-v5" in printed
    differences = [float(word) for word in printed.partition("replayed: ")[2].split() if "e-" in word]
    assert max(differences) < 1e-5
    assert "not replayed: observations of PegInsertion-v0 do not tell its state" in run("check", "peg_insertion")


@pytest.fixture
def pushed(tmp_path):
    """One episode of HalfCheetah in D4RL's layout with states, and observations that do not tell them."""
    env = make_env("HalfCheetah-v5", seed=3)
    obs, _ = env.reset(seed=3)
    columns = {name: [] for name in ("observations", "actions", "rewards", "infos/qpos", "infos/qvel")}
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        action = torch.rand((1, 1, 6), generator=generator) * 2 - 1
        state = env.state()
        after, reward, *_ = env.step(action)
        values = (obs[0], action[0, 0], reward[0], state["qpos"][0], state["qvel"][0])
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value.numpy().copy())
        obs = after.clone()
    flags = {"terminals": np.zeros(6), "timeouts": np.arange(6) == 5}
    path = made.d4rl(tmp_path / "cheetah.hdf5", **{name: np.stack(values) for name, values in columns.items()}, **flags)
    return path


def test_check_replays_stored_states(run, pushed):
    assert "not checked: bounds and replay, because the file does not say its env" in run("check", pushed)
    printed = run("check", pushed, "env=HalfCheetah-v5")
    assert "5 steps of the first episode" in printed
    assert max(float(word) for word in printed.partition("replayed: ")[2].split() if "e-" in word) < 1e-4
    with h5py.File(pushed, "r+") as file:
        file["infos/qvel"][2] += 1.0
    printed = run("check", pushed, "env=HalfCheetah-v5")
    assert float(printed.partition("(median), ")[2].split()[0]) > 1e-2  # the largest says so


def test_check_holds_against_the_env(run, pushed):
    with h5py.File(pushed, "r+") as file:
        file["actions"][1, 4] = 1.5
        file.attrs["env_id"] = "HalfCheetah-v5"
    assert "warning: actions [4] leave the bounds of HalfCheetah-v5" in run("check", pushed)
    with pytest.raises(UserError, match=r"width \(17, 6\), Hopper-v5 needs \(11, 3\)"):
        run("check", pushed, "env=Hopper-v5")


def test_a_file_does_not_choose_what_is_imported(run, pushed, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with h5py.File(pushed, "r+") as file:
        file.attrs["env_id"] = "evil:Env-v0"
    assert "not checked: bounds and replay, because evil:Env-v0 names code of your own" in run("check", pushed)


def test_check_looks_at_images(run, tmp_path):
    assert "image of agentview_image can be decoded" in run("check", made.robomimic(tmp_path / "set"))


@pytest.mark.parametrize("form", ["d4rl", "minari", "robomimic", "lerobot"])
def test_convert(run, tmp_path, form):
    printed = run("convert", "hopper", tmp_path / "new", f"format={form}", *["fps=12.5"][: form == "lerobot"])
    count = "15,443 of 15,445" if form == "minari" else "15,445"
    assert printed.startswith(f"wrote {tmp_path / 'new'}: {count} transitions of hopper.hdf5 as {form}\n")
    assert ("note: not in the new file: " in printed) == ("gymnasium, mujoco, " in printed) == (form != "d4rl")
    found, expected = read(tmp_path / "new"), read(resolve("hopper"))
    rows = len(found.rewards)
    assert rows == (15443 if form == "minari" else 15445)  # two episodes were cut off
    assert found.attributes["env_id"] == "Hopper-v5"
    if rows == 15445:
        np.testing.assert_array_equal(found.actions, expected.actions)
        np.testing.assert_array_equal(found.episode_ends(), expected.episode_ends())


def test_convert_says_what_is_left_behind(run, tmp_path):
    path = made.robomimic(tmp_path / "set")
    assert "as minari, without its images\n" in run("convert", path, tmp_path / "new", "format=minari")
    printed = run("convert", path, tmp_path / "newer", "format=lerobot")
    assert "as lerobot, without its last observations\n" in printed
    costly = made.dsrl(tmp_path / "costly")
    assert "as robomimic, without its costs\n" in run("convert", costly, tmp_path / "newest", "format=robomimic")
    assert read(tmp_path / "newer").images["observation.images.agentview_image"].shape == (3, 8, 6)


def test_tasks_and_scores_are_kept(run, tmp_path):
    path = made.lerobot(tmp_path / "one")
    run("convert", path, tmp_path / "again", "format=lerobot")
    assert read(tmp_path / "again").attributes["task"] == "push"
    run("convert", path, tmp_path / "named", "format=lerobot", "task=pull", "fps=12.5")
    named = read(tmp_path / "named").attributes
    assert (named["task"], named["fps"]) == ("pull", 12.5)
    episodes = path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(episodes)
    pq.write_table(table.set_column(table.schema.get_field_index("tasks"), "tasks", [[["push"], ["pull"]]]), episodes)
    with pytest.raises(UserError, match="one has 2 tasks, and only one can be written; name it with task="):
        run("convert", path, tmp_path / "two", "format=lerobot")
    said = run("convert", path, tmp_path / "minari", "format=minari")
    assert "not in the new file: codebase_version, fps, total_tasks\n" in said
    libero = made.robomimic(tmp_path / "libero")
    with h5py.File(libero, "r+") as file:
        file["data"].attrs["problem_info"] = '{"language_instruction": "open the drawer"}'
    assert "task: open the drawer" in run("info", libero)
    run("convert", made.minari(tmp_path / "scored"), tmp_path / "same", "format=minari")
    assert "normalised score of the mean 53.1" in run("info", tmp_path / "same")


def test_what_a_file_says_cannot_pass_for_what_was_found(run, pushed):
    with h5py.File(pushed, "r+") as file:
        file.attrs["source"] = "me\nchecked: everything"
    assert "source: me\\nchecked: everything\n" in run("info", pushed)


def test_no_env_is_not_an_env_without_a_name(run, tmp_path):
    run("convert", made.d4rl(tmp_path / "set"), tmp_path / "new", "format=robomimic")
    assert "because the file does not say its environment; env=<id> does" in run("check", tmp_path / "new")


def test_a_reader_that_stops_is_no_error(tmp_path):
    command = f"set -o pipefail; {sys.executable} -m diffpolicy_rl.data info hopper | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"h", b"")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["inform", "hopper"], "there is no command 'inform'; did you mean 'info'?"),
        (["info"], "file must be given"),
        (["info", "hopper", "more"], "'more' is one word too many; usage: python -m diffpolicy_rl.data info FILE"),
        (["convert", "hopper", "new", "lerobot"], "'lerobot' is one word too many"),
        (["info", "a/b=c.hdf5"], "a/b=c.hdf5"),
        (["check", "hopper", "env=Hoper-v5"], "did you mean 'Hopper-v5'"),
        (["convert", "hopper", "new", "format=d4rl", "fps=3", "task=x"], "fps, task has no effect on format=d4rl"),
        (["convert", "hopper", "new", "format=lerobot", "video=true"], "hopper.hdf5 has no images to make a video of"),
        (["info", "hopper", "kesy=a"], "there is no setting kesy; did you mean 'keys'?"),
        (["convert", "hopper", "new"], "format must be given"),
        (["convert", "hopper", "new", "format=hdf5"], "format=hdf5 cannot be written; known: d4rl"),
        (["convert", "hopper", "new", "format=lerobot", "fps=0"], "fps=0.0 must be a number above 0"),
        (["download", "hopper-v2"], "nobody is known to publish 'hopper-v2'"),
    ],
)
def test_mistakes(run, argv, message):
    with pytest.raises(UserError) as caught:
        run(*argv)
    assert message in str(caught.value)


@pytest.mark.parametrize("words", [[], ["--help"], ["info", "--help"], ["check", "-h"], ["convert", "-h"]])
def test_help(words, capsys):
    with contextlib.nullcontext() if len(words) < 2 else pytest.raises(SystemExit, match="0"):
        command.main(words)
    printed = capsys.readouterr().out
    assert "python -m diffpolicy_rl.data" in printed
    for setting in ("file", "keys", "mask", "max_episode_steps") if len(words) > 1 else ():
        assert f"\n  {setting}" in printed
