"""Processes made by fork, which lack the threads of the process that they are copied from.

A child that waits for such a thread waits for ever. In a child PyTorch therefore computes on one thread, as in the
workers of its `DataLoader`, and Lance, which has threads for all it does, is refused with the remedy.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from types import ModuleType

from .dependencies import extra


@dataclass
class _Lance:
    is_used: bool = False
    is_lost: bool = False


_lance = _Lance()


def register() -> None:
    """Have forked processes prepared. Called once, by the package's import."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_prepare_child)


def import_lance(name: str) -> ModuleType:
    """The module `lance`, without its warnings of what it deprecates.

    Args:
        name: the extra that brings it.

    Raises:
        ImportError: it is not installed; the message names the extra.
        RuntimeError: this process was made by fork from one that had used Lance.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = extra("lance", name)
    check_lance()
    _lance.is_used = True
    return module


def check_lance() -> None:
    """Raise RuntimeError in a process made by fork from one that had used Lance."""
    if _lance.is_lost:
        raise RuntimeError(
            "Lance does not work in a process made by fork from one that has used it; make processes with "
            "multiprocessing.get_context('spawn'), or in a DataLoader with multiprocessing_context='spawn'"
        )


def _prepare_child() -> None:
    _lance.is_lost = _lance.is_used
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
