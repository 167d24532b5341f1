"""Media files as a stream of pictures and sound, decoded by FFmpeg through PyAV in bounded memory.

Pictures come one by one with the span of time in which they are shown, so that files of variable frame rate are right
and a slide that stands for a minute is one picture. Sound is mono with 16,000 samples a second. Picture and sound are
read by two demuxers of their own: however a file interleaves them, neither waits in memory for the other. Each is
decoded once.

FFmpeg opens many things that are no media files of their own: playlists, patterns of file names, network addresses.
Only plain files are opened here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...base.checks import is_unicode
from ...base.dependencies import extra

SAMPLE_RATE = 16_000
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".m2ts",
        ".mts",
        ".wmv",
        ".flv",
        ".ogv",
        ".3gp",
        ".gif",
    ]
)
AUDIO_SUFFIXES = frozenset([".mp3", ".wav", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff"])
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"])
MEDIA_SUFFIXES = VIDEO_SUFFIXES | AUDIO_SUFFIXES | IMAGE_SUFFIXES

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,h264,hevc,asf,flv,ogg,gif,"
    "mp3,wav,w64,flac,aac,aiff,apng,mjpeg,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
"""FFmpeg's names of formats that are opened. Others refer to files and addresses of their own, or are text."""

MOST_PIXELS = 8192 * 8192
"""Pixels of a larger picture take more memory than is promised here."""

MOST_SOUND_S = 4 * 3600
"""Sound of a clip beyond this is left out. It takes 460 MB."""

LONGEST_GAP_S = 600.0
"""A jump of the time stamps by more than this is damage. The picture before it is not held that long."""

MOST_BAD_PACKETS = 200
"""A stream that begins with so many packets that cannot be decoded is given up."""

HOLD_STEP_S = 1.0
"""Steps in which time goes on where there is sound and no new picture."""


class MediaError(ValueError):
    """A file without a picture or a sound that can be decoded. The message gives the reason, without the path."""


@dataclass(frozen=True)
class View:
    """Frames of a clip in the form that an extractor reads.

    Attributes:
        fps: frames a second.
        side: pixels of the shorter side. Smaller pictures are not enlarged.
        colour: True for RGB (h, w, 3), False for grey (h, w).
        most: frames of one clip. The rate is halved for a longer clip until they fit.
        pair_s: seconds from each frame to a second one that comes with it, (2, h, w[, 3]). 0 gives single frames.
    """

    fps: float
    side: int
    colour: bool = True
    most: int = 64
    pair_s: float = 0.0


class Picture:
    """A decoded frame, rendered in each view at most once. Rotation and pixels that are not square are undone."""

    def __init__(self, frame: Any, time_s: float, aspect: float, sizes: dict[View, tuple[int, int]]) -> None:
        self._frame, self.time_s, self._aspect, self._sizes = frame, time_s, aspect, sizes
        self._rendered: dict[View, np.ndarray] = {}

    def render(self, view: View) -> np.ndarray:
        """The picture as uint8, (h, w, 3) or (h, w), of the same size for all pictures of a file."""
        if view not in self._rendered:
            self._rendered[view] = self._draw(view)
        return self._rendered[view]

    def _draw(self, view: View) -> np.ndarray:
        turns = round(self._frame.rotation / 90) % 4
        upright = self._sizes.setdefault(view, self._upright_size(turns, view.side))
        width, height = upright[::-1] if turns % 2 else upright
        form = "rgb24" if view.colour else "gray"
        image = self._frame.to_ndarray(format=form, width=width, height=height, interpolation="AREA", threads=1)
        return np.ascontiguousarray(np.rot90(image, turns))

    def _upright_size(self, turns: int, side: int) -> tuple[int, int]:
        """Width and height as shown, the shorter side being at most `side`."""
        width, height = self._frame.width * self._aspect, float(self._frame.height)
        if turns % 2:
            width, height = height, width
        scale = min(1.0, side / min(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True)
class Moment:
    """A picture and the end of the time in which it is shown. The picture is None where there is only sound."""

    picture: Picture | None
    until_s: float


class Media:
    """An open media file.

    Args:
        container: its open container.
        stream: the pictures that are read, None for none.
        start_s: the first time stamp, which becomes 0.
        sound: None where the file has no sound, or it is not wanted.
        notes: damage that is met while reading on is added, in words.

    Attributes:
        duration_s: of the whole file as it declares it, None where it does not.
    """

    def __init__(self, container: Any, stream: Any, start_s: float, sound: Sound | None, notes: list[str]) -> None:
        self._container, self._stream, self._start_s = container, stream, start_s
        self.sound, self.notes = sound, notes
        self.duration_s = container.duration / 1e6 if container.duration and container.duration > 0 else None

    @property
    def is_image(self) -> bool:
        """True for a single picture without sound. Photos of phones, MPO and Ultra HDR, have others behind it."""
        return self._container.format.name.endswith("_pipe") or self._container.format.name == "mjpeg"

    def moments(self) -> Iterator[Moment]:
        """The pictures in the order of time, and beyond the last one its time in steps while there is sound.

        Raises:
            MediaError: there is neither a picture nor a sound.
        """
        last, until = None, 0.0
        for picture, end in self._pictures():
            if last is not None and picture.time_s > last.time_s:
                yield Moment(last, picture.time_s)
            last, until = picture, max(end, picture.time_s)
        if last is not None:
            yield Moment(last, until)
        while self.sound is not None and self.sound.reaches(until):
            until += HOLD_STEP_S
            self.sound.reaches(until)
            until = min(until, self.sound.end_s)
            yield Moment(last, until)
        self._check_end(last, until)

    def _pictures(self) -> Iterator[tuple[Picture, float]]:
        """Each picture, and the end of its time as far as it is known by itself."""
        if self._stream is None:
            return
        clock, sizes = _Clock(self._start_s), dict[View, tuple[int, int]]()
        rate = float(self._stream.average_rate or 25)
        duration = 1 / rate if 0.01 < rate < 1000 else 0.04
        aspect = pixel_aspect(self._stream)
        for frame in _decode(self._container, self._stream, self.notes):
            time_s = clock.read(frame.time, duration)
            yield Picture(frame, time_s, aspect, sizes), time_s + duration
            if self.is_image:
                return

    def _check_end(self, last: Picture | None, end_s: float) -> None:
        if last is None and (self.sound is None or not self.sound.end_s):
            raise MediaError("; ".join(["no picture and no sound can be decoded", *self.notes]))
        declared_s = self._declared_s()
        if declared_s and not self.is_image and declared_s - end_s > max(1.0, 0.1 * declared_s):
            self.notes.append(f"ends after {end_s:.1f} s, {declared_s:.1f} s were declared")

    def _declared_s(self) -> float | None:
        """The declared duration of what is read: other streams may be longer."""
        streams = [self._stream] if self._stream is not None else []
        streams += [self.sound.stream] if self.sound is not None else []
        if all(stream.duration for stream in streams):
            return max(float(stream.duration * stream.time_base) for stream in streams)
        others = [x for x in self._container.streams if x.type in ("video", "audio")]
        return self.duration_s if len(streams) == len(others) else None


@contextmanager
def open_media(path: Path, notes: list[str], with_pictures: bool = True, with_sound: bool = True) -> Iterator[Media]:
    """Open a video, an image or an audio file.

    Args:
        notes: damage that is met while reading on is added, in words.

    Raises:
        MediaError: it is none, or has nothing of what is wanted.
        OSError: it cannot be read.
    """
    with ExitStack() as stack:
        container = open_container(path, stack)
        stream = picture_stream(container)
        has_sound = bool(container.streams.audio)
        if stream is None and not has_sound:
            raise MediaError("no stream of pictures or sound")
        start = (container.start_time or 0) / 1e6
        sound = None
        if has_sound and (with_sound or stream is None):
            sound = Sound(open_container(path, stack), start, notes)
        yield Media(container, stream if with_pictures or sound is None else None, start, sound, notes)


def open_container(path: Path, stack: ExitStack) -> Any:
    """A container of a plain file, closed with the stack.

    Raises:
        MediaError: FFmpeg cannot read it.
        OSError: it is not there.
    """
    av = extra("av", "extract-offline")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise MediaError("the file is empty")
    # FFmpeg reads a pattern into the name of an image, and names in UTF-8 alone; such files are handed over open, and
    # without the name, by which it would take any photo for the first of a pattern.
    name = str(path.absolute())
    source: str | SimpleNamespace = name
    if path.suffix.lower() in IMAGE_SUFFIXES or not is_unicode(name):
        file = stack.enter_context(path.open("rb"))
        source = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
    # Titles are not read. Up to PyAV 18 one that is no UTF-8 would be an error; 19 has no such setting, nor the error.
    titles = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        return stack.enter_context(av.open(source, options=options, **titles))
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"not a media file that can be read: {_reason(error)}") from error


def picture_stream(container: Any) -> Any:
    """The first stream of pictures that is no cover of an album, or None.

    Raises:
        MediaError: its pictures are too large.
    """
    for stream in container.streams.video:
        if "attached_pic" in str(stream.disposition):
            continue
        context = stream.codec_context
        if context.width * context.height > MOST_PIXELS:
            raise MediaError(
                f"expected at most {MOST_PIXELS / 1e6:.0f} million pixels, got {context.width} x {context.height}"
            )
        stream.thread_type = "AUTO"
        return stream
    return None


def pixel_aspect(stream: Any) -> float:
    """Width of a pixel over its height; 1 where what the file declares is damage."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.1 < aspect < 10 else 1.0


def _decode(container: Any, stream: Any, notes: list[str]) -> Iterator[Any]:
    """The frames of a stream. Packets that cannot be decoded are passed over and noted."""
    av = extra("av", "extract-offline")
    bad, frames, reason = 0, 0, ""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            notes.append(f"{stream.type}: reading ended: {_reason(error)}")
            break
        if packet is None:
            break
        if packet.has_sidedata("encryption_info"):
            notes.append(f"{stream.type}: the file is encrypted")
            break
        try:
            decoded = packet.decode()
        except (av.error.FFmpegError, ValueError) as error:
            bad, reason = bad + 1, _reason(error)
            if not frames and bad >= MOST_BAD_PACKETS:
                break
            continue
        frames += len(decoded)
        yield from decoded
    if bad:
        notes.append(f"{stream.type}: {bad:,} packets cannot be decoded: {reason}")


class _Clock:
    """Times of frames from 0 on. Stamps that are missing, go back or jump are mended."""

    def __init__(self, start_s: float) -> None:
        self._offset, self._duration = -start_s, 0.0
        self._last: float | None = None

    def read(self, stamp: float | None, duration: float) -> float:
        expected = 0.0 if self._last is None else self._last + self._duration
        time_s = expected if stamp is None else stamp + self._offset
        if self._last is None:
            time_s = time_s if 0 <= time_s <= LONGEST_GAP_S else 0.0
        elif not self._last - 1.0 <= time_s <= self._last + LONGEST_GAP_S:
            time_s = expected
        if stamp is not None and (time_s == expected or self._last is None):
            self._offset = time_s - stamp
        time_s = max(time_s, self._last or 0.0)
        self._last, self._duration = time_s, duration
        return time_s


class Sound:
    """The sound of a file as a buffer that moves on: mono int16, 16,000 samples a second."""

    def __init__(self, container: Any, start_s: float, notes: list[str]) -> None:
        self._notes = notes
        self._container, self.stream = container, container.streams.audio[0]
        self._resampler: Any = None
        self._form: tuple[object, ...] = ()
        self._start_s = start_s
        self._frames: Iterator[Any] | None = None
        self._buffer, self._first = bytearray(), 0
        self._ended = False

    @property
    def end_s(self) -> float:
        """The end of what was decoded so far."""
        return self._next / SAMPLE_RATE

    @property
    def _next(self) -> int:
        return self._first + len(self._buffer) // 2

    def reaches(self, time_s: float) -> bool:
        """True where there is sound after this time. It is decoded that far."""
        while not self._ended and self._next <= time_s * SAMPLE_RATE:
            self._decode_more()
        return self._next > time_s * SAMPLE_RATE

    def take(self, start_s: float, end_s: float, keep_from_s: float) -> np.ndarray:
        """(n,) int16, shorter where the sound begins later, ends or is longer than four hours.

        The buffer forgets what was before `keep_from_s`.
        """
        self.reaches(min(end_s, start_s + MOST_SOUND_S))
        start, stop = (max(0, round(x * SAMPLE_RATE) - self._first) for x in (start_s, end_s))
        taken = np.frombuffer(self._buffer, np.int16)[start : min(stop, start + MOST_SOUND_S * SAMPLE_RATE)]
        drop = min(max(0, int(keep_from_s * SAMPLE_RATE) - self._first), len(self._buffer) // 2)
        # The array keeps the old buffer, so that hours of sound are not copied. What stays is short.
        self._buffer, self._first = self._buffer[2 * drop :], self._first + drop
        return taken

    def _decode_more(self) -> None:
        if self._frames is None:
            self._frames = _decode(self._container, self.stream, self._notes)
        frame = next(self._frames, None)
        if frame is None:
            self._ended = True
            self._end_resampling()
            return
        form = (frame.format.name, frame.layout.name, frame.sample_rate, frame.time_base)
        if form != self._form:  # the first frame, or another part of a broadcast or of joined files
            self._end_resampling()
            av = extra("av", "extract-offline")
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            self._form = form
        if frame.time is not None:
            self._fill_gap(round((frame.time - self._start_s) * SAMPLE_RATE))
        self._append(self._resampler.resample(frame))

    def _end_resampling(self) -> None:
        if self._resampler is not None:
            self._append(self._resampler.resample(None))

    def _fill_gap(self, position: int) -> None:
        """Silence up to this sample, where time stamps leave one."""
        gap = position - self._next
        if SAMPLE_RATE // 10 < gap <= LONGEST_GAP_S * SAMPLE_RATE:
            self._buffer.extend(bytes(2 * gap))

    def _append(self, frames: list[Any]) -> None:
        for frame in frames:
            self._buffer.extend(frame.to_ndarray().astype(np.int16, copy=False).tobytes())


def _reason(error: Exception) -> str:
    """FFmpeg's words without its number and the path."""
    return getattr(error, "strerror", None) or str(error)
