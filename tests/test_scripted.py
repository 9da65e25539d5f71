import pytest
import torch

from diffpolicy_rl import collect, make_env
from diffpolicy_rl.data.d4rl import read
from diffpolicy_rl.envs.tasks import TASKS
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.scripted import SCRIPTED, PegInsertionExpert
from diffpolicy_rl.training.evaluation import evaluate_policy

PEG = "PegInsertion-v0"


@pytest.fixture
def expert():
    return PegInsertionExpert(PEG, stochastic=True)


def seen(pose, speed=(0.1, 0.0, 0.0, 0.0), hole=(0.0, 0.0, 0.0)):
    to_hole = (hole[0] - pose[0], hole[1] - pose[1], hole[2] - pose[3])
    return torch.tensor([[*pose, *speed, *to_hole]])


def calm(obs):
    return PegInsertionExpert(PEG, stochastic=False)(obs, None)[0, 0] - obs[0, :4]


def test_it_inserts_the_peg(expert):
    result = evaluate_policy(expert, make_env(PEG, num_envs=40), 40, seed=0)
    assert result["success"] >= 0.95
    assert min(result["lengths"]) > 20
    assert max(result["lengths"]) > 1.5 * min(result["lengths"])


def test_what_it_does_where():
    away = calm(seen((0.05, 0.0, 0.1, 0.3)))
    assert away[0] < 0
    assert away[1] == 0
    assert away[3] < 0
    assert calm(seen((0.0, 0.0, 0.052, 0.0)))[2] < 0  # aligned: down
    assert calm(seen((0.003, 0.0, 0.052, 0.0)))[2] >= 0  # not yet
    assert calm(seen((0.0, 0.0, 0.052, 0.1)))[2] >= 0
    assert calm(seen((0.002, 0.0, 0.04, 0.0), speed=(0.0,) * 4))[2] > 0  # jammed: up
    assert calm(seen((0.0, 0.0, 0.03, 0.0), speed=(0.0,) * 4))[2] < 0  # inside: on


def test_it_hesitates_longer_at_rest(expert):
    generator = torch.Generator().manual_seed(0)
    share = []
    for speed in (0.0, 0.1):
        obs = seen((0.05, 0.0, 0.1, 0.3), speed=(speed, 0.0, 0.0, 0.0)).expand(2000, 11)
        action = expert(obs, expert.sample_noise(2000, generator))[:, 0]
        share.append((action == obs[:, :4]).all(dim=1).float().mean().item())
    assert share[0] == pytest.approx(0.242, abs=0.04)  # normal tail beyond 0.7 ...
    assert share[1] == pytest.approx(0.023, abs=0.015)  # ... and beyond 2


def test_names():
    for name, expert in SCRIPTED.items():
        assert name.startswith("scripted-")
        assert expert.env_id in TASKS


def test_collect(tmp_path):
    out = tmp_path / "peg.hdf5"
    collect.main(["expert=scripted-peg_insertion", "episodes=6", "num_envs=3", f"out={out}"])
    data = read(out)
    assert (data.observations.shape[1], data.actions.shape[1]) == (11, 4)
    assert data.returns().tolist() == [1.0] * 6
    assert data.terminals.sum() == 6
    assert (data.attributes["env_id"], data.attributes["source"]) == (PEG, "scripted-peg_insertion")
    assert abs(data.actions[:, :2]).max() <= 0.18


def test_refusals(tmp_path):
    out = f"out={tmp_path / 'a.hdf5'}"
    with pytest.raises(UserError, match="did you mean 'scripted-peg_insertion'"):
        collect.main(["expert=scripted-peg_insert", "env=peg_insertion", out])
    with pytest.raises(UserError, match=r"acts in PegInsertion-v0, not in Hopper-v5; leave out env="):
        collect.main(["expert=scripted-peg_insertion", "env=hopper", out])
