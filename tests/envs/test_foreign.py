"""Any Gymnasium environment, in this process and in worker processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.streams import episode_seeds
from diffpolicy_rl.errors import UserError

TOY = "tests.envs.toy_envs:ToyCounter-v0"
BACKENDS = ("gymnasium", "workers")


def toy(backend, **options):
    env = make_env(TOY, backend=backend, dtype=torch.float64, **options)
    env.reset(seed=5)
    return env


def full(value, n=2, chunk=4):
    return torch.full((n, chunk, 1), float(value))


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunk_by_hand(backend):
    env = toy(backend, num_envs=2, chunk=4)
    obs, reward, terminated, truncated, info = env.step(torch.tensor([[1.0] * 4, [0.5] * 4]).unsqueeze(2))
    # Row 0 reaches the sum 3 with its third action; row 1 goes on. Rewards are t times the action.
    assert info["rewards"].tolist() == [[1.0, 2.0, 3.0, 0.0], [0.5, 1.0, 1.5, 2.0]]
    assert (reward.tolist(), info["executed"].tolist()) == ([6.0, 5.0], [3, 4])
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, False])
    assert info["success"].tolist() == [True, False]
    assert info["final_obs"][:, 0].tolist() == [3.0, 4.0]
    assert obs[:, 0].tolist() == [0.0, 4.0]
    _, _, terminated, truncated, info = env.step(full(0.0))
    assert (terminated.tolist(), truncated.tolist()) == ([False, False], [False, True])  # row 1's limit is 6
    assert info["executed"].tolist() == [4, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_episodes_start_from_a_seed_of_row_and_episode(backend):
    env = toy(backend, num_envs=2)
    starts = [env.observation()[:, 1]]
    for _ in range(3):
        obs, *_ = env.step(full(1.0, chunk=1))
    starts.append(obs[:, 1])
    rows = torch.arange(2)
    for episode, start in enumerate(starts):
        for row in range(2):
            seed = episode_seeds(5, rows, torch.full((2,), episode))[row]
            plain = gymnasium.make(TOY)
            assert plain.reset(seed=int(seed))[0][1] == start[row]


def test_real_environment_equals_stepping_it_by_hand():
    env = make_env("InvertedPendulum-v5", num_envs=1, chunk=2, dtype=torch.float64, backend="gymnasium")
    plain = gymnasium.make("InvertedPendulum-v5")
    obs, _ = env.reset(seed=1)
    zero = torch.zeros(1, dtype=torch.long)
    expected, _ = plain.reset(seed=int(episode_seeds(1, zero, zero)[0]))
    assert obs[0].tolist() == expected.tolist()
    for chunk in torch.rand(40, 1, 2, 1, generator=torch.Generator().manual_seed(0)):
        obs, _, terminated, _, info = env.step(chunk)
        for action in chunk[0, : info["executed"].item()]:
            expected, _, ended, *_ = plain.step(action.numpy())
        assert info["final_obs"][0].tolist() == expected.tolist()
        assert terminated.item() == ended
        if ended:
            break
    assert ended


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_resuming_starts_new_episodes_and_says_so(backend):
    env = toy(backend, num_envs=2)
    env.step(full(0.5, chunk=1))
    state = env.state_dict()
    other = toy(backend, num_envs=2)
    other.load_state_dict(state)
    assert other.restarted_on_load
    assert other.observation()[:, 0].tolist() == [0.0, 0.0]
    assert not torch.equal(other.observation(), toy(backend, num_envs=2).observation())  # the next episode's start


def test_killed_worker_is_replaced_counted_and_its_rows_truncated():
    env = toy("workers", num_envs=4, chunk=2, threads=2)
    env.step(full(0.5, 4, 2))
    os.kill(env._workers[1]._process.pid, signal.SIGKILL)
    env._workers[1]._process.join()
    with pytest.warns(RuntimeWarning, match="worker of rows 2 to 3 crashed"):
        obs, _, terminated, truncated, info = env.step(full(0.5, 4, 2))
    assert env.worker_restarts == 1
    assert truncated.tolist() == [False, False, True, True]
    assert not terminated.any()
    assert info["rewards"][2:].tolist() == [[0.0, 0.0]] * 2
    assert info["final_obs"][:, 0].tolist() == [4.0, 4.0, 2.0, 2.0]  # rows 2, 3: where they were
    assert obs[:, 0].tolist() == [4.0, 4.0, 0.0, 0.0]
    assert env.step(full(0.5, 4, 2))[4]["executed"].tolist() == [2, 2, 2, 2]


def processes_of(parent):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_closing_leaves_neither_processes_nor_shared_memory():
    before = set(os.listdir("/dev/shm"))
    env = toy("workers", num_envs=2, threads=2)
    pids = [worker._process.pid for worker in env._workers]
    assert set(os.listdir("/dev/shm")) - before
    env.close()
    assert not any(alive(pid) for pid in pids)
    assert not set(os.listdir("/dev/shm")) - before


def test_workers_end_with_a_killed_parent():
    program = (
        "import sys, time, torch; sys.path.insert(0, '.'); from diffpolicy_rl import make_env\n"
        f"if __name__ == '__main__':\n env = make_env('{TOY}', backend='workers', num_envs=2, threads=2); env.reset()\n"
        " print(*[worker._process.pid for worker in env._workers], flush=True); time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ToyDict-v0", "observation_space is a Dict, but only a Box is supported"),
        ("ToyEndless-v0", "has no time limit; set max_episode_steps"),
        ("ToyCountre-v0", "cannot be made"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(backend, name, message):
    with pytest.raises(UserError, match=message):
        make_env(f"tests.envs.toy_envs:{name}", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_module_that_is_missing_is_one_sentence(backend):
    with pytest.raises(UserError, match="no_such_module"):
        make_env("no_such_module:Env-v0", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_observation_that_is_not_a_number_stops_the_run(backend):
    env = make_env("tests.envs.toy_envs:ToyBroken-v0", backend=backend, chunk=3)
    env.reset()
    with pytest.raises(UserError, match="the observation of row 0 is not finite"):
        env.step(full(0.0, 1, 3))
