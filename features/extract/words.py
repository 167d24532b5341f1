"""Words that were read or heard, as the token embeddings of a sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .expert import Encoder, Extracted

LINE_WORDS = 100
"""Words that are encoded at once. An encoder cuts what is longer than it was trained for."""


def check_encoder(encoder: Encoder | None, name: str) -> Encoder:
    """The encoder, or ValueError where there is none."""
    if encoder is None:
        raise ValueError(f"experts: {name!r} needs a sentence encoder; pass encoder=SentenceEncoder()")
    return encoder


def encode_texts(texts: Sequence[str], encoder: Encoder) -> list[Extracted | None]:
    """The tokens (W, dim) of each text in its order, None for an empty one."""
    parts = [split_words(text) for text in texts]
    tokens = iter(encoder([part for text in parts for part in text]) if any(parts) else [])
    outputs: list[Extracted | None] = []
    for text, pieces in zip(texts, parts, strict=True):
        arrays = [next(tokens) for _ in pieces]
        outputs.append(Extracted(np.concatenate(arrays), text=text) if arrays else None)
    return outputs


def split_words(text: str) -> list[str]:
    """A text in pieces of `LINE_WORDS` words; none for an empty one."""
    words = text.split()
    return [" ".join(words[i : i + LINE_WORDS]) for i in range(0, len(words), LINE_WORDS)]
