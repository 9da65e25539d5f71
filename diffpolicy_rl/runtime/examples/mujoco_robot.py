"""Drive a MuJoCo robot through a policy server, at a control rate in real time.

``python -m diffpolicy_rl.serve bundle/`` in one terminal, and in another
``python -m diffpolicy_rl.runtime.examples.mujoco_robot --env Hopper-v5 --rate 50 --seconds 10 --video robot.mp4``.
Stop the server meanwhile, and the robot holds; start it again, and it goes on.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from diffpolicy_rl.runtime.client import ClientError, PolicyClient
from diffpolicy_rl.runtime.examples.loop import ControlLoop

_SIZE = 240  # pixels of the video's sides


@dataclass
class Log:
    """What happened.

    Attributes:
        returns: of the episodes, the last one as far as it came.
        states: ticks in each state of the watchdog.
        changed: ticks in which the safety filter did not pass the action on as it was.
        late_s: how much later than planned each tick began.
        physics: qpos and qvel of each tick.
    """

    returns: list[float] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    late_s: list[float] = field(default_factory=list)
    physics: list[tuple[Any, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        ticks = ", ".join(f"{count} {name}" for name, count in sorted(self.states.items()))
        p50, p99 = 1e3 * np.quantile(self.late_s, (0.5, 0.99))
        return (
            f"{len(self.returns)} episodes, mean return {np.mean(self.returns):.1f}; ticks: {ticks}; "
            f"{self.changed} changed by the safety filter; late by {p50:.2f} ms (p50), {p99:.2f} ms (p99)"
        )


def drive(env: Any, client: PolicyClient, rate_hz: float, seconds: float, seed: int) -> Log:
    """Step the simulation once per control tick, as a robot's clock would.

    Args:
        env: a Gymnasium environment with one vector as observation.
        client: connected to a server of a policy for it.
        rate_hz: ticks per second of this machine's clock.
        seconds: how long.
        seed: of the environment.
    """
    (port,) = client.metadata["inputs"]
    loop, log = ControlLoop(client, client.limits, rate_hz), Log()
    obs, _ = env.reset(seed=seed)
    loop.reset(None)
    log.returns.append(0.0)
    began = time.monotonic()
    for tick in range(round(seconds * rate_hz)):
        due = began + tick / rate_hz
        time.sleep(max(0.0, due - time.monotonic()))
        log.late_s.append(time.monotonic() - due)
        loop.observe({port["name"]: np.asarray(obs, port["dtype"])})
        command = loop.tick()
        log.states[command.state.value] += 1
        log.changed += bool(command.filtered.flags)
        log.physics.append((env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy()))
        obs, reward, terminated, truncated, _ = env.step(command.filtered.action.astype(env.action_space.dtype))
        log.returns[-1] += float(reward)
        if terminated or truncated:
            obs, _ = env.reset()
            loop.reset(None)
            log.returns.append(0.0)
    return log


def film(env_id: str, log: Log, rate_hz: float, path: str) -> str:
    """Render the states afterwards, so that drawing delays no tick; returns what to tell."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import imageio

        env = gymnasium.make(env_id, render_mode="rgb_array", width=_SIZE, height=_SIZE)
        env.reset()
        with imageio.get_writer(path, fps=rate_hz) as video:
            for qpos, qvel in log.physics:
                env.unwrapped.set_state(qpos, qvel)  # pyright: ignore[reportAttributeAccessIssue]
                video.append_data(env.render())  # pyright: ignore[reportAttributeAccessIssue]
        env.close()
    except Exception as error:  # whatever the graphics driver or the codec raises
        return f"no video: {type(error).__name__}: {error}"
    return f"wrote {path}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--env", default="Hopper-v5", help="id of a Gymnasium MuJoCo environment")
    parser.add_argument("--rate", type=float, default=50.0, help="control ticks per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--video", help="file for a film of it")
    given = parser.parse_args(argv)
    try:
        env = gymnasium.make(given.env)
    except (ImportError, gymnasium.error.Error) as error:
        parser.exit(1, f"error: {given.env} cannot be made: {error}\n")
    try:
        with PolicyClient(given.host, given.port, token=os.environ.get("DIFFPOLICY_RL_TOKEN")) as client:
            log = drive(env, client, given.rate, given.seconds, given.seed)
    except ClientError as error:
        parser.exit(1, f"error: {error}\n")
    env.close()
    print(log)
    if given.video:
        print(film(given.env, log, given.rate, given.video))


if __name__ == "__main__":
    main()
