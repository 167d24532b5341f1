"""Appearance: SigLIP 2 (Tschannen et al., arXiv 2502.14786), or another model of images and texts.

Features of a frame have the length 1 and lie in the space of the model's text tower. Models of one resolution are read;
those of a native one ("naflex") have another form of input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .clips import Clip
from .expert import best_device
from .frames import check_keep, each_clip, pool, pooled_dim
from .media import View
from .transformer import load, weights_of

MODEL = "google/siglip2-base-patch16-256"
BATCH = 16


class SigLip:
    """The extractor.

    Args:
        model: a name of the hub, or a folder.
        keep: "mean", "mean-max" or "frames". The mean and the frames can be compared with texts.
        fps: frames a second.
    """

    name, version, reads_sound = "appearance", 1, False

    def __init__(self, model: str = MODEL, keep: str = "mean", fps: float = 1.0, device: str | None = None) -> None:
        check_keep(keep, self.name)
        self._keep, self._device = keep, best_device(device)
        self._network = load("AutoModel", model).eval().to(self._device)
        if not hasattr(self._network, "get_image_features"):
            raise ValueError(f"{model}: expected a model of images and texts, got {type(self._network).__name__}")
        self._processor = load("AutoImageProcessor", model)
        self.settings = {"model": model, "keep": keep, "fps": fps}
        self.weights, self.text_tower = weights_of(model, self._network), model
        size = self._processor.size
        side = size["shortest_edge"] if "shortest_edge" in size else min(size["height"], size["width"])
        self.views = (View(fps=fps, side=int(side)),)
        blank = np.zeros((int(side), int(side), 3), dtype=np.uint8)
        self.dim, self.sequence = pooled_dim(self._run([blank]).shape[1], keep), keep == "frames"

    def __call__(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        rows = each_clip(clips, self.views[0], self._run, BATCH)
        return [None if x is None else pool(x, self._keep) for x in rows]

    @torch.inference_mode()
    def _run(self, images: list[np.ndarray]) -> np.ndarray:
        """(n, dim) float32 of length 1"""
        pixels = self._processor(images=images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        output = self._network.get_image_features(pixel_values=pixels.to(self._device))
        x = getattr(output, "pooler_output", output)
        return torch.nn.functional.normalize(x.float(), dim=-1).cpu().numpy()
