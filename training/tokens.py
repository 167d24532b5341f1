"""Token embeddings that are computed once.

A sentence encoder takes longer than everything after it. Its output is therefore kept in a file and mapped into memory
from there. Files lie in the user's cache, where all runs find them. They can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array_header_1_0

from ..base.dependencies import extra
from ..base.files import replacing
from ..base.slices import slices
from .encoder import Encoder, EncoderIdentity, check_token_embeddings, identify

SENTENCES_AT_ONCE = 256
PROBE_DECIMALS_OF_KEY = 3
"""Rounding that the same encoder with another number of threads does not cross."""


def user_cache() -> Path:
    """The folder for token embeddings: `$XDG_CACHE_HOME/collaborative_experts/tokens`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "collaborative_experts" / "tokens"


def embed_tokens(sentences: Sequence[str], encoder: Encoder, folder: str | Path | None, max_tokens: int) -> np.ndarray:
    """Token embeddings (T, max_tokens, dim) float16, zero-padded or cut, mapped from a file.

    The name of the file is a hash of the encoder's identity, of `max_tokens` and of the sentences. A later call with
    the same ones finds the file. Half precision costs 0.05% of a value at most.

    Args:
        folder: the folder of the file; None takes `user_cache()`.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the encoder gives anything but finite arrays (W, dim) with W >= 1.
    """
    if folder is None:
        folder = user_cache()
        folder.mkdir(parents=True, exist_ok=True)
    path = Path(folder) / f"tokens-{_key(identify(encoder), max_tokens, sentences)}.npy"
    if not path.is_file():
        _write_tokens(path, sentences, encoder, max_tokens)
    return np.load(path, mmap_mode="r")


def _key(encoder: EncoderIdentity, max_tokens: int, sentences: Sequence[str]) -> str:
    probe = [round(x, PROBE_DECIMALS_OF_KEY) for x in encoder.probe]
    content = json.dumps([encoder.name, encoder.dim, probe, max_tokens, *sentences])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _write_tokens(path: Path, sentences: Sequence[str], encoder: Encoder, max_tokens: int) -> None:
    tqdm = extra("tqdm", "training").tqdm
    header = {"descr": "<f2", "fortran_order": False, "shape": (len(sentences), max_tokens, encoder.dim)}
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,  # not mapped: a full disk ends a process that writes to a map
        tqdm(total=len(sentences), unit=" sentences", desc=f"{encoder.name}") as progress,
    ):
        write_array_header_1_0(file, header)
        for rows in slices(len(sentences), SENTENCES_AT_ONCE):
            batch = list(sentences[rows])
            tokens = np.zeros((len(batch), max_tokens, encoder.dim), "<f2")
            for row, x in zip(tokens, check_token_embeddings(encoder(batch), batch, encoder), strict=True):
                row[: len(x)] = x[:max_tokens]
            file.write(tokens.tobytes())
            progress.update(len(batch))
