import h5py
import numpy as np
import pytest
import torch

from diffpolicy_rl.data.catalog import resolve
from diffpolicy_rl.data.formats import WRITERS, read
from diffpolicy_rl.training.build import build_dataset, build_policy, read_data
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.config import DataConfig
from diffpolicy_rl.types import Spec


@pytest.mark.parametrize("form", WRITERS)
def test_training_takes_any_format_by_its_path(tmp_path, form):
    expected = read(resolve("peg_insertion"))
    WRITERS[form](tmp_path / "set", expected)
    key = "observation.state" if form == "lerobot" else "observation"
    keys = f"data.keys=[{key}]" if form in ("robomimic", "lerobot") else "data.episodes=100"
    (run,) = compose(["agent=bc", "env=peg_insertion", f"data={tmp_path / 'set'}", keys], sweep=False)
    spec = Spec("PegInsertion-v0", (11,), 4)
    policy = build_policy(run.policy, spec, seed=0)
    dataset = build_dataset(run, spec, policy)
    assert torch.equal(dataset.obs, torch.from_numpy(expected.observations))
    torch.testing.assert_close(dataset.actions, policy.action_normalizer(torch.from_numpy(expected.actions)))


def test_training_tells_what_a_file_left_open(tmp_path, capsys):
    path = tmp_path / "old.hdf5"
    with h5py.File(path, "w") as file:
        for name, shape in (("observations", (6, 3)), ("actions", (6, 2)), ("rewards", (6,)), ("terminals", (6,))):
            file[name] = np.zeros(shape, np.float32)
    data = read_data(DataConfig(path=str(path), max_episode_steps=4))
    assert data.episode_ends().tolist() == [4, 6]
    assert capsys.readouterr().out == "old.hdf5: no timeouts: episodes are cut after 4 steps\n"
