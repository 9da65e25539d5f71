import platform
import sys
from types import SimpleNamespace

import pytest
import torch

from diffpolicy_rl import train
from diffpolicy_rl.training import session, threads
from diffpolicy_rl.training.machine import available_cores
from diffpolicy_rl.training.threads import keep_freed_memory, torch_threads, use_fast_fp32
from tests.training.tiny_run import tiny


def test_threads_and_precision_are_put_back():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    assert available_cores() >= 1
    assert keep_freed_memory() or "musl" in platform.libc_ver()[0] or sys.platform != "linux"
    use_fast_fp32()
    a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((a @ b).double(), a.double() @ b.double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("clock", "told"), [([0.0, 1.0, 5.0, 6.1], True), ([0.0, 1.0, 5.0, 5.9], False)])
def test_cores_that_are_taken_are_told(tmp_path, monkeypatch, capsys, clock, told):
    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=iter(clock).__next__))
    assert threads.outpaced_by_one(2) == told
    monkeypatch.setattr(session, "outpaced_by_one", lambda count: told and count == 2)
    train.train(tiny(tmp_path / "run", threads=2, iterations=1))
    assert ("2 threads are slower than threads=1" in capsys.readouterr().out) == told
