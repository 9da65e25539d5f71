"""The files of a bundle, a folder or a zip, read without trusting what they are called or how large they say they are.

Nothing is unpacked, nothing is unpickled, and no file is parsed before its size and hash are what the manifest says.
"""

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Protocol

from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.manifest import LARGEST, NAME, File, Manifest, check_path, parse_manifest

MOST_BYTES = 1 << 31  # of all files together
MOST_FILES = 64
_MOST_UNPACKED = 20  # times what is packed; weights hardly shrink
_COMPILED = "__pycache__"  # Python makes it where run_policy.py is imported; nothing in it is ever read
KINDS = (".onnx", ".json", ".npz", ".md", ".py", ".safetensors")  # none of which is ever unpickled


class Files(Protocol):
    """What a bundle is made of."""

    def sizes(self) -> dict[str, int]:
        """Every file in it with its size in bytes."""
        ...

    def read(self, path: str, most: int) -> bytes:
        """A file's content, cut off after ``most`` bytes."""
        ...


class FolderFiles:
    """The files of a folder; links are refused.

    Args:
        folder: it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sizes(self) -> dict[str, int]:
        """Every file with its size."""
        found: dict[str, int] = {}
        folders = [self.folder]
        for folder in folders:
            for entry in folder.iterdir():
                path, status = entry.relative_to(self.folder).as_posix(), entry.lstat()
                if path == _COMPILED and stat.S_ISDIR(status.st_mode):
                    continue
                check_path(path)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry)
                elif not stat.S_ISREG(status.st_mode):
                    raise BundleError(f"{path} is a link or a device, which no bundle holds")
                else:
                    found[path] = status.st_size
                if len(found) + len(folders) > MOST_FILES:
                    raise BundleError(f"{self.folder} holds more than {MOST_FILES} files, which no bundle does")
        return found

    def read(self, path: str, most: int) -> bytes:
        """A file's content."""
        with (self.folder / path).open("rb") as file:
            return file.read(most)


class ZipFiles:
    """The files of a zip.

    Args:
        archive: it.

    Raises:
        BundleError: if it holds anything but plain files, each once.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive, self.members = archive, [info for info in archive.infolist() if not info.is_dir()]
        if len(archive.infolist()) > MOST_FILES:
            raise BundleError(f"the zip holds more than {MOST_FILES} files, which no bundle does")
        for info in archive.infolist():
            check_path(info.filename.removesuffix("/"))
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
                raise BundleError(f"{info.filename} is a link or encrypted, which no bundle's file is")
        sizes = self.sizes()
        if len(sizes) < len(self.members):
            raise BundleError("the zip holds a file twice")
        packed = sum(info.compress_size for info in self.members)
        if sum(sizes.values()) > _MOST_UNPACKED * packed + LARGEST:
            raise BundleError(f"the zip unpacks to {sum(sizes.values())} bytes from {packed}, which no bundle does")

    def sizes(self) -> dict[str, int]:
        """Every file with the size that the zip gives it."""
        return {info.filename: info.file_size for info in self.members}

    def read(self, path: str, most: int) -> bytes:
        """A file's content; no more of it is unpacked than is asked for."""
        with self.archive.open(path) as file:
            return file.read(most)


def read_bundle(path: Path, wanted: Collection[str] = ()) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of a bundle whose files are all as it says, and the content of some of them.

    Args:
        path: a folder or a zip.
        wanted: paths of files whose content to return besides that of the graphs.

    Raises:
        BundleError: if it is no bundle, or any of its files is not listed, is missing, or has another size or hash.
    """
    try:
        if path.is_dir():
            return _read(path, FolderFiles(path), wanted)
        with zipfile.ZipFile(path) as archive:
            return _read(path, ZipFiles(archive), wanted)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not a bundle: neither a folder nor a sound zip ({error})") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from None


def _read(path: Path, files: Files, wanted: Collection[str]) -> tuple[Manifest, dict[str, bytes]]:
    sizes = files.sizes()
    if NAME not in sizes:
        raise BundleError(f"{path} is not a bundle: it has no {NAME}")
    manifest = parse_manifest(files.read(NAME, LARGEST + 1))
    listed = {file.path: file for file in manifest.files}
    for name in sizes.keys() - listed.keys() - {NAME}:
        raise BundleError(f"{path} holds {name}, which its {NAME} does not list")
    for file in manifest.files:
        if PurePosixPath(file.path).suffix not in KINDS:
            raise BundleError(f"{path} lists {file.path}, a kind of file that no bundle holds")
        if file.path not in sizes:
            raise BundleError(f"{path} lacks {file.path}, which its {NAME} lists")
        if sizes[file.path] != file.bytes:
            raise BundleError(f"{file.path} has {sizes[file.path]} bytes, but {NAME} says {file.bytes}")
    if sum(file.bytes for file in manifest.files) > MOST_BYTES:
        raise BundleError(f"{path} holds more than {MOST_BYTES} bytes, which no bundle does")
    contents: dict[str, bytes] = {}
    for file in manifest.files:
        content = _checked(files, file)
        if file.path in wanted or file.path in manifest.graphs.values():
            contents[file.path] = content
    return manifest, contents


def _checked(files: Files, file: File) -> bytes:
    """The content of a file with the size and the hash that the manifest gives it."""
    content = files.read(file.path, file.bytes + 1)
    if len(content) != file.bytes or hashlib.sha256(content).hexdigest() != file.sha256:
        raise BundleError(f"{file.path} is not the file that {NAME} lists: its hash or size differs")
    return content
