"""Results of a suite outlive the run folders, and keep what belongs together."""

import dataclasses
import json
import shutil
from pathlib import Path

import h5py
import pytest

from benchmarks import run
from benchmarks.finished import Finished
from benchmarks.ledger import read_results, write_results
from benchmarks.suites import jobs, read_suite
from diffpolicy_rl import train
from diffpolicy_rl.data.catalog import resolve
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.run import read_config
from tests.benchmarks.test_run import words


@pytest.fixture
def suite(place, suite_file):
    """Write a suite of two agents on one task, whose data can be changed."""
    data = shutil.copy(resolve("hopper"), place / "d.hdf5")

    def write(*more):
        agents = {"slow": {"words": ["agent=bc"]}, "fast": {"words": ["agent=bc", "agent.lr=1e-2"]}}
        shared = [*words()[1:], f"data={data}", "data.episodes=4", *more]
        suite_file("s", about="tiny", words=shared, tasks={"hop": []}, agents=agents, seeds=2)

    write()
    return write


def trainings():
    return [(record["agent"], record["seed"]) for record in read_results("s")["runs"]]


def test_what_was_finished_elsewhere_stays_and_is_not_trained_again(suite, capsys):
    run.main(["s", "folder=here", "agents=slow", "seeds=1"])
    first = read_results("s")["runs"][0]
    shutil.rmtree("here")
    capsys.readouterr()
    run.main(["s", "folder=there"])
    said = capsys.readouterr().out
    assert "1 of 4 trainings are on record" in said
    assert said.count("training there/") == 3
    assert "training there/hop_slow_s0" not in said
    assert trainings() == [("fast", 0), ("fast", 1), ("slow", 0), ("slow", 1)]  # in the suite's order
    assert read_results("s")["runs"][2] == first


def test_other_settings_are_not_mixed_with_what_is_on_record(suite, place, capsys):
    run.main(["s", "folder=here", "agents=slow"])
    path = place / "results" / "s.json"
    kept = path.read_text()
    suite("policy.horizon=2", "policy.execute=2")
    capsys.readouterr()
    for folder, message in (
        ("here", "here/hop_slow_s0 has policy.horizon=4, but the suite says 2; move it elsewhere"),
        ("there", "has hop_slow with policy.horizon=4, but the suite says 2; take its records out of the file"),
    ):
        with pytest.raises(UserError, match=message):
            run.main(["s", f"folder={folder}", "agents=slow", "seeds=1"])
    assert "training" not in capsys.readouterr().out  # it is told before hours are spent
    assert path.read_text() == kept
    path.write_text(json.dumps(json.loads(kept) | {"runs": [], "settings": {}}))
    run.main(["s", "folder=there", "agents=slow", "seeds=1"])
    assert trainings() == [("slow", 0)]


@pytest.mark.parametrize("tasks", [{"hop": []}, {}])
def test_what_was_interrupted_with_other_settings_is_not_gone_on_with(suite, suite_file, place, tasks):
    agents = {"slow": {"words": ["agent=bc"]}}
    suite_file("t", about="tiny", words=words()[1:], tasks=tasks, agents=agents)
    (name,) = (job.name for job in jobs(read_suite("t"), place))
    begun = [*words(), "seed=0", "iterations=0", f"run_dir=here/{name}"]
    train.main(begun)
    (place / "here" / name / "summary.json").unlink()  # as if it had been killed
    suite_file("t", about="tiny", words=[*words()[1:], "policy.steps=3"], tasks=tasks, agents=agents)
    with pytest.raises(UserError, match=f"here/{name} has policy.steps=4, but the suite says 3; move it elsewhere"):
        run.main(["t", "folder=here"])
    assert not (place / "here" / name / "summary.json").exists()


def test_a_run_without_a_score_does_not_keep_others_from_the_record(suite, suite_file, place):
    agents = {"slow": {"words": ["agent=bc"]}, "never": {"words": ["agent=bc", "budget.bc_eval_every=1000"]}}
    agents["stopped"] = {"words": ["agent=bc", "max_minutes=0"]}
    suite_file("t", about="tiny", words=words()[1:], tasks={"hop": []}, agents=agents)
    with pytest.raises(UserError, match="never evaluated while they learned: here/hop_stopped_s0"):
        run.main(["t", "folder=here"])
    assert {record["agent"] for record in read_results("t")["runs"]} == {"slow", "never"}


def test_a_run_of_other_settings_is_not_added(suite, place):
    """As one that was interrupted before the suite changed, and resumed after."""
    run.main(["s", "folder=here", "agents=slow"])
    kept, folder = (place / "results" / "s.json").read_text(), Path("here/hop_slow_s1")
    config = read_config(folder)
    changed = dataclasses.replace(config, agent=config.agent | {"lr": 0.5})
    with pytest.raises(UserError, match=r"hop_slow_s1 has agent.lr=0.5, but .* has hop_slow with 0.001; train one"):
        write_results("s", "tiny", [Finished(folder, changed, "hop", "slow")], [("hop", "slow")])
    assert (place / "results" / "s.json").read_text() == kept


def test_settings_that_came_since_change_nothing(suite, place, capsys):
    run.main(["s", "folder=here", "agents=slow", "seeds=1"])
    path = place / "results" / "s.json"
    results = json.loads(path.read_text())
    del results["settings"]["hop_slow"]["agent"]["dispersive"]  # as if it had been written before
    path.write_text(json.dumps(results))
    capsys.readouterr()
    run.main(["s", "folder=there", "agents=slow", "seeds=1"])
    assert "1 of 1 trainings are on record" in capsys.readouterr().out


def test_a_file_that_is_broken_is_told(suite, place):
    (place / "results" / "s.json").write_text("<<<<<<< HEAD")
    with pytest.raises(UserError, match=r"s.json is not valid JSON; restore it, or delete it to begin anew"):
        run.main(["s", "folder=here", "agents=slow", "seeds=1"])
    assert not (place / "here").exists()
    older = {"suite": "s", "runs": [{"task": "hop", "agent": "slow", "seed": 0}]}
    (place / "results" / "s.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"s.json does not say how hop_slow was trained; take its records out"):
        run.main(["s", "folder=here", "agents=slow", "seeds=1"])


def test_other_data_is_not_mixed_with_what_is_on_record(suite, place):
    run.main(["s", "folder=here", "agents=slow", "seeds=1"])
    kept = read_results("s")
    (place / "d.hdf5").rename(place / "gone.hdf5")
    run.main(["s", "folder=here", "agents=slow", "seeds=1"])  # what it was is on record
    assert read_results("s") == kept
    with h5py.File(place / "gone.hdf5", "a") as file:
        file["rewards"][...] *= 2
    (place / "gone.hdf5").rename(place / "d.hdf5")
    with pytest.raises(UserError, match="the records of hop are of other data than these runs; take them out of"):
        run.main(["s", "folder=there", "agents=slow", "seeds=[1]"])
    assert read_results("s") == kept
    path = place / "results" / "s.json"
    path.write_text(json.dumps(kept | {"runs": []}))
    run.main(["s", "folder=there", "agents=slow", "seeds=[1]"])  # none of the old data's are left
    assert trainings() == [("slow", 1)]
