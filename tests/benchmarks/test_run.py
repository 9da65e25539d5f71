"""The suite runner: what is finished stays, what was interrupted goes on, what fails is told."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import launchers, run, suites
from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.checkpoint import Checkpoints, read_state
from diffpolicy_rl.training.compose import compose
from tests.training.test_resume import outcome, same
from tests.training.tiny_run import MLP

ROOT = Path(run.__file__).parents[1]
SUITES = sorted(path.stem for path in (ROOT / "configs" / "suite").glob("*.yaml"))


def words(**budget):
    settings = {"bc_steps": 100, "bc_eval_every": 1, "eval_every": 1, "eval_episodes": 2, "final_episodes": 2, **budget}
    net = yaml.safe_dump(MLP["hidden"], default_flow_style=True).strip()
    return ["agent=bc", "env=hopper", f"policy.net.hidden={net}", *(f"budget.{k}={v}" for k, v in settings.items())]


MATRIX = {
    "about": "a test",
    "words": ["budget=smoke", "agent.lr=1"],
    "tasks": {"x": ["env=hopper"], "y": ["env=walker2d"]},
    "agents": {"a": {"words": ["agent=bc"]}, "b": {"words": ["agent=dppo", "agent.lr=2"], "seeds": "7"}},
    "overrides": {"y_b": ["agent.lr=3", "agent.epochs=4"]},
    "seeds": 2,
}


def test_every_agent_is_trained_on_every_task_with_every_seed(suite_file):
    suite_file("s", **MATRIX | {"agents": {"a": {"words": ["agent=bc"]}, "b": MATRIX["agents"]["b"] | {"seeds": [7]}}})
    found = {job.name: job.words for job in suites.jobs(suites.read_suite("s"), Path("f"))}
    assert found == {
        "x_a_s0": ("budget=smoke", "agent.lr=1", "env=hopper", "agent=bc", "seed=0"),
        "y_a_s0": ("budget=smoke", "agent.lr=1", "env=walker2d", "agent=bc", "seed=0"),
        "x_a_s1": ("budget=smoke", "agent.lr=1", "env=hopper", "agent=bc", "seed=1"),
        "y_a_s1": ("budget=smoke", "agent.lr=1", "env=walker2d", "agent=bc", "seed=1"),
        "x_b_s7": ("budget=smoke", "agent.lr=2", "env=hopper", "agent=dppo", "seed=7"),
        "y_b_s7": ("budget=smoke", "agent.lr=3", "env=walker2d", "agent=dppo", "agent.epochs=4", "seed=7"),
    }
    given = suites.jobs(suites.read_suite("s"), Path("f"), "4,1")
    assert {job.seed for job in given} == {1, 4}
    assert len(given) == 8


def test_a_base_is_trained_for_each_task_and_all_start_from_it(suite_file):
    suite_file("s", **MATRIX, base={"words": ["agent=bc", "agent.lr=5"]})
    suite = suites.read_suite("s")
    assert {task: job.name for task, job in suites.bases(suite).items()} == {"x": "x_base_s0", "y": "y_base_s0"}
    assert suites.bases(suite)["y"].words == ("budget=smoke", "agent.lr=5", "env=walker2d", "agent=bc", "seed=0")
    starts = {job.task: next(word for word in job.words if "base=" in word) for job in suites.jobs(suite, Path("f"))}
    assert starts == {"x": "base=f/x_base_s0", "y": "base=f/y_base_s0"}


def test_a_suite_can_be_like_another(suite_file):
    suite_file("s", **MATRIX)
    suite_file("t", like="s", about="other", words=["budget=paper"], seeds=1)
    suite = suites.read_suite("t")
    assert suite.words == ("budget=paper",)
    assert suite.tasks == suites.read_suite("s").tasks
    assert suite.about == "other"


def test_seeds_are_counted_or_listed():
    assert suites.seeds_of("3") == (0, 1, 2)
    assert suites.seeds_of("[3]") == (3,)
    assert suites.seeds_of("[0, 5]") == suites.seeds_of("0,5") == (0, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nonsense"], "there is no suite 'nonsense'"),
        (["s", "agents=a,c"], "the suite has no agent 'c'; known: a, b"),
        (["s", "tasks=z"], "the suite has no task 'z'; known: x, y"),
        (["s", "seeds=0"], "seeds=0 must be above 0"),
        (["s", "seeds=1,1"], "seeds=1,1 must be different whole numbers"),
        (["s", "seeds=two"], "seeds=two is not a whole number"),
        (["s", "workers=0"], "workers=0 must be above 0"),
        (["s", "launcher=pbs"], "launcher=pbs is not a choice"),
        (["s", "rows=a"], "there is no setting rows"),
        (["odd"], "suite odd: overrides.x_c is not <task>_<agent>; did you mean 'x_"),
        (["empty"], "suite empty: agents must be given"),
        (["nothing"], "suite nothing says nothing; it needs about and agents"),
        (["broken"], "suite broken is not valid YAML: "),
        (["circle"], "suite circle is like itself"),
        (["bases"], r"base\.seeds=2, but a task has one base"),
    ],
)
def test_mistakes_are_one_sentence(suite_file, given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite_file("s", **MATRIX)
    suite_file("odd", **MATRIX | {"overrides": {"x_c": []}})
    suite_file("empty", about="nothing")
    suite_file("circle", like="circle")
    suite_file("bases", **MATRIX, base={"words": ["agent=bc"], "seeds": 2})
    (tmp_path / "suite" / "nothing.yaml").write_text("")
    (tmp_path / "suite" / "broken.yaml").write_text("about: [")
    with pytest.raises(UserError, match=message):
        run.main(given)


def test_commands_of_the_readme_are_understood():
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python -m benchmarks\.run ([^#\n]*)", readme, re.MULTILINE)
    assert commands
    for words in commands:
        config = cli.parse(run.RunConfig, words.split(), "", "suite")
        assert suites.choose("agent", config.agents, suites.read_suite(config.suite).agents)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_names_trainings_that_can_be_composed(name, tmp_path):
    suite = suites.read_suite(name)
    first = {(job.task, job.agent): job for job in suites.jobs(suite, tmp_path)}
    for job in [*suites.bases(suite).values(), *first.values()]:
        chosen = dict(word.split("=", 1) for word in job.words)
        (config,) = compose(job.words, sweep=False)
        assert config.seed == job.seed
        assert config.base == chosen.get("base")


def test_the_smoke_suite_covers_what_the_whole_one_does():
    smoke, whole = (suites.read_suite(f"d4rl_locomotion{kind}") for kind in ("_smoke", ""))
    assert len(smoke.tasks) == 9
    assert (smoke.tasks, smoke.agents) == (whole.tasks, whole.agents)


def test_work_is_resumed_and_finished_work_is_left_alone(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert launchers.run_local({whole: words()}, 1) == []
    assert launchers.run_local({stopped: [*words(), "iterations=1"]}, 1) == []
    (stopped / "summary.json").unlink()  # as if it had been killed in the middle
    assert launchers.run_local({whole: ["agent=none"], stopped: ["agent=none"]}, 2) == []
    same(outcome(stopped)["state"], outcome(whole)["state"])


def test_a_failing_training_is_told_and_the_others_go_on(tmp_path, capsys):
    good, bad = tmp_path / "good", tmp_path / "bad"
    assert launchers.run_local({bad: ["agent=nonsense"], good: words()}, 1) == [tmp_path / "bad.log"]
    assert "there is no agent 'nonsense'" in (tmp_path / "bad.log").read_text()
    assert launchers.finished(good)
    assert not launchers.finished(bad)
    assert f"failed   {bad}" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_lets_every_training_save_itself(tmp_path, workers):
    long = words(bc_steps=1_000_000, bc_eval_every=1_000_000)  # cloning for hours, unless stopped
    runs = [tmp_path / name for name in "abc"]
    code = (
        "import json, pathlib, sys\nfrom benchmarks.launchers import run_local\n"
        "run_local({pathlib.Path(k): v for k, v in json.loads(sys.argv[1]).items()}, int(sys.argv[2]))"
    )
    jobs = json.dumps({str(folder): long for folder in runs})
    process = subprocess.Popen([sys.executable, "-c", code, jobs, str(workers)], cwd=ROOT, stderr=subprocess.PIPE)
    begun = runs[:workers]
    deadline = time.monotonic() + 60
    while not all((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text() for folder in begun):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    for folder in begun:
        assert "stopped by a signal; continue with" in launchers.log_of(folder).read_text()
        assert read_state(Checkpoints(folder / "checkpoints").find("last"))["total_iterations"] > 0
    assert not any(folder.exists() for folder in runs[workers:])


def test_an_interrupted_training_is_continued_in_its_own_words(tmp_path):
    (tmp_path / "a" / "checkpoints" / "last").mkdir(parents=True)
    assert launchers.command(tmp_path / "a", ["agent=bc"])[3:] == [f"resume={tmp_path / 'a'}"]
    begin = launchers.command(tmp_path / "b", ["agent=bc"])
    assert begin[:4] == [sys.executable, "-m", "diffpolicy_rl.train", "agent=bc"]


def test_slurm_gets_one_array_of_what_is_left(tmp_path, monkeypatch):
    said = {}

    class Executor:
        def __init__(self, folder, cluster):
            said.update(folder=folder, cluster=cluster)

        def update_parameters(self, **parameters):
            said.update(parameters)

        def map_array(self, function, runs, words):
            said.update(function=function, words=words)
            (runs[0] / "summary.json").parent.mkdir()
            (runs[0] / "summary.json").touch()
            return [SimpleNamespace(wait=lambda: None) for _ in runs]

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor))
    monkeypatch.setattr(launchers.shutil, "which", lambda name: f"/usr/bin/{name}")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "summary.json").touch()
    jobs = {tmp_path / name: [name] for name in ("done", "good", "bad")}
    assert launchers.run_slurm(jobs, 3, 60, "short") == [tmp_path / "bad.log"]
    assert said == {
        "folder": tmp_path / "slurm",
        "cluster": "slurm",
        "timeout_min": 60,
        "cpus_per_task": 1,
        "slurm_array_parallelism": 3,
        "slurm_partition": "short",
        "function": launchers.train,
        "words": [["good"], ["bad"]],
    }


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"submitit is not installed: pip install 'diffpolicy_rl\[slurm\]'"):
        launchers.run_slurm({}, 1, 1, None)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace())
    monkeypatch.setattr(launchers.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="there is no Slurm here"):
        launchers.run_slurm({}, 1, 1, None)


def test_limits_survive_a_resume(tmp_path):
    words = ["agent=bc", "max_minutes=40", "budget.bc_steps=5"]
    assert launchers.command(tmp_path, words)[3:] == [*words, "threads=1", "video=false", f"run_dir={tmp_path}"]
    (tmp_path / "checkpoints" / "last").mkdir(parents=True)
    assert launchers.command(tmp_path, words)[3:] == [f"resume={tmp_path}", "max_minutes=40"]
