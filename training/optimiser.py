"""The optimiser of a run, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..base.dependencies import extra
from .settings import PRECISIONS, TrainingConfig

AVERAGE_WARM_UP_STEPS = 10
"""A moving average with a given decay begins shorter, as the weights change most at the start."""

AVERAGED_SHARE = 0.15
"""Share of the steps so far over which weights are averaged where no decay is given."""


def make_fabric(settings: TrainingConfig, device: torch.device) -> Any:
    """Lightning's Fabric: the same steps on a CPU, a GPU or several, in full or mixed precision."""
    lightning = extra("lightning_fabric", "training")
    fabric = lightning.Fabric(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" and settings.devices == 1 else settings.devices,
        # a loss may leave parameters unused
        strategy=lightning.strategies.DDPStrategy(find_unused_parameters=True) if settings.devices > 1 else "auto",
        precision=PRECISIONS[settings.precision],
    )
    fabric.launch()
    return fabric


def make_optimiser(module: nn.Module, settings: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only: the size of a bias, a scale or the temperature has a meaning."""
    parameters = [x for x in module.parameters() if x.requires_grad]
    groups = [
        {"params": [x for x in parameters if x.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [x for x in parameters if x.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def update_average(average: dict[str, Tensor], state: Mapping[str, Tensor], decay: float | None, step: int) -> None:
    """Move the average towards the weights after `step` steps, counted from 1, in place.

    Without a decay the average is over a share of the steps so far: weights of step s count as (s / step) ** power.
    """
    if decay is None:
        power = 1 / AVERAGED_SHARE
        decay = (step - 1) / (step + power)
    else:
        decay = min(decay, step / (AVERAGE_WARM_UP_STEPS + step))
    for name, x in state.items():
        if x.is_floating_point():
            average[name].lerp_(x, 1 - decay)
        else:
            average[name].copy_(x)
