import json
import signal
import sys

import numpy as np
import pytest
import torch
import yaml

from diffpolicy_rl import collect, evaluate, load, train
from diffpolicy_rl.agents.reinflow import ReinFlow
from diffpolicy_rl.data.d4rl import Transitions, read, write
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.config import resolve, to_plain
from diffpolicy_rl.training.logger import Console, read_metrics
from diffpolicy_rl.training.phase import Phase
from diffpolicy_rl.training.plots import record_video
from diffpolicy_rl.training.run import claim, load_agent
from diffpolicy_rl.training.signals import Interrupted, StopSignals
from tests.training.tiny_run import MLP, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop") / "run"
    return folder, train.train(tiny(folder))


def test_run_folder_holds_what_it_should(run):
    folder, summary = run
    for name in ("config.yaml", "manifest.json", "metrics.jsonl", "summary.json", "curve.png", "tensorboard"):
        assert (folder / name).exists(), name
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"last", "best", "base"}
    assert resolve(yaml.safe_load((folder / "config.yaml").read_text())) == tiny(folder)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_counters_add_up(run):
    folder, summary = run
    records = read_metrics(folder / "metrics.jsonl")
    assert [record["phase"] for record in records] == ["bc"] * 3 + ["base"] + ["online"] * 4
    assert [record["iteration"] for record in records] == [1, 2, 3, 3, 4, 5, 6, 7]
    # 10 decisions of 3 envs make 2 minibatches per epoch, the second one smaller; 9 steps of cloning come before.
    assert summary["gradient_steps"] == 9 + 4 * 5 * 2
    assert 4 * 10 * 3 < summary["env_steps"] < 4 * 10 * 3 * 4  # rows freeze when the hopper falls inside a chunk
    assert summary["env_steps"] == records[-1]["env_steps"]
    assert summary["iterations"] == 7


def test_first_minibatch_ratio_is_one_in_the_loop(run):
    folder, _ = run
    errors = [record["ppo/first_ratio_error"] for record in read_metrics(folder / "metrics.jsonl")[4:]]
    assert max(errors) < 1e-6


def test_best_is_the_best_evaluation_of_the_last_phase(run):
    folder, summary = run
    records = read_metrics(folder / "metrics.jsonl")[3:]  # the base is a candidate too
    evaluated = {record["iteration"]: record["eval/mean"] for record in records if "eval/mean" in record}
    best = max(evaluated, key=evaluated.__getitem__)
    assert (folder / "checkpoints" / "best").resolve().name[:8] == f"{best:08d}"
    assert summary["best"].get("iteration", 7) == best


def test_base_of_another_run_is_where_training_starts(run, tmp_path):
    folder, summary = run
    tuned = train.train(tiny(tmp_path / "tuned", base=str(folder)))
    assert tuned["base"]["returns"] == summary["base"]["returns"]
    assert tuned["iterations"] == 4
    ours, theirs = load_agent(tmp_path / "tuned", "base"), load_agent(folder, "base")
    assert torch.equal(ours.policy.net.action_in.weight, theirs.policy.net.action_in.weight)


def test_iterations_count_over_phases_and_stop_early(tmp_path):
    summary = train.train(tiny(tmp_path / "run", iterations=2))
    assert (summary["iterations"], summary["env_steps"], summary["base"]) == (2, 0, None)


def test_max_minutes_stops_before_the_next_iteration(tmp_path):
    assert train.train(tiny(tmp_path / "run", max_minutes=0.0))["iterations"] == 0
    assert load(tmp_path / "run").execute == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_resumed_run_ends_as_if_nothing_happened(run, tmp_path, monkeypatch, capsys, number):
    iterate = Phase.iterate

    def interrupted(phase, *args):
        if phase.name == "online" and phase.iteration == 2:
            signal.raise_signal(number)
        return iterate(phase, *args)

    monkeypatch.setattr(Phase, "iterate", interrupted)
    with pytest.raises(SystemExit) as stop:
        train.train(tiny(tmp_path / "run"))
    assert stop.value.code == 128 + number
    assert f"resume={tmp_path / 'run'}" in capsys.readouterr().err
    monkeypatch.undo()
    train.main([f"resume={tmp_path / 'run'}"])
    finished = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert finished["final"]["returns"] == run[1]["final"]["returns"]


def test_signal_that_comes_after_the_save_is_heard_one_iteration_later(run, tmp_path, monkeypatch):
    advance = Console.advance

    def interrupted(console, done, note):
        if done == 1:
            signal.raise_signal(signal.SIGTERM)
        advance(console, done, note)

    monkeypatch.setattr(Console, "advance", interrupted)
    with pytest.raises(SystemExit):
        train.train(tiny(tmp_path / "run"))
    monkeypatch.undo()
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == "00000002"
    train.main([f"resume={tmp_path / 'run'}"])
    finished = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert finished["final"]["returns"] == run[1]["final"]["returns"]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert len(manifest["resumed"]) == 1


def test_two_processes_cannot_share_a_run_folder(tmp_path):
    with claim(tmp_path / "run"), pytest.raises(UserError, match="another process is training in"):
        train.train(tiny(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_video_that_fails_does_not_fail_the_run(tmp_path):
    def no_env():
        raise RuntimeError("no display")

    assert record_video(tmp_path / "v.mp4", None, no_env, 0) == "no video: no display"


def test_second_signal_exits_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(SystemExit) as stop:
            signal.raise_signal(signal.SIGINT)
        assert stop.value.code == 128 + signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) is before
    assert Interrupted(15).exit_status == 143


def test_nan_stops_the_run_and_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    update = ReinFlow.update

    def broken(agent, buffer):
        metrics = dict(update(agent, buffer))
        return metrics | {"critic/loss": torch.tensor(float("nan"))} if agent.updates == 2 else metrics

    monkeypatch.setattr(ReinFlow, "update", broken)
    with pytest.raises(UserError, match=r"critic/loss is not finite after iteration 5; .*checkpoints/00000003"):
        train.train(tiny(tmp_path / "run"))
    assert load(tmp_path / "run")(torch.zeros(1, 11), torch.zeros(1, 4, 3)).isfinite().all()


def test_rollouts_use_one_thread_and_updates_the_number_given(tmp_path, monkeypatch):
    seen = {"act": set(), "update": set()}
    for name, method in (("act", ReinFlow.act), ("update", ReinFlow.update)):

        def spy(agent, *args, name=name, method=method, **kwargs):
            seen[name].add(torch.get_num_threads())
            return method(agent, *args, **kwargs)

        monkeypatch.setattr(ReinFlow, name, spy)
    train.train(tiny(tmp_path / "run", threads=2, iterations=5))
    assert seen == {"act": {1}, "update": {2}}


def test_settings_survive_the_round_trip_through_yaml(tmp_path):
    config = tiny(tmp_path)
    assert resolve(yaml.safe_load(yaml.safe_dump(to_plain(config)))) == config


def test_a_tracker_that_is_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'loggers=wandb needs the package wandb: pip install "diffpolicy_rl\[wandb\]"'):
        train.train(tiny(tmp_path / "run", loggers=["wandb"]))
    with pytest.raises(UserError, match="there is no logger 'wandbb'; did you mean 'wandb'"):
        train.train(tiny(tmp_path / "run", loggers=["wandbb"]))


def test_history_goes_through_training_evaluation_and_collection(tmp_path):
    config = tiny(tmp_path / "run", env={"id": "Hopper-v5", "num_envs": 3, "history": 2})
    summary = train.train(config)
    evaluate.main([str(tmp_path / "run"), "episodes=6", f"seed={summary['final']['seed']}"])
    again = json.loads((tmp_path / "run" / f"evaluation-last-s{summary['final']['seed']}.json").read_text())
    assert again["returns"] == summary["final"]["returns"]
    collect.main([str(tmp_path / "run"), "episodes=3", f"out={tmp_path / 'demos.hdf5'}"])
    assert read(tmp_path / "demos.hdf5").observations.shape[1] == 11


@pytest.mark.parametrize("backend", ["gymnasium", "workers"])
def test_an_env_of_one_s_own_trains_and_resumes(tmp_path, capsys, backend):
    """What a foreign simulator was in the middle of cannot be saved: a resumed run starts its episodes anew."""
    rng = np.random.default_rng(0)
    steps, flags = rng.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 6 == 5
    write(tmp_path / "own.hdf5", Transitions(steps[:, :2], steps[:, 2:], steps[:, 0], np.zeros(60, bool), flags))
    env = {"id": "tests.envs.toy_envs:ToyCounter-v0", "num_envs": 3, "backend": backend}
    config = tiny(tmp_path / "run", env=env, data={"path": str(tmp_path / "own.hdf5")}, iterations=5)
    train.train(config)
    train.main([f"resume={tmp_path / 'run'}", "trust=tests.envs.toy_envs"])
    assert "cannot be saved, so its episodes start anew" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["iterations"] == 7
    assert max(summary["final"]["lengths"]) <= 6
    assert 0 <= summary["final"]["success"] <= 1


def test_base_of_another_task_is_one_sentence(run, tmp_path):
    config = tiny(tmp_path / "run", env={"id": "Walker2d-v5", "num_envs": 3}, base=str(run[0]))
    with pytest.raises(UserError, match=r"was trained on Hopper-v5 with observations \(11,\) and 3 actions"):
        train.train(config)


def test_what_the_policy_lacks_is_said_before_it_is_cloned(tmp_path):
    policy = {"net": MLP, "horizon": 4, "execute": 2}
    with pytest.raises(UserError, match=r"policy\.horizon=4 must equal policy\.execute=2"):
        train.train(tiny(tmp_path / "run", "expo", policy=policy))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
