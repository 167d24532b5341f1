"""Data sets of videos with captions, as a caller gives them and as training takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.checks import check_unmasked
from ..base.config import CEConfig
from ..base.slices import slices
from ..features.features import Features
from ..model import inputs
from ..model.cenet import Standardise
from ..retrieval.arrays import as_numpy, float_array
from .captions import Captions, keep_videos_with_features
from .encoder import Encoder, EncoderIdentity, identify
from .tokens import embed_tokens

MAX_TOKENS = 37
"""Tokens that are kept of a sentence, as the authors do for MSR-VTT."""

SMALLEST_DEVIATION = 1e-6
"""A feature that varies less is constant, and is not scaled."""

ROWS_AT_ONCE = 256
TEACHER_DECIMALS = 3
"""Rounding of teachers' scores before they are hashed."""


@dataclass(frozen=True)
class CaptionedVideos:
    """A data set: the features of B videos, and T captions of them as token embeddings.

    Attributes:
        features: the result of `read_features`.
        targets: (T,) int64 from 0 to B - 1, the row of the video that each caption describes.
        tokens: (T, W, dim) of floats, in memory or mapped from a file; may come as a tensor or as nested lists, as
            `targets` and `teacher` may.
        encoder: the identity of the sentence encoder of `tokens`, None where it is not known.
        teacher: (T, B) float32, scores that training draws the model's to (`teachers`); None without teachers.

    Raises:
        TypeError, ValueError: they do not fit one another, or a video has no caption.
    """

    features: Features
    targets: np.ndarray
    tokens: np.ndarray
    encoder: EncoderIdentity | None = None
    teacher: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_unmasked(self.targets, "captions: targets", "leave out what is masked")
        targets = as_numpy(self.targets) if isinstance(self.targets, Tensor) else np.asarray(self.targets)
        tokens = as_numpy(float_array(self.tokens, "captions: tokens"))
        if targets.dtype.kind not in "iu" or tokens.ndim != 3 or targets.shape != (len(tokens),):
            raise ValueError(
                f"captions: expected targets (T,) of integers and tokens (T, W, dim), got {targets.shape} of "
                f"{targets.dtype} and {tokens.shape}"
            )
        object.__setattr__(self, "tokens", tokens)
        targets = targets.astype(np.int64)  # a number too large for it becomes negative, and is refused
        object.__setattr__(self, "targets", targets)
        if not len(targets) or targets.min() < 0 or targets.max() >= len(self):
            raise ValueError(f"captions: expected targets from 0 to {len(self) - 1}, got others")
        counts = np.bincount(targets, minlength=len(self))
        if not counts.all():
            raise ValueError(f"captions: video {self.features.ids[int(counts.argmin())]!r} has no caption")
        expected = (len(targets), len(self))
        if self.teacher is not None:
            object.__setattr__(self, "teacher", as_numpy(float_array(self.teacher, "captions: teacher")))
            if self.teacher.shape != expected:
                raise ValueError(f"captions: expected teacher {expected}, got {self.teacher.shape}")

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> CaptionedVideos:
        """The videos at these positions, with their captions."""
        rows = np.arange(len(self))[rows]
        position = np.full(len(self), -1)
        position[rows] = np.arange(len(rows))
        kept = np.flatnonzero(position[self.targets] >= 0)
        targets, tokens = position[self.targets[kept]], self.tokens[kept]
        teacher = None if self.teacher is None else self.teacher[np.ix_(kept, rows)]
        return CaptionedVideos(self.features[rows], targets, tokens, self.encoder, teacher)


def caption_videos(
    features: Features,
    captions: Captions,
    encoder: Encoder,
    folder: str | Path | None = None,
    max_tokens: int = MAX_TOKENS,
) -> CaptionedVideos:
    """The videos that have both features and captions, with the token embeddings of their captions.

    Args:
        folder: the folder in which token embeddings are kept; None takes the user's cache (`embed_tokens`).

    Raises:
        ValueError: no video has both.
    """
    features, captions, targets = keep_videos_with_features(features, captions)
    tokens = embed_tokens(captions.sentences, encoder, folder, max_tokens)
    return CaptionedVideos(features, targets, tokens, identify(encoder))


class VideoTensors:
    """A training or validation set as clean tensors, a row a video.

    Args:
        sums_words: takes the sum of a caption's tokens for its only token, which is all that a text pooled by one
            cluster at 0 sees of them (`members.has_fixed_centre`), and costs a step that much less.

    Raises:
        TypeError, ValueError: no data set, one that does not fit the config, or token embeddings with NaN or Inf.

    Attributes:
        features: {expert: (B, dim) or (B, N, dim) float32}, anything where missing.
        available: (B, M) bool.
        tokens, targets, teacher: as in `CaptionedVideos`.
    """

    def __init__(self, dataset: CaptionedVideos, config: CEConfig, role: str, sums_words: bool = False) -> None:
        if not isinstance(dataset, CaptionedVideos):
            raise TypeError(f"{role}: expected CaptionedVideos, got {type(dataset).__name__}")
        if dataset.tokens.shape[2] != config.text.dim:
            raise ValueError(f"{role}: expected tokens of size {config.text.dim}, got {dataset.tokens.shape[2]}")
        video = inputs.clean_video(dataset.features.experts, dataset.features.ind, config)
        self.features, self.available = video.features, video.available
        self.tokens, self.targets, self.teacher = dataset.tokens, dataset.targets, dataset.teacher
        if sums_words:
            rows = slices(len(self.tokens), ROWS_AT_ONCE)
            self.tokens = np.concatenate([self.tokens[part].sum(1, np.float32, keepdims=True) for part in rows])
        _check_tokens(self.tokens, role)
        self._by_video = np.argsort(self.targets, kind="stable")
        self._caption_counts = np.bincount(self.targets, minlength=len(self))
        self._first_captions = np.cumsum(self._caption_counts) - self._caption_counts

    def __len__(self) -> int:
        return len(self.available)

    def one_caption_each(self, videos: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The row in `tokens` of a random caption for each of some videos."""
        return self._by_video[self._first_captions[videos] + rng.integers(self._caption_counts[videos])]

    def batch(self, videos: np.ndarray, caption_rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Features and availability of some videos, and tokens of some captions."""
        rows = torch.from_numpy(videos)
        tokens = torch.from_numpy(np.asarray(self.tokens[caption_rows], dtype=np.float32))
        return {name: x[rows] for name, x in self.features.items()}, self.available[rows], tokens

    def teacher_scores(self, videos: np.ndarray, caption_rows: np.ndarray) -> Tensor | None:
        """The teachers' scores of some captions with some videos; None without teachers."""
        return None if self.teacher is None else torch.from_numpy(self.teacher[np.ix_(caption_rows, videos)])

    def describe(self) -> str:
        """The size of the set and a hash of its whole content."""
        digest = hashlib.sha256(self.targets.astype(np.int64).tobytes() + self.available.numpy().tobytes())
        for name, x in self.features.items():
            digest.update(name.encode())
            digest.update(x.contiguous().numpy())
        for rows in slices(len(self.tokens), ROWS_AT_ONCE):
            digest.update(np.ascontiguousarray(self.tokens[rows]))
        if self.teacher is not None:
            digest.update(self.teacher.round(TEACHER_DECIMALS).tobytes())
        return f"{len(self)} videos with {len(self.tokens)} captions (hash {digest.hexdigest()[:8]})"

    def statistics(self, config: CEConfig) -> dict[str, Tensor]:
        """Mean and standard deviation of each feature, or of its logarithm, over the available videos, under the names
        of the weights."""
        statistics = {}
        for m, expert in enumerate(config.experts):
            rows = self.features[expert.name][self.available[:, m]].double().flatten(0, -2)
            rows = rows[(rows != 0).any(1)] if expert.variable else rows  # without padding
            rows = Standardise(expert).scale(rows)
            if not len(rows):
                raise ValueError(
                    f"training: expert {expert.name!r} is missing in every training video; leave it out or mend its ids"
                )
            deviation = rows.std(0, correction=0)
            statistics[f"standardise.{expert.name}.mean"] = rows.mean(0).float()
            statistics[f"standardise.{expert.name}.std"] = deviation.masked_fill(
                deviation < SMALLEST_DEVIATION, 1
            ).float()
        return statistics


def _check_tokens(tokens: np.ndarray, role: str) -> None:
    """Raise ValueError for token embeddings that are not finite, before the loss is NaN for a reason none can see."""
    for part in slices(len(tokens), ROWS_AT_ONCE):
        is_finite = np.isfinite(tokens[part]).all(axis=(1, 2))
        if not is_finite.all():
            row = part.start + int(is_finite.argmin())
            raise ValueError(f"{role}: text, row {row}: expected finite token embeddings, got NaN or Inf")
