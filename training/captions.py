"""Caption files: sentences, and the videos that they describe."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..base.checks import nearest
from ..features.features import Features


@dataclass(frozen=True)
class Captions:
    """T sentences and the video that each describes."""

    video_ids: tuple[str, ...]
    sentences: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sentences)

    def unique_ids(self) -> tuple[str, ...]:
        """The videos that have captions, ordered by their first caption."""
        return tuple(dict.fromkeys(self.video_ids))


def read_captions(path: str | Path, split: str | Iterable[str] | None = None) -> Captions:
    """Read a CSV file with the columns `video_id` and `caption`, and `split` if rows are chosen by it.

    Args:
        split: a split or several, whose rows alone are taken. None takes all rows.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a column is missing, a comma or a quotation mark within a caption is not quoted, an id or a caption
            is empty, or no row is of one of the splits.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"captions: there is no file {path}")
    splits = {split} if isinstance(split, str) else None if split is None else set(split)
    records = _read_rows(path, splits is not None)
    if splits is not None:
        _check_splits(splits, dict.fromkeys(row["split"] or "" for _, row in records), path)
        records = [(line, row) for line, row in records if row["split"] in splits]
    for line, row in records:
        if not (row["video_id"] or "").strip() or not (row["caption"] or "").strip():
            raise ValueError(f"{path}, record {line - 1}: expected a video_id and a caption, got {row}")
    if not records:
        raise ValueError(f"{path}: expected captions, found none")
    pairs = [((row["video_id"] or "").strip(), (row["caption"] or "").strip()) for _, row in records]
    return Captions(*_transpose(pairs))


def _check_splits(splits: set[str], known: Iterable[str], path: Path) -> None:
    if not splits:
        raise ValueError(f"{path}: expected the name of a split, got an empty list")
    for split in sorted(splits - set(known)):
        raise ValueError(f"{path}: no caption is of split {split!r}{nearest(split, known)}")


def read_splits(path: str | Path) -> dict[str, Captions]:
    """The captions of a CSV file by their split, in the order in which the splits come. Raises as `read_captions`."""
    read_captions(path)  # for its errors
    names = dict.fromkeys(row["split"] or "" for _, row in _read_rows(Path(path), needs_split=True))
    return {name: read_captions(path, name) for name in names}


def videos_of_splits(path: str | Path) -> dict[str, set[str]]:
    """The ids of each split's videos, whatever else their rows hold. Raises ValueError where it is no CSV file."""
    videos: dict[str, set[str]] = {}
    for _, row in _read_rows(Path(path), needs_split=True):
        videos.setdefault(row["split"] or "", set()).add((row["video_id"] or "").strip())
    return videos


def _read_rows(path: Path, needs_split: bool) -> list[tuple[int, dict[str, str | None]]]:
    """The records with their numbers, from 2 on: the names of the columns are the first."""
    needed = ("video_id", "caption", "split") if needs_split else ("video_id", "caption")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or ()
            if any(name not in columns for name in needed):
                raise ValueError(
                    f"{path}: expected the columns {', '.join(needed)}; found {', '.join(columns) or 'none'}"
                    + (" (split is a word such as train or test in each row)" if needs_split else "")
                )
            records = list(enumerate(reader, start=2))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a CSV file in UTF-8: {error}") from None
    except csv.Error as error:
        at = f"{path}, line {reader.line_num + 1}"  # the line that the record begins with
        raise ValueError(f"{at}: expected quotes to be closed, and doubled in quoted fields: {error}") from None
    for line, row in records:
        if any(row.get(None) or ()):
            raise ValueError(
                f"{path}, record {line - 1}: expected {len(columns)} fields, and quotes around a caption with commas; "
                f"got {list(row.values())}"
            )
    return records


def keep_videos_with_features(features: Features, captions: Captions) -> tuple[Features, Captions, np.ndarray]:
    """Drop the videos that have no features or no captions.

    Captions of videos without features are dropped with a warning that names one: nothing could find these videos, so
    they would only lower each figure.

    Returns:
        The features of the kept videos in the order of the captions, their captions, and `targets` (T,) int64, the row
        of each caption's video.

    Raises:
        ValueError: no caption is left.
    """
    has_features = features.available.any(1)
    row_of = {video: row for row, video in enumerate(features.ids) if has_features[row]}
    described = captions.unique_ids()
    kept = [video for video in described if video in row_of]
    if len(kept) < len(described):
        dropped = len(described) - len(kept)
        example = next(video for video in described if video not in row_of)
        message = f"captions: {dropped} of their {len(described)} videos have no features, such as {example!r}"
        if not kept:
            raise ValueError(message)
        warnings.warn(f"{message}; they are left out", stacklevel=2)
    position = {video: i for i, video in enumerate(kept)}
    pairs = [pair for pair in zip(captions.video_ids, captions.sentences, strict=True) if pair[0] in position]
    targets = np.array([position[video] for video, _ in pairs], dtype=np.int64)
    return features[[row_of[video] for video in kept]], Captions(*_transpose(pairs)), targets


def _transpose(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(video for video, _ in pairs), tuple(sentence for _, sentence in pairs)
