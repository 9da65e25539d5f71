"""From a teacher's run folder to a student's, on the command line."""

import dataclasses
import json

import pytest
import torch

from diffpolicy_rl import distill, load, train
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.run import read_config
from tests.training.tiny_run import tiny

WORDS = ["env_steps=480", "num_envs=3", "episodes=6", "threads=1"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught") / "run"
    train.train(tiny(folder, "reinflow"))
    return folder


def test_student_of_a_flow_is_a_run_that_loads_and_can_be_compared_anew(teacher, capsys):
    distill.main([str(teacher), *WORDS])
    student = teacher.with_name("run-regress")
    report = json.loads((student / "distillation.json").read_text())
    assert report["teacher"]["episodes"] == report["student"]["episodes"] == 6
    assert report["spread"]["ratio"] > 0
    assert report["cost"]["share"] > 0
    assert (student / "spread.png").exists()
    policy, settings = load(student), read_config(student)
    assert policy.policy.steps == settings.policy.steps == 1
    assert policy.noise_shape == load(teacher).noise_shape
    assert "student less teacher, return" in capsys.readouterr().out
    trained = (student / "summary.json").read_text()
    distill.main([str(teacher), *WORDS])
    assert "trained already" in capsys.readouterr().out
    assert (student / "summary.json").read_text() == trained
    assert json.loads((student / "distillation.json").read_text())["verdict"] == report["verdict"]


def test_student_starts_with_the_weights_of_a_flow_and_its_normalisers(teacher, tmp_path, monkeypatch):
    from diffpolicy_rl.training.loop import Trainer
    from diffpolicy_rl.training.students import student_config

    settings = read_config(teacher)
    settings = dataclasses.replace(settings, policy=dataclasses.replace(settings.policy, noise_scale=0.5))
    config = student_config(str(teacher), "last", "regress", settings, load(teacher), 480, 3)
    assert config.policy.noise_scale == 1  # it learns from all of its noise what the teacher makes of half of it
    policy, taught = Trainer(config, tmp_path / "student", False).phase.agent.online, load(teacher).policy
    for mine, theirs in zip(policy.parameters(), taught.net.parameters(), strict=True):
        assert mine.equal(theirs)
    assert policy.obs_normalizer.shift.equal(taught.obs_normalizer.shift)
    assert policy.action_normalizer.scale.equal(taught.action_normalizer.scale)


def test_student_of_a_selection_is_sure_of_itself(tmp_path):
    train.train(tiny(tmp_path / "dql", "dql"))
    distill.main([str(tmp_path / "dql"), *WORDS])
    report = json.loads((tmp_path / "dql-regress" / "distillation.json").read_text())
    assert report["spread"]["ratio"] > 2
    student = load(tmp_path / "dql-regress")
    obs, noise = torch.zeros(1, 11), torch.randn(2, 1, *student.noise_shape)
    assert student(obs, noise[0]).equal(student(obs, noise[1]))


def test_student_of_a_corrected_policy_is_one_of_its_base(tmp_path, capsys):
    train.train(tiny(tmp_path / "resip", "resip"))
    distill.main([str(tmp_path / "resip"), *WORDS])
    assert "the student is one of the base" in capsys.readouterr().out
    teacher, student = load(tmp_path / "resip"), load(tmp_path / "resip-regress")
    assert teacher.per_step
    assert not student.per_step
    assert student.noise_shape == teacher.base.noise_shape


def test_refusals(tmp_path, teacher):
    with pytest.raises(UserError, match="is not a run"):
        distill.main([str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="method=onedp knows no critics"):
        distill.main([str(teacher), "method=onedp", "value_weight=1"])
    distill.main([str(teacher), *WORDS, f"out={tmp_path / 'student'}"])
    with pytest.raises(UserError, match=r"holds a run with agent\._target_=.*Regress, not .*Reflow"):
        distill.main([str(teacher), *WORDS, f"out={tmp_path / 'student'}", "method=shortcut"])
    with pytest.raises(UserError, match=r"holds a run with teacher_which=last, not base"):
        distill.main([str(teacher), *WORDS, f"out={tmp_path / 'student'}", "which=base"])
    with pytest.raises(UserError, match="env_steps"):
        distill.main([str(teacher), "env_steps=0"])
