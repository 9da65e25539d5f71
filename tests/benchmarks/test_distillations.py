"""Students beside their teachers: what is kept of them, and the README's table."""

import json

import pytest

from benchmarks import distillations, records, report
from diffpolicy_rl import distill, train
from diffpolicy_rl.errors import UserError
from tests.training.tiny_run import tiny


def test_a_student_becomes_a_record_and_a_row(tmp_path, monkeypatch):
    results = tmp_path / "results"
    results.mkdir()
    for module in (records, report):
        monkeypatch.setattr(module, "RESULTS", results)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("<!-- results: distillations -->\nold\n<!-- /results -->\n")
    train.train(tiny(tmp_path / "run", "reinflow"))
    with pytest.raises(UserError, match="is no student that was compared"):
        report.main(["distilled", str(tmp_path / "run")])
    distill.main([str(tmp_path / "run"), "env_steps=480", "num_envs=3", "episodes=6", "threads=1"])
    report.main(["distilled", str(tmp_path / "run-regress")])
    (student,) = json.loads((results / "distillations.json").read_text())["students"]
    compared = json.loads((tmp_path / "run-regress" / "distillation.json").read_text())
    assert student["verdict"] == compared["verdict"]
    assert student["student"]["mean"] == compared["student"]["mean"]
    assert "by_state" not in student["spread"]
    assert (student["agent"], student["method"]) == ("ReinFlow", "Regress")
    kept = [student | {"env": "Other-v0"}, student | {"cost": "replaced"}]
    assert distillations.records([tmp_path / "run-regress"], kept) == [kept[0], student]
    with pytest.raises(UserError, match="table is not what"):
        report.main(["check"])
    report.main(["table"])
    report.main(["check"])
    assert f"| ReinFlow, Hopper-v5 | {student['steps']} | Regress |" in (tmp_path / "README.md").read_text()


def test_rows_by_hand():
    verdict = {"measure": "success", "difference": 0.006, "ci_low": -0.008, "ci_high": 0.0201, "margin": 0.05}
    peg = {"agent": "A", "env": "Peg-v0", "steps": 4, "method": "Regress", "value_weight": 0.0}
    peg |= {"teacher": {"mean": 0.9, "success": 0.943}, "student": {"mean": 0.9, "success": 0.949}}
    peg |= {"verdict": verdict | {"passed": True}, "spread": {"ratio": 2.6}}
    peg |= {"cost": {"student_s": 202.0, "share": 0.294}}
    verdict = {"measure": "return", "difference": -300.0, "ci_low": -320.4, "ci_high": -279.6, "margin": 150.0}
    hop = peg | {"env": "Hop-v0", "value_weight": 0.5, "spread": {}, "cost": {"student_s": 90.0, "share": None}}
    hop |= {"teacher": {"mean": 3000.4}, "student": {"mean": 2700.4}, "verdict": verdict | {"passed": False}}
    assert distillations.table([peg, hop]).splitlines()[2:] == [
        "| A, Peg-v0 | 4 | Regress | 94.3 % | 94.9 % | 0.6 % [-0.8 %, 2.0 %] | 5.0 % | yes | 2.60 | 3 | 29% |",
        "| A, Hop-v0 | 4 | Regress, values 0.5 | 3000 | 2700 | -300 [-320, -280] | 150 | **no** | - | 2 | - |",
    ]
