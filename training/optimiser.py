"""The optimiser of a run, its learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..base.dependencies import extra
from .settings import PRECISIONS, TrainingConfig

WARM_UP_SHARE = 0.05
"""Share of the steps in which the learning rate rises."""

AVERAGE_WARM_UP_STEPS = 10
"""The moving average begins shorter, as the weights change most at the start."""


def make_fabric(settings: TrainingConfig, device: torch.device) -> Any:
    """Lightning's Fabric: the same steps on a CPU, a GPU or several, in full or mixed precision."""
    fabric = extra("lightning_fabric", "training").Fabric(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" and settings.devices == 1 else settings.devices,
        strategy="ddp_find_unused_parameters_true" if settings.devices > 1 else "auto",  # a loss may leave some unused
        precision=PRECISIONS[settings.precision],
    )
    fabric.launch()
    return fabric


def make_optimiser(module: nn.Module, settings: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only: the size of a bias, a scale or the temperature has a meaning."""
    parameters = list(module.parameters())
    groups = [
        {"params": [x for x in parameters if x.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [x for x in parameters if x.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def learning_rate(highest: float, step: int, steps: int) -> float:
    """A linear rise over the first steps, times a half cosine that falls to 0 over all of them."""
    warm_up = min(1.0, (step + 1) / max(1.0, WARM_UP_SHARE * steps))
    return highest * warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))


def update_average(average: dict[str, Tensor], state: Mapping[str, Tensor], decay: float, step: int) -> None:
    """Move the average towards the weights after `step` steps, in place."""
    decay = min(decay, step / (AVERAGE_WARM_UP_STEPS + step))
    for name, x in state.items():
        if x.is_floating_point():
            average[name].lerp_(x, 1 - decay)
        else:
            average[name].copy_(x)
