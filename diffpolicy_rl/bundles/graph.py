"""A deployed policy as ONNX graphs: one file each, noise an input, everything with units inside.

Batches have any size: torch specialises a dimension whose example is 1, so the example has two rows.
"""

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy_rl.bundles.examples import ACTION, ACTIONS, CORRECTED, NOISE, OBSERVATION, SCORE
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.linear import Linear
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.onnx_file import check_onnx
from diffpolicy_rl.types import DeployedPolicy

OPSET = 18  # the newest that TensorRT and onnxruntime on small computers read alike
_ROWS = 2


@dataclass(frozen=True)
class Deployment:
    """A policy, and what it takes to ask it something sensible.

    Attributes:
        policy: what a graph computes, on the CPU, without gradient.
        obs_shape: of one observation, (O,) or (To, O).
        obs_normalizer: over (O,).
        action_normalizer: over (D,).
    """

    policy: DeployedPolicy
    obs_shape: tuple[int, ...]
    obs_normalizer: Normalizer
    action_normalizer: Normalizer


@dataclass(frozen=True)
class Graphs:
    """What a policy was exported to.

    Attributes:
        contents: an ONNX file's content by the graph's name: policy, and residual and score where there are any.
        noise: shape of one row's noise, or None if no action depends on it.
        horizon: H.
    """

    contents: dict[str, bytes]
    noise: tuple[int, ...] | None
    horizon: int


class _Method(nn.Module):
    """A method of a policy as a module's forward, for torch's exporter."""

    def __init__(self, policy: DeployedPolicy, method: Callable[..., Tensor]) -> None:
        super().__init__()
        self.policy, self._method = policy, method

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the method gives."""
        return self._method(*inputs)


def export_graphs(deployment: Deployment) -> Graphs:
    """Every graph of a policy.

    Raises:
        UserError: if torch or ONNX cannot express it, naming the line that stands in the way.
    """
    policy = deployment.policy
    for layer in policy.modules():
        if isinstance(layer, Linear):
            layer.unpack()  # a packed weight is not a weight that can be exported
    obs, noise = {OBSERVATION: torch.zeros(_ROWS, *deployment.obs_shape)}, policy.noise_shape
    inputs = obs if noise is None else obs | {NOISE: torch.zeros(_ROWS, *noise)}
    program = _traced(policy, without_noise(policy) if noise is None else policy, inputs)
    if noise is not None and not _reads_last(program):
        inputs, noise = obs, None
        program = _traced(policy, without_noise(policy), obs)
    contents = {"policy": _graph(policy, program, inputs, ACTIONS)}
    horizon, dim = next(node for node in program.graph.nodes if node.op == "output").args[0][0].meta["val"].shape[1:]
    if policy.per_step:
        inputs = obs | {ACTION: torch.zeros(_ROWS, dim)}
        contents["residual"] = _graph(policy, _traced(policy, policy.correct, inputs), inputs, CORRECTED)
    if policy.scores:
        inputs = obs | {ACTIONS: torch.zeros(_ROWS, horizon, dim)}
        contents["score"] = _graph(policy, _traced(policy, policy.score, inputs), inputs, SCORE)
    return Graphs(contents, noise, int(horizon))


def without_noise(policy: DeployedPolicy) -> Callable[[Tensor], Tensor]:
    """The actions of a policy that depend on no noise, as a function of observations alone."""
    if policy.noise_shape is None:
        return lambda obs: policy(obs, None)
    shape = policy.noise_shape
    return lambda obs: policy(obs, obs.new_zeros((obs.shape[0], *shape)))  # len() would freeze the batch


def _graph(policy: DeployedPolicy, program: Any, inputs: Mapping[str, Tensor], output: str) -> bytes:
    """A traced method of a policy as an ONNX file's content."""
    with _one_sentence(policy), _quiet():
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            input_names=list(inputs),
            output_names=[output],
        )
    assert made is not None
    return _finished(made.model_proto, policy)


def _traced(policy: DeployedPolicy, method: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> Any:
    rows = torch.export.Dim("batch")
    shapes = (tuple({0: rows} for _ in inputs),)
    with _one_sentence(policy), _quiet(), torch.no_grad():
        return torch.export.export(_Method(policy, method), tuple(inputs.values()), dynamic_shapes=shapes, strict=False)


def _reads_last(program: Any) -> bool:
    """Whether anything is computed from the last input."""
    last = program.graph_signature.user_inputs[-1]
    return any(node.users for node in program.graph.nodes if node.name == last)


def _finished(model: Any, policy: DeployedPolicy) -> bytes:
    """The content of a sound model, without the traces of where it was made."""
    import onnx

    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    try:
        onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString()
        check_onnx(content, "the graph")
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, BundleError) as error:
        raise UserError(f"{type(policy).__name__} cannot be exported: {str(error).splitlines()[0]}") from error
    doubles = double_precision(model)
    if doubles:
        raise UserError(
            f"{type(policy).__name__} cannot be exported: {doubles[0]} is in double precision; compute it in the dtype "
            "of the observation"
        )
    return content


def double_precision(model: Any) -> list[str]:
    """Names of all values in an ONNX model that are in double precision."""
    import onnx

    double = onnx.TensorProto.DOUBLE
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = [tensor.name for tensor in graph.initializer if tensor.data_type == double]
    values = (*graph.input, *graph.output, *graph.value_info)
    return found + [value.name for value in values if value.type.tensor_type.elem_type == double]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A block in which the exporter keeps its progress and its warnings to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _one_sentence(policy: DeployedPolicy) -> Iterator[None]:
    """A block in which whatever torch raises becomes a UserError that names the line it stumbled over."""
    try:
        yield
    except Exception as error:  # the exporter's own and whatever the policy raises under it
        lines = [line.strip() for line in str(_root(error)).splitlines()] + [type(error).__name__]
        reason = next(line for line in lines if line).partition("  ")[0].rstrip(".")
        raise UserError(
            f"{type(policy).__name__} cannot be exported{_place(error)}: {reason}; compute with tensors alone, for "
            "batches of any size"
        ) from error


def _root(error: BaseException) -> BaseException:
    """The error that all others came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _place(error: BaseException) -> str:
    """The last line of a policy's own code that an error passed through."""
    frames = traceback.extract_tb(_root(error).__traceback__)
    exporters = [str(Path(torch.__file__).parents[1] / name) for name in ("torch", "onnx")]
    own = [frame for frame in frames if not frame.filename.startswith(("<", __file__, *exporters))]
    if not own:
        return ""
    frame = own[-1]
    return f" because of {Path(frame.filename).name}:{frame.lineno} ({(frame.line or '').strip()[:80]})"
