import errno
import json
import os

import pytest
import torch

from diffpolicy_rl import load, train
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training import checkpoint
from diffpolicy_rl.training.checkpoint import Checkpoints, read_state, write_state, write_text
from tests.training.tiny_run import tiny

STATE = {
    "weights": {"a.b": torch.arange(6.0).view(2, 3).T, "empty": torch.zeros(0)},
    "rng": torch.Generator().manual_seed(3).get_state(),
    "flags": torch.tensor([True, False]),
    "counts": {"steps": 3, "rate": 0.1 + 0.2, "none": None, "names": ["x", "y"], "deep": {}},
}


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_state_comes_back_exactly(tmp_path):
    write_state(tmp_path / "1", STATE)
    found = read_state(tmp_path / "1")
    assert found["counts"] == STATE["counts"]
    for group in ("rng", "flags"):
        assert torch.equal(found[group], STATE[group])
        assert found[group].dtype == STATE[group].dtype
    assert torch.equal(found["weights"]["a.b"], STATE["weights"]["a.b"])
    assert found["weights"]["empty"].shape == (0,)
    assert files_in(tmp_path) == ["1", "state.json", "state.safetensors"]


def test_names_point_at_steps_and_the_rest_is_dropped(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, names in [(1, ["best"]), (2, []), (3, [])]:
        checkpoints.save(step, STATE | {"step": step}, *names)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["00000001", "00000003", "best", "last"]
    assert read_state(checkpoints.find("last"))["step"] == 3
    assert read_state(checkpoints.find("best"))["step"] == 1
    assert read_state(checkpoints.find("1"))["step"] == 1
    with pytest.raises(UserError, match=r"no checkpoint 'base'; it has: 00000001, 00000003, best, last"):
        checkpoints.find("base")


def test_a_step_saved_twice_keeps_both_states_apart(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, STATE | {"phase": "bc"}, "best")
    checkpoints.save(3, STATE | {"phase": "online"}, "base")
    assert [read_state(checkpoints.find(name))["phase"] for name in ("best", "base", "last", "3")] == [
        "bc",
        "online",
        "online",
        "online",
    ]


def test_what_a_kill_left_is_overwritten_and_cleaned_up(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE)
    left = tmp_path / f".00000002.{os.getpid()}.partial"
    left.mkdir()
    (left / "state.json").write_text("{")
    (tmp_path / ".last.1.partial").symlink_to("00000001")
    checkpoints.save(2, STATE | {"step": 2})
    assert read_state(checkpoints.find("last"))["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002", "last"]


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("broken", ["save_file", "_fsync"])
def test_no_space_keeps_the_earlier_checkpoint_and_leaves_nothing(tmp_path, monkeypatch, broken):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE)
    before = files_in(tmp_path)
    monkeypatch.setattr(checkpoint, broken, no_space)
    with pytest.raises(UserError, match="no space is left on the device; earlier checkpoints are intact"):
        checkpoints.save(2, STATE)
    monkeypatch.undo()
    assert files_in(tmp_path) == before
    assert read_state(checkpoints.find("last"))["counts"] == STATE["counts"]


def test_training_out_of_space_ends_in_one_sentence(tmp_path, monkeypatch):
    saves = []

    def full_after_two(*args):
        saves.append(args)
        return no_space() if len(saves) > 2 else real(*args)

    real = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", full_after_two)
    with pytest.raises(UserError, match="no space is left on the device"):
        train.train(tiny(tmp_path / "run"))
    assert load(tmp_path / "run").execute == 4


def test_unwritable_folder_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/run: Not a directory"):
        train.train(tiny(tmp_path / "file" / "run"))

    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", forbidden)
    with pytest.raises(UserError, match=r"cannot write .*elsewhere: Permission denied"):
        train.train(tiny(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("file", "size"), [("state.safetensors", 40), ("state.json", 20)])
def test_damaged_checkpoint_is_one_sentence(tmp_path, file, size):
    write_state(tmp_path / "1", STATE)
    path = tmp_path / "1" / file
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="is damaged and cannot be read"):
        read_state(tmp_path / "1")


def test_newer_format_and_missing_checkpoint_are_refused(tmp_path):
    write_state(tmp_path / "1", STATE)
    tree = json.loads((tmp_path / "1" / "state.json").read_text())
    (tmp_path / "1" / "state.json").write_text(json.dumps(tree | {"format_version": 2}))
    with pytest.raises(UserError, match="has format 2, this version reads 1"):
        read_state(tmp_path / "1")
    (tmp_path / "1" / "state.json").write_text("[]")
    with pytest.raises(UserError, match=r"state\.json holds no state"):
        read_state(tmp_path / "1")
    with pytest.raises(UserError, match="there is no run at"):
        load(tmp_path / "nowhere")


def test_text_is_replaced_or_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_text(path, "old")
    monkeypatch.setattr(checkpoint, "_fsync", no_space)
    with pytest.raises(UserError, match=r"cannot write .*summary.json: no space is left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["summary.json"]
