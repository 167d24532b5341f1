"""Media files that the index names, below one folder. Nothing that a caller sends becomes part of a path."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from ...base.files import named_path

_PLAYED = ("video/", "audio/", "image/")
_ACTIVE = ("image/svg+xml",)
"""Types of pictures that can hold scripts."""


def find_media(folder: Path | None, uri: str | None) -> Path | None:
    """The file of a video's uri, where it lies in the folder, links followed, and is a film, sound or picture.

    Args:
        folder: resolved.
        uri: a path, relative ones below the folder, or a file:// address.
    """
    named = named_path(uri)
    if folder is None or named is None:
        return None
    try:
        path = (folder / named).resolve()
        is_inside = path.is_relative_to(folder) and path.is_file()
    except (OSError, RuntimeError):  # such as a name that is too long, or links in a circle
        return None
    return path if is_inside and content_type(path) else None


def content_type(path: Path) -> str | None:
    """The type of a film, sound or picture by the file's suffix; None for anything else."""
    kind = mimetypes.guess_type(path.name)[0] or _MORE.get(path.suffix.lower())
    return kind if kind and kind.startswith(_PLAYED) and kind not in _ACTIVE else None


_MORE = {".mkv": "video/x-matroska", ".webm": "video/webm", ".flac": "audio/flac", ".opus": "audio/ogg"}
"""Suffixes that the system's table may lack."""
