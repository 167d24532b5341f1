"""Clips of a media file: the whole, its shots, or windows of some seconds. Each file is decoded once for all experts.

A clip's id is a W3C media fragment, `film.mp4#t=12.0,18.5`, which players and browsers understand. The whole file is
`film.mp4`.

Shots are found on the pictures that are decoded anyway, by the measure and the threshold of PySceneDetect's
`ContentDetector`: the mean difference of hue, saturation and brightness between neighbours. PySceneDetect itself wants
to open the file, which would decode it a second time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...base.dependencies import extra
from .media import Media, Moment, Picture, View, open_media

CUT = 27.0
"""The content difference of a cut, of 255. PySceneDetect's own default."""

SHORTEST_SHOT_S = 0.6
SHORTEST_TAIL_S = 0.5
"""The rest of a file after its last clip is dropped where it is shorter than this and than half a window."""

_SHOT_VIEW = View(fps=0, side=36)
"""PySceneDetect reduces pictures likewise before it compares them."""


@dataclass(frozen=True)
class Frames:
    """The frames of a clip in one view.

    Attributes:
        times: (n,) float64, seconds from the start of the file, ascending.
        images: (n, h, w, 3) uint8, (n, h, w) without colour, with an axis of 2 after the first for pairs.
    """

    times: np.ndarray
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class Clip:
    """A span of a media file, as the extractors read it.

    Attributes:
        id: a media fragment, unique within a data set.
        uri: the media file.
        start_s, end_s: seconds from the start of the file.
        frames: {view: frames}, for every view that was asked for. There are none in an audio file.
        sound: (n,) int16, mono with 16,000 samples a second; None where the file has none.
        is_last: True for the last clip of its file.
        progress: share of the file that has been read, 0 where its length is not known.
    """

    id: str
    uri: str
    start_s: float
    end_s: float
    frames: Mapping[View, Frames]
    sound: np.ndarray | None
    is_last: bool = False
    progress: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of memory that pictures and sound take."""
        return sum(x.images.nbytes for x in self.frames.values()) + (0 if self.sound is None else self.sound.nbytes)


def fragment(name: str, start_s: float, end_s: float) -> str:
    """The W3C media fragment of a span. What would end the name within a URI is escaped."""
    for sign in "%#?":
        name = name.replace(sign, f"%{ord(sign):02X}")
    return f"{name}#t={_seconds(start_s)},{_seconds(end_s)}" if end_s > start_s else name


def _seconds(value: float) -> str:
    text = f"{value:.3f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


# --- ways to cut ------------------------------------------------------------------------------------------


class Cutting(Protocol):
    """A way to cut a file into clips. One object cuts one file."""

    length_s: float
    """Seconds of a clip; infinite where it ends by a cut, or with the file."""

    overlap_s: float
    """Seconds that a clip shares with the one before."""

    needs_pictures: bool

    def starts(self, moment: Moment) -> list[float]:
        """Times at which clips begin, up to the end of this moment."""

    def is_cut(self, moment: Moment) -> bool:
        """True where the clips before this moment end with its begin."""


class Whole:
    """One clip of the whole file."""

    length_s, overlap_s, needs_pictures = math.inf, 0.0, False

    def __init__(self) -> None:
        self._has_begun = False

    def starts(self, moment: Moment) -> list[float]:
        starts = [] if self._has_begun else [0.0]
        self._has_begun = True
        return starts

    def is_cut(self, moment: Moment) -> bool:
        return False


class Windows:
    """Windows of some seconds, each beginning before the end of the one before where they overlap."""

    needs_pictures = False

    def __init__(self, length_s: float, overlap_s: float) -> None:
        self.length_s, self.overlap_s = length_s, overlap_s
        self._step_s, self._count = length_s - overlap_s, 0

    def starts(self, moment: Moment) -> list[float]:
        starts = []
        while not self._count or self._count * self._step_s < moment.until_s - 1e-6:
            starts.append(self._count * self._step_s)
            self._count += 1
        return starts

    def is_cut(self, moment: Moment) -> bool:
        return False


class Shots:
    """Shots, found by the difference between neighbouring pictures."""

    length_s, overlap_s, needs_pictures = math.inf, 0.0, True

    def __init__(self) -> None:
        self._cv2 = extra("cv2", "extract-offline")
        self._last: Picture | None = None
        self._colours: np.ndarray | None = None
        self._start_s: float | None = None
        self._cuts = False

    def starts(self, moment: Moment) -> list[float]:
        if self._start_s is None:
            self._start_s = 0.0
            return [0.0]
        if not self._cuts:
            return []
        self._cuts = False
        return [self._start_s]

    def is_cut(self, moment: Moment) -> bool:
        picture = moment.picture
        if picture is None or picture is self._last:
            return False
        self._last = picture
        before, self._colours = self._colours, self._cv2.cvtColor(picture.render(_SHOT_VIEW), self._cv2.COLOR_RGB2HSV)
        if before is None or self._start_s is None or picture.time_s - self._start_s < SHORTEST_SHOT_S:
            return False
        self._cuts = float(self._cv2.absdiff(before, self._colours).mean()) >= CUT
        if self._cuts:
            self._start_s = picture.time_s
        return self._cuts


@dataclass(frozen=True)
class Clips:
    """A choice of how files are cut: "whole", "shots", or seconds.

    Raises:
        TypeError, ValueError: the choice is none of these, or the overlap is not shorter than the clip.
    """

    by: str | float = "whole"
    overlap_s: float = 0.0

    def __post_init__(self) -> None:
        is_number = isinstance(self.by, int | float) and not isinstance(self.by, bool)
        if not is_number and self.by not in ("whole", "shots"):
            raise ValueError(f"clips: expected 'whole', 'shots' or a length in seconds, got {self.by!r}")
        if is_number and not 0.1 <= float(self.by) < math.inf:
            raise ValueError(f"clips: expected a length of at least 0.1 s, got {self.by!r}")
        length = float(self.by) if is_number else 0.0
        if isinstance(self.overlap_s, bool) or not isinstance(self.overlap_s, int | float):
            raise TypeError(f"overlap: expected seconds, got {self.overlap_s!r}")
        if not 0 <= self.overlap_s <= (0.9 * length if is_number else 0):
            raise ValueError(
                f"overlap: expected 0 to 90% of a clip's length in seconds, got {self.overlap_s!r} for {self.by!r}"
            )

    def cutting(self) -> Cutting:
        """A new cutting for one file."""
        if self.by == "whole":
            return Whole()
        return Shots() if self.by == "shots" else Windows(float(self.by), float(self.overlap_s))

    def to_dict(self) -> dict[str, Any]:
        """The choice in JSON's types."""
        return {"by": self.by if isinstance(self.by, str) else float(self.by), "overlap_s": float(self.overlap_s)}


# --- reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MediaFile:
    """A file to be read, the name its clips get, and the uri by which it is opened later."""

    path: Path
    name: str
    uri: str


def read_clips(
    file: MediaFile, clips: Clips, views: frozenset[View], with_sound: bool, notes: list[str]
) -> Iterator[Clip]:
    """The clips of a file, in the order of their ends, in one pass.

    Args:
        notes: damage that does not stop the reading is added, in words.

    Raises:
        MediaError: the file holds no picture and no sound.
        OSError: it cannot be read.
    """
    cutting = clips.cutting()
    with open_media(file.path, notes, bool(views) or cutting.needs_pictures, with_sound) as media:
        previous: Clip | None = None
        for clip in _cut(file, media, cutting, views):
            if previous is not None:
                yield previous
            previous = clip
        if previous is not None:
            yield replace(previous, is_last=True, progress=1.0)


def _cut(file: MediaFile, media: Media, cutting: Cutting, views: frozenset[View]) -> Iterator[Clip]:
    drafts: list[_Draft] = []
    count, end_s = 0, 0.0

    def finish(draft: _Draft, end_s: float) -> Clip:
        drafts.remove(draft)
        return draft.finish(file, media, end_s, min((x.start_s for x in drafts), default=end_s))

    for moment in media.moments():
        if cutting.is_cut(moment) and moment.picture is not None:
            for draft in list(drafts):
                yield finish(draft, moment.picture.time_s)
                count += 1
        drafts += [
            _Draft(start, start + cutting.length_s, views, isinstance(cutting, Whole))
            for start in cutting.starts(moment)
        ]
        for draft in list(drafts):
            draft.show(moment)
            if draft.end_s <= moment.until_s:
                yield finish(draft, draft.end_s)
                count += 1
        end_s = moment.until_s
    for draft in list(drafts):
        # A window within the overlap shows nothing new, and neither does a splinter.
        shortest_s = min(SHORTEST_TAIL_S, 0.5 * cutting.length_s)
        if not count or end_s - draft.start_s - cutting.overlap_s >= shortest_s:
            yield finish(draft, 0.0 if media.is_image else end_s)
            count += 1


class _Draft:
    """A clip whose frames are still being gathered."""

    def __init__(self, start_s: float, end_s: float, views: frozenset[View], is_whole: bool) -> None:
        self.start_s, self.end_s, self._is_whole = start_s, end_s, is_whole
        self._samplers = {view: _Sampler(view, start_s, end_s) for view in views}

    def show(self, moment: Moment) -> None:
        if moment.picture is not None:
            for sampler in self._samplers.values():
                sampler.show(moment.picture, moment.until_s)

    def finish(self, file: MediaFile, media: Media, end_s: float, keep_from_s: float) -> Clip:
        start_s, end_s = round(self.start_s, 3), round(end_s, 3)
        sound = media.sound.take(start_s, end_s, keep_from_s) if media.sound is not None else None
        frames = {view: sampler.finish() for view, sampler in self._samplers.items()}
        name = fragment(file.name, start_s, start_s if self._is_whole else end_s)
        progress = min(1.0, end_s / media.duration_s) if media.duration_s else 0.0
        return Clip(name, file.uri, start_s, end_s, frames, sound, progress=progress)


class _Sampler:
    """Frames of one view at even times. Where there would be too many, every second is dropped and the rate halved.

    A picture that stays on the screen is taken once.
    """

    def __init__(self, view: View, start_s: float, end_s: float) -> None:
        self._view, self._end_s = view, end_s
        self._step_s = 1 / view.fps
        self._due_s = start_s + min(self._step_s, end_s - start_s) / 2
        self._kept: list[tuple[float, np.ndarray]] = []
        self._first: tuple[float, np.ndarray] | None = None
        self._last: tuple[float, Picture] | None = None
        self._sampled: Picture | None = None

    def show(self, picture: Picture, until_s: float) -> None:
        """Take the picture if a frame is due while it is shown."""
        self._last = (max(picture.time_s, 0.0), picture)
        while self._due_s < min(until_s, self._end_s):
            if self._view.pair_s and self._first is None:
                self._first = (self._due_s, picture.render(self._view))
                self._due_s += self._view.pair_s
                continue
            if picture is not self._sampled:
                self._keep(picture)
            begin_s = self._first[0] if self._first is not None else self._due_s
            self._sampled, self._first = picture, None
            # The next time on the grid at which another picture is on the screen.
            self._due_s = begin_s + self._step_s * max(1, math.ceil((until_s - begin_s) / self._step_s))

    def _keep(self, picture: Picture) -> None:
        time_s, image = self._due_s, picture.render(self._view)
        if self._first is not None:
            time_s, image = self._first[0], np.stack([self._first[1], image])
        self._kept.append((time_s, image))
        if len(self._kept) > self._view.most:
            self._kept = self._kept[::2]
            self._step_s *= 2

    def finish(self) -> Frames:
        """The frames, at least one where any picture was shown."""
        if not self._kept and self._last is not None:
            time_s, picture = self._last
            image = picture.render(self._view)
            self._kept.append((time_s, np.stack([image, image]) if self._view.pair_s else image))
        times = np.array([time_s for time_s, _ in self._kept], dtype=np.float64)
        if not self._kept:
            return Frames(times, np.empty(0, dtype=np.uint8))
        return Frames(times, np.stack([image for _, image in self._kept]))
