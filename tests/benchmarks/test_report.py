"""The README's tables say what the committed results say; the page of a comparison is in test_page.py."""

import json

import pytest

from benchmarks import records, report
from benchmarks.tables import interval, tables
from diffpolicy_rl import train
from diffpolicy_rl.errors import UserError
from tests.training.tiny_run import tiny

BEGIN = "<!-- results: python -m benchmarks.report table -->"


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n<!-- /results -->\nafter\n")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    for module in (records, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return tmp_path


def test_runs_become_a_result_and_a_row(place):
    runs = [place / f"s{seed}" for seed in (0, 1)]
    summaries = [train.train(tiny(run, seed=seed)) for seed, run in enumerate(runs)]
    report.main(["add", "name=toy", f"runs={runs[0]},{runs[1]}"])
    result = json.loads((place / "results" / "toy.json").read_text())
    assert [run["final"]["mean"] for run in result["seeds"]] == [s["final"]["mean"] for s in summaries]
    assert [run["seed"] for run in result["seeds"]] == [0, 1]
    assert result["data"]["episodes"] == 40
    assert result["seeds"][0]["curve"][0][0] == 0  # the base, before any env step
    assert result["seeds"][0]["curve"][-1][0] == summaries[0]["env_steps"]
    assert (place / "results" / "toy.png").exists()
    with pytest.raises(UserError, match=r"run python -m benchmarks\.report table"):
        report.main(["check"])
    report.main(["table"])
    report.main(["check"])
    text = (place / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    mean = sum(s["final"]["mean"] for s in summaries) / 2
    assert f"| {mean:.0f} ± " in text
    assert "old" not in text


def test_references_come_last_and_are_marked(place):
    seeds = [{"final": {"mean": mean}, "env_steps": 1e6, "wall_s": 90.0} for mean in (10.0, 20.0)]
    ours = {"name": "z", "agent": "A", "env": "E-v0", "data": {"episodes": 3, "return_mean": 7.0}}
    ours["seeds"] = [run | {"base": {"mean": 5.0}, "best": {"mean": 30.0}} for run in seeds]
    theirs = {"name": "a", "agent": "B", "env": "E-v0", "reference": "from scratch", "seeds": seeds}
    for result in (ours, theirs):
        (place / "results" / f"{result['name']}.json").write_text(json.dumps(result))
    assert tables(report.load_results()).splitlines()[2:] == [
        "| [A, E-v0](benchmarks/results/z.png) | 3 episodes, 7 | 5 | 15 ± 64 | 10 (30), 20 (30) | 1.00 M | 1.5 |",
        "| *reference, from scratch:* [B, E-v0](benchmarks/results/a.json) | none | - | 15 ± 64 | 10, 20 "
        "| 1.00 M | 1.5 |",
    ]


def test_a_variant_is_named_and_learning_from_scratch_has_no_demonstrations(place):
    run = place / "run"
    train.train(tiny(run, "ppo"))
    report.main(["add", "name=toy", f"runs={run}", "variant=of a test"])
    assert (
        tables(report.load_results())
        .splitlines()[2]
        .startswith("| [PPO (of a test), Hopper-v5](benchmarks/results/toy.png) | none | ")
    )


def test_success_has_a_table_of_its_own_with_the_best_first(place):
    for name, shares in (("x", (0.5, 0.6)), ("y", (1.0, 0.9))):
        finals = [{"final": {"mean": 0.0, "success": share, "episodes": 10}} for share in shares]
        costs = {"base": {"success": 0.25}, "env_steps": 30_000, "wall_s": 90.0, "net_evaluations": 1.0}
        result = {"name": name, "agent": name.upper(), "env": "E-v0", "seeds": [run | costs for run in finals]}
        (place / "results" / f"{name}.json").write_text(json.dumps(result))
    first, second = tables(report.load_results()).splitlines()[-2:]
    assert first == ("| [Y, E-v0](benchmarks/results/y.png) | 25 | 95.0 [76.4, 99.1] | 100.0, 90.0 | 30 k | 1.5 | 1 |")
    assert "| 55.0 [34.2, 74.2] | 50.0, 60.0 |" in second


def test_interval_by_hand():
    assert interval([7.0]) == "7"
    assert interval([1.0, 2.0, 3.0]) == "2 ± 2"  # 4.303 * 1 / sqrt(3) = 2.48
    assert interval([10.0, 20.0]) == "15 ± 64"  # 12.706 * 7.07 / sqrt(2) = 63.5


def test_missing_markers_and_names_are_one_sentence(place):
    (place / "README.md").write_text("nothing")
    with pytest.raises(UserError, match=r"README.md lacks the markers"):
        report.main(["table"])
    with pytest.raises(UserError, match="name and runs must be given"):
        report.main(["add", "name=x"])


def test_the_committed_table_is_what_the_results_say():
    report.main(["check"])
