"""Worker processes: the same results as in this process, and a clean end, however it comes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.errors import UserError
from tests.envs.helpers import BACKENDS, full, toy

ROOT = Path(__file__).parents[2]
SEGMENTS = Path("/dev/shm")


def kill(worker):
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.join()


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition):
    deadline = time.monotonic() + 15
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_workers_equal_one_process_bit_for_bit():
    moves = 2 * torch.rand(12, 5, 3, 1, generator=torch.Generator().manual_seed(0)) - 0.5
    envs = [toy(backend, num_envs=5, chunk=3, history=2) for backend in BACKENDS]
    for chunk in moves:
        (a, *flags_a, info_a), (b, *flags_b, info_b) = (env.step(chunk) for env in envs)
        assert torch.equal(a, b)
        assert all(torch.equal(x, y) for x, y in zip(flags_a, flags_b, strict=True))
        assert info_a.keys() == info_b.keys()
        assert all(torch.equal(info_a[key], info_b[key]) for key in info_a)
    mask = torch.tensor([True, False, False, True, False])
    assert torch.equal(envs[0].reset(mask=mask)[0], envs[1].reset(mask=mask)[0])


def test_killed_worker_is_replaced_counted_and_its_rows_truncated():
    env = toy("workers", num_envs=4, chunk=2, threads=2)
    env.step(full(0.5, 4, 2))
    kill(env._workers[1])
    with pytest.warns(RuntimeWarning, match="worker of rows 2 to 3 crashed"):
        obs, _, terminated, truncated, info = env.step(full(0.5, 4, 2))
    assert env.worker_restarts == 1
    assert truncated.tolist() == [False, False, True, True]
    assert not terminated.any()
    assert info["rewards"][2:].tolist() == [[0.0, 0.0]] * 2
    assert info["final_obs"][:, 0].tolist() == [4.0, 4.0, 2.0, 2.0]  # rows 2, 3: where they were
    assert obs[:, 0].tolist() == [4.0, 4.0, 0.0, 0.0]
    assert env.step(full(0.5, 4, 2))[4]["executed"].tolist() == [2, 2, 2, 2]


@pytest.mark.filterwarnings("ignore:.*crashed and is restarted")
def test_a_worker_that_always_crashes_ends_the_run():
    env = make_env("tests.envs.toy_envs:ToyRaising-v0", backend="workers", num_envs=1)
    env.reset(seed=0)
    for _ in range(2):
        assert env.step(torch.zeros(1, 1, 1))[3].all()
    with pytest.raises(UserError, match="of rows 0 to 0 crashed 3 times in a row"):
        env.step(torch.zeros(1, 1, 1))


def test_workers_leave_sigterm_to_their_parent():
    env = make_env("tests.envs.toy_envs:ToyCounter-v0", backend="workers", num_envs=1)
    env.reset(seed=0)
    os.kill(env._workers[0]._process.pid, signal.SIGTERM)
    assert not env.step(torch.zeros(1, 1, 1))[3].any()
    assert env.worker_restarts == 0


def test_worker_that_was_killed_before_a_reset_is_replaced():
    env = toy("workers", num_envs=2)
    env.step(full(0.5, chunk=1))
    kill(env._workers[0])
    with pytest.warns(RuntimeWarning, match="restart 1 of this run"):
        obs, _ = env.reset(seed=5)
    assert torch.equal(obs, toy("gymnasium", num_envs=2).observation())
    assert not env.step(full(0.5, chunk=1))[3].any()


def test_worker_that_was_killed_before_a_masked_reset_truncates_its_other_rows_once():
    env = toy("workers", num_envs=2)
    env.step(full(0.5, chunk=1))
    kill(env._workers[0])
    with pytest.warns(RuntimeWarning, match="crashed"):
        obs, _ = env.reset(mask=torch.tensor([True, False]))
    assert obs[:, 0].tolist() == [0.0, 1.0]
    obs, _, _, truncated, info = env.step(full(0.5, chunk=1))
    assert truncated.tolist() == [False, True]
    assert info["final_obs"][:, 0].tolist() == [1.0, 1.0]
    assert obs[:, 0].tolist() == [1.0, 0.0]
    assert not env.step(full(0.5, chunk=1))[3].any()
    assert env.worker_restarts == 1


def test_closing_leaves_neither_processes_nor_shared_memory():
    env = toy("workers", num_envs=2, threads=2)
    pids, segment = [worker._process.pid for worker in env._workers], SEGMENTS / env._memory.name
    assert all(alive(pid) for pid in pids)
    assert segment.exists()
    env.close()
    assert not any(alive(pid) for pid in pids)
    assert not segment.exists()


def test_a_killed_parent_leaves_neither_processes_nor_shared_memory():
    """A child that it forked lives on, and holds its ends of the pipes open."""
    program = (
        "import os, time\n"
        "from tests.envs.helpers import toy\n"
        "if __name__ == '__main__':\n"
        "    env = toy('workers', num_envs=2, threads=2)\n"
        "    child = os.fork()\n"
        "    if child:\n"
        "        print(env._memory.name, child, *[worker._process.pid for worker in env._workers], flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    name, child, *pids = parent.stdout.readline().split()
    segment = SEGMENTS / name
    assert len(pids) == 2
    assert segment.exists()
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not any(alive(pid) for pid in pids))
    os.kill(int(child), signal.SIGKILL)
    assert wait_until(lambda: not segment.exists())


def test_workers_need_no_torch():
    """It would be most of their start and of their memory."""
    program = "import sys, diffpolicy_rl.envs.rows; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert told.stdout == "False\n"
