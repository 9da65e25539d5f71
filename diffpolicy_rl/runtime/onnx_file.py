"""What an ONNX file asks for, read from its bytes before onnxruntime sees them.

Only what must be refused is looked at: data outside the file, operators that no policy needs, random numbers, nested
graphs, tensors that claim to be larger than the file, and shapes that are huge or whose size nothing here can tell.
What grows by ordinary maths alone, as a chain of outer products does, is not seen. The field numbers are those of
onnx.proto3.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from diffpolicy_rl.runtime.errors import BundleError

_STANDARD = ("", "ai.onnx")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
_NAMES = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Constant ConstantOfShape Cos Cosh CumSum
Div Elu Equal Erf Exp Expand Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Hardmax Identity IsInf IsNaN
LeakyRelu Less LessOrEqual Log LogSoftmax Max Mean Min Mish Mod Mul Neg Not Or PRelu Pad Pow Range Reciprocal Relu
Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Tile
Where Xor
ArgMax ArgMin AveragePool BatchNormalization Conv ConvTranspose Einsum GRU Gemm GlobalAveragePool GlobalMaxPool
GroupNormalization InstanceNormalization LSTM LayerNormalization LpNormalization MatMul MaxPool RMSNormalization
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
TopK
Concat DepthToSpace Flatten Gather GatherElements GatherND Reshape ScatterElements ScatterND Shape Size Slice
SpaceToDepth Split Squeeze Transpose Trilu Unsqueeze
"""  # what torch's exporter makes of policies, and its near relatives
_OPERATORS = frozenset(_NAMES.split())
_SHAPED = {  # where in their inputs a shape is
    **{"ConstantOfShape": slice(1), "Range": slice(3)},
    **dict.fromkeys(("Expand", "Pad", "Reshape", "Tile"), slice(1, 2)),
}
_SAME = ("Cast", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")  # no entry is new, none is there twice
_INT64, _SIGNED = 7, ((1,), (6,), (7,))  # as float32, int32 and int64 no whole number becomes a larger one
_ROWS = 64  # a batch, for the size of what is made for every row
MOST_ELEMENTS = 1 << 28  # of any one tensor
_MOST_TIMES = 1 << 20  # of these more that an operator may make of what it is given
_GROWING = ("dilations", "kernel_shape", "output_padding", "output_shape", "pads", "strides")
_MOST_FIELDS = 1 << 20  # of any one message
_MOST_DIMS = 16
_LONGEST = 160  # bytes of a tensor that could be a shape


class Field(NamedTuple):
    """One field of a protobuf message: its number, and its content or number."""

    number: int
    content: memoryview
    value: int


def check_onnx(content: bytes, path: str) -> None:
    """Raise BundleError if a graph needs anything but its own file and ONNX's deterministic operators."""
    graphs = []
    for field in _fields(memoryview(content), path):
        if field.number == 7:
            graphs.append(field.content)
        elif field.number == 8 and _text(field.content, 1, path) not in _STANDARD:
            raise BundleError(f"{path} uses operators of {_text(field.content, 1, path)[:40]!r}, not only ONNX's own")
        elif field.number == 25:
            raise BundleError(f"{path} defines functions of its own, which no exported policy does")
    if len(graphs) != 1:
        raise BundleError(f"{path} is not an ONNX model")
    _check_graph(graphs[0], path)


def _check_graph(graph: memoryview, path: str) -> None:
    nodes, known = [], _Known({}, {})
    for field in _fields(graph, path):
        if field.number == 1:
            nodes.append(field.content)
        elif field.number == 5:
            known.keep(*_check_tensor(field.content, path))
        elif field.number == 11:
            known.inputs[_text(field.content, 1, path)] = _dims(field.content, path)
        elif field.number == 15:
            raise BundleError(f"{path} has sparse tensors, which no exported policy has")
    for node in nodes:
        _check_node(node, known, path)


class _Known(NamedTuple):
    """What can be told of a graph's values before it runs.

    Attributes:
        inputs: shapes of the graph's inputs.
        values: at least the magnitudes of all entries, of what is made of constants and of the inputs' shapes.
    """

    inputs: dict[str, tuple[int, ...]]
    values: dict[str, tuple[int, ...]]

    def keep(self, name: str, entries: Iterable[int] | None) -> None:
        """Note a value, if its entries are known and could be a shape."""
        entries = None if entries is None else tuple(min(abs(entry), MOST_ELEMENTS + 1) for entry in entries)
        if entries is not None and len(entries) <= _MOST_DIMS:
            self.values[name] = entries

    def follow(
        self, operator: str, inputs: list[str], attributes: dict[str, tuple[int, ...] | None]
    ) -> tuple[int, ...] | None:
        """What an operator gives, or None if it cannot be told."""
        if operator == "Constant":
            return next(iter(attributes.values())) if len(attributes) == 1 else None
        if operator == "Shape" and inputs[0] in self.inputs:
            (start, *_), (end, *_) = attributes.get("start") or (0,), attributes.get("end") or (None,)
            return self.inputs[inputs[0]][start:end]
        values = [self.values.get(name) for name in inputs]
        known = [value for value in values if value is not None]
        if operator in _SAME and (operator != "Cast" or attributes.get("to") in _SIGNED):
            return values[0]
        if len(known) < len(values) or (operator in ("Gather", "Mul") and len(known) != 2):
            return None
        if operator == "Gather":
            return (max(known[0], default=0),) * len(known[1])
        if operator == "Mul":  # as the candidates of a batch are counted
            return (math.prod(max(value, default=0) for value in known),) * max(map(len, known))
        return sum(known, ()) if operator == "Concat" else None


def _check_node(node: memoryview, known: _Known, path: str) -> None:
    inputs, outputs, operator = [], [], _text(node, 4, path)
    attributes: dict[str, tuple[int, ...] | None] = {}
    for field in _fields(node, path):
        if field.number == 1:
            inputs.append(_decoded(field.content))
        elif field.number == 2:
            outputs.append(_decoded(field.content))
        elif field.number == 5:
            attributes[_text(field.content, 1, path)] = _check_attribute(field.content, path)
        elif field.number == 7 and _decoded(field.content) not in _STANDARD:
            raise BundleError(f"{path} uses an operator of {_decoded(field.content)[:40]!r}, not one of ONNX's own")
    if operator in _RANDOM:
        raise BundleError(f"{path} draws random numbers ({operator}); all noise must be an input")
    if operator not in _OPERATORS:
        raise BundleError(f"{path} uses the operator {operator[:40]!r}, which no exported policy needs")
    if any(name in known.values for name in outputs):
        raise BundleError(f"{path} computes a value twice ({operator})")
    wanted = [known.values.get(name) for name in inputs[_SHAPED.get(operator, slice(0))]]
    if None in wanted and operator != "Reshape":  # which makes nothing that was not there
        raise BundleError(f"{path} computes a shape ({operator}) from more than constants and its inputs' shapes")
    entries = [entry for value in wanted for entry in value or ()]
    if _size(entries) > (_MOST_TIMES if operator in ("Pad", "Tile") else MOST_ELEMENTS):
        raise BundleError(f"{path} makes a tensor of an absurd shape ({operator} to {str(entries)[:60]})")
    if any(_size(integers) > _MOST_TIMES for name, integers in attributes.items() if integers and name in _GROWING):
        raise BundleError(f"{path} makes a tensor of an absurd shape ({operator} with huge attributes)")
    if outputs and (inputs or operator == "Constant"):
        known.keep(outputs[0], known.follow(operator, inputs, attributes))


def _size(entries: Iterable[int]) -> int:
    """How many elements a shape has at most."""
    return math.prod(max(abs(entry), 1) for entry in entries)


def _dims(value: memoryview, path: str) -> tuple[int, ...]:
    """The shape of a graph's input; a size that has a name is that of a batch."""
    parts = [value]
    for number in (2, 1, 2, 1):  # its type, a tensor's type, that one's shape, its dimensions
        parts = [field.content for part in parts for field in _fields(part, path) if field.number == number]
    sizes = ([field.value for field in _fields(part, path) if field.number == 1] for part in parts)
    return tuple(size[-1] if size else _ROWS for size in sizes)


def _check_attribute(attribute: memoryview, path: str) -> tuple[int, ...] | None:
    """The integers of a sound attribute, if it has any that could be a shape."""
    integers: list[int] = []
    tensors: list[tuple[int, ...] | None] = []
    kinds = set()
    for field in _fields(attribute, path):
        if field.number in (6, 11):
            raise BundleError(f"{path} has graphs inside its graph, which no exported policy has")
        if field.number in (5, 10):
            tensors.append(_check_tensor(field.content, path)[1])
        if field.number in (22, 23):
            raise BundleError(f"{path} has sparse tensors, which no exported policy has")
        if field.number in (3, 8) and len(field.content) <= _LONGEST:
            integers += _integers(field, path)
        if field.number in (3, 5, 8):
            kinds.add(field.number)
    if len(kinds) > 1 or len(tensors) > 1:  # readers differ in which of them counts
        raise BundleError(f"{path} has an attribute of two values")
    return tensors[0] if tensors else tuple(integers) or None


def _check_tensor(tensor: memoryview, path: str) -> tuple[str, tuple[int, ...] | None]:
    """The name of a sound tensor, and its entries if they could be a shape."""
    dims: list[int] = []
    name, kind, raw, listed = "", 0, memoryview(b""), []
    for field in _fields(tensor, path):
        if field.number == 13 or (field.number == 14 and field.value):
            raise BundleError(f"{path} keeps tensors in other files (external data), which is refused")
        if field.number == 1:
            dims += _integers(field, path)
        elif field.number == 2:
            kind = field.value
        elif field.number == 7 and len(field.content) <= _LONGEST:
            listed += _integers(field, path)
        elif field.number == 8:
            name = _decoded(field.content)
        elif field.number == 9:
            raw = field.content
    if len(dims) > _MOST_DIMS or any(size < 0 for size in dims) or math.prod(dims) > max(8 * len(tensor), 1):
        raise BundleError(f"{path} has a tensor of shape {str(dims)[:60]} with data for a small part of it")
    if kind != _INT64 or len(dims) > 1 or len(raw) > _LONGEST:
        return name, None
    entries = [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw), 8)] or listed
    return name, tuple(entries) if len(entries) == math.prod(dims) else None


def _fields(message: memoryview, path: str) -> Iterator[Field]:
    """The fields of a message in protobuf's wire format."""
    at = count = 0
    while at < len(message):
        count += 1
        key, at = _varint(message, at, path)
        kind, value, size = key & 7, 0, 0
        if kind == 0:
            value, at = _varint(message, at, path)
        elif kind == 2:
            size, at = _varint(message, at, path)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise BundleError(f"{path} is not an ONNX model")
        if at + size > len(message) or count > _MOST_FIELDS:
            raise BundleError(f"{path} is not an ONNX model: it ends too early, or has parts without number")
        yield Field(key >> 3, message[at : at + size], value)
        at += size


def _varint(message: memoryview, at: int, path: str) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise BundleError(f"{path} is not an ONNX model")


def _integers(field: Field, path: str) -> list[int]:
    """One repeated int64, or a packed run of them."""
    values, at = ([] if len(field.content) else [field.value]), 0
    while at < len(field.content):
        value, at = _varint(field.content, at, path)
        values.append(value)
    return [value - (1 << 64) if value >= 1 << 63 else value for value in values]


def _text(message: memoryview, number: int, path: str) -> str:
    """A text field of a message, empty where it is not set."""
    return next((_decoded(field.content) for field in _fields(message, path) if field.number == number), "")


def _decoded(content: memoryview) -> str:
    return bytes(content).decode(errors="replace")
