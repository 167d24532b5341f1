"""Words that were read or heard, as the token embeddings of a sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

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
    """The tokens (W, dim) of each text in its order, None for an empty one. Raises ValueError for an encoder that gives
    more or fewer arrays than it was given texts."""
    parts = [split_words(text) for text in texts]
    asked = [part for pieces in parts for part in pieces]
    arrays = list(encoder(asked)) if asked else []
    if len(arrays) != len(asked):
        raise ValueError(f"encoder: expected {len(asked)} arrays, got {len(arrays)}")
    tokens = iter(arrays)
    of_texts = [list(islice(tokens, len(pieces))) for pieces in parts]
    return [
        Extracted(np.concatenate(given), text=text) if given else None
        for text, given in zip(texts, of_texts, strict=True)
    ]


def split_words(text: str) -> list[str]:
    """A text in pieces of `LINE_WORDS` words; none for an empty one."""
    words = text.split()
    return [" ".join(words[i : i + LINE_WORDS]) for i in range(0, len(words), LINE_WORDS)]
