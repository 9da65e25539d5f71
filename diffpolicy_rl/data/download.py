"""Fetch files once, whole, and unchanged."""

import contextlib
import http.client
import os
import shutil
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from diffpolicy_rl.data.files import replace, sha256
from diffpolicy_rl.errors import UserError


def cache() -> Path:
    """The folder that DIFFPOLICY_RL_CACHE names, by default ~/.cache/diffpolicy_rl."""
    return Path(os.environ.get("DIFFPOLICY_RL_CACHE", Path.home() / ".cache" / "diffpolicy_rl"))


def fetch(urls: Sequence[str], target: Path, digest: str | None) -> Path:
    """Download a file, unless it is there already.

    Args:
        urls: where it is published, and mirrors, in the order to try them.
        target: where it goes.
        digest: its SHA-256, where that is known.

    Raises:
        UserError: if it cannot be had from anywhere, or is not the expected file.
    """
    if target.exists() and digest in (None, sha256(target)):
        return target
    reasons = []
    for url in urls:
        try:
            _fetch(url, target, digest)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(f"{url} ({error})")
        else:
            return target
    raise UserError(f"cannot download {', nor '.join(reasons)}; fetch it elsewhere and put it at {target}")


def _fetch(url: str, target: Path, digest: str | None) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=30) as response, temporary.open("wb") as file:
            shutil.copyfileobj(response, file, 2**20)
            announced = response.headers.get("Content-Length")
        size = temporary.stat().st_size
        if announced is not None and int(announced) != size:
            raise ValueError(f"{size} of {announced} bytes came")
        found = sha256(temporary)
        if digest not in (None, found):
            raise UserError(f"{url} is not the expected file: its SHA-256 is {found}, not {digest}")
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def fetch_recorded(urls: Sequence[str], target: Path) -> Path:
    """``fetch`` a file of which no digest is published: the first download's is kept beside it, and holds from then on.

    Raises:
        UserError: as ``fetch``, or if the file is not what was first downloaded.
    """
    record = target.with_name(f"{target.name}.sha256")
    digest = record.read_text().split()[0] if record.is_file() else None
    if target.exists() and digest not in (None, sha256(target)):
        raise UserError(f"{target} has changed since it was downloaded; delete it, and download it again")
    fetch(urls, target, digest)
    if digest is None:
        replace(record, f"{sha256(target)}  {target.name}\n".encode())
    return target
