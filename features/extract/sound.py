"""Parts of a clip's sound, as networks hear them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .media import SAMPLE_RATE

SILENCE = 10 ** (-60 / 20)
"""Root mean square of a second, full scale being 1, below which it is silent."""

SHORTEST_S = 0.1


def is_silent(sound: np.ndarray | None) -> bool:
    """True where there is no sound, hardly any, or nothing above -60 dB in any second."""
    if sound is None or len(sound) < SHORTEST_S * SAMPLE_RATE:
        return True
    return all(_loudness(x) < SILENCE for x in windows(sound, 1.0))


def windows(sound: np.ndarray | None, length_s: float) -> Iterator[np.ndarray]:
    """Float32 parts of a length, full scale being 1. A last one below a fifth of it is dropped, unless it is alone."""
    if sound is None:
        return
    size = round(length_s * SAMPLE_RATE)
    for start in range(0, len(sound), size):
        part = sound[start : start + size]
        if not start or len(part) >= size // 5:
            yield part.astype(np.float32) / 32768


def resample(sound: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    """The same sound with another number of samples a second, exact for what both can hold."""
    if rate == to_rate:
        return sound
    count = round(len(sound) * to_rate / rate)
    spectrum = np.fft.rfft(sound)
    return (np.fft.irfft(spectrum, count) * (count / len(sound))).astype(np.float32)


def _loudness(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))
