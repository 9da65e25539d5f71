"""Replay recorded steps in the environment they come from: does it answer as it did then?"""

from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from diffpolicy_rl.data import hdf5
from diffpolicy_rl.data.transitions import Block, Source, finite
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.types import VecEnv

_STEPS = 100
_CLIP = 10.0  # some observations hold velocities up to this alone, so that the state behind is lost


def replay(env: VecEnv, source: Source) -> str:
    """Put the env into each state of the first episode's beginning, step it, and compare with the next row.

    States are the ``infos/qpos`` and ``infos/qvel`` of D4RL's files; elsewhere they are rebuilt from observations that
    hold them but for the coordinates that nothing depends on, as those of Gymnasium's locomotion tasks.

    Args:
        env: one row, chunk 1.
        source: the data.

    Returns:
        What was found, in a sentence without its end.

    Raises:
        UserError: if the states cannot be had, or the data's shapes are not the env's.
    """
    if not hasattr(env, "set_state"):
        raise UserError(f"the state of {env.spec_id} cannot be set")
    block = _beginning(source)
    states = _stored(source, len(block.rewards)) or _rebuilt(env, block.observations)
    errors, gaps = [], []
    for row in range(len(block.rewards) - 1):
        if (np.abs(states[1][row]) == _CLIP).any():
            continue
        seen, reward = _step(env, states[0][row], states[1][row], block.actions[row])
        errors.append(np.abs(seen - block.observations[row + 1]).max())
        gaps.append(abs(reward - block.rewards[row]))
    if not errors:
        raise UserError("the first episode has no step to compare")
    return (
        f"{len(errors)} steps of the first episode in {env.spec_id}: next observations differ by "
        f"{np.median(errors):.1e} (median), {np.max(errors):.1e} (largest), rewards by {np.max(gaps):.1e} (largest)"
    )


def _beginning(source: Source) -> Block:
    """The first rows of the first episode."""
    block = next(iter(source.blocks()))
    ends = np.flatnonzero(block.terminals | block.timeouts) + 1
    rows = slice(0, min(_STEPS + 1, *ends[:1], len(block.rewards)))
    return Block(block.observations[rows], block.actions[rows], block.rewards[rows], *[np.zeros(0, bool)] * 2)


def _stored(source: Source, rows: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Positions (S, nq) and velocities (S, nv) that a file of D4RL holds, or None."""
    if source.format not in ("d4rl", "dsrl"):
        return None
    with hdf5.opened(source.path) as file:
        infos = hdf5.member(file, "infos")
        if not isinstance(infos, h5py.Group) or not {"qpos", "qvel"} <= set(hdf5.names(infos)):
            return None
        qpos, qvel = (
            finite(hdf5.array(infos, name, 2, source.rows)[:rows], f"{source.path}: infos/{name}")
            for name in ("qpos", "qvel")
        )
        return qpos, qvel


def _rebuilt(env: VecEnv, observations: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same from observations; UserError if the env's do not consist of them."""
    obs, _ = env.reset(seed=0)
    state: Any = env.state()  # type: ignore[attr-defined]
    qpos, qvel = state["qpos"][0], state["qvel"][0]
    hidden = len(qpos) + len(qvel) - observations.shape[1]
    assert isinstance(obs, torch.Tensor)
    if hidden < 0 or not torch.allclose(torch.cat([qpos[hidden:], qvel.clamp(-_CLIP, _CLIP)]).to(obs), obs[0]):
        raise UserError(f"observations of {env.spec_id} do not tell its state, and the file does not hold it")
    shown = len(qpos) - hidden
    return np.pad(observations[:, :shown], ((0, 0), (hidden, 0))), observations[:, shown:]


def _step(
    env: VecEnv, qpos: NDArray[Any], qvel: NDArray[Any], action: NDArray[np.float32]
) -> tuple[NDArray[Any], float]:
    """What was seen after one action (D,) in a state, and its reward."""
    fields = {name: torch.from_numpy(value.copy()).unsqueeze(0) for name, value in (("qpos", qpos), ("qvel", qvel))}
    env.set_state(**fields)  # type: ignore[attr-defined]
    _, reward, _, _, info = env.step(torch.from_numpy(action).view(1, 1, -1))
    return info["final_obs"][0].numpy(), float(reward)
