"""The README's way to the robot, in small: train, distil, export, verify, serve, and a robot that asks."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()
SMALLER = {
    "diffpolicy_rl.train": "iterations=2 budget=smoke video=false threads=1",
    "diffpolicy_rl.distill": "env_steps=4000 episodes=8 threads=1",
    "diffpolicy_rl.runtime.examples.mujoco_robot": "--seconds 1",
}


def commands():
    """Module and words of each line between the marks."""
    way = README.partition("<!-- way -->")[2].partition("<!-- /way -->")[0]
    return re.findall(r"^python -m ([\w.]+) ([^#\n]*)", way, re.MULTILINE)


def test_every_step_of_the_way_works(tmp_path):
    assert [module.rpartition(".")[2] for module, _ in commands()] == [
        "train", "distill", "export", "verify", "serve", "mujoco_robot",
    ]  # fmt: skip
    served = None
    try:
        for module, words in commands():
            words = words.replace("8000", str(_port(served)))
            argv = [sys.executable, "-m", module, *shlex.split(words), *shlex.split(SMALLER.get(module, ""))]
            if module == "diffpolicy_rl.serve":
                served = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            else:
                done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, done.stderr
        assert "ticks: " in done.stdout
        assert " run" in done.stdout
        (block,) = re.findall(r"```python\n(import numpy.*?)```", README, re.DOTALL)
        checks = "import sys\nassert command.shape == (3,)\nassert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", f"{block}\n{checks}"], cwd=tmp_path, check=True, timeout=60)
    finally:
        if served:
            served.terminate()
            assert served.wait(timeout=10) == 0


def _port(served: "subprocess.Popen[str] | None") -> int:
    """0, any free port, for the server to begin with; then the one it took."""
    return 0 if served is None else int(served.stdout.readline().split()[-1])
