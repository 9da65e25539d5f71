"""A policy bundle on onnxruntime: observations and noise in, actions out, all in physical units."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.files import read_bundle
from diffpolicy_rl.runtime.manifest import OUTPUTS, Manifest, Port
from diffpolicy_rl.runtime.onnx_file import check_onnx

_ONNX_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}
_SILENT = 4  # errors come as exceptions; onnxruntime would print them, too


class Bundle:
    """A policy as a robot calls it.

    Args:
        manifest: what the bundle says about itself.
        graphs: content of each graph's file, by the graph's name.

    Raises:
        BundleError: if a graph is not what the manifest says, or needs more than its own file.
    """

    def __init__(self, manifest: Manifest, graphs: Mapping[str, bytes]) -> None:
        self.manifest = manifest
        chunk = manifest.output.shape
        action = Port("action", chunk[1:], "float32", None, None)
        noise = () if manifest.noise is None else (Port("noise", manifest.noise, "float32", None, None),)
        inputs = {
            "policy": (*manifest.inputs, *noise),
            "residual": (*manifest.inputs, action),
            "score": (*manifest.inputs, manifest.output),
        }
        outputs = OUTPUTS | {"policy": manifest.output.name}
        shapes = {"policy": chunk, "residual": chunk[1:], "score": ()}
        self._graphs = {
            name: _Graph(content, manifest.graphs[name], inputs[name], outputs[name], shapes[name])
            for name, content in graphs.items()
        }

    def __call__(self, obs: Mapping[str, np.ndarray], noise: np.ndarray | None = None) -> np.ndarray:
        """Actions (B, H, D) float32 in physical units.

        Args:
            obs: for every input its raw values (B, *shape).
            noise: standard normal (B, *manifest.noise); zeros if not given.

        Raises:
            BundleError: if an input is missing or has another shape.
        """
        given = dict(obs)
        if self.manifest.noise is not None:
            first = self.manifest.inputs[0]
            rows = len(_fed(first, given))
            given["noise"] = np.zeros((rows, *self.manifest.noise), np.float32) if noise is None else noise
        return self._graphs["policy"](given)

    def plan(self, obs: Mapping[str, np.ndarray], noise: np.ndarray | None = None) -> np.ndarray:
        """Actions (H, D) of one robot, as ``ChunkRunner`` asks for them: the same without batch dimensions."""
        rows = {name: np.asarray(value)[None] for name, value in obs.items()}
        return self(rows, None if noise is None else noise[None])[0]

    def noise(self, rows: int, rng: np.random.Generator) -> np.ndarray | None:
        """Standard-normal noise (rows, *manifest.noise) float32, or None for a deterministic policy."""
        if self.manifest.noise is None:
            return None
        return rng.standard_normal((rows, *self.manifest.noise), dtype=np.float32)

    def correct(self, obs: Mapping[str, np.ndarray], base_action: np.ndarray) -> np.ndarray:
        """What to execute (B, D) in place of planned actions (B, D), now that obs is seen; needs the graph residual."""
        return self._graph("residual")(dict(obs) | {"action": base_action})

    def score(self, obs: Mapping[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        """What the policy's critics think of chunks (B, H, D): (B,), higher is better; needs the graph score."""
        return self._graph("score")(dict(obs) | {self.manifest.output.name: actions})

    def _graph(self, name: str) -> "_Graph":
        if name not in self._graphs:
            raise BundleError(
                f"the bundle {self.manifest.name} has no graph {name!r}; it has {', '.join(self._graphs)}"
            )
        return self._graphs[name]


class _Graph:
    """One graph, checked against the ports it must have."""

    def __init__(
        self, content: bytes, path: str, inputs: tuple[Port, ...], output: str, shape: tuple[int, ...]
    ) -> None:
        check_onnx(content, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _SILENT
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise BundleError(f"onnxruntime refuses {path}: {_first_line(error)}") from None
        self._inputs, self._output, self._path = inputs, output, path
        found = {node.name: _seen(node) for node in self._session.get_inputs()}
        wanted = {port.name: (_ONNX_TYPES[port.dtype], ("B", *port.shape)) for port in inputs}
        if found != wanted:
            raise BundleError(f"{path} takes {_listed(found)}, but manifest.json says {_listed(wanted)}")
        outputs = {node.name: _seen(node) for node in self._session.get_outputs()}
        if outputs != {output: ("tensor(float)", ("B", *shape))}:
            raise BundleError(f"{path} gives {_listed(outputs)}, but should give {output} of shape {['B', *shape]}")

    def __call__(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        feeds = {port.name: _fed(port, given) for port in self._inputs}
        if len({len(array) for array in feeds.values()}) != 1:
            rows = ", ".join(f"{name} {len(array)}" for name, array in feeds.items())
            raise BundleError(f"the inputs have different numbers of rows: {rows}")
        try:
            (out,) = self._session.run([self._output], feeds)
        except Exception as error:  # as above
            raise BundleError(f"onnxruntime cannot run {self._path}: {_first_line(error)}") from None
        return np.asarray(out)


def _fed(port: Port, given: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array that goes into a port; only numbers that it can hold but for rounding are turned into its own."""
    if port.name not in given:
        raise BundleError(f"the input {port.name!r} is missing; given: {', '.join(map(str, given)) or 'nothing'}")
    try:
        array = np.asarray(given[port.name])
    except ValueError as error:
        raise BundleError(f"the input {port.name!r} is no array: {_first_line(error)}") from None
    if array.shape[1:] != port.shape or not array.ndim or not np.can_cast(array.dtype, port.dtype, "same_kind"):
        raise BundleError(
            f"the input {port.name!r} must be {port.dtype} of shape (B, {str(list(port.shape))[1:-1]}), "
            f"not {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array, port.dtype)


def load_bundle(path: str | Path) -> Bundle:
    """Load a bundle from a folder or a zip.

    Paths, sizes and hashes are checked before anything is parsed.

    Raises:
        BundleError: if anything about it is not as it must be.
    """
    manifest, contents = read_bundle(Path(path))
    return Bundle(manifest, {name: contents[file] for name, file in manifest.graphs.items()})


def _seen(node: onnxruntime.NodeArg) -> tuple[str, tuple[object, ...]]:
    """Type and shape of a graph's input or output, B where it takes any number of rows."""
    rows, *shape = node.shape or [0]
    return node.type, (rows if isinstance(rows, int) else "B", *shape)


def _listed(ports: Mapping[str, tuple[str, tuple[object, ...]]]) -> str:
    return ", ".join(f"{name[:40]} {list(shape)} {kind}" for name, (kind, shape) in ports.items()) or "nothing"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
