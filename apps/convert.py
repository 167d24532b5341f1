"""`convert`: weights of any kind to safetensors, or an index of Milvus Lite to Lance."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..base.config import CEConfig
from ..model.cenet import meta_model
from ..model.checkpoint import check_weights, read_notes, read_weights, write_weights
from ..retrieval.convert import convert_index
from .describe import config_of, describe, show


def convert(source: Path, target: Path, config: CEConfig) -> None:
    """Write the weights of `source` as safetensors with the config inside, after a strict check.

    Raises:
        FileNotFoundError, ValueError: no such file, or weights that do not fit the config.
    """
    weights = read_weights(source)
    check_weights(weights, meta_model(config).state_dict(), config, source)
    write_weights(target, weights, config, {"source": source.name} | read_notes(source))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", type=Path, metavar="FILE", help=".pth, .pt or .safetensors; or an index .db")
    parser.add_argument("target", type=Path, metavar="OUT", help=".safetensors; for .db: .lance")
    parser.add_argument("--config", type=Path, help="JSON; default: the one inside FILE, else the MSR-VTT model's")
    parser.epilog = "example: %(prog)s trained_model.pth model.safetensors --config config.json"


def run_command(options: argparse.Namespace) -> int:
    """Run the command, describe what was written, and return the exit status."""
    if options.source.suffix == ".db":
        print(f"{options.target}: {convert_index(options.source, options.target):,} videos")
        return 0
    config = config_of(options.source, options.config)
    convert(options.source, options.target, config)
    print(show(describe(options.target, config)))
    return 0
