"""The form of an extractor, and the registry that makes extractors from names.

An extractor is one file with one class. A user's own class is named by a dotted name, `my_package.faces:Faces`. It is
made as `Faces(**settings)`, and given `device`, `encoder` and `fps` where its constructor has these parameters.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...base.checks import check_keys, check_mapping, nearest
from .clips import Clip
from .media import View

LABELS_KEPT = 10
"""Classes of a clip that are kept with their probabilities: as many as a convex combination of labels needs."""


@dataclass(frozen=True)
class Extracted:
    """The output of an extractor for one clip, where there is more than an array.

    Attributes:
        array: (dim,), or (N, dim) for a sequence, in the order of time; finite numbers.
        text: words that were read or heard.
        labels: names of the most probable classes, the best first.
        scores: their probabilities.
    """

    array: np.ndarray
    text: str | None = None
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


Output = Extracted | np.ndarray | None
"""None where the clip has nothing of the expert: no sound, no words, no face."""


class Extractor(Protocol):
    """A callable that turns clips into features of one expert.

    Four more attributes may be there. `labels` are the names of the classes of a classifier, `reads_text` is True where
    `Extracted.text` is given, `text_tower` names the model whose sentence embeddings lie in the space of the features,
    and `weights` is a hash of the weights.
    """

    name: str
    dim: int
    sequence: bool
    """True for tokens (N, dim), False for one vector (dim,)."""
    views: tuple[View, ...]
    """The frames that are read; none for an expert of sound."""
    reads_sound: bool
    version: int
    """A number that grows when the features change."""

    def __call__(self, clips: Sequence[Clip]) -> Sequence[Output]:
        """The features of each clip."""


class Encoder(Protocol):
    """A sentence encoder."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def __call__(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """The token embeddings (W, dim) of each sentence."""


PRESETS: Mapping[str, Mapping[str, str]] = {
    "offline": {
        "appearance": "appearance:EfficientNetLite",
        "motion": "motion:FlowHistograms",
        "audio": "audio:LogMel",
        "ocr": "ocr:RapidText",
        "speech": "speech:Whisper",
    },
    "best": {
        "appearance": "siglip:SigLip",
        "motion": "video:VideoTransformer",
        "audio": "clap:Clap",
        "ocr": "ocr:RapidText",
        "speech": "speech:Whisper",
    },
}
"""{preset: {expert: module and class in this package}}."""

OTHERS: Mapping[str, str] = {"ast": "spectrogram:AudioSpectrogram"}
"""Experts that belong to no preset, named as they are asked for."""

SETTINGS: Mapping[str, Mapping[str, Mapping[str, object]]] = {"best": {"speech": {"model": "large-v3-turbo"}}}
"""{preset: {expert: settings}}, where they are not the class's own."""


def make_extractors(
    preset: str = "offline",
    names: Iterable[str] | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    device: str | None = None,
    encoder: Encoder | None = None,
    fps: float | None = None,
) -> list[Extractor]:
    """Make extractors of a preset, or some of them, and a user's own.

    Args:
        preset: "offline", whose weights come with pip packages, or "best", whose weights come from a hub or folders.
        names: experts of the preset, or dotted names of classes. None takes the whole preset; speech of `offline` only
            where `settings` name its model.
        settings: {expert: {parameter: value}} of the classes' constructors.
        device: where networks run, as PyTorch names it. None is a GPU where there is one.
        encoder: the sentence encoder of experts of words.
        fps: frames a second of the experts that look at single frames. None takes their own.

    Raises:
        ValueError, TypeError: an unknown preset, expert or parameter; two experts of one name.
        FileNotFoundError: a model is neither on this machine nor to be had from the hub.
        ImportError: a package is missing; the message names the extra that brings it.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: unknown {preset!r}{nearest(preset, PRESETS)}")
    given = {name: dict(check_mapping(x, f"settings[{name!r}]")) for name, x in dict(settings or {}).items()}
    if names is None:
        wanted = [name for name in PRESETS[preset] if preset != "offline" or name != "speech" or "speech" in given]
    else:
        wanted = [names] if isinstance(names, str) else list(names)
    known = {**PRESETS[preset], **OTHERS}
    check_keys(given, wanted, "settings: experts")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0.01 <= fps <= 60):
        raise ValueError(f"fps: expected frames a second from 0.01 to 60, got {fps!r}")
    made = []
    for name in wanted:
        cls = _find_class(name, known)
        choices = dict(SETTINGS.get(preset, {}).get(name, {})) | given.get(name, {})
        try:
            made.append(_make(name, cls, choices, {"device": device, "encoder": encoder, "fps": fps}))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name}: {error} (--set {name}.model=FOLDER)") from None
    if not made:
        raise ValueError("experts: expected at least one, got none")
    for extractor in made:
        _check(extractor)
    twice = [x.name for x in made if sum(x.name == other.name for other in made) > 1]
    if twice:
        raise ValueError(f"experts: expected different names, got {twice[0]!r} twice")
    return made


def _find_class(name: str, known: Mapping[str, str]) -> type:
    if not isinstance(name, str):
        raise TypeError(f"experts: expected names, got {name!r}")
    if name in known:
        module, attribute = known[name].split(":")
        return getattr(import_module(f".{module}", __package__), attribute)
    if "." not in name and ":" not in name:
        raise ValueError(f"experts: {name!r} is neither a known one nor a class's dotted name{nearest(name, known)}")
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"experts: {name!r} cannot be imported: {error}") from error


def _make(name: str, cls: type, settings: Mapping[str, object], context: Mapping[str, object]) -> Extractor:
    parameters = inspect.signature(cls).parameters
    check_keys(settings, [x for x in parameters if x not in ("device", "encoder")], f"settings of {name!r}")
    given = {key: value for key, value in context.items() if value is not None and key in parameters}
    return cls(**(given | dict(settings)))


def _check(extractor: Any) -> None:
    """Raise TypeError unless the object has what an extractor needs."""
    needed = {"name": str, "dim": int, "sequence": bool, "views": tuple, "reads_sound": bool, "version": int}
    for attribute, kind in needed.items():
        value = getattr(extractor, attribute, None)
        if not isinstance(value, kind):
            raise TypeError(f"experts: {type(extractor).__name__}.{attribute}: expected {kind.__name__}, got {value!r}")
    if not extractor.name.isidentifier():
        raise ValueError(f"experts: expected a name of letters, digits and underscores, got {extractor.name!r}")
    if not extractor.views and not extractor.reads_sound:
        raise ValueError(f"experts: {extractor.name!r} reads neither frames nor sound")


def describe(extractor: Extractor) -> dict[str, Any]:
    """The facts that make features comparable, in JSON's types."""
    cls = type(extractor)
    return {
        "class": f"{cls.__module__.replace(__package__, 'extract')}:{cls.__qualname__}",
        "version": extractor.version,
        "dim": extractor.dim,
        "sequence": extractor.sequence,
        "weights": getattr(extractor, "weights", None),
        "settings": getattr(extractor, "settings", {}),
        "text_tower": getattr(extractor, "text_tower", None),
        "reads_text": bool(getattr(extractor, "reads_text", False)),
        "has_labels": bool(getattr(extractor, "labels", ())),
    }


def hash_files(paths: Iterable[Path]) -> str:
    """The SHA-256 of some files one after the other, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def best_device(device: str | None) -> str:
    """The device that was asked for, else a GPU where there is one. Raises ValueError for one that is not there."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device: expected one that PyTorch finds here, such as 'cpu', got {device!r}: {reason}"
        ) from None
    return device
