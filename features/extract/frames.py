"""Frames of many clips through a network in batches, and their features back to the clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from ...base.checks import check_choice
from ...base.slices import slices
from .clips import Clip
from .media import View

Keep = Literal["mean", "mean-max", "frames"]
"""The form in which features of frames are kept: their mean, mean and maximum side by side, or all as a sequence."""


def check_keep(keep: str, where: str) -> None:
    """Raise ValueError for an unknown form."""
    check_choice(keep, get_args(Keep), f"settings of {where!r}: keep")


def pooled_dim(dim: int, keep: str) -> int:
    """The dimension of features in the form that is kept."""
    return 2 * dim if keep == "mean-max" else dim


def pool(x: np.ndarray, keep: str) -> np.ndarray:
    """(n, dim) features of a clip's frames in the form that is kept."""
    if keep == "frames":
        return x
    return x.mean(axis=0) if keep == "mean" else np.concatenate([x.mean(axis=0), x.max(axis=0)])


def each_clip(
    clips: Sequence[Clip], view: View, network: Callable[[list[np.ndarray]], np.ndarray], batch_size: int
) -> Iterator[np.ndarray | None]:
    """The rows (n, ...) that the network gives for each clip's frames, None for a clip without frames.

    Args:
        network: takes up to `batch_size` images (h, w, 3) of any sizes, and gives an array with a row for each.
    """
    images = [image for clip in clips for image in clip.frames[view].images]
    rows = [network(images[part]) for part in slices(len(images), batch_size)]
    joined = np.concatenate(rows) if rows else np.empty((0, 0))
    end = 0
    for clip in clips:
        start, end = end, end + len(clip.frames[view])
        yield joined[start:end] if end > start else None
