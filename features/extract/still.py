"""One picture of a clip as a small JPEG: what tables, pages and reports show of a video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ...base.dependencies import extra
from .media import MediaError, Picture, View, open_container, picture_stream, pixel_aspect

SIDE = 180
"""Pixels of the shorter side, where the caller does not say."""

MOMENTS = (0.5, 0.25, 0.75)
"""Moments of pictures as parts of the clip's length. The next one is tried where a picture is nearly of one colour."""

PLAIN = 14.0
"""A standard deviation of the brightness below which a picture shows next to nothing: black, or a fade."""

MOST_FRAMES = 250
"""Frames that are decoded from the key frame before a moment on."""

QUALITY = 3
"""Of JPEG as FFmpeg counts, 1 the best, 31 the worst."""


def make_still(path: str | Path, start_s: float = 0.0, end_s: float | None = None, side: int = SIDE) -> bytes | None:
    """A JPEG of the middle of a clip, or of an image; None for sound alone and for what cannot be decoded.

    Args:
        start_s, end_s: the clip in its file, in seconds; None is the end of the file.
        side: pixels of the shorter side. A smaller picture is not enlarged.

    Raises:
        ImportError: without PyAV, naming the extra that brings it.
    """
    av = extra("av", "extract-offline")
    try:
        with ExitStack() as stack:
            pictures = _pictures(open_container(Path(path), stack), start_s, end_s, side)
            return _encode(av, _most_telling(pictures))
    except (MediaError, OSError, StopIteration, av.error.FFmpegError, ValueError, OverflowError):
        return None


def _pictures(container: Any, start_s: float, end_s: float | None, side: int) -> Iterator[np.ndarray]:
    """(h, w, 3) uint8 at each of the moments."""
    stream = picture_stream(container)
    if stream is None:
        return
    aspect, view = pixel_aspect(stream), View(1, side)
    length = (container.duration or 0) / 1e6
    if length <= 0:  # an image
        yield Picture(next(container.decode(stream)), 0.0, aspect, {}).render(view)
        return
    end_s = length if end_s is None else min(end_s, length)
    start_s = min(max(start_s, 0.0), end_s)
    for part in MOMENTS:
        frame = _frame_at(container, stream, start_s + part * (end_s - start_s))
        if frame is not None:
            yield Picture(frame, 0.0, aspect, {}).render(view)


def _frame_at(container: Any, stream: Any, time_s: float) -> Any:
    """The frame that is shown at this time, counted from the file's first stamp; None where none can be decoded."""
    stamp = (container.start_time or 0) / 1e6 + time_s
    container.seek(int(stamp * 1e6))
    found = None
    for count, frame in enumerate(container.decode(stream), start=1):
        if found is not None and frame.time is not None and frame.time > stamp:
            break
        found = frame
        if count == MOST_FRAMES:
            break
    return found


def _most_telling(pictures: Iterator[np.ndarray]) -> np.ndarray:
    """The first picture that is not plain, else the one with the most contrast; StopIteration without any."""
    best = next(pictures)
    while best.std() < PLAIN and (other := next(pictures, None)) is not None:
        best = max(best, other, key=np.std)
    return best


def _encode(av: Any, picture: np.ndarray) -> bytes:
    """A JPEG; its sides are made even, which its halved colours want."""
    height, width = (max(2, x // 2 * 2) for x in picture.shape[:2])
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(width, height, format="yuvj420p")
    frame.pts = 0
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuvj420p", Fraction(1)
    encoder.qmin = encoder.qmax = QUALITY
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
