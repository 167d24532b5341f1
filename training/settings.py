"""Settings of a training run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from ..base.checks import check_choice, check_keys
from ..base.config import CEConfig
from .losses import LOSSES, MARGIN

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
"""Number formats of the computation, and Lightning's names for them."""

SMALLEST_BATCH = 2
"""A video needs another one to be told apart from."""

LARGEST_BATCH, STEPS_PER_EPOCH = 256, 2
"""A batch is as large as this, unless an epoch then had fewer steps."""

MAY_BE_LEFT_OUT = ("steps", "epochs", "batch_size", "average", "patience")
"""Settings that are chosen by the data where they are None."""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run. Every default was chosen on validation videos (benchmarks/NOTES.md).

    Attributes:
        folder: the folder that the run writes into. It is made if it does not exist.
        loss: 'infonce' or 'max_margin'.
        temperature: the temperature of InfoNCE at the start. It is learned.
        margin: the margin of the max-margin loss.
        steps: the number of steps. The learning rate rises over the first twentieth of them and falls with a half
            cosine. None, without `epochs`, lets validation find the number (`schedule`).
        epochs: the number of passes over the training videos, in place of `steps`.
        batch_size: the videos of one step, over all devices. None takes a size that fits the training set; a given
            one is lowered to a smaller training set.
        learning_rate: the highest one.
        weight_decay: AdamW's weight decay, for matrices only.
        expert_dropout: the chance that an available expert is taken from a video for a step. One is always kept.
        feature_dropout: the chance that a feature is replaced by its mean.
        word_dropout: the chance that a word is zeroed.
        average: the decay of the moving average of the weights, 0 for none. None averages over a share of the steps
            so far.
        patience: the validations without a better one after which training stops. 0 never stops before the last
            step. None stops a search for the number of steps after half as many again, and nothing else. With `epochs`
            or `steps`, each epoch is validated.
        refit: after a search, the weights are trained anew for as many steps on all videos, with those held out.
        members: the models, of seeds that follow one another, that a refit trains, on a CPU all at once, and joins to
            one whose `shared_dim` is so many times as large (`members`), with a linear model besides (`linear`). A
            model that cannot be joined has one, and none that is linear.
        seed: the seed of initial parameters, order, captions and dropout.
        precision: 'float32', 'bfloat16' or 'float16' (mixed).
        devices: the number of GPUs, or of processes on a CPU, that share a batch.
    """

    folder: str = "run"
    loss: str = "infonce"
    temperature: float = 0.1
    margin: float = MARGIN
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    expert_dropout: float = 0.2
    feature_dropout: float = 0.3
    word_dropout: float = 0.0
    average: float | None = None
    patience: int | None = None
    refit: bool = True
    members: int = 3
    seed: int = 0
    precision: str = "float32"
    devices: int = 1

    def __post_init__(self) -> None:
        check_choice(self.loss, tuple(LOSSES), "training: loss")
        check_choice(self.precision, tuple(PRECISIONS), "training: precision")
        for name in ("steps", "epochs", "batch_size", "members", "devices"):
            _check_number(self, name, least=1, whole=True)
        for name in ("patience", "seed"):
            _check_number(self, name, least=0, whole=True)
        for name in ("expert_dropout", "feature_dropout", "word_dropout", "average"):
            _check_number(self, name, least=0, below=1)
        if not isinstance(self.refit, bool):
            raise TypeError(f"training: refit: expected True or False, got {self.refit!r}")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"training: expected steps or epochs, got both, {self.steps} and {self.epochs}")
        for name in ("learning_rate", "temperature"):
            _check_number(self, name, least=1e-12)
        for name in ("margin", "weight_decay"):
            _check_number(self, name, least=0)
        size = self.batch_size
        if size is not None and (size < SMALLEST_BATCH or size % self.devices):
            raise ValueError(
                f"training: batch_size: expected at least {SMALLEST_BATCH} and a multiple of {self.devices} devices, "
                f"got {size}"
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """Settings by name, the rest by default. Raises TypeError or ValueError, naming the setting."""
        check_keys(settings, [field.name for field in fields(cls)], "training")
        return cls(**settings)


def combine(training_config: TrainingConfig | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> TrainingConfig:
    """A `TrainingConfig` out of one, or out of a dict, with some settings replaced.

    Raises:
        TypeError, ValueError: as `TrainingConfig.from_dict`.
    """
    if isinstance(training_config, TrainingConfig):
        training_config = asdict(training_config)
    if training_config is not None and not isinstance(training_config, Mapping):
        raise TypeError(f"training_config: expected a TrainingConfig or a dict, got {type(training_config).__name__}")
    return TrainingConfig.from_dict({**(training_config or {}), **settings})


def check_trainable(settings: TrainingConfig, config: CEConfig, videos: int, device: torch.device) -> None:
    """Raise ValueError for a model, a precision or a number of videos that cannot be trained with."""
    if config.concat_experts:
        raise ValueError("training: concat_experts is an ablation without experts; it cannot be trained here")
    if settings.precision == "float16" and device.type == "cpu":
        raise ValueError("training: precision: 'float16' is not for cpu; use 'bfloat16' or 'float32'")
    fewest = max(SMALLEST_BATCH, settings.devices)
    if videos < fewest:
        raise ValueError(f"training: expected at least {fewest} training videos, got {videos}")


def fit_settings(settings: TrainingConfig, config: CEConfig, videos: int, device: torch.device) -> TrainingConfig:
    """The settings with a batch size, which the training set can fill. Raises as `check_trainable`."""
    check_trainable(settings, config, videos, device)
    whole = videos // settings.devices * settings.devices
    if settings.batch_size is None:
        return replace(settings, batch_size=min(_batch_size(videos, settings.devices), whole))
    if videos >= settings.batch_size:
        return settings
    warnings.warn(
        f"training: batch_size {settings.batch_size} is lowered to {whole}, as there are {videos} training videos",
        stacklevel=3,
    )
    return replace(settings, batch_size=whole)


def _batch_size(videos: int, devices: int) -> int:
    """The largest power of two that goes into the videos twice, up to 256, and a multiple of the devices."""
    size = LARGEST_BATCH
    while size > SMALLEST_BATCH and size * STEPS_PER_EPOCH > videos:
        size //= 2
    return math.ceil(size / devices) * devices


def _check_number(
    settings: TrainingConfig, name: str, least: float, below: float = math.inf, whole: bool = False
) -> None:
    """Raise TypeError or ValueError unless a setting is such a number; one of NumPy's becomes Python's."""
    value = getattr(settings, name)
    if value is None and name in MAY_BE_LEFT_OUT:
        return
    if isinstance(value, np.integer | np.floating):
        value = value.item()
        object.__setattr__(settings, name, value)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise TypeError(f"training: {name}: expected {'an integer' if whole else 'a number'}, got {value!r}")
    if not least <= value < below:
        limit = f" and below {below:g}" if below < math.inf else ""
        raise ValueError(f"training: {name}: expected at least {least:g}{limit}, got {value!r}")
