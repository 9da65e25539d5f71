import contextlib
import math
import pickle
import struct
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffpolicy_rl.runtime.wire import MAX_BYTES, WireError, pack, unpack

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">i4", ">f4", ">f8", ">u2"]


def array_map(**changes):
    """An array as it is on the wire, with fields changed."""
    fields = {"__ndarray__": True, "data": b"\0" * 12, "dtype": "<f4", "shape": [3]} | changes
    return {key.encode(): value for key, value in fields.items() if value is not ...}


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_arrays_come_back_bit_for_bit(dtype, data):
    shape = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
    array = data.draw(arrays.arrays(np.dtype(dtype), shape))
    back = unpack(pack({"a": array}))["a"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    turned = array.T
    assert unpack(pack({"a": turned}))["a"].tobytes() == turned.tobytes()  # C order, whatever the strides


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_come_back_with_their_type(dtype):
    for value in (0, 1):
        scalar = np.dtype(dtype).type(value)
        back = unpack(pack({"a": scalar}))["a"]
        assert back == scalar
        # np.float64 is a Python float, which msgpack sends as such.
        assert isinstance(back, float) if isinstance(scalar, np.float64) else back.dtype == scalar.dtype


def test_bytes_are_those_that_openpi_agreed_on():
    """By hand after openpi-client 0.1.2: map of 1, "a", map of 4 with bin keys."""
    expected = b"\x81\xa1a\x84"
    expected += b"\xc4\x0b__ndarray__\xc3" + b"\xc4\x04data\xc4\x08" + struct.pack("<2f", 1.5, -2.0)
    expected += b"\xc4\x05dtype\xa3<f4" + b"\xc4\x05shape\x92\x01\x02"
    assert pack({"a": np.array([[1.5, -2.0]], np.float32)}) == expected
    scalar = b"\x81\xa1a\x83\xc4\x0d__npgeneric__\xc3" + b"\xc4\x04data\x07" + b"\xc4\x05dtype\xa3|u1"
    assert pack({"a": np.uint8(7)}) == scalar


def test_plain_values_come_back():
    message = {"text": "grasp", "n": -3, "x": 0.25, "none": None, "on": True, "list": [1, [2.5, "a"]], "map": {"a": {}}}
    assert unpack(pack(message)) == message


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([1 + 2j]),
        np.zeros(2, "V4"),
        np.zeros(2, [("a", "f4")]),
        np.array(["text"]),
        np.array(["2020"], "M8[s]"),
        np.zeros(1, np.longdouble),
        np.complex64(1),
        {1, 2},
        2**70,
        object(),
        np.zeros(MAX_BYTES + 1, np.uint8),
    ],
)
def test_what_cannot_be_sent_is_named(value):
    with pytest.raises(WireError, match=r"^the message (cannot be sent: |takes 1677\d+ bytes)") as error:
        pack({"a": value})
    assert "\n" not in str(error.value)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (array_map(dtype="|O", data=pickle.dumps(Bomb())), "a dtype other than"),
        (array_map(dtype="O"), "a dtype other than"),
        (array_map(dtype="|V4"), "a dtype other than"),
        (array_map(dtype="<c8"), "a dtype other than"),
        (array_map(dtype="<f4,<i4"), "a dtype other than"),
        (array_map(dtype=[["a", "<f4"]]), "a dtype other than"),
        (array_map(dtype="<U3"), "a dtype other than"),
        (array_map(dtype=b"<f4"), "a dtype other than"),
        (array_map(shape=[2**40]), "not a list of at most 8 lengths"),
        (array_map(shape=[-3]), "not a list of at most 8 lengths"),
        (array_map(shape=[-1, -3]), "not a list of at most 8 lengths"),
        (array_map(shape=[True, 3]), "not a list of at most 8 lengths"),
        (array_map(shape=[3.0]), "not a list of at most 8 lengths"),
        (array_map(shape=3), "not a list of at most 8 lengths"),
        (array_map(shape=[1] * 9), "not a list of at most 8 lengths"),
        (array_map(shape=[2**20, 2**20, 2**20]), f"has 12 bytes, not {2**62}"),
        (array_map(shape=[4]), "has 12 bytes, not 16"),
        (array_map(shape=[]), "has 12 bytes, not 4"),
        (array_map(data="\0" * 12), "is a str, not bytes"),
        (array_map(data=list(range(12))), "is a list, not bytes"),
        (array_map(data=...), "exactly data, dtype and shape"),
        (array_map(__ndarray__=False), "exactly data, dtype and shape"),
        (array_map(more=1), "exactly data, dtype and shape"),
        ({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}, "does not fit its dtype uint8"),
        ({b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}, "of dtype float32 in the message is a str"),
        ({b"__npgeneric__": True, b"data": 1.5, b"dtype": "<i4"}, "of dtype int32 in the message is a float"),
        ({b"__npgeneric__": True, b"data": b"x", b"dtype": "|O"}, "a dtype other than"),
        ({b"__npgeneric__": True, b"data": 1}, "exactly data and dtype"),
        ({b"other": 1}, "a key that is not text"),
        ([[[[[[[[]]]]]]]], "nested more than 8 deep"),
        ([0] * 1025, "1025 exceeds max_array_len"),
        ([[[]] * 501] * 2, "more than 1000 maps and lists"),
        ([[{}] * 501] * 2, "more than 1000 maps and lists"),
        ("x" * (2**16 + 1), "exceeds max_str_len"),
        (msgpack.ExtType(5, b"x"), "exceeds max_ext_len"),
        (msgpack.Timestamp(1), "exceeds max_ext_len"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(value, reason):
    with pytest.raises(WireError) as error:
        unpack(msgpack.packb({"a": value}))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x80\x80",
        b"\x90",
        b"\xc0",
        b"\x81\xa1a",
        b"\x81\xa2\xff\xff\x00",
        b"\x81\x90\x00",
        b"\x81\x01\x00",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        pickle.dumps(Bomb()),
        bytes(MAX_BYTES + 1),
    ],
)
def test_broken_frames_are_refused(frame):
    with pytest.raises(WireError, match="the message"):
        unpack(frame)


def test_nested_eight_deep_is_allowed():
    assert unpack(msgpack.packb({"a": [[[[[[[]]]]]]]})) == {"a": [[[[[[[]]]]]]]}


def test_truncated_messages_are_refused_wherever_they_end():
    frame = pack({"state": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int16(3), "prompt": "go"})
    for length in range(len(frame)):
        with pytest.raises(WireError):
            unpack(frame[:length])


def test_memory_is_bounded_before_anything_is_built():
    """A frame of empty maps would take 64 times its size; one that declares 2**32 members would take 32 GiB."""
    maps = b"\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x80" * 1024) * 1024
    assert len(maps) > 2**20
    tracemalloc.start()
    try:
        for frame in (maps, b"\xdd\xff\xff\xff\xff" * 100, b"\x81\xa1a\xdf\x7f\xff\xff\xff"):
            with pytest.raises(WireError):
                unpack(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_random_bytes_give_a_message_or_its_refusal(frame):
    with contextlib.suppress(WireError):
        assert isinstance(unpack(frame), dict)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_gives_a_message_or_its_refusal(place, byte):
    frame = bytearray(pack({"state": np.arange(3.0), "image": np.zeros((2, 2), np.uint8), "n": np.int32(7)}))
    frame[place % len(frame)] = byte
    try:
        message = unpack(bytes(frame))
    except WireError:
        return
    for value in message.values():
        if isinstance(value, np.ndarray):
            assert value.nbytes == math.prod(value.shape) * value.itemsize
