"""Motion: V-JEPA 2 (Assran et al., arXiv 2506.09985) or VideoMAE (Tong et al., arXiv 2203.12602).

A clip is seen as the even number of frames that the model was trained with; its features are the mean over all patches.
V-JEPA's own processor needs torchvision, so its few steps are done here with the numbers that are saved beside the
model: resize the shorter side, crop the middle, scale and standardise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...base.dependencies import extra
from ...base.model_hub import load_model
from .clips import Clip, Frames
from .expert import best_device
from .media import View
from .transformer import EXTRA, load, weights_of

MODEL = "facebook/vjepa2-vitl-fpc16-256-ssv2"
SETTINGS_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
LEAST_FRAMES = 2
"""A clip of a single frame, such as a photo, has no motion."""


class VideoTransformer:
    """The extractor.

    Args:
        model: a name of the hub, or a folder. The published weights of VideoMAE are for non-commercial use only.
        fps: frames a second of a short clip. A long one is seen at even times.
    """

    name, version, reads_sound, sequence = "motion", 1, False, False

    def __init__(self, model: str = MODEL, fps: float = 8.0, device: str | None = None) -> None:
        self._device = best_device(device)
        self._network = load("AutoModel", model).eval().to(self._device)
        config = self._network.config
        if config.model_type not in ("vjepa2", "videomae"):
            raise ValueError(f"{model}: expected a model of V-JEPA 2 or VideoMAE, got {config.model_type}")
        self._is_jepa = config.model_type == "vjepa2"
        self._count = int(config.frames_per_clip if self._is_jepa else config.num_frames)
        self._preprocess = Preprocessing(_saved_settings(model))
        self.dim = int(config.hidden_size)
        self.settings, self.weights = {"model": model, "fps": fps}, weights_of(model, self._network)
        self.views = (View(fps=fps, side=self._preprocess.resized, most=2 * self._count),)

    def __call__(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        frames = [clip.frames[self.views[0]] for clip in clips]
        return [self._run(x) if len(x) >= LEAST_FRAMES else None for x in frames]

    @torch.inference_mode()
    def _run(self, frames: Frames) -> np.ndarray:
        """(dim,) float32"""
        chosen = np.linspace(0, len(frames) - 1, self._count).round().astype(int)
        pixels = torch.from_numpy(self._preprocess(frames.images[chosen]))[None].to(self._device)
        if self._is_jepa:
            patches = self._network(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        else:
            patches = self._network(pixel_values=pixels).last_hidden_state
        return patches.mean(dim=1)[0].float().cpu().numpy()


class Preprocessing:
    """The steps from frames to a network's input, with the numbers of a saved processor."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        size = settings.get("size", {})
        crop = settings.get("crop_size", {"height": 224, "width": 224})
        crop = crop if isinstance(crop, int) else crop["height"]
        self.crop = int(crop)
        self.resized = int(size.get("shortest_edge", size.get("height", self.crop)))
        self._scale = float(settings.get("rescale_factor", 1 / 255))
        self._mean = np.array(settings.get("image_mean", [0.485, 0.456, 0.406]), dtype=np.float32)
        self._deviation = np.array(settings.get("image_std", [0.229, 0.224, 0.225]), dtype=np.float32)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(n, h, w, 3) uint8 -> (n, 3, side, side) float32"""
        x = np.stack([self._square(image) for image in images]).astype(np.float32) * self._scale
        return np.ascontiguousarray(((x - self._mean) / self._deviation).transpose(0, 3, 1, 2))

    def _square(self, image: np.ndarray) -> np.ndarray:
        pil = extra("PIL.Image", EXTRA)
        height, width = image.shape[:2]
        scale = max(self.resized, self.crop) / min(height, width)
        size = (max(self.crop, int(width * scale)), max(self.crop, int(height * scale)))
        if size != (width, height):
            image = np.asarray(pil.fromarray(image).resize(size, pil.Resampling.BILINEAR))
        top, left = (image.shape[0] - self.crop) // 2, (image.shape[1] - self.crop) // 2
        return image[top : top + self.crop, left : left + self.crop]


def _saved_settings(model: str) -> Mapping[str, Any]:
    """The numbers of the processor that is saved beside a model."""
    return json.loads(Path(load_model(_settings_file, model, "motion", EXTRA)).read_text(encoding="utf-8"))


def _settings_file(model: str, **options: bool) -> str:
    cached_file = extra("transformers.utils", EXTRA).cached_file
    for name in SETTINGS_FILES:
        path = cached_file(model, name, _raise_exceptions_for_missing_entries=False, **options)
        if path is not None:
            return path
    raise FileNotFoundError(f"expected {' or '.join(SETTINGS_FILES)} beside the model, found neither")
