"""Collect demonstrations: ``python -m diffpolicy_rl.collect expert=sac-hopper episodes=40 out=demos.hdf5``."""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from diffpolicy_rl.data.d4rl import Transitions
    from diffpolicy_rl.types import DeployedPolicy, VecEnv

_USAGE = "python -m diffpolicy_rl.collect [RUN] [expert=NAME] episodes=N out=FILE [key=value ...]"
_ACTION_NOISE = 4  # stream key


@dataclass(frozen=True)
class CollectConfig:
    """Let a run's policy, or an external expert, play episodes, and write them in D4RL's layout.

    Attributes:
        out: the file to write.
        run: a run whose deployed policy acts.
        expert: instead of a run: a name in the catalogue, a scripted expert's name, a Stable-Baselines3 SAC or TQC zip,
            or its URL.
        env: an expert's environment, an id or a name in configs/env, where the catalogue does not know it.
        episodes: how many.
        stochastic: whether an expert samples its actions, or takes their means.
        action_noise: std of Gaussian noise added to every action, in env units.
        num_envs: copies of the env played side by side.
        seed: of everything random.
        which: last, best, base, or a step of the run.
        trust: modules outside diffpolicy_rl that the run names and whose code may run.
    """

    out: str
    run: str | None = None
    expert: str | None = None
    env: str | None = None
    episodes: int = 40
    stochastic: bool = True
    action_noise: float = 0.0
    num_envs: int = 40
    seed: int = 0
    which: str = "last"
    trust: tuple[str, ...] = ()


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(CollectConfig, argv, _USAGE, "run")
    if (config.run is None) == (config.expert is None):
        raise UserError(f"name either a run or an expert; usage: {_USAGE}")
    if config.episodes < 1:
        raise UserError(f"episodes={config.episodes} collects nothing; ask for at least 1")
    out = Path(config.out)
    from diffpolicy_rl.data.d4rl import check_writable, write
    from diffpolicy_rl.training.logger import Console
    from diffpolicy_rl.training.threads import use_fast_fp32

    use_fast_fp32()
    check_writable(out)
    env, policy = _players(config)
    with Console() as console:
        console.begin("episodes", 0, config.episodes)
        show = functools.partial(console.advance, note="")
        transitions = collect(policy, env, config.episodes, config.seed, config.action_noise, show)
    write(out, _described(transitions, config, argv, env.spec_id))
    returns = transitions.returns()
    print(
        f"wrote {out}: {len(returns)} episodes, {len(transitions.rewards):,} transitions, return {returns.mean():.1f} "
        f"± {returns.std():.1f} ({returns.min():.1f} to {returns.max():.1f}), {out.stat().st_size / 1e6:.2f} MB"
    )


def _players(config: CollectConfig) -> "tuple[VecEnv, DeployedPolicy]":
    """The env, with chunk 1, and who acts in it."""
    from diffpolicy_rl.data.catalog import EXPERTS, fetch_expert
    from diffpolicy_rl.envs.make import make_env
    from diffpolicy_rl.experts import load_expert
    from diffpolicy_rl.scripted import SCRIPTED
    from diffpolicy_rl.training.compose import compose
    from diffpolicy_rl.training.run import load, read_config

    num_envs, seed = min(config.num_envs, config.episodes), config.seed
    if config.run is not None:
        if config.env is not None:
            raise UserError("a run brings its own env; env=<id> is for experts")
        task = read_config(Path(config.run), config.trust).env
        env: Any = make_env(task.id, num_envs=num_envs, seed=seed, history=task.history, **task.options)
        return env, load(config.run, config.which, config.trust)
    assert config.expert is not None
    known = EXPERTS | SCRIPTED
    env_id = config.env or (known[config.expert].env_id if config.expert in known else None)
    if env_id is None:
        raise UserError("env=<id> must say which environment the expert is for")
    (run,) = compose([f"env={env_id}"], sweep=False)
    env = make_env(run.env.id, num_envs=num_envs, seed=seed, **run.env.options)
    if config.expert in SCRIPTED:
        return env, SCRIPTED[config.expert](env.spec_id, config.stochastic)
    space = env.single_action_space
    obs_dim = env.single_observation_space.shape[-1]
    return env, load_expert(fetch_expert(config.expert), obs_dim, space, config.stochastic)


def collect(
    policy: "DeployedPolicy",
    env: "VecEnv",
    episodes: int,
    seed: int,
    action_noise: float,
    progress: Callable[[int], None] = lambda collected: None,
) -> "Transitions":
    """Play episodes action by action and keep exactly the executed transitions.

    Each of the N envs contributes its first episodes, ceil or floor of episodes / N, never the quickest ones.

    Args:
        policy: a deployed policy.
        env: a vector env with chunk 1.
        episodes: how many.
        seed: of resets, of the policy's noise, and of the action noise.
        action_noise: std of Gaussian noise on every action, in env units; the stored action is the one executed.
        progress: called with the number of episodes kept, after every step.
    """
    import torch

    from diffpolicy_rl.nets.linear import fixed_weights
    from diffpolicy_rl.training.driver import Driver, EpisodeStreams
    from diffpolicy_rl.training.threads import torch_threads

    quota = [episodes // env.num_envs + (row < episodes % env.num_envs) for row in range(env.num_envs)]
    record = _Record(env.num_envs, quota)
    box = env.single_action_space
    low, high = torch.from_numpy(box.low), torch.from_numpy(box.high)
    driver, disturbance = Driver(policy, env, seed), EpisodeStreams(_ACTION_NOISE, seed, env.num_envs)
    obs, _ = env.reset(seed=seed)
    with torch_threads(1), torch.inference_mode(), fixed_weights(policy):
        while record.collected < episodes:
            action = driver.act(obs)
            if action_noise:
                action = action + action_noise * disturbance.normal(action.shape[1:])
            action = action.clamp(low, high)
            after, reward, terminated, truncated, _ = env.step(action)
            assert isinstance(obs, torch.Tensor)  # D4RL's layout has no other
            newest = obs if obs.ndim == 2 else obs[:, -1]
            record.add(newest, action[:, 0], reward, terminated, truncated)
            for stateful in (driver, disturbance):
                stateful.reset(terminated | truncated)
            obs = after
            progress(record.collected)
    return record.transitions()


class _Record:
    """Transitions of N envs, each until its quota of episodes is full."""

    def __init__(self, num_envs: int, quota: list[int]) -> None:
        self._steps: list[tuple[Tensor, ...]] = []
        self._quota, self._ended = quota, [0] * num_envs

    @property
    def collected(self) -> int:
        """Episodes that count so far."""
        return sum(map(min, self._ended, self._quota))

    def add(self, *step: "Tensor") -> None:
        """Take in observations, actions, rewards, terminated and truncated flags of all envs."""
        self._steps.append(tuple(part.cpu().clone() for part in step))
        for row in (step[-1] | step[-2]).nonzero().flatten().tolist():
            self._ended[row] += 1

    def transitions(self) -> "Transitions":
        """Episodes end to end, env by env."""
        import torch

        from diffpolicy_rl.data.d4rl import Transitions

        obs, action, reward, terminated, truncated = (torch.stack(part) for part in zip(*self._steps, strict=True))
        finished = (terminated | truncated).long().cumsum(0) - (terminated | truncated).long()
        keep = (finished < torch.tensor(self._quota)).T  # (N, T): the env's episode number is within its quota

        def rows(part: "Tensor") -> Any:
            return part.transpose(0, 1)[keep].numpy()

        return Transitions(rows(obs), rows(action), rows(reward), rows(terminated), rows(truncated))


def _described(transitions: "Transitions", config: CollectConfig, argv: Sequence[str], env_id: str) -> "Transitions":
    attributes: dict[str, Any] = {
        "env_id": env_id,
        "source": config.expert or config.run,
        "seed": config.seed,
        "command": " ".join(["python -m diffpolicy_rl.collect", *argv]),
        "mujoco": importlib.metadata.version("mujoco"),
        "gymnasium": importlib.metadata.version("gymnasium"),
    }
    return dataclasses.replace(transitions, attributes=attributes)


if __name__ == "__main__":
    cli.run(main)
