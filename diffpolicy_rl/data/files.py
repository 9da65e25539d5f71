"""Files: written whole or not at all, and hashed without being held in memory."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffpolicy_rl.errors import UserError

_MAX_JSON = 64 * 2**20


def check_writable(path: Path) -> None:
    """Raise UserError if a new file cannot be written there: better before the work than after it."""
    require_new(path)
    replace(path, b"")
    path.unlink()


def require_new(path: Path) -> None:
    """Raise UserError if there is something of that name."""
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or delete it")


def replace(path: Path, content: "bytes | memoryview") -> None:
    """Write a file so that at any time its name leads to all of the old content, or of the new."""
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when all is written, and is gone if something fails."""
    require_new(path)
    temporary = _beside(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; UserError if it is missing, huge, or not one."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise UserError(f"{path} has more than {_MAX_JSON >> 20} MiB, which no description of a data set needs")
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # text may hold halves of letters, which nothing could print
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not JSON, perhaps cut short in a download: {reason}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def json_object(text: Any) -> dict[str, Any]:
    """The JSON object that a text within a file is; an empty one if it is none, because nothing depends on it."""
    try:
        value = json.loads(str(text))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
