"""The page says what the results say, and needs nothing but itself."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import comparison, protocol, records, report, run
from benchmarks.comparison import Comparison
from benchmarks.finished import Finished, find_runs
from benchmarks.page import Lines, Table, Text, to_html, to_markdown
from benchmarks.sections import sections, task_table
from diffpolicy_rl import train
from diffpolicy_rl.data.scores import normalized_score
from diffpolicy_rl.errors import UserError
from tests.benchmarks.test_run import words
from tests.training.tiny_run import MLP, tiny

DATA = {"path": "d.hdf5", "command": "collect", "episodes": 9, "return_mean": 500.0, "return_std": 5.0}
DATA["return_quartiles"] = [0.0, 400.0, 500.0, 600.0, 1000.0]
FAST, SLOW = {"steps": 5}, {"steps": 1, "candidates": 50, "temperature": 0.5}


def record(task, agent, seed, level, **extras):
    """A run whose 12 evaluations rise to the level, each of the last ten by 1 from level - 9."""
    means = [0.0, 0.0, *(float(level - 9 + i) for i in range(10))]
    curve = {"unit": "gradient steps", "x": [100 * (i + 1) for i in range(12)], "mean": means}
    return {
        "task": task,
        "agent": agent,
        "seed": seed,
        "command": f"train agent={agent} seed={seed} <b>",
        "commit": "abc",
        "machine": {"system": "Linux", "processor": "P", "cores": 1},
        "versions": {"python": "3.11", "torch": "2"},
        "env_steps": 0,
        "gradient_steps": 1200,
        "wall_s": 90.0,
        "seconds": {"rollout": 0.0, "update": 60.0, "evaluation": 30.0},
        "final": {"mean": level},
        "best": {"mean": level + 100.0},
        "sampling": FAST if agent == "a" else SLOW,
        "curve": curve,
    } | extras


@pytest.fixture
def results():
    runs = [
        record(task, agent, seed, {"a": 1000, "b": 2000}[agent] + 10 * seed)
        for task in ("hop", "walk")
        for agent in ("a", "b")
        for seed in range(3)
    ]
    task = {"data": DATA, "unit": "reference"}
    return {"tasks": {"hop": {"env": "Hopper-v5", **task}, "walk": {"env": "Walker2d-v5", **task}}, "runs": runs}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(protocol, "REPS", 200)


def test_scores_are_the_mean_of_the_last_ten_and_the_best(results):
    found = Comparison(results)
    assert found.scores("hop", "a", "last")[2] == pytest.approx(normalized_score("Hopper-v5", 1020 - 4.5))
    assert found.scores("walk", "b", "best")[0] == pytest.approx(normalized_score("Walker2d-v5", 2100))
    assert protocol.last_mean({"x": [0, 5, 9], "mean": [70.0, 1.0, 2.0]}, "mean") == 1.5  # the start does not count


def test_units():
    plain = {"final": {"mean": 1.0}}
    assert protocol.unit_of({"env": "Hopper-v5", "data": None}, {"final": {"mean": 1.0, "success": 0.5}}) == "success"
    assert protocol.unit_of({"env": "Hopper-v5", "data": DATA}, plain) == "reference"
    assert protocol.unit_of({"env": "E-v0", "data": DATA}, plain) == "data"
    assert protocol.unit_of({"env": "E-v0", "data": {"path": "gone"}}, plain) == "return"
    assert protocol.score(250.0, {"unit": "data", "data": DATA}) == 25
    assert protocol.score(0.5, {"unit": "success"}) == 50
    assert protocol.score(7.0, {"unit": "return"}) == 7


def test_only_seeds_finished_on_every_task_are_put_together(results):
    results["runs"] = [r for r in results["runs"] if (r["task"], r["agent"], r["seed"]) != ("walk", "a", 1)]
    found = Comparison(results)
    assert found.matrices("last")["a"].shape == (2, 2)
    assert found.matrices("last")["b"].shape == (3, 2)
    assert not found.paired
    np.testing.assert_allclose(found.matrices("best")["a"][1], [found.scores(t, "a", "best")[2] for t in found.tasks])
    results["runs"] = [r for r in results["runs"] if (r["task"], r["agent"]) != ("walk", "a")]
    text = to_markdown("t", sections(Comparison(results), ""))
    assert "Without a, for lack of a seed that is finished on every task." in text
    results["tasks"]["hop"]["unit"] = "return"
    assert "returns of different tasks have no common scale" in to_markdown("t", sections(Comparison(results), ""))


def test_the_page_says_what_the_results_say(results):
    found = Comparison(results)
    blocks = sections(found, "About it.")
    html, markdown = to_html("title", blocks), to_markdown("title", blocks)
    scores = list(found.scores("hop", "b", "last").values())
    cell = f"{np.mean(scores):.1f} ± {4.303 * np.std(scores, ddof=1) / 3**0.5:.1f}"
    assert f"<td><strong>{cell}</strong></td>" in html
    assert f"| **{cell}** |" in markdown
    iqm = found.iqms("last")["a"]
    values = np.sort(found.matrices("last")["a"].ravel())[1:5]
    assert iqm.value == pytest.approx(values.mean())
    assert f"<td>{iqm.value:.1f} [{iqm.low:.1f}, {iqm.high:.1f}]</td>" in html
    assert "<td>1.00</td>" in html  # b is always above a, in every resample
    low, middle, high = (normalized_score("Hopper-v5", value) for value in (400, 500, 600))
    assert f"<td>{middle:.1f} [{low:.1f}, {high:.1f}]</td>" in html
    assert "| b | 10 | 1 | 50 | 0.5 | 1.5 | 1.0 | 0.5 | - | 20 |" in markdown
    for said in (
        "About it.",
        protocol.PAIRED,
        protocol.CAUTION,
        "P, 1 cores, Linux",
        "python 3.11 torch 2",
        "Commits: abc.",
    ):
        assert said in markdown
    assert "train agent=a seed=0 &lt;b&gt;" in html


def test_core_minutes_are_those_of_the_longest_run_that_kept_count(results):
    of_b = [run for run in results["runs"] if run["agent"] == "b"]
    of_b[0]["cpu_s"], of_b[1]["cpu_s"] = 240.0, 150.0
    markdown = to_markdown("title", sections(Comparison(results), ""))
    assert "| b | 10 | 1 | 50 | 0.5 | 1.5 | 1.0 | 0.5 | 4.0 | 20 |" in markdown


def test_the_page_needs_nothing_but_itself(results):
    html = to_html("title", sections(Comparison(results), ""))
    assert re.findall(r"""(?:src|href)=["']?(?!["']?data:)""", html) == []
    assert not re.search(r"<(?:script|link|iframe)|@import|url\(", html)
    assert html.count('src="data:image/svg+xml;base64,') == 3
    assert html == to_html("title", sections(Comparison(results), ""))  # made again, it is the same


def test_costs_and_success_have_their_columns(results):
    for made in results["runs"]:
        made["curve"]["cost"], made["best"]["cost"] = [4.0] * 12, 9.0
        if made["task"] == "hop":
            made["curve"]["success"], made["best"]["success"] = [0.25] * 12, 0.75
    results["tasks"]["hop"]["unit"] = "success"
    found = Comparison(results)
    assert set(found.scores("hop", "a", "last").values()) == {25.0}
    assert set(found.scores("hop", "a", "best").values()) == {75.0}
    markdown = to_markdown("t", sections(found, ""))
    assert "| hop | 4.0 ± 0.0 | 4.0 ± 0.0 |" in markdown
    assert "| hop | 9.0 ± 0.0 | 9.0 ± 0.0 |" in markdown
    assert "success, %" in markdown


def test_what_costs_too_much_is_marked_and_not_the_best(results):
    for made in results["runs"]:
        cost = 12.0 if made["agent"] == "b" else 8.0  # b scores twice as much
        made["curve"]["cost"], made["best"]["cost"] = [cost] * 12, cost + 3
    results["cost_limit"] = 10
    found = Comparison(results)
    markdown = to_markdown("t", sections(found, ""))
    assert "†: unsafe, an episode costs more than 10 on average." in markdown
    hop = task_table(found, "last").rows[0]
    assert (hop[2].startswith("**"), hop[3].startswith("**"), hop[3].endswith(" †")) == (True, False, True)
    assert all(cell.endswith(" †") for cell in task_table(found, "best").rows[0][2:])
    assert " † |" not in to_markdown("t", sections(Comparison(results | {"cost_limit": 20}), ""))


def test_how_candidates_are_chosen_and_what_a_run_was_resumed_with_is_told(results):
    results["runs"][0]["sampling"] = FAST | {"choice": "best"}
    results["runs"][0]["resumed"] = [
        {key: results["runs"][0][key] for key in ("machine", "versions")} | {"commit": "xyz"}
    ]
    markdown = to_markdown("t", sections(Comparison(results), ""))
    assert "| agent | evaluations | K | candidates | temperature | choice |" in markdown
    assert "| a | 10 | 5 | - | - | best |" in markdown
    assert "Commits: abc, xyz." in markdown


def test_blocks_by_hand():
    blocks = [Text("a < **b**"), Table(["x", "y"], [["1", "**2**"]]), Lines("more", ["c & d"])]
    html, markdown = to_html("t", blocks), to_markdown("t", blocks)
    assert "<p>a &lt; <strong>b</strong></p>" in html
    assert "<tr><td>1</td><td><strong>2</strong></td></tr>" in html
    assert "<code>c &amp; d</code>" in html
    assert markdown == "# t\n\na < **b**\n\n| x | y |\n| --- | ---: |\n| 1 | **2** |\n\nmore:\n\n    c & d\n"


def test_half_interval_by_hand():
    assert comparison.half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)
    assert comparison.half_interval([1.0]) is None
    for seeds, quantile in ((11, 2.228139), (31, 2.042272), (101, 1.983972)):  # of 10, 30 and 100 degrees of freedom
        values = [0.0, 1.0] * (seeds // 2) + [0.5]
        half = quantile * np.std(values, ddof=1) / seeds**0.5
        assert comparison.half_interval(values) == pytest.approx(half, rel=1e-3)


def test_a_suite_becomes_one_file_a_page_and_a_table(place, suite_file, capsys):
    tasks = {"short": ["data.episodes=5"], "shorter": ["data.episodes=4"]}
    short = words(bc_steps=200)
    suite_file("s", about="tiny", words=short[1:], tasks=tasks, agents={"clone": {"words": [short[0]]}}, seeds=1)
    run.main(["s", "seeds=2", "tasks=short", "folder=f"])
    run.main(["s", "folder=f"])
    said = capsys.readouterr().out
    assert said.count("training ") == 3  # two seeds of one task, then one of the other
    found = json.loads((place / "results" / "s.json").read_text())
    assert (found["suite"], found["about"], list(found["tasks"])) == ("s", "tiny", ["short", "shorter"])
    assert [(r["task"], r["agent"], r["seed"]) for r in found["runs"]] == [
        ("short", "clone", 0),
        ("short", "clone", 1),
        ("shorter", "clone", 0),
    ]
    first = found["runs"][0]
    summary = json.loads((place / "f" / "short_clone_s0" / "summary.json").read_text())
    assert first["final"]["mean"] == summary["final"]["mean"]
    assert first["curve"]["unit"] == "gradient steps"
    assert first["curve"]["x"] == [100, 200]
    assert first["sampling"] == {"steps": 4}
    assert first["gradient_steps"] == 200
    assert found["tasks"]["short"]["data"]["episodes"] == 5
    assert found["tasks"]["short"]["unit"] == "reference"
    report.main(["suite=s"])
    table = task_table(Comparison(found), "last")
    assert all(cell in (place / "results" / "s.md").read_text() for row in table.rows for cell in row)
    assert (place / "results" / "s.html").read_text().startswith("<!doctype html>")
    (place / "README.md").write_text("x\n<!-- results: suite s -->\n<!-- /results -->\ny\n")
    report.main(["table"])
    report.main(["check"])
    assert f"| {table.rows[0][0]} | {table.rows[0][1]} |" in (place / "README.md").read_text()
    with (place / "results" / "s.md").open("a") as page:
        page.write("and more\n")
    with pytest.raises(UserError, match=r"s\.md is not what its results say; run python -m benchmarks\.report suite=s"):
        report.main(["check"])


@pytest.mark.parametrize(
    ("agent", "noise_scale", "said"),
    [
        ({"_target_": "a.BC"}, 1.0, {"steps": 5}),
        ({"_target_": "a.FQL"}, 0.5, {"steps": 1, "noise_scale": 0.5}),
        (
            {"_target_": "a.FISOR", "candidates": 4, "choice": "safest"},
            1.0,
            {"steps": 5, "candidates": 4, "choice": "safest"},
        ),
    ],
)
def test_a_record_says_how_the_agent_samples(monkeypatch, agent, noise_scale, said):
    for part in ("provenance", "evaluations"):
        monkeypatch.setattr(records, part, lambda run: {})
    monkeypatch.setattr(records, "_curve", lambda run, config: {})
    config = SimpleNamespace(agent=agent, policy=SimpleNamespace(steps=5, noise_scale=noise_scale))
    assert records.summarize(Path("run"), config)["sampling"] == said


def test_own_runs_are_compared_by_settings_and_data(place, capsys):
    for name, seed, horizon in (("one_s0", 0, 4), ("one_s1", 1, 4), ("two_s0", 0, 6)):
        policy = {"net": MLP, "horizon": horizon}
        train.train(tiny(Path("runs") / name, "bc", seed=seed, policy=policy))
    report.main(["runs/one_s0", "runs/one_s1", "runs/two_s0", "out=page"])
    assert "| agent | evaluations |" in Path("page.md").read_text()
    assert "wrote page.html" in capsys.readouterr().out
    found = Comparison(records.collect(find_runs([Path("runs")])))
    assert found.agents == ["one", "two"]
    assert list(found.tasks) == ["Hopper-v5"]
    assert len(found.runs["Hopper-v5", "one"]) == 2
    single = find_runs([Path("runs/two_s0")])
    assert [(run.task, run.agent) for run in single] == [("Hopper-v5", "bc")]
    unlike = [Finished(run.folder, run.config, "t", "a") for run in find_runs([Path("runs")])]
    with pytest.raises(UserError, match="one_s0 and runs/two_s0 differ in policy, not in their seed alone"):
        records.collect(unlike)
    with pytest.raises(UserError, match="the same training with the same seed; leave one out"):
        records.collect([unlike[0], replace(unlike[0])])


def test_runs_are_named_by_what_differs_where_their_folders_do_not_tell(place):
    steps = {"20261123-002119-bc-hopper-v5-s0": (0, 4), "20261123-002204-bc-hopper-v5-s1": (1, 4), "x/bc_s0": (0, 2)}
    for name, (seed, number) in steps.items():
        train.train(tiny(Path("runs") / name, "bc", seed=seed, policy={"net": MLP, "steps": number}))
    found = find_runs([Path("runs"), Path("runs/x")])
    assert {run.folder.name: run.agent for run in found} == {
        "20261123-002119-bc-hopper-v5-s0": "bc steps=4",
        "20261123-002204-bc-hopper-v5-s1": "bc steps=4",
        "bc_s0": "bc steps=2",
    }
    Path("runs/x/bc_s0/manifest.json").unlink()
    with pytest.raises(UserError, match=r"runs/x/bc_s0 has no sound manifest\.json; leave it out"):
        records.collect(found)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name either run folders or a suite"),
        (["nowhere"], "there is no finished run in nowhere"),
        (["suite=d4rl_locomotion"], "there are no results of the suite d4rl_locomotion; run python -m b"),
        (["suite=peg_insertion"], "there are no results of the suite peg_insertion"),
        (["suite=d4rl_locomotoin"], "there is no suite 'd4rl_locomotoin'; did you mean 'd4rl_locomotion'"),
        (["a", "suite=none"], "name either run folders or a suite"),
        (["a", "title=x"], "there is no setting title"),
    ],
)
def test_mistakes_are_one_sentence(place, argv, message):
    (place / "results" / "peg_insertion.json").write_text('{"seeds": []}')  # a result, but not a suite's
    with pytest.raises(UserError, match=message):
        report.main(argv)
