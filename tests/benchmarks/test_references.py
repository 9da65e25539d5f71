"""Reference trainings: their policy is the one that is evaluated, and their result is what the report reads."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import report, sb3
from benchmarks.tables import tables
from diffpolicy_rl import make_env
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.config import EnvConfig

TASK = EnvConfig("Hopper-v5")


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
@pytest.mark.parametrize("vec", ["ours", "dummy"])
def test_the_deployed_policy_acts_as_predict_does(algorithm, vec):
    pytest.importorskip("stable_baselines3")
    config = sb3.SB3Config(algorithm, env_steps=512, vec=vec)
    model = sb3.learn(config, TASK, seed=0)
    policy, env = sb3.SB3Policy(model).eval(), make_env("Hopper-v5", num_envs=5, dtype=torch.float64)
    obs, _ = env.reset(seed=1)
    for _ in range(20):
        obs, *_ = env.step(2 * torch.rand(5, 1, 3) - 1)
    obs = torch.cat([obs, 1000 * obs])  # some are clipped
    statistics = model.get_vec_normalize_env()
    assert (statistics is None) == (algorithm == "sac")
    normalized = statistics.normalize_obs(obs.numpy()) if statistics else obs.numpy()
    expected, _ = model.predict(normalized, deterministic=True)
    with torch.inference_mode():
        actions = policy(obs, None)
    np.testing.assert_allclose(actions[:, 0].clamp(-1, 1), expected, atol=1e-5)
    assert len(np.unique(expected.round(4), axis=0)) > 5
    assert policy.noise_shape is None


def test_results_are_rows_of_the_report(tmp_path, monkeypatch, capsys):
    pytest.importorskip("stable_baselines3")
    out = tmp_path / "sb3_ppo_hopper.json"
    sb3.main(["algorithm=ppo", "env=hopper", "env_steps=600", "num_envs=2", "seed=0,3", "episodes=4", f"out={out}"])
    result = json.loads(out.read_text())
    assert [run["seed"] for run in result["seeds"]] == [0, 3]
    assert [run["env_steps"] for run in result["seeds"]] == [1024, 1024]
    assert result["hyperparameters"]["n_steps"] == 256
    assert result["hyperparameters"]["policy_kwargs"]["activation_fn"] == "ReLU"
    for run in result["seeds"]:
        assert run["final"]["episodes"] == 4
        assert run["final"]["ci_low"] <= run["final"]["mean"] <= run["final"]["ci_high"]
        assert run["versions"]["stable_baselines3"]
        assert run["command"].startswith("python -m benchmarks.sb3")
        assert run["wall_s"] > 0
    assert "seed 3: 1024 env steps" in capsys.readouterr().out
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (row,) = tables(report.load_results()).splitlines()[2:]
    assert row.startswith("| *reference, from scratch:* [Stable-Baselines3 PPO, Hopper-v5](benchmarks/results/sb3_ppo_")


def test_the_same_seed_gives_the_same_result():
    pytest.importorskip("stable_baselines3")
    config = sb3.SB3Config("ppo", env_steps=512)
    weights = [torch.cat([p.detach().flatten() for p in sb3.learn(config, TASK, 7).policy.parameters()]) for _ in "ab"]
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algorithm=ppo", "env=swimmer"], "no tuned hyper-parameters for env=Swimmer-v5"),
        (["algorithm=td3"], "algorithm=td3 is not a choice"),
        (["env=hopper"], "algorithm must be given"),
        (["algorithm=sac", "env_steps=0"], "env_steps=0 must be above 0"),
        (["algorithm=sac", "env=hoper"], "did you mean 'hopper'"),
    ],
)
def test_mistakes_are_one_sentence(words, message):
    with pytest.raises(UserError, match=message):
        sb3.main(words)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "diffpolicy_rl.envs.sb3", raising=False)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    with pytest.raises(UserError, match=r"pip install 'diffpolicy_rl\[experts\]'"):
        sb3.main(["algorithm=ppo"])
