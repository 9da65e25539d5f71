"""Driving a deployed, stateless policy through a vector env: chunk queues and random streams live here."""

import torch
from torch import Tensor

from diffpolicy_rl.experience.chunk_queue import ChunkQueue
from diffpolicy_rl.streams import stream
from diffpolicy_rl.types import DeployedPolicy, Obs, VecEnv

_POLICY_NOISE = 1  # stream key


class EpisodeStreams:
    """One random stream per env and episode, so that no row's numbers depend on what the others do.

    Args:
        key: keeps streams of different purposes apart under one seed.
        seed: of all of them.
        num_envs: N.
    """

    def __init__(self, key: int, seed: int, num_envs: int) -> None:
        self._key, self._seed = key, seed
        self._episode = [0] * num_envs
        self._streams = [stream(key, seed, row, 0) for row in range(num_envs)]

    def normal(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Standard normal numbers (N, *shape); 0, and no progress of the stream, outside rows (N,) bool if given."""
        numbers = torch.zeros((len(self._streams), *shape))
        for row in range(len(self._streams)) if rows is None else rows.nonzero().flatten().tolist():
            torch.randn(shape, generator=self._streams[row], out=numbers[row])
        return numbers

    def reset(self, done: Tensor) -> None:
        """Begin the next episode's streams in the rows of done (N,) bool."""
        for row in done.nonzero().flatten().tolist():
            self._episode[row] += 1
            self._streams[row] = stream(self._key, self._seed, row, self._episode[row])


class Driver:
    """Turns observations into what an env takes, with one chunk queue and one noise stream per env.

    Args:
        policy: a deployed module.
        env: its chunk must be the policy's ``execute``, or 1.
        seed: of the policy's noise.
    """

    def __init__(self, policy: DeployedPolicy, env: VecEnv, seed: int) -> None:
        if env.chunk not in (1, 1 if policy.per_step else policy.execute):
            raise ValueError(f"the policy executes {policy.execute} actions per call, the env takes {env.chunk}")
        self.policy, self.device = policy, env.device
        queued = policy.per_step or env.chunk < policy.execute
        self.queue = ChunkQueue(policy.execute, env.num_envs) if queued else None
        self.noise = EpisodeStreams(_POLICY_NOISE, seed, env.num_envs)

    def act(self, obs: Obs) -> Tensor:
        """Actions (N, chunk, D) in env units."""
        if self.queue is None:
            return self._chunks(obs)
        needs = self.queue.needs()
        if needs.any():
            self.queue.put(needs, self._chunks(obs, needs)[needs])
        action = self.queue.pop()
        return (self.policy.correct(obs, action) if self.policy.per_step else action).unsqueeze(1)

    def _chunks(self, obs: Obs, rows: Tensor | None = None) -> Tensor:
        """New chunks (N, A, D); outside ``rows`` they are not meant to be used."""
        shape = self.policy.noise_shape
        noise = None if shape is None else self.noise.normal(shape, rows).to(self.device)
        return self.policy(obs, noise)[:, : self.policy.execute]

    def reset(self, done: Tensor) -> None:
        """New episodes in the rows of done (N,) bool."""
        self.noise.reset(done)
        if self.queue is not None:
            self.queue.reset(done)
