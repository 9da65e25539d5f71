"""Checkpoints: tensors in safetensors, the rest in JSON, written so that a crash at any instant leaves a good one.

A checkpoint is a folder ``checkpoints/<step>`` that appears under its name only when it is complete; ``last``, ``best``
and ``base`` are symbolic links to such folders. Nothing is ever unpickled.
"""

import contextlib
import errno
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.types import State

FORMAT_VERSION = 1
_TENSOR = "__tensor__"


def write_state(folder: Path, state: State) -> None:
    """Write a state tree as a new folder, atomically; UserError, and nothing half-written, if it cannot be written."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tensors: dict[str, torch.Tensor] = {}
        tree = {"format_version": FORMAT_VERSION, "state": _split(state, "", tensors)}
        save_file(tensors, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(tree))
        for path in (*temporary.iterdir(), temporary):
            _fsync(path)
        os.replace(temporary, folder)
        _fsync(folder.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the checkpoint {folder}: {_reason(error)}; earlier checkpoints are intact"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_state(folder: Path) -> State:
    """Read a state tree; UserError if the folder is missing, damaged or of a newer format."""
    try:
        tree = json.loads((folder / "state.json").read_text())
        tensors = load_file(folder / "state.safetensors")
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint at {folder}") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the checkpoint {folder} is damaged and cannot be read: {_reason(error)}") from error
    if not isinstance(tree, dict):
        raise UserError(f"the checkpoint {folder} is damaged and cannot be read: state.json holds no state")
    if tree.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"the checkpoint {folder} has format {tree.get('format_version')}, this version reads {FORMAT_VERSION}"
        )
    return _join(tree["state"], tensors)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the run's ``checkpoints`` folder; made when the first one is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, state: State, *names: str) -> Path:
        """Save under the step, point ``last`` and the given names at it, and drop what no name points at."""
        target = self._free(f"{step:08d}")
        write_state(target, state)
        for name in ("last", *names):
            self._link(name, target.name)
        self._prune()
        return target

    def find(self, which: str) -> Path:
        """Folder of ``last``, ``best``, ``base`` or a step; UserError if it is not there."""
        saved = sorted(self.folder.glob(f"{int(which):08d}*")) if which.isdigit() else []
        path = saved[-1] if saved else self.folder / which
        if not path.exists():
            known = sorted(entry.name for entry in self.folder.glob("[!.]*")) if self.folder.exists() else []
            raise UserError(f"{self.folder.parent} has no checkpoint {which!r}; it has: {', '.join(known) or 'none'}")
        return path.resolve()

    def _free(self, name: str) -> Path:
        """A folder name not in use: a step can be saved twice, at the end of a phase and at the start of the next."""
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(1)))
        return next(self.folder / name for name in names if not (self.folder / name).exists())

    def _link(self, name: str, target: str) -> None:
        temporary = self.folder / f".{name}.{os.getpid()}.partial"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, self.folder / name)

    def _prune(self) -> None:
        for link in self.folder.glob(".*.partial"):
            if link.is_symlink():
                link.unlink(missing_ok=True)
        kept = {link.resolve() for link in self.folder.iterdir() if link.is_symlink()}
        for entry in self.folder.iterdir():
            if not entry.is_symlink() and entry.resolve() not in kept:
                shutil.rmtree(entry, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a small file atomically; UserError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        _fsync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {_reason(error)}") from error


def _split(node: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree with tensors moved out into ``tensors``, by path."""
    if isinstance(node, torch.Tensor):
        tensors[path] = node.detach().cpu().clone().contiguous()
        return {_TENSOR: path}
    if isinstance(node, dict):
        return {str(key): _split(value, f"{path}/{key}", tensors) for key, value in node.items()}
    return node


def _join(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, dict):
        if _TENSOR in node:
            return tensors[node[_TENSOR]]
        return {key: _join(value, tensors) for key, value in node.items()}
    return node


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC or "No space left" in str(error):
        return "no space is left on the device"
    return os.strerror(code) if code else str(error)
