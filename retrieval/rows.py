"""The rows that an index hands to its store, and gets back from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .embeddings import ModelIdentity, VideoEmbeddings
from .exact_search import Best, Columns


@dataclass(frozen=True)
class Header:
    """The facts that hold for all videos of a store.

    Attributes:
        dims: {expert: D} in the model's order.
        model: the model that made the embeddings; None where they are from elsewhere.
    """

    dims: dict[str, int]
    model: ModelIdentity | None

    def by_expert(self, joint: np.ndarray) -> dict[str, np.ndarray]:
        """Joint vectors (n, sum of D) as {expert: (n, D)}."""
        blocks = np.split(joint, np.cumsum(list(self.dims.values()))[:-1], axis=1)
        return dict(zip(self.dims, blocks, strict=True))

    def embeddings(self, joint: np.ndarray, available: np.ndarray) -> VideoEmbeddings:
        """Joint vectors (n, sum of D) as embeddings; available (n, M) bool."""
        return VideoEmbeddings(self.by_expert(joint), available, model=self.model)


@dataclass(frozen=True)
class Extras(Columns):
    """The columns of n rows that no score depends on.

    Attributes:
        uris: (n,) of str or None.
        spans: (n, 2) float64 in seconds, NaN where not known.
        metadata: (n,) of dict or None.
    """

    uris: np.ndarray
    spans: np.ndarray
    metadata: np.ndarray


@dataclass(frozen=True)
class NewVideos:
    """B videos to be stored.

    Attributes:
        ids: B of them, each once.
        available: (B, M) bool.
        joint: gives the joint vectors (rows, sum of D) float32 for a slice of rows, missing experts zeroed.
        extras: of the B videos.
    """

    ids: Sequence[str]
    available: np.ndarray
    joint: Callable[[slice], np.ndarray]
    extras: Extras

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Stored:
    """Some rows of a store.

    Attributes:
        ids: n of them.
        joint: (n, sum of D) float32.
        available: (n, M) bool.
        extras: of these n videos.
    """

    ids: list[str]
    joint: np.ndarray
    available: np.ndarray
    extras: Extras


@dataclass(frozen=True)
class StoredVideos:
    """Some videos of an index.

    Attributes:
        ids: n of them.
        embeddings: of these n videos.
        uris: (n,) of str or None.
        spans: (n, 2) float64 in seconds, NaN where not known.
        metadata: (n,) of dict or None.
    """

    ids: list[str]
    embeddings: VideoEmbeddings
    uris: np.ndarray
    spans: np.ndarray
    metadata: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Answers:
    """The answers of a store to T texts.

    Attributes:
        best: for each text its videos, best first.
        videos: (n,) int64, ascending, the videos of all answers as `Best.video` names them.
        extras: of these n videos.
        exact: False where better videos may have been missed.
    """

    best: list[Best]
    videos: np.ndarray
    extras: Extras
    exact: bool = True


@dataclass(frozen=True)
class StoreReport:
    """A store before and after `optimise`.

    Attributes:
        rows: videos in it.
        files, versions, bytes: (before, after).
    """

    rows: int
    files: tuple[int, int]
    versions: tuple[int, int]
    bytes: tuple[int, int]

    def __str__(self) -> str:
        changes = (
            f"{before:,} -> {after:,} {name}"
            for name, (before, after) in (("files", self.files), ("versions", self.versions), ("bytes", self.bytes))
        )
        return f"{self.rows:,} videos: {', '.join(changes)}"


def patterns(available: np.ndarray) -> list[str]:
    """(n, M) bool -> n texts such as "101", in the model's order."""
    digits = np.where(available, b"1", b"0")
    return [row.tobytes().decode() for row in digits]


def availability(texts: Sequence[str]) -> np.ndarray:
    """n texts such as "101" -> (n, M) bool. Raises OSError where they differ in length, as in a damaged store."""
    if len(set(map(len, texts))) > 1:
        raise OSError("the patterns of its rows differ in length")
    digits = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
    return (digits == ord("1")).reshape(len(texts), len(texts[0]) if texts else 0)
