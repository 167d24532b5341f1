"""PyTorch's modes of the calling thread, left for the time of our own training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_modes() -> Iterator[None]:
    """Gradients are recorded and nothing is cast, whatever modes the caller is in. Also a decorator."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        # Training in half precision enters a mode of its own within these, and is to cast each weight once a step.
        torch.autocast("cpu", enabled=False, cache_enabled=True),
        torch.autocast("cuda", enabled=False, cache_enabled=True),
    ):
        yield
