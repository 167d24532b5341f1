"""OCR: words on the screen by RapidOCR, whose PP-OCR models come with its wheel, as tokens of a sentence encoder.

A frame that does not differ from the one before is not read again, neither within a clip nor between neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np

from ...base.dependencies import extra
from .clips import Clip
from .expert import Encoder, Extracted, hash_files
from .media import View
from .words import check_encoder, encode_texts

LEAST_SCORE = 0.8
"""A line that is recognised with less confidence is dropped."""

THUMB = (96, 54)
"""Width and height of the small grey image by which frames are compared, cells of about a letter's size."""

LEAST_CHANGE = 12.0
"""Grey levels by which one cell at least differs where a frame has changed."""


class RapidText:
    """The extractor."""

    name, version, sequence, reads_sound, reads_text = "ocr", 1, True, False, True

    def __init__(self, fps: float = 1.0, encoder: Encoder | None = None) -> None:
        self.views = (View(fps=fps, side=720, most=24),)
        self._encoder = check_encoder(encoder, self.name)
        self.dim = self._encoder.dim
        self.settings = {
            "encoder": self._encoder.name,
            "rapidocr": package_version("rapidocr"),
            "fps": fps,
        }
        self._cv2 = extra("cv2", "extract-offline")
        package = extra("rapidocr", "extract-offline")
        self.weights = hash_files(Path(str(package.__file__)).with_name("models").glob("*.onnx"))
        choices = {"Global.log_level": "critical", "Global.text_score": LEAST_SCORE, "Global.use_cls": False}
        self._reader = package.RapidOCR(params=choices)  # without its classifier of lines upside down
        self._last: tuple[str, np.ndarray, list[str]] | None = None
        self.frames_read = 0
        """Frames on which text was looked for, for measuring."""

    def __call__(self, clips: Sequence[Clip]) -> list[Extracted | None]:
        return encode_texts([self._read_clip(clip) for clip in clips], self._encoder)

    def _read_clip(self, clip: Clip) -> str:
        """The lines of a clip in the order of their appearance, each once."""
        lines: dict[str, None] = {}
        for image in clip.frames[self.views[0]].images:
            lines.update(dict.fromkeys(self._read_frame(clip.uri, image)))
        return "\n".join(_complete(list(lines)))

    def _read_frame(self, uri: str, image: np.ndarray) -> list[str]:
        grey = self._cv2.cvtColor(image, self._cv2.COLOR_RGB2GRAY)
        thumb = self._cv2.resize(grey, THUMB, interpolation=self._cv2.INTER_AREA).astype(np.float32)
        if self._last is not None and self._last[0] == uri and np.abs(thumb - self._last[1]).max() < LEAST_CHANGE:
            return self._last[2]
        result: Any = self._reader(image[:, :, ::-1])
        self.frames_read += 1
        lines = [
            text for text, score in zip(result.txts or (), result.scores or (), strict=True) if score >= LEAST_SCORE
        ]
        self._last = (uri, thumb, lines)
        return lines


def _complete(lines: list[str]) -> list[str]:
    """The lines without those that are a part of another one, as a line is that fades in."""
    plain = ["".join(line.casefold().split()) for line in lines]
    return [
        line
        for i, line in enumerate(lines)
        if not any(plain[i] in other and (plain[i] != other or j < i) for j, other in enumerate(plain) if j != i)
    ]
