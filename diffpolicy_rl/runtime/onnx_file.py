"""What an ONNX file asks for, read from its bytes before onnxruntime sees them.

Only what must be refused is looked at: data outside the file, operators that are not ONNX's own, random numbers, nested
graphs, tensors that claim to be larger than the file. The field numbers are those of onnx.proto3.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from diffpolicy_rl.runtime.errors import BundleError

_STANDARD = ("", "ai.onnx")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
_SHAPED = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Tile": 1}  # where in their inputs a shape is
_INT64 = 7
MOST_ELEMENTS = 1 << 28  # of any one tensor
_MOST_FIELDS = 1 << 20  # of any one message
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
    nodes, shapes = [], {}
    for field in _fields(graph, path):
        if field.number == 1:
            nodes.append(field.content)
        elif field.number == 5:
            name, integers = _check_tensor(field.content, path)
            shapes[name] = integers
        elif field.number == 15:
            raise BundleError(f"{path} has sparse tensors, which no exported policy has")
    for node in nodes:
        _check_node(node, shapes, path)


def _check_node(node: memoryview, shapes: dict[str, tuple[int, ...]], path: str) -> None:
    inputs, operator = [], _text(node, 4, path)
    for field in _fields(node, path):
        if field.number == 1:
            inputs.append(_decoded(field.content))
        elif field.number == 5:
            _check_attribute(field.content, path)
        elif field.number == 7 and _decoded(field.content) not in _STANDARD:
            raise BundleError(f"{path} uses an operator of {_decoded(field.content)[:40]!r}, not one of ONNX's own")
    if operator in _RANDOM:
        raise BundleError(f"{path} draws random numbers ({operator}); all noise must be an input")
    place = _SHAPED.get(operator)
    wanted = shapes.get(inputs[place], ()) if place is not None and place < len(inputs) else ()
    if math.prod(abs(size) for size in wanted if size) > MOST_ELEMENTS:
        raise BundleError(f"{path} makes a tensor of an absurd shape ({operator} to {str(list(wanted))[:60]})")


def _check_attribute(attribute: memoryview, path: str) -> None:
    for field in _fields(attribute, path):
        if field.number in (6, 11):
            raise BundleError(f"{path} has graphs inside its graph, which no exported policy has")
        if field.number in (5, 10):
            _check_tensor(field.content, path)
        if field.number in (22, 23):
            raise BundleError(f"{path} has sparse tensors, which no exported policy has")


def _check_tensor(tensor: memoryview, path: str) -> tuple[str, tuple[int, ...]]:
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
    if len(dims) > 16 or any(size < 0 for size in dims) or math.prod(dims) > max(8 * len(tensor), 1):
        raise BundleError(f"{path} has a tensor of shape {str(dims)[:60]} with data for a small part of it")
    if kind != _INT64 or len(dims) > 1 or len(raw) > _LONGEST:
        return name, ()
    entries = [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw), 8)]
    return name, tuple(entries or listed)


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
