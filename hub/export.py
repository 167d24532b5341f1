"""A model as an ONNX file, which runs without this package, PyTorch and Towhee.

`onnx_graph` says what the graph computes and how its inputs and outputs are called. The file's metadata hold the
experts in the model's order, the side, and the model's identity, so that embeddings which it makes can be told from
those of other models. A file beyond protobuf's limit keeps its tensors in a second file beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from ..base.checks import check_choice
from ..base.config import CEConfig
from ..base.dependencies import extra
from ..base.files import replacing
from ..model.cenet import Modality
from ..model.engine import supports
from ..retrieval.embeddings import ModelIdentity
from .onnx_graph import build_graph

DTYPES = ("float32", "float16")
"""Number formats of the stored matrices."""

LARGEST_FILE = 2_000_000_000
"""Bytes of tensors in one file; beyond, they go into a file beside it. Protobuf ends at 2 GiB."""

SMALLEST_OUTSIDE = 1024
"""Bytes; smaller tensors stay in the graph's file in any case, where shape inference finds them."""

PAGE = 4096
"""Bytes; a tensor that begins at a multiple can be mapped into memory."""

METADATA = "collaborative_experts.{}"
"""Keys of the metadata: config and experts (JSON), weights (the fingerprint of `ModelIdentity`), side and dtype."""


def export_onnx(
    path: str | Path,
    config: CEConfig,
    weights: MutableMapping[str, Tensor],
    identity: ModelIdentity,
    side: Modality = None,
    dtype: str = "float32",
) -> Path:
    """Write a model's video side, text side or (None) both as ONNX; complete, or not at all. Returns the path.

    Args:
        path: ends in `.onnx`.
        weights: all weights of the model under CENet's names; those of the side that is written are popped.
        identity: the model's, for the metadata.
        dtype: "float16" halves the file, and costs a relative 5e-4 of each weight; float32 is computed either way.

    Raises:
        ValueError: another suffix, an unknown dtype, float16 for weights beyond its range, or a form of the model that
            has no graph.
        FileNotFoundError: the folder does not exist.
        ImportError: without the package onnx, naming the extra that brings it.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: expected a path that ends in .onnx, got the suffix {path.suffix!r}")
    check_choice(side, (None, "video", "text"), "side")
    check_choice(dtype, DTYPES, "dtype")
    check_exportable(config)
    extra("onnx", "onnx")
    if not path.parent.is_dir():  # before the minutes that a large model takes
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    model = build_graph(config, weights, side, dtype)
    _describe(model, config, identity, side, dtype)
    _write(model, path)
    return path


def check_exportable(config: CEConfig) -> None:
    """Raise ValueError for a form that has no graph."""
    if not supports(config):
        raise ValueError(
            "onnx: expected a model with use_ce 'pairwise' or '' without h layers or concat_experts, got "
            f"use_ce {config.use_ce!r} with {config.num_h_layers} h layers"
            + (" and concat_experts" if config.concat_experts else "")
        )


def _describe(model: Any, config: CEConfig, identity: ModelIdentity, side: Modality, dtype: str) -> None:
    metadata = {
        "config": identity.config,
        "weights": identity.weights,
        "experts": json.dumps(config.expert_names),
        "side": side or "both",
        "dtype": dtype,
    }
    entries = {METADATA.format(key): value for key, value in metadata.items()}
    extra("onnx", "onnx").helper.set_model_props(model, entries)


def _write(model: Any, path: Path) -> None:
    """The file and, where it is needed, the one of its tensors, under a name that no older file refers to."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    outside = path.with_name(f"{path.name}.{uuid4().hex[:8]}.data") if size > LARGEST_FILE else None
    try:
        with replacing(path) as temporary:
            if outside is not None:
                _move_tensors(model, outside)
            temporary.write_bytes(model.SerializeToString())
            extra("onnx.checker", "onnx").check_model(temporary)
    except BaseException:
        if outside is not None:
            outside.unlink(missing_ok=True)
        raise
    for old in path.parent.iterdir():
        if old != outside and re.fullmatch(re.escape(path.name) + r"\.[0-9a-f]{8}\.data", old.name):
            old.unlink()


def _move_tensors(model: Any, outside: Path) -> None:
    """Write the large tensors one after the other, and leave in the graph where each begins."""
    helper = extra("onnx.external_data_helper", "onnx")
    with outside.open("wb") as file:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < SMALLEST_OUTSIDE:
                continue
            helper.set_external_data(tensor, outside.name, offset=file.tell(), length=len(tensor.raw_data))
            file.write(tensor.raw_data)
            file.write(bytes(-file.tell() % PAGE))
            tensor.ClearField("raw_data")
