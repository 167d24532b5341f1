"""Audio: the Audio Spectrogram Transformer (Gong et al., arXiv 2104.01778) with its classes of AudioSet.

A clip is heard in windows of ten seconds, one token each, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .clips import Clip
from .expert import LABELS_KEPT, Extracted, best_device
from .media import SAMPLE_RATE, View
from .sound import is_silent, windows
from .transformer import load, weights_of

MODEL = "MIT/ast-finetuned-audioset-10-10-0.4593"
WINDOW_S, BATCH = 10.0, 8


class AudioSpectrogram:
    """The extractor.

    Args:
        model: a name of the hub, or a folder.
    """

    name, version, reads_sound, sequence = "audio", 1, True, True
    views: tuple[View, ...] = ()

    def __init__(self, model: str = MODEL, device: str | None = None) -> None:
        self._device = best_device(device)
        self._network = load("AutoModelForAudioClassification", model).eval().to(self._device)
        self._processor = load("AutoFeatureExtractor", model)
        config = self._network.config
        self.dim = int(config.hidden_size)
        self.labels = tuple(config.id2label[i] for i in range(config.num_labels))
        self.settings, self.weights = {"model": model}, weights_of(model, self._network)

    def __call__(self, clips: Sequence[Clip]) -> list[Extracted | None]:
        return [None if is_silent(clip.sound) else self._embed(clip.sound) for clip in clips]

    def _embed(self, sound: np.ndarray | None) -> Extracted:
        parts = list(windows(sound, WINDOW_S))
        runs = [self._run(parts[start : start + BATCH]) for start in range(0, len(parts), BATCH)]
        tokens, scores = (np.concatenate(x) for x in zip(*runs, strict=True))
        mean = scores.mean(axis=0)
        best = np.argsort(-mean, kind="stable")[:LABELS_KEPT]
        return Extracted(tokens, None, tuple(self.labels[i] for i in best), tuple(mean[best].tolist()))

    @torch.inference_mode()
    def _run(self, parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(n, dim) features and (n, classes) probabilities, which do not exclude each other."""
        inputs = self._processor(parts, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self._device)
        output = self._network(**inputs, output_hidden_states=True)
        first = output.hidden_states[-1][:, :2].mean(dim=1)  # the mean of its two class tokens
        return first.float().cpu().numpy(), output.logits.sigmoid().float().cpu().numpy()
