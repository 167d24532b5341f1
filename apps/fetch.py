"""`fetch`: a published model into the folder `weights/`, by the script there."""

from __future__ import annotations

import argparse
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from ..hub.weights_folder import WEIGHTS_DIR


def fetch(arguments: list[str]) -> int:
    """Run `weights/fetch.py` with these arguments; returns its exit status.

    Raises:
        FileNotFoundError: the script is not there.
    """
    return int(_script(WEIGHTS_DIR / "fetch.py").main(arguments))


def _script(path: Path) -> ModuleType:
    """A script as a module. The folder `weights/` is no package: what lies in it comes and goes."""
    if not path.is_file():
        raise FileNotFoundError(f"fetch: there is no {path}")
    spec = spec_from_file_location("collaborative_experts_fetch", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"fetch: {path} cannot be loaded")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a model of --list; default: the MSR-VTT model")
    parser.add_argument("--list", nargs="?", const="", metavar="WORD", help="show the models (with this word)")
    parser.add_argument("--url", help="a folder on the web with a config.json and a trained_model.pth")
    parser.add_argument("--to", metavar="FOLDER", help=f"where it goes; default: {WEIGHTS_DIR}")
    parser.add_argument("--force", action="store_true", help="fetch it even if it is already there")
    parser.epilog = "example: %(prog)s --list didemo"


def run_command(options: argparse.Namespace) -> int:
    """Run the command, and return the exit status."""
    arguments = [] if options.name is None else [options.name]
    for option in ("list", "url", "to"):
        value = getattr(options, option)
        if value is not None:
            arguments += [f"--{option}", *filter(None, [value])]
    return fetch(arguments + ["--force"] * options.force)
