"""Sentences and their token embeddings: what a training set has besides features.

A sentence encoder turns words into vectors, which takes longer than everything after it; so its output is
computed once, kept in a file, and mapped into memory from there.
"""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from ..base.dependencies import extra
from ..base.files import replacing
from ..features.features import Features
from .encoder import Encoder, check_token_embeddings

BATCH = 256
"""Sentences that are encoded at once."""


@dataclass(frozen=True)
class Captions:
    """T sentences and the video that each describes."""

    video_ids: tuple[str, ...]
    sentences: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sentences)

    def unique_ids(self) -> tuple[str, ...]:
        """The videos that have captions, in the order of their first."""
        return tuple(dict.fromkeys(self.video_ids))


def read_captions(path: str | Path, split: str | Iterable[str] | None = None) -> Captions:
    """Read a CSV file with the columns `video_id` and `caption`, and `split` if some are to be chosen by it.

    Args:
        split: only the rows of this split, or of these; None takes all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has not these columns, holds an empty id or caption, or nothing of the split.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"captions: there is no file {path}")
    wanted = {split} if isinstance(split, str) else None if split is None else set(split)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames or (), needs_split=wanted is not None)
            rows = [(line, row) for line, row in enumerate(reader, start=2) if wanted is None or row["split"] in wanted]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a CSV file in UTF-8: {error}") from error
    for line, row in rows:
        if not (row["video_id"] or "").strip() or not (row["caption"] or "").strip():
            raise ValueError(f"{path}, record {line - 1}: expected a video_id and a caption, got {row}")
    if not rows:
        of_split = f" of split {sorted(wanted)}, which no row has in its column split" if wanted is not None else ""
        raise ValueError(f"{path}: expected captions{of_split}, found none")
    return Captions(tuple(row["video_id"].strip() for _, row in rows), tuple(row["caption"].strip() for _, row in rows))


def _check_columns(path: Path, found: Sequence[str], needs_split: bool) -> None:
    needed = ("video_id", "caption", "split") if needs_split else ("video_id", "caption")
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(f"{path}: expected the columns {', '.join(needed)}; found {', '.join(found) or 'none'}")


def embed_tokens(sentences: Sequence[str], encoder: Encoder, folder: str | Path, max_tokens: int) -> np.ndarray:
    """Token embeddings (T, max_tokens, dim) float16, zero-padded or cut, mapped from a file in `folder`.

    The file is written at the first call and found again as long as sentences, encoder and `max_tokens` are the
    same: its name is a hash of them. Half precision halves the file; it costs 0.05% of a value at most.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the encoder gives anything but finite arrays (W, dim) with W >= 1.
    """
    key = json.dumps([encoder.name, max_tokens, *sentences]).encode()
    path = Path(folder) / f"tokens-{hashlib.sha256(key).hexdigest()[:16]}.npy"
    if not path.is_file():
        tqdm = extra("tqdm", "training").tqdm
        with replacing(path) as temporary:
            tokens = open_memmap(temporary, "w+", np.float16, (len(sentences), max_tokens, encoder.dim))
            for start in tqdm(range(0, len(sentences), BATCH), desc=f"{encoder.name}, {len(sentences):,} sentences"):
                batch = list(sentences[start : start + BATCH])
                for row, x in enumerate(check_token_embeddings(encoder(batch), batch, encoder), start):
                    tokens[row, : len(x)] = x[:max_tokens]
            tokens.flush()
            del tokens
    return np.load(path, mmap_mode="r")


@dataclass(frozen=True)
class CaptionedVideos:
    """A data set: features of B videos, and T captions of them as token embeddings.

    Attributes:
        features: what `read_features` gives.
        targets: (T,) int64, the row of the video that each caption describes.
        tokens: (T, W, dim), in memory or mapped from a file.

    Raises:
        TypeError, ValueError: they do not fit one another, or a video has no caption.
    """

    features: Features
    targets: np.ndarray
    tokens: np.ndarray

    def __post_init__(self) -> None:
        targets = np.asarray(self.targets)
        if targets.dtype.kind not in "iu" or np.ndim(self.tokens) != 3 or targets.shape != (len(self.tokens),):
            raise ValueError(
                f"captions: expected targets (T,) of integers and tokens (T, W, dim), got {targets.shape} of "
                f"{targets.dtype} and {np.shape(self.tokens)}"
            )
        targets = targets.astype(np.int64)  # a number too large for it becomes negative, and is refused
        object.__setattr__(self, "targets", targets)
        if not len(targets) or targets.min() < 0 or targets.max() >= len(self):
            raise ValueError(f"captions: expected targets from 0 to {len(self) - 1}, got others")
        counts = np.bincount(targets, minlength=len(self))
        if not counts.all():
            raise ValueError(f"captions: video {self.features.ids[int(counts.argmin())]!r} has no caption")

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> CaptionedVideos:
        """The videos at these positions, with their captions."""
        rows = np.arange(len(self))[rows]
        position = np.full(len(self), -1)
        position[rows] = np.arange(len(rows))
        kept = np.flatnonzero(position[self.targets] >= 0)
        return CaptionedVideos(self.features[rows], position[self.targets[kept]], self.tokens[kept])


def match(features: Features, captions: Captions) -> tuple[Features, Captions, np.ndarray]:
    """The videos that have both features and captions, their captions, and the row of each caption's video.

    Captions of other videos are left out with a warning that names one: nothing could find them, so that they would
    only lower each figure.

    Raises:
        ValueError: no caption is left.
    """
    there = features.available.any(1)
    row = {name: i for i, name in enumerate(features.ids) if there[i]}
    named = captions.unique_ids()
    ids = [name for name in named if name in row]
    if len(ids) < len(named):
        first = next(name for name in named if name not in row)
        message = f"captions: {len(named) - len(ids)} of their {len(named)} videos have no features, such as {first!r}"
        if not ids:
            raise ValueError(message)
        warnings.warn(f"{message}; they are left out", stacklevel=2)
    position = {name: i for i, name in enumerate(ids)}
    kept = [(name, text) for name, text in zip(captions.video_ids, captions.sentences, strict=True) if name in position]
    targets = np.array([position[name] for name, _ in kept], dtype=np.int64)
    return features[[row[name] for name in ids]], Captions(*zip(*kept, strict=True)), targets


def caption_videos(
    features: Features, captions: Captions, encoder: Encoder, folder: str | Path, max_tokens: int = 37
) -> CaptionedVideos:
    """The videos that have features and captions (`match`); token embeddings are kept in `folder` (`embed_tokens`).

    Raises:
        ValueError: no video has both.
    """
    features, captions, targets = match(features, captions)
    return CaptionedVideos(features, targets, embed_tokens(captions.sentences, encoder, folder, max_tokens))
