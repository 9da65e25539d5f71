"""Messages on the wire: openpi's msgpack convention, read strictly.

A message is a map with text keys. An array in it is a map of ``__ndarray__`` (true), ``data`` (its bytes in C order),
``dtype`` (numpy's ``dtype.str``) and ``shape``; a numpy scalar is one of ``__npgeneric__``, ``data`` and ``dtype``; all
these keys are byte strings (openpi-client 0.1.2, ``msgpack_numpy.py``). Nothing is ever pickled.
"""

import math
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 16 * 2**20
"""Of a message."""

RESET = "__reset__"
"""Optional key of a request: if true, a new episode starts with it. Ours; openpi has no such message."""

_MAX_CONTAINERS, _MAX_LENGTH, _MAX_TEXT, _MAX_DEPTH = 1000, 1024, 2**16, 8
_ARRAY = frozenset((b"__ndarray__", b"data", b"dtype", b"shape"))
_SCALAR = frozenset((b"__npgeneric__", b"data", b"dtype"))
_WIDE = [f"{order}{kind}" for order in "<>" for kind in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8")]
_DTYPES = {text: np.dtype(text) for text in ("|b1", "|i1", "|u1", *_WIDE)}
_NUMBERS: dict[str, tuple[type, ...]] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}


class WireError(ValueError):
    """A message is refused; one sentence."""


def pack(message: dict[str, Any]) -> bytes:
    """Encode a message.

    Args:
        message: text, numbers, arrays and numpy scalars of booleans, integers and real floats, in lists and maps.

    Raises:
        WireError: if it holds anything else, or takes more than MAX_BYTES.
    """
    try:
        frame: bytes = msgpack.Packer(default=_encode).pack(message)
    except WireError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"the message cannot be sent: {error}") from None
    if len(frame) > MAX_BYTES:
        raise WireError(f"the message takes {len(frame)} bytes, {MAX_BYTES} are allowed; send smaller arrays")
    return frame


def unpack(frame: bytes) -> dict[str, Any]:
    """Decode a message; its arrays are read-only views of what was received.

    Raises:
        WireError: if it is anything but what ``pack`` makes. What a message costs in memory is bounded before it is
            built: at most 1000 maps and lists of 1024 members each, and arrays no larger than the bytes that came.
    """
    if len(frame) > MAX_BYTES:
        raise WireError(f"the message has {len(frame)} bytes, {MAX_BYTES} are allowed")
    left = _MAX_CONTAINERS

    def counted(members: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise WireError(f"the message has more than {_MAX_CONTAINERS} maps and lists")
        return members

    try:
        message = msgpack.unpackb(
            frame,
            object_hook=lambda fields: _decode(counted(fields)),
            list_hook=counted,
            max_array_len=_MAX_LENGTH,
            max_map_len=_MAX_LENGTH,
            max_str_len=_MAX_TEXT,
            max_ext_len=0,
        )
    except WireError:
        raise
    except Exception as error:  # msgpack promises no narrower class
        raise WireError(f"the message is not valid msgpack: {error or type(error).__name__}") from None
    if not isinstance(message, dict):
        raise WireError(f"the message is {_kind(message)}, not a map")
    _check_depth(message, _MAX_DEPTH)
    return message


def _encode(value: Any) -> dict[bytes, Any]:
    """What msgpack does not know: an array or a numpy scalar."""
    if not isinstance(value, np.ndarray | np.generic):
        raise WireError(f"the message cannot be sent: it holds {_kind(value)}")
    if value.dtype.str not in _DTYPES:
        raise WireError(f"the message cannot be sent: it holds an array of dtype {str(value.dtype)[:40]}")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _decode(fields: dict[Any, Any]) -> Any:
    """A map as it is, or the array or scalar that it stands for."""
    if b"__ndarray__" in fields:
        return _array(fields)
    if b"__npgeneric__" in fields:
        return _scalar(fields)
    if not all(isinstance(key, str) for key in fields):
        raise WireError("a map in the message has a key that is not text")
    return fields


def _array(fields: dict[Any, Any]) -> NDArray[Any]:
    if fields.keys() != _ARRAY or fields[b"__ndarray__"] is not True:
        raise WireError("an array in the message needs exactly data, dtype and shape")
    dtype, shape, data = _dtype(fields[b"dtype"]), fields[b"shape"], fields[b"data"]
    if not isinstance(shape, list) or len(shape) > _MAX_DEPTH or not all(map(_is_length, shape)):
        raise WireError(f"an array's shape in the message is not a list of at most {_MAX_DEPTH} lengths")
    if not isinstance(data, bytes):
        raise WireError(f"an array's data in the message is {_kind(data)}, not bytes")
    needed = math.prod(shape) * dtype.itemsize
    if len(data) != needed:
        raise WireError(f"an array of dtype {dtype} and shape {tuple(shape)} has {len(data)} bytes, not {needed}")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(fields: dict[Any, Any]) -> Any:
    if fields.keys() != _SCALAR or fields[b"__npgeneric__"] is not True:
        raise WireError("a scalar in the message needs exactly data and dtype")
    dtype, number = _dtype(fields[b"dtype"]), fields[b"data"]
    if type(number) not in _NUMBERS[dtype.kind]:
        raise WireError(f"a scalar of dtype {dtype} in the message is {_kind(number)}")
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
        raise WireError(f"a scalar in the message does not fit its dtype {dtype}")
    with np.errstate(over="ignore"):  # as an infinity, which whoever reads the scalar checks for
        return dtype.type(number)


def _dtype(text: Any) -> np.dtype[Any]:
    known = _DTYPES.get(text) if isinstance(text, str) else None
    if known is None:
        raise WireError("an array in the message has a dtype other than booleans, integers and real floats")
    return known


def _is_length(value: Any) -> bool:
    """Whether it can be an array's length; more than MAX_BYTES can only be meant for an empty array."""
    return type(value) is int and 0 <= value <= MAX_BYTES


def _check_depth(value: Any, left: int) -> None:
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise WireError(f"the message is nested more than {_MAX_DEPTH} deep")
    for member in value.values() if isinstance(value, dict) else value:
        _check_depth(member, left - 1)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
