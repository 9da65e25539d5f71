"""The pictures of a run: its learning curve, and a video of its final policy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffpolicy_rl.training.driver import Driver
from diffpolicy_rl.training.logger import read_metrics
from diffpolicy_rl.types import DeployedPolicy, VecEnv

_FRAMES_PER_SECOND = 30


def plot_curve(folder: Path) -> None:
    """Draw ``curve.png``: evaluated return with its interval, and the exploring return, against env steps."""
    records = read_metrics(folder / "metrics.jsonl")
    online = any(record["env_steps"] for record in records)
    x = "env_steps" if online else "iteration"
    axes = _axes(folder.name, x.replace("_", " "), "undiscounted return")
    evaluated = [record for record in records if "eval/mean" in record and (not online or record["phase"] != "bc")]
    steps = [record[x] for record in evaluated]
    axes.plot(steps, [record["eval/mean"] for record in evaluated], "o-", label="evaluated")
    low, high = ([record[f"eval/ci_{side}"] for record in evaluated] for side in ("low", "high"))
    axes.fill_between(steps, low, high, alpha=0.25, label="95 % CI over episodes")
    exploring = [record for record in records if "rollout/return" in record]
    if exploring:
        axes.plot(
            [record[x] for record in exploring],
            [record["rollout/return"] for record in exploring],
            alpha=0.6,
            label="exploring",
        )
    _save(axes, folder / "curve.png")


def plot_spread(path: Path, by_state: dict[str, list[float]]) -> None:
    """Draw energy distances over the states they were measured at, each kind in its own order."""
    axes = _axes(path.parent.name, "energy distance over the teacher's own spread", "share of states")
    for name, distances in by_state.items():
        share = [(i + 1) / len(distances) for i in range(len(distances))]
        axes.plot(sorted(distances), share, label=name.replace("_", " "))
    _save(axes, path)


def record_video(path: Path, policy: DeployedPolicy, make_env: Callable[[], VecEnv], seed: int) -> str:
    """Film one episode of a one-row env; returns a line that says where the video is, or why there is none."""
    try:
        import imageio
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        return 'no video: it needs imageio-ffmpeg, pip install "diffpolicy_rl[video]"'
    try:
        imageio.mimwrite(path, _play(policy, make_env(), seed), fps=_FRAMES_PER_SECOND)
    except Exception as error:  # simulators, OpenGL and ffmpeg fail in their own ways, and the run is finished by now
        return f"no video: {error}"
    return f"filmed {path}"


def _axes(title: str, xlabel: str, ylabel: str) -> Any:
    """Axes of a figure of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return axes


def _save(axes: Any, path: Path) -> None:
    axes.legend()
    axes.grid(alpha=0.3)
    axes.figure.savefig(path, dpi=120)


@torch.inference_mode()
def _play(policy: DeployedPolicy, env: VecEnv, seed: int) -> list[Any]:
    driver, done = Driver(policy, env, seed), False
    obs, _ = env.reset(seed=seed)
    frames = [env.render()]
    while not done:
        obs, _, terminated, truncated, _ = env.step(driver.act(obs))
        done = bool(terminated | truncated)
        frames.append(env.render())
    env.close()
    return frames
