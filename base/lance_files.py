"""Lance's files and messages, as far as its own functions do not tell."""

from __future__ import annotations

from pathlib import Path

_FOLDERS = ("_transactions", "_versions", "data")
"""What the first write makes in a dataset's folder."""


def is_uncommitted(path: Path) -> bool:
    """Whether a folder holds at most what a first write leaves that did not come to its end, as on a full disk."""
    if not path.is_dir() or any(path.glob("_versions/*.manifest")):
        return False
    files = (file.relative_to(path) for file in path.rglob("*") if not file.is_dir())
    return all(file.parts[0] in _FOLDERS for file in files)


def lance_reason(error: BaseException) -> str:
    """The first line of Lance's message, without the place in its own sources."""
    return str(error).partition(", /")[0].splitlines()[0]
