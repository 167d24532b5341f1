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

BLOCK_S = 60
"""Seconds that are transformed at once."""


class LogMel:
    """The extractor."""

    name, version, dim, sequence, reads_sound = "audio", 1, 2 * BANDS, True, True
    views: tuple[View, ...] = ()

    def __init__(self) -> None:
        self._window = torch.hann_window(WINDOW)
        self._bands = torch.from_numpy(_mel_bands())

    def __call__(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        return [self._tokens(clip.sound) for clip in clips]

    @torch.inference_mode()
    def _tokens(self, sound: np.ndarray | None) -> np.ndarray | None:
        """(N, 128) float32, a token a second; the last, shorter one joins the one before."""
        if sound is None or is_silent(sound):
            return None
        tokens, step = [], BLOCK_S * SAMPLE_RATE
        starts = list(range(0, len(sound), step))
        if len(starts) > 1 and len(sound) - starts[-1] < SAMPLE_RATE:
            starts.pop()
        for start, end in zip(starts, [*starts[1:], len(sound)], strict=True):
            x = torch.from_numpy(sound[start:end].astype(np.float32) / 32768)
            power = torch.stft(x, WINDOW, HOP, window=self._window, return_complex=True).abs().square()
            mel = (self._bands @ power / WINDOW + FLOOR).log()
            tokens += [_token(part) for part in _seconds(mel)]
        return np.stack(tokens)


def _seconds(mel: torch.Tensor) -> list[torch.Tensor]:
    """(64, frames) in parts of a second."""
    size = SAMPLE_RATE // HOP
    count = max(1, mel.shape[1] // size)
    return [mel[:, i * size : (i + 1) * size if i + 1 < count else None] for i in range(count)]


def _token(mel: torch.Tensor) -> np.ndarray:
    return torch.cat([mel.mean(dim=1), mel.std(dim=1, correction=0)]).numpy()


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
