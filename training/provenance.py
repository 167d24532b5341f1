"""The origin of a model: the notes in its weights file, and the facts by which a run is resumed."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..base.config import CEConfig
from .data import VideoTensors
from .encoder import EncoderIdentity
from .settings import TrainingConfig

FREE_TO_CHANGE = ("folder", "steps", "epochs", "patience", "refit", "members")
"""Settings that may differ in a resumed run."""

PACKAGES = ("torch", "towhee", "towhee.models", "numpy")
"""Packages whose versions are noted."""


def run_identity(
    config: CEConfig, settings: TrainingConfig, data: VideoTensors, validation: VideoTensors | None
) -> dict[str, Any]:
    """Everything that must be the same for a run to be resumed."""
    fixed = {key: value for key, value in asdict(settings).items() if key not in FREE_TO_CHANGE}
    return fixed | {
        "training data": data.describe(),
        "validation data": None if validation is None else validation.describe(),
        "config": json.dumps(config.to_dict()),
    }


def weights_notes(
    config: CEConfig,
    settings: TrainingConfig,
    data: VideoTensors,
    encoder: EncoderIdentity | None,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """The notes in a weights file: settings, size of the data, figures of the epoch, versions, sentence encoder."""
    videos_with = {name: int(n) for name, n in zip(config.expert_names, data.available.sum(0), strict=True)}
    notes = {
        "training": asdict(settings) | {"folder": Path(settings.folder).name},
        "data": {"videos": len(data), "captions": len(data.tokens), "videos_with": videos_with},
        "metrics": {key: round(value, 6) for key, value in metrics.items()},
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }
    return notes | ({} if encoder is None else {"encoder": encoder.to_dict()})
