"""The device that an operator runs on."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device | None, placement: int = -1) -> torch.device:
    """The device to run on: what the caller says, else the pipeline's GPU number, else CUDA if there is one.

    Raises:
        TypeError, ValueError: no such kind of device, or a GPU that this machine does not have.
    """
    if device is None:
        device = f"cuda:{placement}" if placement >= 0 else "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(device, str | torch.device):
        raise TypeError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got '{device}'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(
            f"device: '{device}' asked for, but PyTorch finds {count} CUDA device(s) here; use device='cpu'"
        )
    return device
