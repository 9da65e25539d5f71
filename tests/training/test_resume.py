"""2n iterations equal n + resume + n, bit for bit; a killed run always leaves a checkpoint that loads."""

import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffpolicy_rl import train
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.checkpoint import Checkpoints, read_state
from diffpolicy_rl.training.logger import read_metrics
from tests.training.tiny_run import tiny


def same(a, b, path=""):
    """Assert that two state trees are equal bit for bit, times and stopping points aside."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key not in ("seconds", "run_dir", "iterations", "wall_s", "cpu_s") and not key.startswith("seconds/"):
                same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def outcome(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    records = read_metrics(folder / "metrics.jsonl")
    return {
        "state": read_state(Checkpoints(folder / "checkpoints").find("last")),
        "summary": summary,
        "metrics": {str(i): record for i, record in enumerate(records)},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by agent, each made once."""
    made = {}

    def make(agent: str) -> dict:
        if agent not in made:
            folder = tmp_path_factory.mktemp(agent) / "run"
            train.train(tiny(folder, agent))
            made[agent] = outcome(folder)
        return made[agent]

    return make


# Cloning has 3 iterations, learning offline 2, learning online 4: inside phases, at the borders between them.
STOPS = {
    "bc": (1, 2),
    "reinflow": (2, 3, 5),
    "dppo": (2, 3, 5),
    "ppo": (1, 2),
    "sac": (1, 3),
    "rlpd": (1, 3),
    "dsrl": (2, 3, 5),
    "dsrl-sac": (5,),
    "expo": (2, 3, 5),
    "pa_rl": (4, 5, 7),
    "resip": (2, 3, 5),
    "residual_sac": (2, 3, 5),
    **dict.fromkeys(("dql", "edp", "ofql", "fql", "idql", "iql", "td3_bc"), (1, 2, 4)),
    "fisor": (1,),
    "regress": (1, 3),
    "reflow": (1, 3),
    "onedp": (1, 2, 3),
}


@pytest.mark.parametrize(("agent", "stop"), [(agent, stop) for agent, stops in STOPS.items() for stop in stops])
def test_resumed_run_equals_the_uninterrupted_one(whole, tmp_path, agent, stop):
    folder = tmp_path / "run"
    train.train(tiny(folder, agent, iterations=stop))
    assert outcome(folder)["state"]["total_iterations"] == stop
    train.main([f"resume={folder}"])
    same(outcome(folder), whole(agent))


OPTIMIZERS = {
    **dict.fromkeys(("reinflow", "dppo", "ppo"), ("actor_optimizer",)),
    "resip": ("ppo", "actor_optimizer"),
    "expo": ("edit", "actor_optimizer"),
    "pa_rl": ("base", "optimizer"),
}


@pytest.mark.parametrize("agent", OPTIMIZERS)
def test_episodes_end_and_learning_moves_in_the_runs_compared(whole, agent):
    state = whole(agent)["state"]
    assert len(state["rollout"]["finished"]) > 3
    assert state["agent"]["updates"] >= 4
    optimizer = functools.reduce(dict.__getitem__, OPTIMIZERS[agent], state["agent"])
    moments = optimizer["state"]["0"]
    assert moments["exp_avg"].abs().sum() > 0


@pytest.mark.parametrize("agent", ["sac", "rlpd", "dsrl", "dsrl-sac", "residual_sac"])
def test_replay_fills_and_critics_move_in_the_runs_compared(whole, agent):
    state = whole(agent)["state"]
    assert state["replay"]["added"] > 40
    assert state["agent"]["critic_steps"] > 10
    moments = state["agent"]["critics"]["optimizer"]["state"]["0"]
    assert moments["exp_avg"].abs().sum() > 0


def test_same_seed_gives_the_same_summary_and_another_one_does_not(whole, tmp_path):
    again = train.train(tiny(tmp_path / "again", "bc"))
    assert again["final"] == whole("bc")["summary"]["final"]
    other = train.train(tiny(tmp_path / "other", "bc", seed=1))
    assert other["final"]["returns"] != again["final"]["returns"]


def test_the_time_of_cores_goes_on_where_it_stopped(tmp_path):
    folder = tmp_path / "run"
    ended = train.train(tiny(folder, "bc", iterations=1))["cpu_s"]
    saved, began = outcome(folder)["state"]["cpu_s"], time.process_time()
    assert 0 < saved <= ended + 0.01
    train.main([f"resume={folder}"])
    assert saved < outcome(folder)["summary"]["cpu_s"] <= saved + time.process_time() - began + 0.01


def test_resume_refuses_other_settings_and_other_agents(tmp_path):
    train.train(tiny(tmp_path / "flow", iterations=4))
    train.train(tiny(tmp_path / "bc", "bc"))
    with pytest.raises(UserError, match="seed cannot change"):
        train.main([f"resume={tmp_path / 'bc'}", "seed=3"])
    (tmp_path / "bc" / "config.yaml").write_bytes((tmp_path / "flow" / "config.yaml").read_bytes())
    with pytest.raises(UserError, match=r"made with agent\._target_=diffpolicy_rl\.agents\.bc\.BC"):
        train.main([f"resume={tmp_path / 'bc'}"])


def test_a_finished_run_is_not_overwritten(tmp_path):
    train.train(tiny(tmp_path / "run", "bc"))
    with pytest.raises(UserError, match="already holds a run; continue it with resume="):
        train.train(tiny(tmp_path / "run", "bc"))


@pytest.mark.parametrize(("agent", "kills"), [("reinflow", 30), ("dppo", 10), ("ppo", 10)])
def test_random_kills_leave_a_checkpoint_that_loads(tmp_path, agent, kills):
    script = [sys.executable, Path(__file__).with_name("kill_and_load.py"), tmp_path / "run", agent, str(kills)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["loaded"] == kills
    assert report["iterations"] == sorted(report["iterations"])
    assert report["iterations"][-1] > report["iterations"][0]
