"""Whose error it is."""

from __future__ import annotations

import linecache
from pathlib import Path

import collaborative_experts

PACKAGE = Path(collaborative_experts.__file__).resolve().parent


def is_ours(error: BaseException) -> tuple[bool, str]:
    """Whether the package raised an error itself, and the place where it was raised."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    # An error of a library in C has no frame of its own: our line then calls, and does not raise.
    is_raised = "raise" in linecache.getline(file, trace.tb_lineno)
    return Path(file).resolve().is_relative_to(PACKAGE) and is_raised, f"{file}:{trace.tb_lineno}"
