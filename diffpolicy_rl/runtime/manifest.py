"""``manifest.json``: what a bundle says about itself, and which files belong to it."""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffpolicy_rl.runtime.errors import BundleError

FORMAT, VERSION = "diffpolicy_rl.bundle", 1
NAME = "manifest.json"
LARGEST = 1 << 20  # bytes of a manifest
MOST_ELEMENTS = 1 << 24  # of one row of an input or output
DTYPES = ("float32", "uint8")
OUTPUTS = {"policy": "actions", "residual": "corrected", "score": "score"}  # of every graph there may be
GRAPHS = tuple(OUTPUTS)
RESERVED = ("noise", "action")  # inputs of graphs that are no ports
_LARGEST_NUMBER = 1e300  # what is not a number is not below it
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: of the graph's input or output.
        shape: of one row, without the batch dimension.
        dtype: float32 or uint8.
        names: of the entries of the last dimension, or None.
        units: of all of them, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    names: tuple[str, ...] | None
    units: str | None


@dataclass(frozen=True)
class Control:
    """How the policy is to be run.

    Attributes:
        rate_hz: actions executed per second.
        horizon: H, actions of a chunk.
        execute: A <= H, how many of them are executed before the next call.
        latency_budget_ms: what a call may take.
        stale_after_ms: age at which an observation is no longer acted on.
    """

    rate_hz: float
    horizon: int
    execute: int
    latency_budget_ms: float
    stale_after_ms: float


@dataclass(frozen=True)
class Limits:
    """What the safety filter holds actions to, per action dimension, in action units.

    Attributes:
        low: lower bounds (D,).
        high: upper bounds (D,).
        velocity: bounds (D,) per second, or None.
        acceleration: bounds (D,) per s^2, or None.
        jerk: bounds (D,) per s^3, or None.
        workspace: low and high corner, for actions that begin with a Cartesian position, or None.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    velocity: tuple[float, ...] | None = None
    acceleration: tuple[float, ...] | None = None
    jerk: tuple[float, ...] | None = None
    workspace: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass(frozen=True)
class File:
    """A file of the bundle.

    Attributes:
        path: relative, with forward slashes.
        bytes: its size.
        sha256: of its content, in hex.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that a bundle says about itself.

    Attributes:
        name: of the bundle.
        algorithm: what trained the policy.
        created: ISO 8601 time.
        inputs: the observations.
        noise: shape of one row's standard-normal noise, or None for a deterministic policy.
        output: the actions, (H, D).
        control: rates.
        limits: of actions.
        graphs: file of each graph: ``policy``, and ``residual`` and ``score`` where there are any.
        files: every file but the manifest.
        source: where the policy comes from, and the versions it was exported with.
    """

    name: str
    algorithm: str
    created: str
    inputs: tuple[Port, ...]
    noise: tuple[int, ...] | None
    output: Port
    control: Control
    limits: Limits
    graphs: dict[str, str]
    files: tuple[File, ...]
    source: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle's folder; BundleError if there is none, or it is not sound."""
    try:
        with (folder / NAME).open("rb") as file:
            return parse_manifest(file.read(LARGEST + 1))
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: it has no readable {NAME} ({error.strerror})") from None


def parse_manifest(content: bytes) -> Manifest:
    """The manifest that a file's content describes; BundleError if it is not sound."""
    if len(content) > LARGEST:
        raise BundleError(f"{NAME} is larger than {LARGEST} bytes")
    try:
        tree = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise BundleError(f"{NAME} is not JSON") from None
    if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
        raise BundleError(f'{NAME} is not that of a policy bundle: it does not say "format": "{FORMAT}"')
    version = tree.pop("version", None)
    if version != VERSION or isinstance(version, bool):
        raise BundleError(f"{NAME} has format version {str(version)[:20]}, this version reads {VERSION}")
    manifest: Manifest = _build(Manifest, tree, "")
    _check(manifest)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a bundle's folder; BundleError if what it says is not sound."""
    tree = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(manifest)
    content = json.dumps(tree, indent=2) + "\n"
    parse_manifest(content.encode())  # nothing is written that could not be read
    (folder / NAME).write_text(content)


def _build(kind: Any, value: Any, where: str) -> Any:
    """A value of the annotated type, out of what JSON has."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, Mapping) or value.keys() != hints.keys():
            raise BundleError(f"{NAME}: {where or 'it'} must have exactly the members {', '.join(hints)}")
        return kind(**{name: _build(hint, value[name], f"{where}.{name}".lstrip(".")) for name, hint in hints.items()})
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _build(options[0], value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        if len(kinds) == len(value):
            return tuple(_build(*pair, f"{where}[{i}]") for i, pair in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: _build(options[1], item, f"{where}.{key[:40]}") for key, item in value.items()}
    if (
        kind is float
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= _LARGEST_NUMBER
    ):
        return float(value)
    if kind in (int, str) and type(value) is kind:
        return value
    noun = {int: "a whole number", float: "a finite number", str: "a text"}.get(kind, "a list or group as specified")
    raise BundleError(f"{NAME}: {where} must be {noun}")


def _check(manifest: Manifest) -> None:
    """Raise BundleError unless the parts fit together."""
    _check_ports(manifest)
    _check_control(manifest.control, manifest.output.shape)
    _check_limits(manifest.limits, manifest.output.shape[-1])
    paths = [file.path for file in manifest.files]
    for path in paths:
        check_path(path)
    folded = {path.lower() for path in paths}
    if len(folded) < len(paths) or NAME in folded:
        raise BundleError(f"{NAME}: files lists a path twice, or the manifest itself")
    for file in manifest.files:
        if file.bytes < 0 or not _HEX.fullmatch(file.sha256):
            raise BundleError(f"{NAME}: {file.path} must have a size and a SHA-256 in lower-case hex")
    for name, path in manifest.graphs.items():
        if name not in GRAPHS or path not in paths or not path.endswith(".onnx"):
            raise BundleError(
                f"{NAME}: graphs.{name[:40]} must be an .onnx listed in files; known: {', '.join(GRAPHS)}"
            )
    if "policy" not in manifest.graphs:
        raise BundleError(f"{NAME}: graphs has no policy")


def _check_ports(manifest: Manifest) -> None:
    ports = (*manifest.inputs, manifest.output)
    for port in ports:
        _check_shape(port.shape, port.name)
        if port.dtype not in DTYPES:
            raise BundleError(f"{NAME}: {port.name[:40]} has the dtype {port.dtype[:20]}, known: {', '.join(DTYPES)}")
        if port.names is not None and len(port.names) != port.shape[-1]:
            raise BundleError(f"{NAME}: {port.name[:40]} has {len(port.names)} names for {port.shape[-1]} entries")
    if manifest.noise is not None:
        _check_shape(manifest.noise, "noise")
    names = [port.name for port in ports]
    if not manifest.inputs or len({*names, *RESERVED}) != len(names) + len(RESERVED):
        raise BundleError(f"{NAME}: inputs and output need names of their own, none of them {' or '.join(RESERVED)}")
    if manifest.output.dtype != "float32" or len(manifest.output.shape) != 2:
        raise BundleError(f"{NAME}: the output must be a float32 chunk of shape (H, D)")


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if not shape or len(shape) > 8 or min(shape) < 1 or math.prod(shape) > MOST_ELEMENTS:
        raise BundleError(f"{NAME}: {name[:40]} has a shape that no policy has: {str(list(shape))[:60]}")


def _check_control(control: Control, shape: tuple[int, ...]) -> None:
    if min(control.rate_hz, control.latency_budget_ms, control.stale_after_ms) <= 0:
        raise BundleError(f"{NAME}: rate_hz, latency_budget_ms and stale_after_ms of control must be above 0")
    if control.horizon != shape[0] or not 1 <= control.execute <= control.horizon:
        raise BundleError(
            f"{NAME}: control has horizon={control.horizon} and execute={control.execute}, but chunks have {shape[0]} "
            "actions, of which between one and all are executed"
        )


def _check_limits(limits: Limits, dim: int) -> None:
    for name in ("low", "high", "velocity", "acceleration", "jerk"):
        values = getattr(limits, name)
        if values is not None and len(values) != dim:
            raise BundleError(f"{NAME}: limits.{name} has {len(values)} entries, actions have {dim}")
        if values is not None and name not in ("low", "high") and min(values) <= 0:
            raise BundleError(f"{NAME}: limits.{name} must be above 0")
    boxes = [(limits.low, limits.high), *([limits.workspace] if limits.workspace else [])]
    for low, high in boxes:
        if len(low) != len(high) or len(low) > dim or not all(a < b for a, b in zip(low, high, strict=True)):
            raise BundleError(f"{NAME}: limits must lie below one another: low < high, and the workspace's corners")


def check_path(path: str) -> None:
    """Raise BundleError unless a path stays inside the bundle and means the same everywhere."""
    parts = path.split("/")
    plain = all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", part) for part in parts)
    if not plain or len(path) > 200 or len(parts) > 4:
        raise BundleError(f"{path[:60]!r} is not the path of a file inside a bundle")
