"""Read columns of numbers from parquet files; pyarrow comes with the extra ``lerobot``."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.errors import UserError, did_you_mean

_MAX_GROUP = 2**31  # bytes that a row group may unpack to, which is read as a whole


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``; what pyarrow says about a damaged one becomes a UserError."""
    pq = require_pyarrow()
    from pyarrow.lib import ArrowException

    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            for index in range(metadata.num_row_groups):
                size = metadata.row_group(index).total_byte_size
                if size > _MAX_GROUP:
                    raise UserError(
                        f"{path}: row group {index} unpacks to {size >> 20} MiB, more than {_MAX_GROUP >> 20}"
                    )
            yield file
    except (OSError, ArrowException, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a readable parquet file, perhaps cut short in a download: {reason}") from error


def require_pyarrow() -> Any:
    """The module ``pyarrow.parquet``; UserError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("LeRobot's files need an extra package: pip install 'diffpolicy_rl[lerobot]'") from error
    return pyarrow.parquet


def rows_of(path: Path) -> int:
    """Number of rows."""
    with opened(path) as file:
        return file.metadata.num_rows


def read_columns(path: Path, widths: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Whole columns (rows, width); see ``batches``."""
    parts = list(batches(path, widths, 2**16))
    if not parts:
        raise UserError(f"{path} has no rows; download it again")
    return {name: np.concatenate([part[name] for part in parts]) for name in widths}


def require_columns(path: Path, wanted: Iterable[str]) -> None:
    """Raise UserError if a file does not have each of the columns once."""
    with opened(path) as file:
        _require(path, file.schema_arrow.names, wanted)


def _require(path: Path, names: Sequence[str], wanted: Iterable[str]) -> None:
    for name in wanted:
        if name not in names:
            raise UserError(f"{path} has no column {name}; {did_you_mean(name, names)}")
        if names.count(name) > 1:
            raise UserError(f"{path} has {names.count(name)} columns {name}; write it again with one")


def texts(path: Path, name: str) -> set[str]:
    """The different texts in a column of lists of them; none where there is no such column."""
    from pyarrow import types

    with opened(path) as file:
        if name not in file.schema_arrow.names:
            return set()
        column = file.read(columns=[name]).column(0)
        kind = column.type
        if not _is_nested(kind) or not (types.is_string(kind.value_type) or types.is_large_string(kind.value_type)):
            raise UserError(f"{path}: {name} is of type {kind}, not of lists of texts")
        return set(column.combine_chunks().flatten().drop_null().unique().to_pylist())


def _is_nested(kind: Any) -> bool:
    """Whether a column holds lists."""
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def batches(path: Path, widths: Mapping[str, int], rows: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Columns (rows, width) of numbers, so many rows at a time.

    Args:
        path: the file.
        widths: how many numbers each row has, by column.
        rows: rows at a time, at most.

    Raises:
        UserError: if a column is missing, is not of numbers, or has empty places or another width.
    """
    with opened(path) as file:
        _require(path, file.schema_arrow.names, widths)
        first = 0
        for batch in file.iter_batches(batch_size=rows, columns=list(widths)):
            yield {name: _matrix(batch.column(name), width, f"{path}: {name}", first) for name, width in widths.items()}
            first += batch.num_rows


def _matrix(column: Any, width: int, where: str, first: int) -> NDArray[Any]:
    from pyarrow import types

    kind, rows = column.type, len(column)
    nested = _is_nested(kind)
    number = kind.value_type if nested else kind
    if not (types.is_integer(number) or types.is_floating(number) or types.is_boolean(number)):
        raise UserError(f"{where} is of type {kind}, not of numbers; nothing else is read, and nothing unpickled")
    if column.null_count:
        empty = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"{where} is empty in row {first + empty}; drop that episode")
    if nested:
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        other = np.flatnonzero(lengths != width)
        if len(other):
            raise UserError(f"{where} has {lengths[other[0]]} numbers in row {first + other[0]}, but needs {width}")
        column = column.flatten()
        if column.null_count:
            empty = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise UserError(f"{where} is empty in row {first + empty // width}; drop that episode")
    elif width != 1:
        raise UserError(f"{where} has 1 number in each row, but needs {width}")
    return column.to_numpy(zero_copy_only=False).reshape(rows, width)
