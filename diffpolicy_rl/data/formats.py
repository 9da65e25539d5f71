"""Open a data set of any format: which one it is, its content says."""

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


def read(path: Path, options: ReadOptions | None = None) -> Transitions:
    """All transitions of a file or folder; see ``open_source``."""
    return load(open_source(path, options))


def open_source(path: Path, options: ReadOptions | None = None) -> Source:
    """Check the header of a file or folder of D4RL, DSRL, Minari, robomimic, LIBERO or LeRobot v3.

    Args:
        path: an hdf5 file, or the folder that Minari or LeRobot made.
        options: what the file does not say itself.

    Raises:
        UserError: if it is none of these, or is not sound; nothing of its content is ever executed or unpickled.
    """
    return _READERS[_detect(path)](path, options or ReadOptions())


def _detect(path: Path) -> str:
    if path.is_dir():
        if lerobot.is_folder(path):
            return "lerobot"
        if minari.is_folder(path):
            return "minari"
        raise UserError(f"{path} is a folder without meta/info.json (LeRobot) or metadata.json (Minari)")
    with hdf5.opened(path) as file:
        names = hdf5.names(file)
        if any(name.startswith("episode_") for name in names):
            return "minari"
        if "data" in names and isinstance(hdf5.member(file, "data"), h5py.Group):
            return "robomimic"
    return "d4rl"
