"""Pictures of clips, made once and kept in a folder beside the store."""

from __future__ import annotations

import itertools
import threading
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from ...base.files import replacing
from ...features.extract.still import make_still

SIDE = 270
"""Pixels of the shorter side: a card of the page on a dense screen."""

MOST_BYTES = 512_000_000
"""Most bytes in the folder, about 25,000 pictures. The oldest are deleted, and made again when they are wanted."""

LOOK_EVERY = 200
"""New pictures between two looks at how much there is."""

_decoding = threading.BoundedSemaphore(2)
_made = itertools.count(1)


def read_thumbnail(media: Path, start_s: float | None, end_s: float | None, folder: Path) -> bytes | None:
    """A JPEG of a clip, made at the first call and kept in the folder; None where there is no picture to show.

    A file that changes gets a new picture. The name in the folder is a hash, so nothing that a caller sends becomes a
    path. Where nothing can be written the picture is made each time.

    Args:
        media: the file.
        start_s, end_s: the clip in it, in seconds.
        folder: made where it is missing; its own folder has to be there.
    """
    try:
        facts = (str(media), media.stat().st_mtime_ns, start_s, end_s, SIDE)
        kept = folder / f"{sha256(repr(facts).encode()).hexdigest()}.jpg"
        if kept.is_file():
            return kept.read_bytes() or None  # an empty file says that there is no picture
    except OSError:
        return None
    if not find_spec("av"):
        return None
    with _decoding:
        jpeg = make_still(media, start_s or 0.0, end_s, SIDE)
    _keep(kept, jpeg or b"")
    return jpeg


def _keep(path: Path, jpeg: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(jpeg)
        if next(_made) % LOOK_EVERY == 0:
            delete_oldest(path.parent, MOST_BYTES)
    except OSError:  # a full disk, or a folder that is only read, is no reason to show nothing
        return


def delete_oldest(folder: Path, most_bytes: int) -> None:
    """Delete the oldest pictures until nine tenths of `most_bytes` are left, if there are more."""
    files = []
    for path in folder.glob("*.jpg"):
        try:
            stat = path.stat()
        except OSError:  # deleted by another process meanwhile
            continue
        files.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= most_bytes:
        return
    for _, size, path in sorted(files):
        if total <= 0.9 * most_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
