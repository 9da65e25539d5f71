"""Inputs of a bundle and what torch made of them: how far onnxruntime is from it, and the file that keeps some.

Without torch, as all that checks a bundle on the robot's computer.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.runtime.bundle import Bundle
from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.manifest import OUTPUTS

Arrays = dict[str, NDArray[np.float32]]
OBSERVATION, NOISE, ACTION = "observation", "noise", "action"
ACTIONS, CORRECTED, SCORE = OUTPUTS.values()
SCALE = "action_scale"  # D, what one normalised unit of an action is in its own
TOLERANCE = 1e-5  # of every output, in normalised units
_MOST_BYTES = 1 << 28  # of all arrays of a file
_NUMBERS = ("<f4", "|u1")


def bundle_answers(bundle: Bundle, inputs: Mapping[str, np.ndarray], planned: np.ndarray) -> dict[str, np.ndarray]:
    """What a bundle gives; chunks ``planned`` (B, H, D) are corrected and scored."""
    manifest = bundle.manifest
    obs = {port.name: inputs[port.name] for port in manifest.inputs}
    found = {ACTIONS: bundle(obs, inputs.get(NOISE))}
    if "residual" in manifest.graphs:
        found[CORRECTED] = bundle.correct(obs, planned[:, 0])
    if "score" in manifest.graphs:
        found[SCORE] = bundle.score(obs, planned)
    return found


def answers_alone(bundle: Bundle, inputs: Mapping[str, np.ndarray], planned: np.ndarray) -> dict[str, np.ndarray]:
    """What a bundle gives for rows one at a time, the first of the inputs, as many as there are chunks ``planned``."""
    parts = ({name: value[i : i + 1] for name, value in inputs.items()} for i in range(len(planned)))
    rows = [bundle_answers(bundle, part, planned[i : i + 1]) for i, part in enumerate(parts)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def errors(ours: np.ndarray, theirs: np.ndarray, name: str, scale: np.ndarray) -> NDArray[np.float64]:
    """Absolute differences of an output, actions in normalised units, scores relative to what is above 1.

    What is not finite in both, and equal, is infinitely far.
    """
    unit = np.maximum(np.abs(theirs), 1.0) if name == SCORE else scale
    with np.errstate(invalid="ignore"):
        far = np.abs(ours.astype(np.float64) - theirs) / unit
    return np.where(np.isnan(far), np.inf, far)


def require_close(far: Mapping[str, float], theirs: str) -> str:
    """Say how far each output is from what it should be; BundleError if one is farther than ``TOLERANCE``.

    Args:
        far: the largest of ``errors`` by the output's name.
        theirs: what it should be.
    """
    name = max(far, key=lambda output: far[output])
    if far[name] > TOLERANCE:
        raise BundleError(f"the output {name!r} differs from {theirs} by {far[name]:.1e}, but {TOLERANCE:g} is allowed")
    return ", ".join(f"{output} within {value:.1e}" for output, value in far.items())


def write_examples(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_examples(content: bytes) -> dict[str, np.ndarray]:
    """Arrays by name; BundleError for objects, and for shapes that are not those of the data behind them."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if sum(info.file_size for info in members) > _MOST_BYTES:
                raise BundleError(f"the examples hold more than {_MOST_BYTES} bytes")
            return {info.filename.removesuffix(".npy"): _array(archive, info) for info in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError) as error:
        raise BundleError(f"the examples are not a sound npz: {error}") from None


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array of numbers, none of whose bytes is interpreted as anything else."""
    with archive.open(info) as member:
        content = member.read(info.file_size)
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file, max_header_size=1000)
    except (ValueError, KeyError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise BundleError(f"{info.filename} in the examples is no npy file") from None
    if dtype.str not in _NUMBERS or fortran or len(shape) > 8:
        raise BundleError(f"{info.filename} in the examples holds {dtype}, not plain numbers")
    data = content[file.tell() :]
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise BundleError(
            f"{info.filename} in the examples claims the shape {str(shape)[:60]}, but has {len(data)} bytes"
        )
    return np.frombuffer(data, dtype).reshape(shape)
