"""Files that would unpack to far more than they hold are refused before they are read."""

from __future__ import annotations

import zipfile
from pathlib import Path

UNPACKED_BYTES, MOST_EXPANSION = 2**26, 200
"""More bytes than these are taken of a file only up to so many times its size. Real ones hardly shrink."""

_LONGEST_END, _MANY = 22 + 0xFFFF, 0xFFFF
"""Bytes of a zip archive's last record with the longest comment; the number that stands for more entries than fit."""


def check_expansion(path: Path, size: int) -> None:
    """Raise ValueError where a file is to give `size` bytes, and that is far more than it holds."""
    held = path.stat().st_size
    if size > max(UNPACKED_BYTES, MOST_EXPANSION * held):
        raise ValueError(f"{path}: refused, its {held:,} bytes would unpack to {size:,}")


def check_archive(path: Path) -> None:
    """Raise ValueError where a zip archive would unpack to far more than it holds, as `check_expansion`.

    Raises:
        zipfile.BadZipFile: it is damaged, empty, or no zip archive.
    """
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    stated = _stated_entries(path)
    if not entries or stated not in (len(entries), _MANY):
        raise zipfile.BadZipFile(f"its directory has {len(entries):,} entries of {stated:,}")
    check_expansion(path, sum(entry.file_size for entry in entries))


def _stated_entries(path: Path) -> int:
    """The number of entries that a zip archive's last record states, which `zipfile` does not compare."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LONGEST_END))
        end = file.read()
    return int.from_bytes(end[end.rindex(b"PK\5\6") + 10 :][:2], "little")
