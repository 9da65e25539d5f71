"""Open a data set of any format: which one it is, its content says."""

import re
from pathlib import Path

import h5py

from diffpolicy_rl.data import d4rl, hdf5, lerobot, lerobot_writer, minari, robomimic
from diffpolicy_rl.data.transitions import ReadOptions, Source, Transitions, load
from diffpolicy_rl.errors import UserError

_READERS = {
    "d4rl": d4rl.open_source,
    "robomimic": robomimic.open_source,
    "minari": minari.open_source,
    "lerobot": lerobot.open_source,
}
WRITERS = {
    "d4rl": d4rl.write,
    "robomimic": robomimic.write,
    "minari": minari.write,
    "lerobot": lerobot_writer.write,
}
"""What ``convert`` writes, by name."""
_USES = {
    "d4rl": ("max_episode_steps",),
    "robomimic": ("keys", "mask"),
    "minari": ("keys",),
    "lerobot": ("keys",),
}


def read(path: Path, options: ReadOptions | None = None) -> Transitions:
    """All transitions of a file or folder; see ``open_source``."""
    return load(open_source(path, options))


def open_source(path: Path, options: ReadOptions | None = None) -> Source:
    """Check the header of a file or folder of D4RL, DSRL, Minari, robomimic, LIBERO or LeRobot v3.

    Args:
        path: an hdf5 file, or the folder that Minari or LeRobot made.
        options: what the file does not say itself.

    Raises:
        UserError: if it is none of these, or is not sound, or an option has no effect on it; nothing of its content is
            ever executed or unpickled.
    """
    form, options = _detect(path), options or ReadOptions()
    for name, value in vars(options).items():
        if value not in ((), None) and name not in _USES[form]:
            raise UserError(f"{name} has no effect on {path}, which is of the format {form}; leave it out")
    return _READERS[form](path, options)


def _detect(path: Path) -> str:
    if path.is_dir():
        if lerobot.is_folder(path):
            return "lerobot"
        if minari.is_folder(path):
            return "minari"
        raise UserError(f"{path} is a folder without meta/info.json (LeRobot) or metadata.json (Minari)")
    with hdf5.opened(path) as file:
        names = hdf5.names(file)
        if any(re.fullmatch(r"episode_\d+", name) for name in names):
            return "minari"
        if "data" in names and isinstance(hdf5.member(file, "data"), h5py.Group):
            return "robomimic"
    return "d4rl"
