"""Pictures of clips."""

from __future__ import annotations

from pathlib import Path


def thumbnail(media: Path, start_s: float | None, end_s: float | None, folder: Path) -> Path | None:
    """The path of a JPEG of a clip, made at the first call and kept in a folder; None where it cannot be made."""
    return None
