"""From what a caller passes to what the model computes on: checked once, here, and never written to.

Every problem is raised as TypeError or ValueError before anything is computed, and says which argument,
which expert, which rows, what was expected and what came. What passes is clean: float32 tensors on the
operator's device, and the availability `(B, M)`, which says what of them is to be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.checks import check_unmasked, nearest, object_hint
from ..base.config import CEConfig, ExpertConfig, TextConfig

LARGEST = 1e15
"""Features beyond this are refused: their squares, which every normalisation sums, overflow float32."""


@dataclass(frozen=True)
class VideoInput:
    """Features of a batch of videos.

    Attributes:
        features: {expert: (B, dim) or (B, N, dim)} float32 for every expert of the model; in the rows of
            missing experts is what the caller passed, NaN or anything else.
        available: (B, M) bool, experts in the model's order.
        single: one video came without a batch axis (B is 1 here).
        numpy: the caller passed NumPy arrays or lists, and gets NumPy arrays.
    """

    features: dict[str, Tensor]
    available: Tensor
    single: bool
    numpy: bool


@dataclass(frozen=True)
class TextInput:
    """Token embeddings of a batch of captions.

    Attributes:
        tokens: (T, W, dim) float32, T = B * K captions, a video's captions side by side.
        batch_shape: () for one caption, (B,), or (B, K).
        numpy: as in `VideoInput`.
    """

    tokens: Tensor
    batch_shape: tuple[int, ...]
    numpy: bool


def clean_video(
    experts: Mapping[str, Any], ind: Mapping[str, Any] | None, config: CEConfig, device: torch.device | str = "cpu"
) -> VideoInput:
    """Check and clean features and availability (the rules stand at `CollaborativeExperts.__call__`)."""
    _check_names(experts, "experts", config)
    if ind is not None:
        _check_names(ind, "ind", config)
    given = {
        expert.name: _batch(experts[expert.name], f"experts[{expert.name!r}]", expert)
        for expert in config.experts
        if experts.get(expert.name) is not None
    }
    flags = {name: _flags(value, name) for name, value in (ind or {}).items() if value is not None}
    size, single = _batch_size(given, flags, config)
    features = {
        expert.name: (given[expert.name].values if expert.name in given else _absent(expert, size)).to(device)
        for expert in config.experts
    }
    short = dict(zip(given, _short_rows([features[name] for name in given]), strict=True))
    columns = []
    for name, x in features.items():
        flag = _expand_flag(flags.get(name), name, size, single)
        has_expert = torch.zeros(size, dtype=torch.bool, device="cpu")
        if name in given:
            has_expert = _available_rows(x, short[name], flag, f"experts[{name!r}]")
        columns.append(has_expert)
    return VideoInput(
        features=features,
        available=torch.stack(columns, dim=1).to(device),
        single=single,
        numpy=not any(isinstance(value, Tensor) for value in _leaves(experts.values())),
    )


def clean_text(text: Any, config: CEConfig, device: torch.device | str = "cpu") -> TextInput:
    """Check and clean token embeddings: (W, dim), (B, W, dim), (B, K, W, dim), or lists of sequences."""
    depth = _depth(text)
    no_captions = isinstance(text, list | tuple) and len(text) == 0
    if depth not in (2, 3, 4) and not no_captions:
        raise ValueError(
            f"text: expected (W, {config.text.dim}), (B, W, {config.text.dim}) or (B, K, W, {config.text.dim}), "
            f"got {_describe(text)}"
        )
    check_unmasked(text, "text", "leave out the tokens that are masked")
    captions = None
    if depth == 4:
        text, captions = _join_captions(text, config.text.dim)
    batch = _batch(text, "text", config.text, captions)
    values = batch.values.to(device)
    bad = [] if _short_rows([values])[0].all() else _rows_where(~_finite_rows(values))
    if bad:
        raise ValueError(
            f"text, {_rows(bad, captions)}: expected finite token embeddings, got NaN, Inf or beyond {LARGEST:g}"
        )
    if config.text.clusters == 0 and batch.values.shape[1] != 1 and len(batch.values):
        raise ValueError(
            f"text: expected one averaged vector a text (W = 1), because this model does not pool tokens, "
            f"got W = {batch.values.shape[1]}; the sequences of a list are averaged"
        )
    count = len(batch.values)
    shape = () if batch.single else (count,) if captions is None else (count // captions, captions)
    return TextInput(
        tokens=values,
        batch_shape=shape,
        numpy=not any(isinstance(value, Tensor) for value in _leaves([text])),
    )


# --- arrays -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    values: Tensor  # (B, dim) or (B, N, dim), float32; NaN rows where a list held None
    single: bool


def _batch(value: Any, where: str, of: ExpertConfig | TextConfig, captions: int | None = None) -> _Batch:
    """One argument as a batch: arrays as they are, lists of items stacked (sequences padded or cut).

    `captions` is K where the rows are captions of videos, for what an error says of them.
    """
    item_depth = 2 if of.variable else 1
    if isinstance(value, list | tuple) and (all(item is None for item in value) or _depth(value) > item_depth):
        return _Batch(_stack(value, where, of, captions), single=False)
    x = _to_float32(value, where)
    if x.ndim == item_depth + 1 and x.shape[0] == 0:
        return _Batch(_stack([], where, of), single=False)  # even with an empty token axis
    if x.ndim not in (item_depth, item_depth + 1) or x.shape[-1] != of.dim or (of.variable and x.shape[-2] == 0):
        raise ValueError(f"{where}: expected {_expected(of)}, got {tuple(x.shape)}")
    single = x.ndim == item_depth
    return _Batch(x[None] if single else x, single)


def _stack(items: Sequence[Any], where: str, of: ExpertConfig | TextConfig, captions: int | None = None) -> Tensor:
    """A list with one item a row. Sequences are always padded or cut to `max_tokens`, whatever their
    lengths: padding takes part in NetVLAD, so an item's embedding must not depend on its neighbours'. Of a model
    that does not pool texts, each becomes the mean of its tokens that are not zero."""
    dim, variable, max_tokens = of.dim, of.variable, of.max_tokens
    is_text = isinstance(of, TextConfig)
    averaged = is_text and not of.clusters
    if variable and max_tokens is None and items and not averaged:
        raise ValueError(
            f"{where}: a list of sequences needs max_tokens in the config; set it, or pass one dense array"
        )
    size = (len(items), 1 if averaged else max_tokens or 1, dim) if variable else (len(items), dim)
    stacked = torch.zeros(size, dtype=torch.float32, device="cpu")
    for row, item in enumerate(items):
        if item is None and not is_text:
            stacked[row] = torch.nan
            continue
        here = f"{where}, {_rows([row], captions)}"
        expected = (
            f"({'W' if is_text else 'N'}, {dim}) with {'W' if is_text else 'N'} >= 1" if variable else f"({dim},)"
        )
        if item is None:
            raise ValueError(f"{here}: expected {expected}, got None")
        x = _to_float32(item, here)
        if x.ndim != (2 if variable else 1) or x.shape[-1] != dim or (variable and len(x) == 0):
            hint = "; a video without this expert is None" if x.numel() == 0 and not is_text else ""
            raise ValueError(f"{here}: expected {expected}, got {tuple(x.shape)}{hint}")
        if averaged:
            stacked[row] = mean_token(x[: of.words])
        elif variable:
            stacked[row, : len(x)] = x[:max_tokens]
        else:
            stacked[row] = x
    return stacked


def mean_token(tokens: Tensor) -> Tensor:
    """(..., W, dim) -> (..., dim), the mean of the tokens that are not zero: others are padding, or were dropped."""
    count = (tokens != 0).any(-1).sum(-1, keepdim=True)
    return tokens.sum(-2) / count.clamp_min(1)


def _to_float32(value: Any, where: str) -> Tensor:
    """Any real array or nested list as a float32 tensor, without a copy where none is needed."""
    if isinstance(value, Tensor):
        _check_dense(value, where)
        if value.is_complex() or value.is_quantized:
            raise TypeError(
                f"{where}: expected a dense tensor of floats or integers, got {value.dtype}, {value.layout}"
            )
        if value.dtype == torch.bool:
            raise TypeError(f"{where}: expected floats or integers, got {value.dtype}")
        return value.detach().to(torch.float32).contiguous()
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        value = [_to_float32(item, where).cpu().numpy() if isinstance(item, Tensor) else item for item in value]
    check_unmasked(value, where, "fill it with NaN where an expert is missing")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{where}: expected an array, got rows of unequal length; in a list of sequences each is (N, dim)"
        ) from None
    if array.dtype.kind not in "fiu":
        raise TypeError(
            f"{where}: expected floats or integers, got dtype {array.dtype} ({type(value).__name__})"
            + object_hint(value)
        )
    # Beyond float32 is Inf, which is reported with its row; too small is 0, and signalling NaN is NaN.
    with np.errstate(all="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape)
    # PyTorch warns about read-only memory, although nothing here writes to it, and refuses a step backwards even along
    # an axis of one, such as in the reversed features of a single video.
    is_plain = array.flags.writeable and all(step >= 0 for step in array.strides)
    return torch.from_numpy(array if is_plain else array.copy())


def _check_dense(value: Tensor, where: str) -> None:
    if value.layout != torch.strided or value.is_nested or value.device.type == "meta":
        raise TypeError(
            f"{where}: expected a dense tensor of floats or integers, got {value.dtype}, {value.layout} "
            f"on {value.device}"
        )


def _depth(value: Any, most: int = 5) -> int:
    """Number of axes of an array, or of lists nested in lists; None items count as whatever their neighbours are.

    Lists are followed `most` deep, one more than any argument has: a list may hold itself.
    """
    if not isinstance(value, list | tuple):
        return getattr(value, "ndim", 0)
    if not most:
        return 0
    items = [item for item in value if item is not None]
    first = next((item for item in items if not isinstance(item, list | tuple) or len(item)), None)
    if first is None:
        return 2 if items else 1
    return 1 + _depth(first, most - 1)


def _leaves(values: Iterable[Any]) -> Iterable[Any]:
    """The arrays and numbers that a caller passed, out of any lists."""
    for value in values:
        if isinstance(value, list | tuple) and value and not isinstance(value[0], int | float):
            yield from _leaves(value)
        else:
            yield value


def _join_captions(text: Any, dim: int) -> tuple[Any, int]:
    """(B, K, W, dim) -> (B * K, W, dim) and K, for an array or for lists of K sequences each."""
    if not isinstance(text, list | tuple):
        if text.shape[0] and (text.shape[1] == 0 or text.shape[2] == 0 or text.shape[3] != dim):
            raise ValueError(f"text: expected (B, K, W, {dim}) with K >= 1 and W >= 1, got {tuple(text.shape)}")
        return text.reshape(text.shape[0] * text.shape[1], *text.shape[2:]), text.shape[1]
    counts = [len(captions) if hasattr(captions, "__len__") else 0 for captions in text]
    wrong = [row for row, count in enumerate(counts) if count != counts[0] or count == 0]
    if wrong:
        raise ValueError(
            f"text, {_rows(wrong)}: expected the same number of captions K >= 1 in every row (row 0 has {counts[0]}), "
            f"got {_first_ten(counts[row] for row in wrong)}"
        )
    return [caption for captions in text for caption in captions], counts[0]


# --- availability -------------------------------------------------------------------------------------


def _flags(value: Any, name: str) -> Tensor:
    """Availability of one expert as given: 0/1 of any type -> bool, () or (B,)."""
    where = f"ind[{name!r}]"
    if isinstance(value, Tensor):
        _check_dense(value, where)
        x = value.detach().cpu()
    else:
        check_unmasked(value, where, "fill it with 0 where an expert is missing")
        try:
            array = np.asarray(value)
        except ValueError:
            raise ValueError(f"{where}: expected (B,), got rows of unequal length") from None
        if array.dtype.kind not in "bfiu":
            raise TypeError(f"{where}: expected 0 or 1, got dtype {array.dtype}{object_hint(value)}")
        with np.errstate(invalid="ignore"):  # signalling NaN is NaN, which is reported with its row
            x = torch.from_numpy(array.astype(np.float64))
    if x.ndim > 1:
        raise ValueError(f"{where}: expected (B,), got {tuple(x.shape)}")
    flag = x == 1
    if not (flag | (x == 0)).all():
        bad = _rows_where(((x != 0) & (x != 1)).reshape(-1))
        raise ValueError(f"{where}, {_rows(bad)}: expected 0 or 1, got {_first_ten(x.reshape(-1)[bad].tolist())}")
    return flag


def _batch_size(given: Mapping[str, _Batch], flags: Mapping[str, Tensor], config: CEConfig) -> tuple[int, bool]:
    """The B that all features agree on, and whether there is no batch axis."""
    if not given:
        if not flags:
            raise ValueError(
                f"experts: expected features of at least one expert ({', '.join(config.expert_names)}), or their "
                "availability in ind; got neither"
            )
        flag = next(iter(flags.values()))
        return flag.numel(), flag.ndim == 0
    first, batch = next(iter(given.items()))
    for name, other in given.items():
        if other.single != batch.single:
            one, many = (name, first) if other.single else (first, name)
            raise ValueError(
                f"experts[{one!r}]: expected a batch of {len(given[many].values)} like experts[{many!r}], "
                f"got one video {tuple(given[one].values.shape[1:])}"
            )
        if len(other.values) != len(batch.values):
            raise ValueError(
                f"experts[{name!r}]: expected {len(batch.values)} videos like experts[{first!r}], "
                f"got {len(other.values)}"
            )
    return len(batch.values), batch.single


def _expand_flag(flag: Tensor | None, name: str, size: int, single: bool) -> Tensor | None:
    if flag is None:
        return None
    if flag.shape not in ((size,), ()) or (flag.ndim == 0 and not single):
        expected = f"({size},)" if not single else "0 or 1"
        raise ValueError(f"ind[{name!r}]: expected {expected} for {size} video(s), got shape {tuple(flag.shape)}")
    return flag.reshape(size)


def _available_rows(x: Tensor, short: Tensor, flag: Tensor | None, where: str) -> Tensor:
    """(B,) bool: as `flag` says, else where there is no NaN."""
    if short.all():
        return short if flag is None else flag
    if flag is None:
        flag = ~x.isnan().flatten(1).any(1).cpu()
    bad = _rows_where(flag & ~_finite_rows(x).cpu())
    if len(bad):
        raise ValueError(
            f"{where}, {_rows(bad)}: expected finite features where ind is 1, got NaN, Inf or beyond {LARGEST:g}; set "
            "ind to 0 for a missing expert"
        )
    return flag


def _short_rows(arrays: Sequence[Tensor]) -> Sequence[Tensor]:
    """For each array (B,) bool on the CPU: rows whose length, and so each element, is at most `LARGEST`.

    All arrays are handled at once, since each transfer waits for the GPU.
    """
    if not arrays:
        return []
    lengths = torch.stack([torch.linalg.vector_norm(x.flatten(1), dim=1) for x in arrays])
    return (lengths <= LARGEST).cpu().unbind(0)


def _finite_rows(x: Tensor) -> Tensor:
    """(B,) bool: rows of which every element is finite and at most `LARGEST`."""
    return (x.flatten(1).abs() <= LARGEST).all(1)


def _absent(expert: ExpertConfig, size: int) -> Tensor:
    """Zeros of one row's memory."""
    size_of_one = (1, 1, expert.dim) if expert.variable else (1, expert.dim)
    zero = torch.zeros(size_of_one, dtype=torch.float32, device="cpu")
    return zero.expand(size, *zero.shape[1:])


# --- words --------------------------------------------------------------------------------------------


def _check_names(value: Any, where: str, config: CEConfig) -> None:
    if not isinstance(value, Mapping):
        hint = "; pass features.experts, features.ind" if hasattr(value, "experts") and hasattr(value, "ind") else ""
        raise TypeError(f"{where}: expected a dict keyed by expert, got {type(value).__name__}{hint}")
    for name in value:
        if name not in config.expert_names:
            raise ValueError(f"{where}: unknown expert {name!r}{nearest(name, config.expert_names)}")


def _expected(of: ExpertConfig | TextConfig) -> str:
    if isinstance(of, TextConfig):
        return f"(B, W, {of.dim}) or one (W, {of.dim}) with W >= 1"
    return f"(B, N, {of.dim}) or one (N, {of.dim}) with N >= 1" if of.variable else f"(B, {of.dim}) or one ({of.dim},)"


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple):
        depth = _depth(value)
        return f"lists nested {depth} deep" if depth < 5 else "lists nested 5 deep or deeper"
    if isinstance(value, str):
        return "str; token embeddings of a sentence encoder are wanted"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{tuple(shape)}{object_hint(value)}"


def _rows_where(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def _rows(rows: Sequence[int], captions: int | None = None) -> str:
    """The rows in words; with `captions` K, each as a video's row and its caption."""
    if captions is not None and captions > 1:
        named = [f"{row // captions} caption {row % captions}" for row in rows]
        return f"row {named[0]}" if len(rows) == 1 else f"rows {_first_ten(named)}"
    return f"row {rows[0]}" if len(rows) == 1 else f"rows {_first_ten(rows)}"


def _first_ten(values: Iterable[Any]) -> str:
    values = list(values)
    more = f" ... ({len(values)} in all)" if len(values) > 10 else ""
    return f"[{', '.join(map(str, values[:10]))}{more}]"
