"""`fetch`: a published model into the folder `weights/`, as by `weights/fetch.py`."""

from __future__ import annotations

import argparse

from ..hub import fetch

__all__ = ["add_arguments", "run_command"]

run_command = fetch.run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    fetch.add_arguments(parser)
    parser.epilog = "example: %(prog)s --list didemo"
