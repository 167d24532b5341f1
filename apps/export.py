"""`export`: a weights file as ONNX."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..base.config import MSRVTT, CEConfig
from ..hub.export import DTYPES, export_onnx
from ..model.cenet import Modality, meta_model
from ..model.checkpoint import check_weights, fingerprint, read_config, read_weights
from ..retrieval.embeddings import ModelIdentity
from .describe import config_of

SIDES: dict[str, Modality] = {"video": "video", "text": "text", "both": None}


def export(
    weights: str | Path,
    to: str | Path,
    *,
    side: Modality = None,
    dtype: str = "float32",
    config: CEConfig | None = None,
) -> Path:
    """Write the model of a weights file as ONNX; returns the path.

    Args:
        weights: `.safetensors`, `.pth` or `.pt`.
        to: a path that ends in `.onnx`.
        side: "video" or "text"; None is both in one graph.
        dtype: "float32", or "float16" for a file of half the size.
        config: the model's; None is the one inside the weights file, else the MSR-VTT model's.

    Raises:
        FileNotFoundError, TypeError, ValueError, ImportError: as `hub.export.export_onnx`, or the weights do not fit.
    """
    config = config or read_config(weights) or MSRVTT
    tensors = read_weights(weights)
    check_weights(tensors, meta_model(config).state_dict(), config, weights)
    identity = ModelIdentity(json.dumps(config.to_dict()), fingerprint(tensors))
    return export_onnx(to, config, tensors, identity, side, dtype)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="what train wrote, such as run/best.safetensors")
    parser.add_argument("--to", type=Path, required=True, metavar="MODEL.onnx", help="the file to write")
    parser.add_argument("--side", choices=list(SIDES), default="both", help="default: both, in one graph")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored weights; default: float32")
    parser.add_argument("--config", type=Path, help="JSON; default: the one inside WEIGHTS, else the MSR-VTT model's")
    parser.epilog = "example: %(prog)s run/best.safetensors --to model.onnx"


def run_command(options: argparse.Namespace) -> int:
    """Run the command, say what was written, and return the exit status."""
    config = config_of(options.weights, options.config)
    path = export(options.weights, options.to, side=SIDES[options.side], dtype=options.dtype, config=config)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0
