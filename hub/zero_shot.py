"""The networks of zero-shot search: sentence encoders and text towers, loaded as they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..base.checks import check_sentences
from ..features.extract.text_tower import TextTower
from ..features.extract.words import split_words
from ..retrieval.embeddings import TextEmbeddings
from ..retrieval.zero_shot import SENTENCES, ZeroShot, unit_rows
from ..training.encoder import EncoderIdentity, SentenceEncoder, check_same_encoder, identify

BANK = Path(__file__).with_name("zero_shot_bank.txt")


@cache
def bank_sentences() -> tuple[str, ...]:
    """The 100 sentences that bring experts to one scale where there are no captions."""
    return tuple(BANK.read_text(encoding="utf-8").splitlines())


class Spaces:
    """The spaces in which sentences and videos meet.

    Args:
        encoder: the sentence encoder.
        device: where text towers run; None is a GPU where there is one.
        trusted: True if text towers, which files name, may be downloaded.
    """

    def __init__(self, encoder: SentenceEncoder, device: str | None = None, trusted: bool = False) -> None:
        self._encoder, self._device, self._trusted = encoder, device, trusted
        self._towers: dict[str, TextTower] = {}

    @property
    def encoder(self) -> dict[str, Any]:
        """The identity of the sentence encoder."""
        return identify(self._encoder).to_dict()

    @property
    def dim(self) -> int:
        """Numbers of an embedding in `SENTENCES`."""
        return self._encoder.dim

    def embed(self, space: str, sentences: Sequence[str]) -> np.ndarray:
        """(n, D) float32 of length 1, the embeddings of sentences in `SENTENCES` or the space of a text tower."""
        return unit_rows(self._encoder.embed(sentences)) if space == SENTENCES else self._tower(space)(sentences)

    def embed_long(self, texts: Sequence[str | None]) -> np.ndarray:
        """(n, D) float32: for each text of any length the mean embedding of its pieces, NaN without a word."""
        pieces = [split_words(text or "") for text in texts]
        flat = [piece for some in pieces for piece in some]
        rows = np.full((len(texts), self.dim), np.nan, dtype=np.float32)
        vectors = iter(self.embed(SENTENCES, flat) if flat else [])
        for row, some in enumerate(pieces):
            if some:
                rows[row] = np.mean([next(vectors) for _ in some], axis=0)
        return rows

    def check(self, zero_shot: ZeroShot) -> None:
        """Raise ValueError unless the networks are those by which videos were embedded."""
        if SENTENCES in zero_shot.spaces:
            check_same_encoder(EncoderIdentity.from_dict(zero_shot.encoder or {}), self._encoder)
        for name, expert in zero_shot.experts.items():
            if expert.reads == "tower":
                self.check_tower(name, expert.space, expert.made_by)

    def check_tower(self, name: str, model: str, made_by: Mapping[str, Any]) -> None:
        """Raise ValueError unless a text tower belongs to the features of an expert."""
        found, expected = self._tower(model).weights, made_by["weights"]
        if found != expected:
            raise ValueError(
                f"{model}: {name!r} was extracted with weights {expected}, expected the same for sentences, got {found}"
            )

    def _tower(self, model: str) -> TextTower:
        if model not in self._towers:
            self._towers[model] = TextTower(model, self._device, self._trusted)
        return self._towers[model]


class ZeroShotOperator:
    """The operator of a store that `embed --zero-shot` wrote, for its sentence side.

    Args:
        zero_shot: as the store's identity has it.
        device: where text towers run; None is a GPU where there is one.
        trusted: True if you know who wrote the store. Models that it names are then downloaded, and folders that it
            names may run code; else both is refused.

    Raises:
        FileNotFoundError, ImportError: at the first use, an encoder or a text tower is not to be had.
        ValueError: at the first use, it is another one than that of the store, or is refused.
    """

    def __init__(self, zero_shot: ZeroShot, device: str | None = None, trusted: bool = False) -> None:
        self.zero_shot = zero_shot
        encoder = SentenceEncoder((zero_shot.encoder or {}).get("model"), trusted)
        self._spaces = Spaces(encoder, device, trusted)
        self._checked = False

    def encode_sentences(self, sentences: str | Sequence[str]) -> TextEmbeddings:
        """Embeddings and expert weights of T sentences; a single one that is not in a list comes without the axis T.

        Raises:
            TypeError, ValueError: anything but text, or no sentence at all.
        """
        different, places = check_sentences(sentences)
        if not self._checked:
            self._spaces.check(self.zero_shot)
            self._checked = True
        embedded = {space: self._spaces.embed(space, different) for space in self.zero_shot.spaces}
        embeddings = self.zero_shot.embed_texts(embedded)
        return embeddings[places]
