import json
import time

import pytest

from benchmarks import env_stepping, throughput
from benchmarks.measure import take_turns
from diffpolicy_rl.errors import UserError

SMALL = ["num_envs=4", "decisions=4", "batch=8", "epochs=1", "threads=1", "repeats=1", "seconds=0.2"]


@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ("sample", {"ours_ms", "textbook_ms", "textbook/ours"}),
        ("update", {"ours_ms", "textbook_ms", "textbook/ours"}),
        ("end_to_end", {"env_steps_per_s", "share_sampling", "share_env", "share_update"}),
    ],
)
def test_parts_report_their_figures(part, keys, tmp_path, capsys):
    throughput.main([part, *SMALL, f"out={tmp_path / 'figures.json'}"])
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report[part].keys() == keys
    assert all(value > 0 for value in report[part].values())
    assert report["gemm_gflops_ours"] > 0
    assert report["settings"]["decisions"] == 4
    printed = capsys.readouterr().out
    assert all(f"  {key} " in printed for key in keys)
    if part == "end_to_end":
        assert sum(report[part][f"share_{name}"] for name in ("sampling", "env", "update")) <= 1.0


def test_env_steps_are_counted_alike_on_both_sides():
    env_stepping.check_equal_work("Hopper-v5")
    ours, theirs = env_stepping.Ours("HalfCheetah-v5", 3), env_stepping.Theirs("HalfCheetah-v5", 3, "sync")
    assert (ours.step(), theirs.step()) == (3 * 4, 3)
    before, until = theirs.cpu(), time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert theirs.cpu() - before == pytest.approx(0.05, abs=0.03)


def test_time_of_worker_processes_is_counted():
    side = env_stepping.Theirs("HalfCheetah-v5", 2, "async")
    before, own = side.cpu(), time.process_time()
    for _ in range(400):
        side.step()
    total, own = side.cpu() - before, time.process_time() - own
    side.close()
    assert total > own + 0.02


def test_turns_are_taken():
    order = []
    seconds = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "ab" * 4  # one round to warm up
    assert seconds.keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["updat"], "part=updat is not a choice; did you mean 'update'"),
        (["update", "batsh=3"], "there is no setting batsh; did you mean 'batch'"),
        (["end_to_end", "agent=bc"], "there is no setting agent.minibatch"),
        (["sample", "agent=nothing"], "there is no agent 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(words, message):
    with pytest.raises(UserError, match=message):
        throughput.main([*words, *[word for word in SMALL if word.partition("=")[0] not in str(words)]])
