"""Audio: CLAP (Wu et al., arXiv 2211.06687), whose features lie in the space of its text tower.

A clip is heard in windows of ten seconds, and its features are the mean over them. Sound is kept with 16,000 samples a
second, and CLAP hears 48,000: what is above 8 kHz is missing for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .clips import Clip
from .expert import best_device
from .media import SAMPLE_RATE, View
from .sound import is_silent, resample, windows
from .transformer import load, weights_of

MODEL = "laion/clap-htsat-unfused"
WINDOW_S, BATCH = 10.0, 8


class Clap:
    """The extractor.

    Args:
        model: a name of the hub, or a folder.
    """

    name, version, reads_sound, sequence = "audio", 1, True, False
    views: tuple[View, ...] = ()

    def __init__(self, model: str = MODEL, device: str | None = None) -> None:
        self._device = best_device(device)
        self._network = load("AutoModel", model).eval().to(self._device)
        if not hasattr(self._network, "get_audio_features"):
            raise ValueError(f"{model}: expected a model of sounds and texts, got {type(self._network).__name__}")
        self._processor = load("AutoFeatureExtractor", model)
        self._rate = int(self._processor.sampling_rate)
        self.dim = int(self._network.config.projection_dim)
        self.settings, self.weights, self.text_tower = {"model": model}, weights_of(model, self._network), model

    def __call__(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        return [None if is_silent(clip.sound) else self._embed(clip.sound) for clip in clips]

    def _embed(self, sound: np.ndarray | None) -> np.ndarray:
        """(dim,) float32"""
        parts = [resample(x, SAMPLE_RATE, self._rate) for x in windows(sound, WINDOW_S)]
        rows = [self._run(parts[start : start + BATCH]) for start in range(0, len(parts), BATCH)]
        return np.concatenate(rows).mean(axis=0)

    @torch.inference_mode()
    def _run(self, parts: list[np.ndarray]) -> np.ndarray:
        inputs = self._processor(parts, sampling_rate=self._rate, return_tensors="pt").to(self._device)
        output = self._network.get_audio_features(**inputs)
        x = getattr(output, "pooler_output", output)
        return torch.nn.functional.normalize(x.float(), dim=-1).cpu().numpy()
