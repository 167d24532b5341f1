"""Lance's files and messages, as far as its own functions do not tell."""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

from .files import replacing

_FOLDERS = ("_transactions", "_versions", "data")
"""What the first write makes in a dataset's folder."""


def is_uncommitted(path: Path) -> bool:
    """Whether a folder holds at most what a first write leaves that did not come to its end, as on a full disk."""
    if not path.is_dir() or any(path.glob("_versions/*.manifest")):
        return False
    files = (file.relative_to(path) for file in path.rglob("*") if not file.is_dir())
    return all(file.parts[0] in _FOLDERS for file in files)


_LOOKUPS = "_indices/*/page_lookup.lance"
"""The files of indices of ids that Lance holds in memory."""


def seal_lookups(path: Path) -> None:
    """Write the checksum of each index of ids in a dataset beside it, unless one is there."""
    for file in path.glob(_LOOKUPS):
        if not _seal(file).exists():
            with replacing(_seal(file)) as temporary:
                temporary.write_bytes(_checksum(file))


def check_lookups(path: Path) -> None:
    """Raise OSError where an index of ids is not as it was when its checksum was written.

    Lance believes the sizes in it, and ends the process where there is not so much memory.
    """
    for file in path.glob(_LOOKUPS):
        with suppress(FileNotFoundError):  # without a checksum, or removed by another process just now
            if _seal(file).read_bytes() != _checksum(file):
                raise OSError(f"its index {file.relative_to(path)} is damaged")


_FOOTER = struct.Struct("<24xI4xHH4s")
"""The number of buffers in a file of Lance, the version of its form, and the mark that a whole one ends in."""

_BUFFER = 16
"""Bytes that a file takes to say where a buffer lies."""


def check_footers(path: Path) -> None:
    """Raise OSError where a file of a dataset counts more buffers than it has room for.

    Lance believes this count, and ends the process where there is not so much memory.
    """
    for file in (*path.glob("data/*.lance"), *path.glob("_indices/*/*.lance"), *path.glob("_indices/*/*.idx")):
        with suppress(FileNotFoundError), file.open("rb") as content:  # removed by another process just now
            size = content.seek(0, os.SEEK_END)
            content.seek(max(0, size - _FOOTER.size))
            buffers, *version, mark = _FOOTER.unpack(content.read(_FOOTER.size).rjust(_FOOTER.size, b"\0"))
            is_known = mark == b"LANC" and version > [0, 2]  # the first form has another footer
            if is_known and _BUFFER * buffers > size:
                raise OSError(f"its file {file.relative_to(path)} is damaged")


def _seal(file: Path) -> Path:
    return file.with_suffix(".crc32")


def _checksum(file: Path) -> bytes:
    return f"{zlib.crc32(file.read_bytes()):08x}".encode()


def lance_reason(error: BaseException) -> str:
    """The first line of Lance's message, without the place in its own sources."""
    return str(error).partition(", /")[0].partition("\n")[0]
