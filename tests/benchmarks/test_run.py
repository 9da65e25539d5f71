"""The suite runner: what is finished stays, what was interrupted goes on, what fails is told."""

import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import run
from diffpolicy_rl.errors import UserError
from tests.training.test_resume import outcome, same
from tests.training.tiny_run import MLP


def words(**budget):
    settings = {"bc_steps": 100, "bc_eval_every": 1, "eval_every": 1, "eval_episodes": 2, "final_episodes": 2, **budget}
    net = yaml.safe_dump(MLP["hidden"], default_flow_style=True).strip()
    return ["agent=bc", "env=hopper", f"policy.net.hidden={net}", *(f"budget.{k}={v}" for k, v in settings.items())]


def test_work_is_resumed_and_finished_work_is_left_alone(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run.work_off({whole: words()}, 1) == []
    assert run.work_off({stopped: [*words(), "iterations=1"]}, 1) == []
    (stopped / "summary.json").unlink()  # as if it had been killed in the middle
    assert run.work_off({whole: ["agent=none"], stopped: ["agent=none"]}, 2) == []
    same(outcome(stopped)["state"], outcome(whole)["state"])


def test_a_failing_training_is_told_and_the_others_go_on(tmp_path, capsys):
    good, bad = tmp_path / "good", tmp_path / "bad"
    assert run.work_off({bad: ["agent=nonsense"], good: words()}, 1) == [tmp_path / "bad.log"]
    assert "there is no agent 'nonsense'" in (tmp_path / "bad.log").read_text()
    assert run.finished(good)
    assert not run.finished(bad)
    assert f"failed   {bad}" in capsys.readouterr().out


def test_an_interrupted_training_is_continued_in_its_own_words(tmp_path):
    (tmp_path / "a" / "checkpoints" / "last").mkdir(parents=True)
    assert run.command(tmp_path / "a", ["agent=bc"])[3:] == [f"resume={tmp_path / 'a'}"]
    assert run.command(tmp_path / "b", ["agent=bc"])[:4] == [sys.executable, "-m", "diffpolicy_rl.train", "agent=bc"]


def test_every_suite_names_trainings_that_can_be_composed():
    from diffpolicy_rl.training.compose import compose

    folder = Path(run.__file__).parents[1] / "configs" / "suite"
    for path in folder.glob("*.yaml"):
        suite = run.read_suite(path.stem)
        assert compose([*suite.words, *suite.base.words], sweep=False)
        for row in suite.rows.values():
            (config,) = compose([*suite.words, *row.words, "base=somewhere"], sweep=False)
            assert config.base == "somewhere"


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="there is no suite 'nonsense'"):
        run.main(["nonsense"])
