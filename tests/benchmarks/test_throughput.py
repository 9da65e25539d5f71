import json
import math
import time

import pytest
import torch

from benchmarks import env_stepping, measure, throughput
from benchmarks.measure import (
    against_textbook,
    gemm_floor,
    product_flops,
    take_turns,
    with_either_kernels,
    with_plain_fp32,
)
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.linear import Linear, fixed_weights

SMALL = ["num_envs=4", "decisions=4", "batch=8", "epochs=1", "threads=1", "turns=1", "seconds=0.2"]
SIDES = {"ours_ms", "textbook_ms", "textbook_same_gemm_ms", "textbook/ours", "textbook_same_gemm/ours"}
FLOOR = {"gemm_floor_ms", "ours/gemm_floor"}
MATMUL = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(autouse=True)
def _kernels_as_before():
    before = MATMUL.fp32_precision
    yield
    MATMUL.fp32_precision = before


def figures_in(tree):
    """All numbers of nested figures."""
    return [n for value in tree.values() for n in (figures_in(value) if isinstance(value, dict) else [value])]


@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ("env", {"Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5"}),
        ("sample", {"chain", "noise_free"}),
        ("update", SIDES | FLOOR),
        ("end_to_end", {"env_steps_per_s", "share_sampling", "share_env", "share_update"}),
        ("ensemble", {"width_64", "width_256"}),
        ("replay_update", {"dsrl", "expo"}),
        ("deployment", {"exported_1_ms", *(f"textbook_{k}{end}" for k in (1, 10) for end in ("_ms", "/exported_1"))}),
        ("safety", {"within_limits", "clipped"}),
        ("serving", {"ours", "plain", "inference"}),
    ],
)
def test_parts_report_their_figures(part, keys, tmp_path, capsys):
    throughput.main([part, *SMALL, f"out={tmp_path / 'figures.json'}"])
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report[part].keys() == keys
    assert all(value > 0 and math.isfinite(value) for value in figures_in(report[part]))
    assert report["gemm_gflops_ours"] > 0
    assert report["gemm_gflops_plain"] > 0
    assert report["settings"]["decisions"] == 4
    assert report["versions"]["torch"]
    printed = capsys.readouterr().out
    assert all(f"  {key}" in printed for key in keys)
    assert "threads 1 of " in printed
    if part == "env":
        keys = {"ours", "sync", "async", "ours/sync", "ours/async"}
        assert all(task.keys() == keys for task in report[part].values())
    if part in ("sample", "ensemble", "replay_update"):
        assert all(figures.keys() == SIDES | FLOOR for figures in report[part].values())
    if part == "end_to_end":
        assert sum(report[part][f"share_{name}"] for name in ("sampling", "env", "update")) <= 1.0


@pytest.mark.parametrize("env", ["halfcheetah", "walker2d"])
def test_other_tasks_are_measured_with_or_without_demonstrations(env, tmp_path):
    for part in ("sample", "end_to_end"):
        throughput.main([part, f"env={env}", *SMALL, f"out={tmp_path / part}"])
        assert all(value > 0 for value in figures_in(json.loads((tmp_path / part).read_text())[part]))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dppo_is_measured_too(precision, tmp_path):
    for part in ("sample", "update", "end_to_end"):
        words = [part, "agent=dppo", f"precision={precision}", *SMALL, f"out={tmp_path / part}"]
        throughput.main([word.replace("batch=8", "batch=80") for word in words])
        assert all(value > 0 for value in figures_in(json.loads((tmp_path / part).read_text())[part]))


def test_floor_is_the_time_of_the_products(monkeypatch):
    a, b = torch.randn(400, 512), torch.randn(512, 256)
    monkeypatch.setattr(measure, "take_turns", lambda sides, turns: {"ours": 3.0, "gemm": 2.0})
    # Half a product of (400, 512) @ (512, 512) each: 11 of them are 5.5, beside 6 in 2 s.
    floor = gemm_floor(lambda: [a @ b for _ in range(11)], rows=400, precision="fp32")
    assert floor == pytest.approx({"gemm_floor_ms": 2000 * 5.5 / 6, "ours/gemm_floor": 3 / (2 * 5.5 / 6)})


@torch.no_grad()
def test_products_with_fixed_weights_are_counted():
    layer, x = Linear(512, 512), torch.randn(400, 512)

    def products():
        return [layer.plus(x, x) for _ in range(5)] + [layer(x) for _ in range(5)]

    assert product_flops(products) == 10 * 2 * 400 * 512 * 512
    with fixed_weights(layer):
        assert product_flops(products) == 10 * 2 * 400 * 512 * 512


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


def test_the_other_side_chooses_its_own_kernels_and_the_choice_is_put_back():
    MATMUL.fp32_precision, seen = "bf16", []
    with_plain_fp32(lambda: seen.append(MATMUL.fp32_precision))()
    assert (seen, MATMUL.fp32_precision) == (["none"], "bf16")
    with pytest.raises(ZeroDivisionError):
        with_plain_fp32(lambda: 1 / 0)()
    assert MATMUL.fp32_precision == "bf16"


def test_either_kernels_are_torchs_choice_and_ours():
    MATMUL.fp32_precision, seen = "bf16", []
    sides = with_either_kernels({"a": lambda: seen.append(MATMUL.fp32_precision)})
    for name in ("a", "a_same_gemm"):
        sides[name]()
    assert seen == ["none", "bf16"]


def test_ratios_say_how_much_longer_the_textbook_takes():
    ours, textbook = (lambda: time.sleep(0.001)), (lambda: time.sleep(0.004))
    figures = against_textbook(ours, textbook, repeats=3, calls=2)
    assert figures.keys() == SIDES
    assert figures["ours_ms"] >= 1
    assert figures["textbook_ms"] >= 4
    assert figures["textbook/ours"] == pytest.approx(figures["textbook_ms"] / figures["ours_ms"])
    assert figures["textbook_same_gemm/ours"] > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["updat"], "part=updat is not a choice; did you mean 'update'"),
        (["update", "batsh=3"], "there is no setting batsh; did you mean 'batch'"),
        (["env", "turns=0"], "turns=0 must be above 0"),
        (["sample", "threads=0"], "threads=0 must be above 0"),
        (["end_to_end", "agent=bc"], "there is no setting agent.minibatch"),
        (["sample", "agent=nothing"], "there is no agent 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(words, message):
    with pytest.raises(UserError, match=message):
        throughput.main([*words, *[word for word in SMALL if word.partition("=")[0] not in str(words)]])
