"""Read and write Minari's hdf5 layout (Younis et al. 2024, version 0.5), without the library.

A folder ``<id>/data`` holds ``metadata.json`` and ``main_data.hdf5``; in the latter each ``episode_<k>`` has
``observations`` (T + 1, O), the last of which was seen after the last action, ``actions`` (T, D), ``rewards``,
``terminations`` and ``truncations`` (T,). Observations that are a Dict are groups; their vectors are joined in the
order of Gymnasium's ``FlattenObservation``, which is alphabetical, and their images stay on disk.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np

from diffpolicy_rl.data import hdf5
from diffpolicy_rl.data.episodes import Episode, EpisodeFrames, Layout, blocks, is_image, measure
from diffpolicy_rl.data.files import json_object, new_folder, read_json
from diffpolicy_rl.data.transitions import Block, ReadOptions, Source, Transitions
from diffpolicy_rl.errors import UserError, did_you_mean

_VERSION = "0.5.0"  # the oldest that reads what is written here
_MAIN, _METADATA = "main_data.hdf5", "metadata.json"
_MAX_PARTS = 1000
_TOLD = ("dataset_id", "minari_version", "algorithm_name", "author", "code_permalink", "ref_min_score", "ref_max_score")


def is_folder(path: Path) -> bool:
    """Whether a folder is a data set of Minari's, or its ``data``."""
    return any((path / part / _METADATA).is_file() for part in (".", "data"))


def open_source(path: Path, options: ReadOptions) -> Source:
    """Check the header of a folder, or of its ``main_data.hdf5``.

    Raises:
        UserError: if it is stored as Arrow, cut short, or its arrays are misshapen or not plain numbers.
    """
    folder = path.parent if path.is_file() else path / "data" if (path / "data").is_dir() else path
    main = path if path.is_file() else folder / _MAIN
    metadata = read_json(folder / _METADATA) if (folder / _METADATA).is_file() else {}
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise UserError(
            f"{path} is stored as {str(metadata['data_format'])[:80]}; convert it to hdf5 with Minari, and try again"
        )
    with hdf5.opened(main) as file:
        names = [name for name in hdf5.names(file) if name.startswith("episode_") and name[8:].isdecimal()]
        if not names:
            raise UserError(f"{main} has no episodes episode_0, episode_1, ...")
        names.sort(key=lambda name: int(name[8:]))
        encoded = metadata.get("jpeg_encoding") is not False
        layout = _layout(hdf5.subgroup(file, names[0]), options.keys, encoded)
        measured = [measure(file, name, layout) for name in names]
    episodes, widths = [episode for episode, _ in measured], {width for _, width in measured}
    if len(widths) > 1:
        raise UserError(f"{main}: episodes have widths (O, D) {sorted(widths)}, but need the same")
    _check_totals(folder / _METADATA, metadata, episodes)
    obs_dim, action_dim = widths.pop()

    def read() -> Iterator[Block]:
        return blocks(main, episodes, layout, obs_dim + action_dim)

    return Source(
        path,
        "minari",
        sum(episode.rows for episode in episodes),
        obs_dim,
        action_dim,
        read,
        _described(metadata),
        {camera: EpisodeFrames(main, episodes, place) for camera, place in layout.images.items()},
    )


def _layout(episode: h5py.Group, keys: tuple[str, ...], encoded: bool) -> Layout:
    """Which arrays to read; rows of bytes are vectors, unless images may be encoded."""
    leaves = _leaves(episode)
    cameras = [
        name
        for name, item in leaves.items()
        if is_image(item) and item.shape[1:] != (1,) and (encoded or item.ndim != 2)
    ]
    vectors = [name for name in leaves if name not in cameras]
    chosen = tuple(f"observations/{key}" for key in keys)
    for name in chosen:
        if name not in vectors:
            known = [vector.partition("/")[2] for vector in vectors]
            raise UserError(f"{episode.file.filename} has no vectors {name}; {did_you_mean(name[13:], known)}")
    seen = chosen or tuple(vectors)
    if not seen:
        raise UserError(f"{episode.file.filename} has images alone in its observations, and no vectors")
    images = {name.partition("/")[2] or "image": name for name in cameras}
    return Layout(seen, seen, "terminations", images)


def _leaves(episode: h5py.Group) -> dict[str, Any]:
    """Arrays of observations by path, in order; UserError if there are more than any space has, as links can make."""
    found, seen = {}, 0
    pending = ["observations"]
    while pending:
        name = pending.pop()
        item, seen = hdf5.member(episode, name), seen + 1
        if seen > _MAX_PARTS:
            raise UserError(f"{episode.file.filename}: observations have more than {_MAX_PARTS} parts")
        if isinstance(item, h5py.Group):
            pending += [f"{name}/{part}" for part in sorted(hdf5.names(item), key=_rank, reverse=True)]
        else:
            found[name] = item
    return found


def _rank(name: str) -> tuple[int, str]:
    """By name, as a Dict's parts are in order; those of a Tuple, _index_0, _index_1, ..., by number."""
    number = name.removeprefix("_index_")
    return (int(number), "") if number != name and number.isdecimal() else (0, name)


def _check_totals(path: Path, metadata: dict[str, Any], episodes: list[Episode]) -> None:
    found = {"total_episodes": len(episodes), "total_steps": sum(episode.rows for episode in episodes)}
    for name, number in found.items():
        if metadata.get(name, number) != number:
            raise UserError(
                f"{path} says {name}={str(metadata[name])[:80]}, but {_MAIN} has {number}; download it again"
            )


def _described(metadata: dict[str, Any]) -> dict[str, Any]:
    described = {name: metadata[name] for name in _TOLD if isinstance(metadata.get(name), str | int | float)}
    env_id = json_object(metadata.get("env_spec")).get("id")
    env_id = env_id or metadata.get("env_id")
    return described | ({"env_id": env_id} if isinstance(env_id, str) else {})


def write(path: Path, transitions: Transitions) -> None:
    """Write a folder that the library reads, too; no images.

    Where an episode was cut off and what was seen last is not known, its last action is left out, because each needs
    the observation that it led to.

    Args:
        path: the folder; its name becomes the data set's id.
        transitions: the data.

    Raises:
        UserError: if it exists already, cannot be written, has no rewards, or an episode is left without an action.
    """
    transitions.require_rewards("minari")
    with new_folder(path) as folder:
        (folder / "data").mkdir()
        total, content = 0, io.BytesIO()  # built in memory, because HDF5 does not recover from a disk that is full
        with h5py.File(content, "w", track_order=True) as file:
            for index, rows in enumerate(transitions.episodes()):
                total += _write_episode(file.create_group(f"episode_{index}"), transitions, index, rows)
        (folder / "data" / _MAIN).write_bytes(content.getbuffer())
        observations, actions = transitions.observations, transitions.actions
        metadata = {
            "dataset_id": path.name if path.name.rpartition("-v")[2].isdecimal() else f"{path.name}-v0",
            "total_episodes": len(transitions.episode_ends()),
            "total_steps": total,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "observation_space": _box(observations.shape[1], np.inf),
            "action_space": _box(actions.shape[1], max(1.0, float(np.abs(actions).max()))),
            "minari_version": _VERSION,
            "dataset_size": round(len(content.getbuffer()) / 1e6, 1),
        }
        env_id = transitions.attributes.get("env_id")
        if env_id in gymnasium.registry:
            metadata["env_spec"] = gymnasium.spec(env_id).to_json()
        elif env_id:
            metadata["env_id"] = env_id
        metadata |= {name: transitions.attributes[name] for name in _TOLD[2:] if name in transitions.attributes}
        (folder / "data" / _METADATA).write_text(json.dumps(metadata))


def _write_episode(group: h5py.Group, transitions: Transitions, index: int, rows: slice) -> int:
    """One episode; returns how many actions it has."""
    seen, terminal = transitions.observations[rows], transitions.terminals[rows]
    if transitions.finals is not None:
        seen = np.concatenate([seen, transitions.finals[index : index + 1]])
    elif terminal[-1]:
        seen = np.concatenate([seen, seen[-1:]])  # stands in for a state without future
    count = len(seen) - 1
    if not count:
        raise UserError(f"{transitions.source}: episode {index} was cut off after one action, of unknown outcome")
    ends = np.arange(count) == count - 1
    group.attrs.update({"id": index, "total_steps": count})
    arrays = {
        "observations": seen,
        "actions": transitions.actions[rows][:count],
        "rewards": transitions.rewards[rows][:count],
        "terminations": terminal[:count],
        "truncations": ends & ~terminal[:count],
    }
    for name, array in arrays.items():
        group.create_dataset(name, data=array, compression="gzip")
    return count


def _box(width: int, bound: float) -> str:
    space = {"type": "Box", "dtype": "float32", "shape": [width], "low": [-bound] * width, "high": [bound] * width}
    return json.dumps(space)
