"""Motion: histograms of dense optical flow, without weights.

Dense inverse search (Kroeger et al., arXiv 1603.03590, in OpenCV) gives the flow between frames 1/12 s apart. In each
of 4 x 4 cells, 8 directions add up their speeds, and a ninth number is the share of what stands still. Square roots
keep a fast movement from outweighing all others. A clip has the mean and the maximum over its pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...base.dependencies import extra
from .clips import Clip, Frames
from .media import View

CELLS, DIRECTIONS = 4, 8
FEATURES = CELLS * CELLS * (DIRECTIONS + 1)
STILL = 0.02
"""Frame widths a second below which a point stands still."""

LEAST_SIDE = 24
"""Pixels of a side below which there is no flow to be found."""


class FlowHistograms:
    """The extractor."""

    name, version, dim, sequence, reads_sound = "motion", 1, 2 * FEATURES, False, False
    views = (View(fps=2, side=96, colour=False, most=128, pair_s=1 / 12),)

    def __init__(self) -> None:
        self._cv2 = extra("cv2", "extract-offline")
        self._flow = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def __call__(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        return [self._pool(clip.frames[self.views[0]], clip) for clip in clips]

    def _pool(self, frames: Frames, clip: Clip) -> np.ndarray | None:
        if not len(frames) or clip.end_s <= clip.start_s or min(frames.images.shape[2:]) < LEAST_SIDE:
            return None
        x = np.stack([self._histogram(*pair) for pair in frames.images])
        return np.concatenate([x.mean(axis=0), x.max(axis=0)])

    def _histogram(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(144,) float32"""
        height, width = first.shape
        x, y = np.moveaxis(self._flow.calc(first, second, None), -1, 0) / (width * self.views[0].pair_s)
        speed, angle = self._cv2.cartToPolar(x, y)
        moves = speed >= STILL
        direction = np.rint(angle * (DIRECTIONS / (2 * np.pi))).astype(np.int64) % DIRECTIONS
        rows, columns = (np.arange(size) * CELLS // size for size in (height, width))
        cell = rows[:, None] * CELLS + columns
        place = cell * (DIRECTIONS + 1) + np.where(moves, direction, DIRECTIONS)
        sums = np.bincount(place.ravel(), np.where(moves, speed, 1).ravel(), minlength=FEATURES)
        sizes = np.bincount(cell.ravel(), minlength=CELLS * CELLS).repeat(DIRECTIONS + 1)
        return np.sqrt(sums / sizes).astype(np.float32)
