"""Speech: words that are heard, by Whisper through faster-whisper, as tokens of a sentence encoder.

Whisper invents words for music and noise, so only what its voice detector finds is transcribed, and what Whisper
itself takes for no speech is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...base.dependencies import extra
from ...base.model_hub import load_model
from .clips import Clip
from .expert import Encoder, Extracted, best_device, hash_files
from .media import SAMPLE_RATE, View
from .words import check_encoder, encode_texts

BLOCK_S = 300
"""Seconds that are transcribed at once, so that hours of sound take little memory."""

LARGEST_NO_SPEECH = 0.6
LEAST_LOG_PROBABILITY = -1.0
"""Whisper's own limits, beyond which it takes a segment for no speech."""


class Whisper:
    """The extractor.

    Args:
        model: a folder of faster-whisper (CTranslate2), or a name as it takes it, such as "large-v3-turbo", which
            downloads the model once. A folder of this name in the working folder goes before the model of this name.
        language: its code, such as "en". None tells it from the sound.
        compute: number format, as CTranslate2 names it. None is int8 on CPU and float16 on a GPU.
    """

    name, version, sequence, reads_sound, reads_text = "speech", 1, True, True, True
    views: tuple[View, ...] = ()

    def __init__(
        self,
        model: str,
        language: str | None = None,
        compute: str | None = None,
        device: str | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self._encoder = check_encoder(encoder, self.name)
        self.dim = self._encoder.dim
        self._language = language
        package = extra("faster_whisper", "extract-offline")
        folder = load_model(_folder_of, model, "Whisper", "extract-offline")
        self.weights = hash_files([folder / "model.bin"])
        kind = best_device(device).split(":")[0]
        compute = compute or ("float16" if kind == "cuda" else "int8")
        self._model = package.WhisperModel(str(folder), device=kind, compute_type=compute)
        self.settings = {"encoder": self._encoder.name, "language": language, "compute": compute}

    def __call__(self, clips: Sequence[Clip]) -> list[Extracted | None]:
        return encode_texts([" ".join(self._transcribe(clip.sound)) for clip in clips], self._encoder)

    def _transcribe(self, sound: np.ndarray | None) -> Iterator[str]:
        if sound is None:
            return
        size = BLOCK_S * SAMPLE_RATE
        for start in range(0, len(sound), size):
            block = sound[start : start + size].astype(np.float32) / 32768
            segments, _ = self._model.transcribe(
                block, language=self._language, vad_filter=True, condition_on_previous_text=False, beam_size=1
            )
            for segment in segments:
                unsure = segment.avg_logprob < LEAST_LOG_PROBABILITY
                if not (unsure and segment.no_speech_prob > LARGEST_NO_SPEECH) and segment.text.strip():
                    yield segment.text.strip()


def _folder_of(model: str, local_files_only: bool = False) -> Path:
    """The folder of a model: a folder itself, or that of the cache. Raises FileNotFoundError for an unfinished one."""
    if Path(model).is_dir():
        folder = Path(model)
    else:
        package = extra("faster_whisper", "extract-offline")
        folder = Path(package.download_model(model, local_files_only=local_files_only))
    if not (folder / "model.bin").is_file():
        raise FileNotFoundError(
            f"{folder}: expected a folder of faster-whisper with a model.bin, found none; a folder goes before the "
            "model of its name"
        )
    return folder
