"""Audio: the log-mel spectrum in tokens of one second, without weights.

A token has 128 numbers: mean and deviation over its second of 64 mel bands, in natural logarithms. Silence is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .clips import Clip
from .media import SAMPLE_RATE, View
from .sound import is_silent

BANDS, WINDOW, HOP = 64, 512, 160
LOWEST_HZ, HIGHEST_HZ = 60.0, 7800.0
FLOOR = 1e-6
"""Power that is added before the logarithm."""

BLOCK_S = 30
"""Seconds that are transformed at once."""


class LogMel:
    """The extractor."""

    name, version, dim, sequence, reads_sound = "audio", 1, 2 * BANDS, True, True
    views: tuple[View, ...] = ()

    def __init__(self) -> None:
        self._window = torch.hann_window(WINDOW, dtype=torch.float32, device="cpu")
        self._bands = torch.from_numpy(_mel_bands())

    def __call__(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        return [self._tokens(clip.sound) for clip in clips]

    @torch.inference_mode()
    def _tokens(self, sound: np.ndarray | None) -> np.ndarray | None:
        """(N, 128) float32, a token a second; the last, shorter one joins the one before."""
        if sound is None or is_silent(sound):
            return None
        # Tokens are written into one array: small ones of their own, kept between large blocks that come and go,
        # would keep the memory of hours from being given back.
        tokens = np.empty((max(1, len(sound) // SAMPLE_RATE), self.dim), dtype=np.float32)
        for start in range(0, len(tokens), BLOCK_S):
            rows = tokens[start : start + BLOCK_S]
            is_last = start + BLOCK_S >= len(tokens)
            block = sound[start * SAMPLE_RATE : None if is_last else (start + BLOCK_S) * SAMPLE_RATE]
            rows[:] = self._transform(block, len(rows))
        return tokens

    def _transform(self, block: np.ndarray, count: int) -> np.ndarray:
        """(count, 128) float32, the tokens of a block of so many seconds."""
        x = torch.from_numpy(block.astype(np.float32) / 32768)
        power = torch.stft(x, WINDOW, HOP, window=self._window, return_complex=True).abs().square()
        mel = (self._bands @ power / WINDOW + FLOOR).log()
        size = SAMPLE_RATE // HOP
        ends = [*(size * i for i in range(1, count)), mel.shape[1]]
        parts = mel.tensor_split(ends[:-1], dim=1)
        return torch.stack([torch.cat([x.mean(dim=1), x.std(dim=1, correction=0)]) for x in parts]).numpy()


def _mel_bands() -> np.ndarray:
    """(64, 257) float32: triangles of equal width in mel, each with the sum 1."""
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST_HZ, HIGHEST_HZ))
    mels = np.linspace(lowest, highest, BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    hz = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    rise = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(np.minimum(rise, fall), 1e-8)
    return (triangles / triangles.sum(axis=1, keepdims=True)).astype(np.float32)
