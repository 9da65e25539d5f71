"""Read and write robomimic's hdf5 layout (Mandlekar et al. 2021, arXiv 2108.03298), which LIBERO's files follow.

Each ``data/demo_<k>`` has ``actions`` (T, D), ``rewards`` (T,), ``dones`` (T,), ``obs/<key>`` (T, ...) and, in
robomimic's own, ``next_obs/<key>``; ``mask/<name>`` lists demonstrations by name; ``env_args`` says how to make the
environment. Keys of vectors are joined into one observation; images stay on disk.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from diffpolicy_rl.data import hdf5
from diffpolicy_rl.data.episodes import EpisodeFrames, Layout, blocks, is_image, measure
from diffpolicy_rl.data.files import json_object, replace, require_new
from diffpolicy_rl.data.transitions import Block, ReadOptions, Source, Transitions
from diffpolicy_rl.errors import UserError, did_you_mean

# What policies on these files see by default: robomimic's low-dimensional keys, and LIBERO's.
_USUAL = (
    ("object", *(f"robot{arm}_{part}" for arm in (0, 1) for part in ("eef_pos", "eef_quat", "gripper_qpos"))),
    ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
    ("joint_states", "gripper_states"),
)


def open_source(path: Path, options: ReadOptions) -> Source:
    """Check a file's header.

    Raises:
        UserError: if it is cut short, lists demonstrations that are not there, has no observations, or its arrays are
            misshapen or not plain numbers.
    """
    with hdf5.opened(path) as file:
        data = hdf5.subgroup(file, "data")
        names = _demonstrations(file, data, options.mask)
        layout = _layout(hdf5.subgroup(data, names[0]), options.keys)
        measured = [measure(file, f"data/{name}", layout) for name in names]
        attributes = hdf5.attributes(data)
    episodes, widths = [episode for episode, _ in measured], {width for _, width in measured}
    if len(widths) > 1:
        raise UserError(f"{path}: demonstrations have widths (O, D) {sorted(widths)}, but must have the same")
    obs_dim, action_dim = widths.pop()

    def read() -> Iterator[Block]:
        return blocks(path, episodes, layout, obs_dim + action_dim)

    return Source(
        path,
        "robomimic",
        sum(episode.rows for episode in episodes),
        obs_dim,
        action_dim,
        read,
        _described(attributes, layout),
        {camera: EpisodeFrames(path, episodes, place) for camera, place in layout.images.items()},
        layout.rewarded,
        () if layout.rewarded else ("no rewards: it can be cloned, not learned values from",),
    )


def _demonstrations(file: h5py.File, data: h5py.Group, mask: str | None) -> list[str]:
    """Names of the demonstrations in order, of all or of a subset."""
    present = {name for name in hdf5.names(data) if name.startswith("demo_") and name[5:].isdecimal()}
    if mask is None:
        chosen = present
    else:
        item = hdf5.member(file, f"mask/{mask}")
        if hdf5.kind_of(item) not in ("S", "O") or item.ndim != 1 or item.external or item.is_virtual:
            known = hdf5.names(hdf5.subgroup(file, "mask"))
            raise UserError(f"{file.filename} has no subset mask/{mask}; {did_you_mean(mask, known)}")
        hdf5.check_size(item, len(item) * item.dtype.itemsize)
        chosen = {name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in item[()]}
        if missing := chosen - present:
            raise UserError(f"{file.filename}: mask/{mask} lists {sorted(missing)[0]}, which is not in data")
    if not chosen:
        raise UserError(f"{file.filename} has no demonstrations data/demo_0, data/demo_1, ...")
    return sorted(chosen, key=lambda name: int(name[5:]))


def _layout(demo: h5py.Group, keys: tuple[str, ...]) -> Layout:
    """Which arrays to read, from what the first demonstration has."""
    if "obs" not in demo:
        raise UserError(
            f"{demo.file.filename} has states, but no observations (data/demo_<k>/obs); extract them with robomimic's "
            "dataset_states_to_obs.py"
        )
    obs = hdf5.subgroup(demo, "obs")
    items = {name: hdf5.member(obs, name) for name in hdf5.names(obs)}
    cameras = [name for name, item in items.items() if is_image(item) and item.ndim == 4]
    vectors = [name for name, item in items.items() if isinstance(item, h5py.Dataset) and item.ndim in (1, 2)]
    for key in keys:
        if key not in vectors:
            raise UserError(f"{demo.file.filename} has no vectors obs/{key}; {did_you_mean(key, vectors)}")
    usual = next((names for names in _USUAL if set(names) <= set(vectors)), tuple(sorted(vectors)))
    seen = keys or usual
    if not seen:
        raise UserError(f"{demo.file.filename} has images alone in obs, and no vectors to observe")
    last = tuple(f"next_obs/{name}" for name in seen) if "next_obs" in demo else ()
    images = {name: f"obs/{name}" for name in sorted(cameras)}
    done = "dones" if "dones" in demo else None
    return Layout(tuple(f"obs/{name}" for name in seen), last, done, images, "rewards" in demo)


def _described(attributes: dict[str, Any], layout: Layout) -> dict[str, Any]:
    described = {**attributes, "observation_keys": ", ".join(name.partition("/")[2] for name in layout.seen)}
    # The file's own total counts all demonstrations, also where a mask leaves some out.
    described.pop("total", None)
    told = ("env_id", "env_args", "env_name"), ("task", "problem_info", "language_instruction")  # the latter LIBERO's
    for name, attribute, key in told:
        value = json_object(attributes.get(attribute)).get(key)
        if isinstance(value, str) and value:
            described[name] = value
    return described


def write(path: Path, transitions: Transitions) -> None:
    """Write a file atomically, one demonstration per episode, the observation under ``obs/observation``; no images.

    Raises:
        UserError: if it exists already or cannot be written.
    """
    require_new(path)
    content = io.BytesIO()  # built in memory, because HDF5 does not recover from a disk that is full
    with h5py.File(content, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = len(transitions.rewards)
        gym = {"env_name": transitions.attributes.get("env_id", ""), "type": 2, "env_kwargs": {}}
        data.attrs["env_args"] = transitions.attributes.get("env_args") or json.dumps(gym)
        for index, rows in enumerate(transitions.episodes()):
            demo = data.create_group(f"demo_{index}")
            demo.attrs["num_samples"] = rows.stop - rows.start
            arrays = {
                "actions": transitions.actions[rows],
                **({"rewards": transitions.rewards[rows]} if transitions.rewarded else {}),
                "dones": transitions.terminals[rows].astype("u1"),
                "obs/observation": transitions.observations[rows],
            }
            if transitions.finals is not None:
                following = transitions.observations[rows.start + 1 : rows.stop], transitions.finals[index : index + 1]
                arrays["next_obs/observation"] = np.concatenate(following)
            for name, array in arrays.items():
                demo.create_dataset(name, data=array, compression="gzip")
    replace(path, content.getbuffer())
