"""Embeddings of videos and of texts, as the operator returns them and as anyone can build them.

Both sides hold one embedding per expert. A video knows which experts it has, a text how much each expert counts.
`similarity` compares the two, `explain` shows how a score comes about, `VideoIndex` finds videos again.

Embeddings are checked once, when they are made: every other function relies on their shapes and types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from ..base.checks import check_mapping, set_size
from .arrays import Array, as_numpy, as_tensor, flag_array, float_array, real_array

Rows = int | np.integer | slice | Sequence[int] | Sequence[bool] | Array
"""One row, a slice, row numbers, or a mask: whatever picks rows of a NumPy array."""


@dataclass(frozen=True)
class ModelIdentity:
    """The model that made an embedding. Only embeddings of the same model can be compared.

    Attributes:
        config: the model's config as JSON.
        weights: fingerprint of its parameters (`checkpoint.fingerprint`).
    """

    config: str
    weights: str

    def __repr__(self) -> str:
        return f"ModelIdentity(weights={_shortened(self.weights)!r}, config={_shortened(self.config)!r})"


@dataclass(frozen=True, eq=False, repr=False)
class VideoEmbeddings:
    """Embeddings of B videos; without the axis B for a single one. `embeddings[rows]` are those of some.

    Built by hand, they may come as lists, as integers or in any byte order. Tensors lose their gradients.

    Attributes:
        embds: {expert: (B, D)} float32 in the model's order, L2-normalised; finite, but meaningless where missing.
            D may differ between experts.
        available: (B, M) bool, the experts that each video has.
        model: the model that made them; None for embeddings from elsewhere.

    Raises:
        TypeError, ValueError: other shapes or types, naming the argument, the expert, expected and found.
    """

    embds: Mapping[str, Array]
    available: Array
    model: ModelIdentity | None = None

    def __post_init__(self) -> None:
        available = flag_array(self.available, "available")
        _set_checked(self, "available", available)

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(self.embds)

    def __len__(self) -> int:
        return _length(self.available, "video")

    def __repr__(self) -> str:
        count = f"{len(self):,} videos" if self.available.ndim == 2 else "one video"
        share = f"{np.mean(as_numpy(self.available)):.0%}" if len(self.available) else "none"
        return f"<VideoEmbeddings: {count}, {_summary(self.embds)}, {share} available>"

    def __getitem__(self, rows: Rows) -> VideoEmbeddings:
        picked = _checked_rows(rows, len(self))
        embds = {name: _pick(x, picked) for name, x in self.embds.items()}
        return VideoEmbeddings(embds, _pick(self.available, picked), self.model)

    def joint(self) -> Array:
        """(B, M * D): the experts' embeddings side by side, missing ones zeroed."""
        return _joint(self.embds, self.available)


@dataclass(frozen=True, eq=False, repr=False)
class TextEmbeddings:
    """Embeddings of T texts; without the axis T for a single one.

    `embeddings[rows]` are those of some texts. The selection keeps `captions_per_video` where it consists of all K
    captions of some videos, a video's side by side. Any other selection is one of single texts, with 1 caption a video.

    Built by hand, they may come as lists, as integers or in any byte order. Tensors lose their gradients.

    Attributes:
        embds: {expert: (T, D)} float32 in the model's order, L2-normalised; without a trained model (zero_shot.py) an
            expert's have one length, at most 1. D may differ between experts.
        weights: (T, M) float32, the weight of each expert in the score; rows sum to 1.
        captions_per_video: K, where the T = B * K texts are K captions for each of B videos, a video's side by side.
        model: the model that made them; None for embeddings from elsewhere.

    Raises:
        TypeError, ValueError: other shapes or types, naming the argument, the expert, expected and found.
    """

    embds: Mapping[str, Array]
    weights: Array
    captions_per_video: int = 1
    model: ModelIdentity | None = None

    def __post_init__(self) -> None:
        _set_checked(self, "weights", float_array(self.weights, "weights"))
        set_size(self, "captions_per_video", "captions_per_video")
        texts = len(self) if self.weights.ndim == 2 else 1
        if texts % self.captions_per_video:
            raise ValueError(
                f"captions_per_video: expected a divisor of the number of texts, {texts}, got {self.captions_per_video}"
            )

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(self.embds)

    def __len__(self) -> int:
        return _length(self.weights, "text")

    def __repr__(self) -> str:
        count = f"{len(self):,} texts" if self.weights.ndim == 2 else "one text"
        grouped = f", {self.captions_per_video} captions per video" if self.captions_per_video > 1 else ""
        return f"<TextEmbeddings: {count}{grouped}, {_summary(self.embds)}>"

    def __getitem__(self, rows: Rows) -> TextEmbeddings:
        picked = _checked_rows(rows, len(self))
        embds = {name: _pick(x, picked) for name, x in self.embds.items()}
        whole = _whole_groups(picked, len(self), self.captions_per_video)
        count = self.captions_per_video if whole else 1
        return TextEmbeddings(embds, _pick(self.weights, picked), count, self.model)

    def joint(self) -> Array:
        """(T, M * D): the experts' embeddings side by side, each scaled by its weight.

        The inner product with a video's joint vector is the score times the summed weight of the video's experts.
        It ranks videos with the same experts exactly, others only nearly.
        """
        return _joint(self.embds, self.weights)


Embeddings = VideoEmbeddings | TextEmbeddings
Side = TypeVar("Side", VideoEmbeddings, TextEmbeddings)


@overload
def concatenate(parts: Iterable[VideoEmbeddings]) -> VideoEmbeddings: ...
@overload
def concatenate(parts: Iterable[TextEmbeddings]) -> TextEmbeddings: ...
def concatenate(parts: Iterable[Embeddings]) -> Embeddings:
    """The embeddings of several batches as one, in the given order. A single item counts as a batch of one.

    Batches of no texts fit those of any number of captions per video.

    Raises:
        TypeError: not all parts are embeddings of videos, nor all of texts; NumPy arrays and tensors mixed.
        ValueError: no parts, or parts of different models, experts, dimensions, devices or numbers of captions.

    >>> video = VideoEmbeddings({"motion": [[1.0, 0.0], [0.0, 1.0]]}, [[1], [0]])
    >>> both = concatenate([video, video[:1]])
    >>> both
    <VideoEmbeddings: 3 videos, motion (2), NumPy float32, 67% available>
    """
    sides = list(parts) if isinstance(parts, Iterable) and not isinstance(parts, Embeddings) else [parts]
    if not sides:
        raise ValueError("concatenate: expected at least one batch of embeddings, got none")
    if all(isinstance(side, VideoEmbeddings) for side in sides):
        return _concatenate_videos([batched(side) for side in sides if isinstance(side, VideoEmbeddings)])
    if all(isinstance(side, TextEmbeddings) for side in sides):
        return _concatenate_texts([batched(side) for side in sides if isinstance(side, TextEmbeddings)])
    found = ", ".join(sorted({type(side).__name__ for side in sides}))
    raise TypeError(f"concatenate: expected VideoEmbeddings only, or TextEmbeddings only, got {found}")


def check_same_model(where: str, a: Embeddings, b: Embeddings) -> None:
    """Raise ValueError unless both are of the same experts, dimensions and model, as far as the model is known."""
    if a.experts != b.experts:
        raise ValueError(f"{where}: expected the same experts in the same order, got {a.experts} and {b.experts}")
    for name, x in a.embds.items():
        if x.shape[-1] != b.embds[name].shape[-1]:
            raise ValueError(
                f"{where}: expert {name!r}: expected embeddings of the same dimension, got {x.shape[-1]} and "
                f"{b.embds[name].shape[-1]}"
            )
    if a.model and b.model and a.model != b.model:
        part = "config" if a.model.config != b.model.config else "weights"
        raise ValueError(f"{where}: expected embeddings of one model, got those of two with different {part}")


def batched(side: Side) -> Side:
    """The same embeddings with a batch axis, of length 1 for a single item."""
    if isinstance(side, VideoEmbeddings):
        if side.available.ndim == 2:
            return side
        return VideoEmbeddings({name: x[None] for name, x in side.embds.items()}, side.available[None], side.model)
    if side.weights.ndim == 2:
        return side
    return TextEmbeddings({name: x[None] for name, x in side.embds.items()}, side.weights[None], model=side.model)


# --- inside: checks ---------------------------------------------------------------------------------------


def _set_checked(side: Embeddings, name: str, matrix: Array) -> None:
    """Set `embds` and `available` or `weights`, whose name is given, to arrays of one type that fit together.

    The small matrix follows the embeddings to their device.
    """
    embds = {expert: float_array(x, f"embds[{expert!r}]") for expert, x in check_mapping(side.embds, "embds").items()}
    if not embds or not all(isinstance(expert, str) for expert in embds):
        raise ValueError(f"embds: expected a dict of at least one expert's name and embeddings, got {list(embds)}")
    if side.model is not None and not isinstance(side.model, ModelIdentity):
        raise TypeError(f"model: expected a ModelIdentity or None, got {type(side.model).__name__}")
    letter, items = ("B", "video") if name == "available" else ("T", "text")
    if matrix.ndim not in (1, 2) or matrix.shape[-1] != len(embds):
        raise ValueError(
            f"{name}: expected ({letter}, {len(embds)}), a column for each expert, or ({len(embds)},) for one {items}, "
            f"got {tuple(matrix.shape)}"
        )
    rows = tuple(matrix.shape[:-1])
    for expert, x in embds.items():
        if x.ndim != matrix.ndim or tuple(x.shape[:-1]) != rows or not x.shape[-1]:
            expected = ", ".join([*map(str, rows), "D"])
            raise ValueError(f"embds[{expert!r}]: expected ({expected}) as {name} has it, got {tuple(x.shape)}")
    tensors = [x for x in (*embds.values(), matrix) if isinstance(x, Tensor)]
    if tensors:
        embds = {expert: x if isinstance(x, Tensor) else _on(tensors[0], x) for expert, x in embds.items()}
        devices = {str(x.device) for x in embds.values() if isinstance(x, Tensor)}
        if len(devices) > 1:
            raise ValueError(f"embds: expected all experts on one device, got {sorted(devices)}")
        matrix = _on(next(iter(embds.values())), matrix)
    object.__setattr__(side, "embds", embds)
    object.__setattr__(side, name, matrix)


def _on(other: Array, array: Array) -> Tensor:
    return as_tensor(array).to(as_tensor(other).device)


def _length(matrix: Array, item: str) -> int:
    if matrix.ndim == 1:
        raise TypeError(f"the embeddings of a single {item} have no rows")
    return len(matrix)


def _checked_rows(rows: Rows, size: int) -> int | slice | np.ndarray:
    """The rows as an integer, a slice, or a NumPy array of integers or bools that fits `size` rows."""
    if isinstance(rows, slice):
        return rows
    if isinstance(rows, tuple | bool | np.bool_ | str) or rows is None or rows is Ellipsis:
        raise TypeError(f"rows: expected a row, a slice, row numbers or a mask, got {rows!r}")
    picked = np.asarray(rows) if isinstance(rows, int | np.integer) else as_numpy(real_array(rows, "rows"))
    if picked.ndim > 1:
        raise TypeError(f"rows: expected one axis, got {tuple(picked.shape)}")
    if picked.dtype == bool:
        if len(picked) != size:
            raise IndexError(f"rows: expected a mask of {size}, got {len(picked)}")
        return picked
    if picked.dtype.kind == "f" and picked.size:
        raise TypeError(f"rows: expected integers, got {picked.dtype}")
    outside = (picked < -size) | (picked >= size)
    if outside.any():
        raise IndexError(f"rows: expected {-size} to {size - 1}, got {picked[outside].flat[0]}")
    return int(picked) if picked.ndim == 0 else picked.astype(np.int64)


def _whole_groups(rows: int | slice | np.ndarray, size: int, group: int) -> bool:
    """True where the rows are all of some groups of `group` rows, each group's side by side."""
    if group == 1:
        return True
    picked = np.atleast_1d(np.arange(size)[rows])
    if len(picked) % group:
        return False
    groups = picked.reshape(-1, group)
    first = groups.min(1, keepdims=True, initial=size) // group * group
    return bool((np.sort(groups, axis=1) == first + np.arange(group)).all())


# --- inside: small things ---------------------------------------------------------------------------------


def _pick(array: Array, rows: int | slice | np.ndarray) -> Array:
    if isinstance(array, np.ndarray):
        return array[rows]
    if isinstance(rows, slice) and (rows.step or 1) < 0:  # PyTorch has no negative steps
        rows = np.arange(len(array))[rows]
    return array[as_tensor(rows).to(array.device)] if isinstance(rows, np.ndarray) else array[rows]


def _joint(embds: Mapping[str, Array], scale: Array) -> Array:
    """Side by side, each times its scale; zeros where that is 0, even if NaN stands there."""
    blocks = [as_tensor(embd) for embd in embds.values()]
    scales = as_tensor(scale).to(blocks[0].dtype).split(1, dim=-1)
    scaled = [(block * factor).masked_fill_(factor == 0, 0) for block, factor in zip(blocks, scales, strict=True)]
    joint = torch.cat(scaled, dim=-1)
    return joint.numpy() if isinstance(scale, np.ndarray) else joint


def _concatenate_videos(parts: list[VideoEmbeddings]) -> VideoEmbeddings:
    return VideoEmbeddings(_concatenate_embds(parts), _cat([part.available for part in parts]), parts[0].model)


def _concatenate_texts(parts: list[TextEmbeddings]) -> TextEmbeddings:
    embds = _concatenate_embds(parts)
    counts = {part.captions_per_video for part in parts if len(part)} or {parts[0].captions_per_video}
    if len(counts) > 1:
        raise ValueError(f"concatenate: expected the same number of captions per video, got {sorted(counts)}")
    return TextEmbeddings(embds, _cat([part.weights for part in parts]), counts.pop(), parts[0].model)


def _concatenate_embds(parts: Sequence[Embeddings]) -> dict[str, Array]:
    for part in parts[1:]:
        check_same_model("concatenate", parts[0], part)
    return {name: _cat([part.embds[name] for part in parts]) for name in parts[0].experts}


def _cat(arrays: list[Array]) -> Array:
    if all(isinstance(x, np.ndarray) for x in arrays):
        return np.concatenate([x for x in arrays if isinstance(x, np.ndarray)])
    tensors = [x for x in arrays if isinstance(x, Tensor)]
    if len(tensors) < len(arrays):
        raise TypeError("concatenate: expected NumPy arrays only, or tensors only, got both")
    devices = {str(x.device) for x in tensors}
    if len(devices) > 1:
        raise ValueError(f"concatenate: expected tensors on one device, got {sorted(devices)}")
    return torch.cat(tensors)


def _summary(embds: Mapping[str, Array]) -> str:
    first = next(iter(embds.values()))
    dims = ", ".join(f"{name} ({x.shape[-1]})" for name, x in embds.items())
    kind = f"NumPy {first.dtype}" if isinstance(first, np.ndarray) else f"{first.dtype} on {first.device}"
    return f"{dims}, {kind}"


def _shortened(text: Any, most: int = 24) -> str:
    text = str(text)
    return text if len(text) <= most else f"{text[:most]}..."
