"""Run this bundle with numpy and onnxruntime alone: ``python run_policy.py`` checks it and measures it.

On a robot::

    from run_policy import Policy
    policy = Policy()
    actions = policy({"observation": observation[None]})[0]     # (H, D) in physical units

Safety limits, chunk execution and the watchdog are ``diffpolicy_rl.runtime``'s, which needs no torch either.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_HERE = Path(__file__).parent


class Policy:
    """The policy of a bundle's folder.

    Args:
        folder: the bundle, by default this file's folder.
        seed: of the noise that is drawn where none is given.

    Attributes:
        manifest: names, shapes, units, rates and limits.
        inputs: the observations to give, by name, and their shapes without the batch dimension.

    Raises:
        ValueError: if a graph is not the file that the manifest lists.
    """

    def __init__(self, folder: Path = _HERE, seed: int = 0) -> None:
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        self.inputs = {port["name"]: tuple(port["shape"]) for port in self.manifest["inputs"]}
        self._rng = np.random.default_rng(seed)
        listed = {file["path"]: file["sha256"] for file in self.manifest["files"]}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        for name, path in self.manifest["graphs"].items():
            content = (folder / path).read_bytes()
            if hashlib.sha256(content).hexdigest() != listed[path]:
                raise ValueError(f"{path} is not the file that manifest.json lists")
            self._sessions[name] = _session(content)

    def __call__(self, obs: Mapping[str, np.ndarray], noise: np.ndarray | None = None) -> np.ndarray:
        """Chunks of actions (B, H, D) in physical units.

        Args:
            obs: raw observations (B, *shape) by name.
            noise: standard normal (B, *manifest noise); drawn if not given.
        """
        feeds = self._observed(obs)
        if self.manifest["noise"] is not None:
            rows = len(next(iter(feeds.values())))
            if noise is None:
                noise = self._rng.standard_normal((rows, *self.manifest["noise"]), dtype=np.float32)
            feeds["noise"] = noise
        return self._run("policy", feeds)

    def correct(self, obs: Mapping[str, np.ndarray], action: np.ndarray) -> np.ndarray:
        """What to execute (B, D) in place of planned actions (B, D), if the bundle has a residual."""
        return self._run("residual", self._observed(obs) | {"action": action})

    def score(self, obs: Mapping[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        """How good chunks (B, H, D) are, (B,), if the bundle has a score; higher is better."""
        return self._run("score", self._observed(obs) | {"actions": actions})

    def _run(self, graph: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(self._sessions[graph].run(None, feeds)[0])

    def _observed(self, obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {port["name"]: np.asarray(obs[port["name"]], port["dtype"]) for port in self.manifest["inputs"]}


def _session(content: bytes) -> onnxruntime.InferenceSession:
    """A graph on one thread of the CPU that does not wait busily."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Compare the bundle with its examples, and time one call."""
    policy = Policy()
    with np.load(_HERE / "examples.npz", allow_pickle=False) as file:
        examples = dict(file)
    obs = {name: examples[name] for name in policy.inputs}
    noise = examples.get("noise")
    far = np.abs(policy(obs, noise) - examples["actions"]) / examples["action_scale"]
    print(f"{policy.manifest['name']}: largest difference from its examples {far.max():.1e}, in normalised units")
    one = {name: value[:1] for name, value in obs.items()}
    times: list[float] = []
    for _ in range(500):
        begin = time.perf_counter()
        policy(one, None if noise is None else noise[:1])
        times.append(1e3 * (time.perf_counter() - begin))
    p50, p99 = np.percentile(times[50:], (50, 99))
    control = policy.manifest["control"]
    period = 1e3 * control["execute"] / control["rate_hz"]
    print(f"one call takes {p50:.3f} ms (p99 {p99:.3f} ms); it is due every {period:.1f} ms")
    if not far.max() <= 1e-5:
        raise SystemExit("this is not the policy that was exported, or onnxruntime computes otherwise here")


if __name__ == "__main__":
    main()
