"""Start, or resume, a run; kill -9 it at a random moment; load its policy. Prints how often that went well.

A program of its own, because a process that has used torch's threads cannot be forked.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.utils.tensorboard

from diffpolicy_rl import load, train
from diffpolicy_rl.training.checkpoint import Checkpoints, read_state
from tests.training.tiny_run import tiny

ENDLESS = {
    "bc_steps": 30,
    "env_steps": 10**7,
    "decisions": 2,
    "bc_eval_every": 1,
    "eval_every": 1,
    "eval_episodes": 1,
    "final_episodes": 1,
}


def child(folder: Path, agent: str) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if (folder / "checkpoints" / "last").exists():
        train.main([f"resume={folder}"])
    else:
        train.train(tiny(folder, agent, budget=ENDLESS))


def main(folder: Path, agent: str, kills: int) -> None:
    torch.set_num_threads(1)
    last, iterations = folder / "checkpoints" / "last", []
    for _ in range(kills):
        pid = os.fork()
        if pid == 0:
            child(folder, agent)
            os._exit(1)
        began = time.monotonic()
        while not last.exists() and time.monotonic() - began < 30:
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 1.2))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        policy = load(folder)
        assert policy(torch.zeros(1, 11), policy.sample_noise(1)).isfinite().all()
        iterations.append(read_state(Checkpoints(folder / "checkpoints").find("last"))["total_iterations"])
    print(json.dumps({"loaded": len(iterations), "iterations": iterations}))


main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
