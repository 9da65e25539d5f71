"""Build an environment by id, on the fastest backend that fits."""

import difflib
from collections.abc import Iterable
from typing import Any

import gymnasium
import torch

from diffpolicy_rl.envs.base import ChunkedVecEnv, EnvOptions
from diffpolicy_rl.envs.batch import BatchEnv
from diffpolicy_rl.envs.families import register
from diffpolicy_rl.envs.gymnasium import GymnasiumEnv
from diffpolicy_rl.envs.tasks import TASKS
from diffpolicy_rl.envs.workers import WorkersEnv
from diffpolicy_rl.errors import UserError, did_you_mean

BACKENDS = ("batch", "gymnasium", "workers")


def make_env(
    env_id: str,
    *,
    num_envs: int = 1,
    chunk: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    backend: str | None = None,
    history: int = 1,
    threads: int | None = None,
    dtype: torch.dtype = torch.float32,
    render: bool = False,
    **settings: Any,
) -> ChunkedVecEnv:
    """N copies of a task that execute action chunks; the contract is ``diffpolicy_rl.types.VecEnv``.

    Args:
        env_id: one of our tasks, or any Gymnasium id, also ``module:MyEnv-v0``.
        num_envs: N.
        chunk: A, actions executed per step.
        device: where tensors are returned.
        seed: seed of the rows' random streams.
        backend: "batch" (our tasks, on CPU threads), "gymnasium" (any environment, in this process) or "workers" (the
            same, in worker processes); by default the first that has the environment with these settings.
        history: To, observations per returned stack.
        threads: physics threads of "batch", worker processes of "workers"; by default as many as torch uses.
        dtype: floating type of what is returned.
        render: whether frames will be asked for; Gymnasium must know beforehand.
        **settings: the task's own settings, or keyword arguments of ``gymnasium.make``.

    Raises:
        UserError: for an unknown id, backend or setting.
    """
    options = EnvOptions(num_envs=num_envs, chunk=chunk, device=device, seed=seed, history=history, dtype=dtype)
    ours = env_id in TASKS and not TASKS[env_id].missing(settings)
    backend = backend or ("batch" if ours else "gymnasium")
    if backend not in BACKENDS:
        raise UserError(f"there is no environment backend {backend!r}; {did_you_mean(backend, BACKENDS)}")
    if backend != "batch":
        register(env_id)
    _check_id(env_id, TASKS if backend == "batch" else gymnasium.registry, backend)
    if backend == "batch":
        return BatchEnv(env_id, TASKS[env_id].from_settings(env_id, settings), threads=threads, **options)
    if render:
        settings["render_mode"] = "rgb_array"
    if backend == "workers":
        return WorkersEnv(env_id, settings, workers=threads, **options)
    return GymnasiumEnv(env_id, settings, **options)


def _check_id(env_id: str, available: Iterable[str], backend: str) -> None:
    if env_id in available or (":" in env_id and backend != "batch"):
        return
    # Gymnasium knows a hundred names: list ours unless one of them is close.
    close = difflib.get_close_matches(env_id, {*TASKS, *available}, n=1)
    raise UserError(f"the {backend} backend has no environment {env_id!r}; {did_you_mean(env_id, close or TASKS)}")
