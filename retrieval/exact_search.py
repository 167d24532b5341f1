"""The videos with the highest scores, exactly, from codes of a quarter of the vectors' size.

A joint vector is held as int8 codes with one scale per expert, v = scale * coarse + r. All codes are compared with a
text by integer products, which gives a score s and a bound e on its error. With w the text's expert weights, a the
video's availability, t_m and v_m the embeddings of expert m, and t_m = t'_m + q_m the text in 14 bits:

    s = sum_m w_m a_m <t'_m, scale_m coarse_m> / sum_m w_m a_m
    e = sum_m w_m a_m (|t_m| |r_m| + |q_m| |scale_m coarse_m|) / sum_m w_m a_m

by the inequality of Cauchy and Schwarz, so that the score proper lies in s - e .. s + e. A search has three steps.

1. Scan: of all videos those stay for which s + e reaches the k-th highest s - e. Most are left out by the largest e of
   their chunk, a mean that is at most its largest term, so that e is computed for few.
2. Refine: the best of them, k at least, are scored from their float32 vectors in float64. The k-th of these scores is
   a limit that the answer cannot fall below. Where many videos still reach it, their fine codes (the same again for r)
   are read and give bounds that are some 250 times as narrow.
3. Score: the videos that still reach the limit are scored in float64. Equal scores are ordered by id.

So the answer is what scoring every vector in float64 would give.

A query bank (normalise.py) takes one number a video, its bias, from the scores: the same for s, for its bounds, and for
the score in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..base.linear import INT8_STEPS, INT8_ZERO, int8_rows
from ..base.slices import even_slices, slices
from ..base.threads import in_order
from .arrays import as_tensor
from .products import hold

STEPS = 127
"""Codes are whole numbers from -127 to 127."""

FINE_STEPS = 254
"""Fine codes count in this fraction of a coarse step, so that half a step is 127 of them."""

CHUNK, CHUNK_BYTES = 32_768, 2**25
"""About as many videos, and bytes of their codes, are compared at once: enough for the products to outweigh what each
chunk costs, few enough for the scores of 64 texts to stay small, and a new chunk to be made soon."""

LEAST_HELD = 0.5
"""Codes that are held are taken to be at least this share of all, so that the others take no more memory meanwhile."""

LEAST_CHUNK = 4096
"""Fewer videos are not shared among cores."""

PART = 2**18
"""Scores that are added up at once, so that what is made on the way stays small."""

QUANTISE_ROWS = 512
"""Vectors quantised at once, so that they stay in the cache."""

ROUNDING = 4e-6
"""Relative error of the float32 arithmetic around the integer products, with room to spare."""

SCORED_BYTES = 2**23
"""Float32 vectors that are read and scored at once, by each core."""

FEW_BYTES = 2**20
"""Float32 vectors of this size may be read for more than the k best, since a second reading takes long."""

FINE_BYTES = 2**20
"""Fine codes are read where the float32 vectors of all remaining videos would be more than this."""


@dataclass(frozen=True)
class Codes:
    """n joint vectors in two steps of 8 bits: v = scale * (coarse + fine / 254), but for the residual.

    Attributes:
        coarse, fine: (n, M * D) int8.
        scale: (n, M) float32, one step of an expert's coarse codes; 0 where the expert is missing.
        residual: (n, M) float32, at least the length of v - scale * coarse.
        fine_residual: (n, M) float32, at least the length of what both codes leave.
    """

    coarse: np.ndarray
    fine: np.ndarray
    scale: np.ndarray
    residual: np.ndarray
    fine_residual: np.ndarray


def quantise(vectors: np.ndarray, dims: Sequence[int]) -> Codes:
    """Codes of joint vectors (n, sum(dims)) float32, each expert's part with a scale of its own."""
    n, experts = len(vectors), len(dims)
    coarse, fine = (np.empty(vectors.shape, dtype=np.int8) for _ in range(2))
    scale, residual, fine_residual = (np.empty((n, experts), dtype=np.float32) for _ in range(3))
    for rows in slices(n, QUANTISE_ROWS):
        for m, columns in enumerate(_blocks(dims)):
            block = as_tensor(vectors[rows, columns])
            step = block.abs().amax(1, keepdim=True).div_(STEPS)
            by = step.masked_fill(step == 0, 1)
            whole = (block / by).round_()
            rest = torch.addcmul(block, whole, step, value=-1)
            part = (rest * (FINE_STEPS / by)).round_().clamp_(-STEPS, STEPS)
            coarse[rows, columns], fine[rows, columns] = whole.to(torch.int8), part.to(torch.int8)
            scale[rows, m] = step[:, 0]
            residual[rows, m] = _at_least(torch.linalg.vector_norm(rest, dim=1), step[:, 0])
            rest.addcmul_(part, step / FINE_STEPS, value=-1)
            fine_residual[rows, m] = _at_least(torch.linalg.vector_norm(rest, dim=1), step[:, 0])
    return Codes(coarse, fine, scale, residual, fine_residual)


def _at_least(length: Tensor, step: Tensor) -> Tensor:
    """A length in float32 that rounding has not made smaller: the vector's own values are exact to 2^-24 of 127
    steps, each code's product to as much."""
    return length * (1 + 1e-5) + step * 1e-4


def _blocks(dims: Sequence[int]) -> list[slice]:
    """The columns of each expert in a joint vector."""
    return [slice(start, stop) for start, stop in pairwise(np.cumsum([0, *dims]).tolist())]


class Queries:
    """T texts, ready to be compared with codes.

    Attributes:
        weights: (T, M) float32.
        embeddings: M arrays (T, D) float32.
        values: M arrays (2 T, D) int8, the texts in 14 bits: of each a coarse row, and a fine one, which counts 1/126.
        factors: (M, 2 T, 1) float32, by which the products of each row are multiplied.
        lengths, errors: (T, M) float32, of the embeddings and of what 14 bits leave of them.
        corrected: (T,) float32, 1 where the videos' biases are subtracted from the scores, else 0.
    """

    def __init__(self, weights: Tensor, embeddings: Sequence[Tensor]) -> None:
        self.weights, self.embeddings = weights, list(embeddings)
        self.corrected = weights.new_ones(len(weights))
        # All experts at once, filled up with zeros, since small operations take long beside what they compute.
        dims = [x.shape[1] for x in self.embeddings]
        filled = weights.new_zeros(len(dims), len(weights), max(dims))
        for m, x in enumerate(self.embeddings):
            filled[m, :, : x.shape[1]] = x
        rows = int8_rows(filled.flatten(0, 1))
        values = rows.values[: 2 * len(rows.largest)].to(torch.int8) - INT8_ZERO
        values = values.view(2, *filled.shape).permute(1, 2, 0, 3)
        self.values = [x[..., :dim].flatten(0, 1).contiguous() for x, dim in zip(values, dims, strict=True)]
        largest = rows.largest.view(*filled.shape[:2], 1)
        factors = largest * weights.T.unsqueeze(2) / INT8_STEPS
        self.factors = torch.cat([factors, factors / (2 * INT8_STEPS)], dim=2).view(len(dims), -1, 1)
        self.lengths = torch.linalg.vector_norm(filled, dim=2).T.contiguous()
        self.errors = _query_error(filled, values, largest).T.contiguous()

    def __len__(self) -> int:
        return len(self.weights)

    def correcting(self, corrected: Tensor) -> Queries:
        """The same texts, of which those in `corrected` (T,) bool lose the videos' biases."""
        other = copy.copy(self)
        other.corrected = corrected.float()
        return other

    def uncorrected(self) -> Queries:
        """The same texts, of which none loses the videos' biases."""
        return self.correcting(torch.zeros_like(self.corrected))


def _query_error(x: Tensor, values: Tensor, largest: Tensor) -> Tensor:
    """(M, T): at least the length of what the 14 bits of `values` (M, T, 2, D) leave of x (M, T, D)."""
    coarse, fine = values.double().unbind(2)
    given = (coarse + fine / (2 * INT8_STEPS)) * (largest.double() / INT8_STEPS)
    return (torch.linalg.vector_norm(x - given, dim=2) * (1 + 1e-5)).float() + 1e-7 * largest[..., 0]


class Chunk:
    """Codes of n videos, compared at once. An expert's codes are held for the videos that have it.

    Args:
        codes: M arrays (n, D) int8; coarse or fine ones. They may be kept.
        scale, residual: (n, M) float32, the codes' steps and at least the lengths of what they leave.
        available: (n, M) bool.
        kept: False for codes that are compared once.

    Attributes:
        size: n.
        reach: (M,) float32, at least the length of any scaled code.
    """

    def __init__(
        self,
        codes: Sequence[np.ndarray],
        scale: np.ndarray,
        residual: np.ndarray,
        available: np.ndarray,
        kept: bool = True,
    ) -> None:
        self.size, self._searches = len(available), 0
        # By NumPy, for an operation that PyTorch shares among cores waits here for those that read the next codes.
        residual = np.where(available, residual, np.float32(0))
        self._residual, self._largest_residual = torch.from_numpy(residual), _largest(residual)
        patterns, pattern = _patterns(available)
        self._patterns, self._pattern = torch.from_numpy(patterns).double(), torch.from_numpy(pattern)
        videos = {m: np.flatnonzero(column) for m, column in enumerate(available.T) if column.any()}
        everywhere = bool(available.all())
        self._matrices = hold(codes, dict.fromkeys(videos) if everywhere else videos, kept)
        parts = [[m for m, _ in matrix.parts] for matrix in self._matrices]
        self._starts = np.cumsum([0, *(sum(len(videos[m]) for m in experts) for experts in parts)]).tolist()
        # One after the other, as the products of several matrices are put together.
        flat = [(m, videos[m]) for experts in parts for m in experts]
        steps = [scale[:0, 0], *(scale[rows, m] for m, rows in flat)]
        self._steps = torch.from_numpy(np.concatenate(steps))
        self._videos = None if everywhere else torch.from_numpy(np.concatenate([pattern[:0], *(x for _, x in flat)]))
        lengths = torch.tensor([x.shape[1] for x in codes], dtype=torch.float32, device="cpu").sqrt()
        self.reach = STEPS * lengths * _largest(scale * available)

    def scores(self, queries: Queries) -> Iterator[tuple[slice, Tensor]]:
        """(t, n) float32, and which texts these are, of a few texts after the other, so that what is made on the way
        stays small; 0 where the weights used sum to 0."""
        searches = self._searches = self._searches + 1
        if searches == 2:  # a first search does not wait, and a single one pays for no more than it needs
            for matrix in self._matrices:
                matrix.settle()
        totals, videos = self._totals(queries).float(), max(1, self.size)
        texts_at_once = max(1, min(len(queries), PART // videos))
        matrices_at_once = max(1, PART // (videos * texts_at_once))
        for texts in even_slices(len(queries), texts_at_once):
            scores = torch.zeros(texts.stop - texts.start, self.size, dtype=torch.float32, device="cpu")
            for group in slices(len(self._matrices), matrices_at_once):
                self._add_products(scores, group, texts, queries)
            yield texts, scores.div_(totals[texts, self._pattern])

    def _add_products(self, scores: Tensor, group: slice, texts: slice, queries: Queries) -> None:
        """Add what some matrices say to the scores (t, n) of some texts."""
        twice, products = slice(2 * texts.start, 2 * texts.stop), []
        for matrix in self._matrices[group]:
            values = [queries.values[m][twice, columns].contiguous() for m, columns in matrix.parts]
            of_parts = zip(matrix.parts, matrix(values), strict=True)
            products += [x.mul_(queries.factors[m, twice]) for (m, _), x in of_parts]
        entries = slice(self._starts[group.start], self._starts[group.stop])
        together = torch.cat(products, dim=1) if len(products) > 1 else products[0]
        coarse, fine = together.unflatten(0, (-1, 2)).unbind(1)
        whole, steps = coarse.add_(fine), self._steps[entries]
        if self._videos is None:
            for part, of_part in zip(whole.split(self.size, dim=1), steps.split(self.size), strict=True):
                scores.addcmul_(part, of_part)
        else:
            scores.scatter_add_(1, self._videos[entries].expand_as(whole), whole.mul_(steps))

    def largest_error(self, queries: Queries) -> Tensor:
        """(T, 1) float32, at least the error of any score."""
        of_experts = queries.lengths * self._largest_residual + queries.errors * self.reach
        return of_experts.amax(1, keepdim=True) + self._rounding(queries)[:, None]

    def errors(self, queries: Queries, text: Tensor, video: Tensor) -> Tensor:
        """(P,) float32, the bounds on the errors of the scores at these places."""
        pattern = self._pattern[video]
        used = queries.weights[text] * self._patterns[pattern]
        of_experts = queries.lengths[text] * self._residual[video] + (queries.errors * self.reach)[text]
        mean = (used * of_experts).sum(1) / self._totals(queries)[text, pattern]
        return mean.float() + self._rounding(queries)[text]

    def _totals(self, queries: Queries) -> Tensor:
        """(T, patterns) float64, the sum of the weights that a text has for the experts of a pattern; 1 where it is 0.
        In double precision, for PyTorch may be told to round factors in single precision to bfloat16."""
        totals = queries.weights.double() @ self._patterns.T
        return totals.masked_fill_(totals == 0, 1)

    def _rounding(self, queries: Queries) -> Tensor:
        return ROUNDING * (queries.lengths * self.reach).amax(1)


def _largest(x: np.ndarray) -> Tensor:
    """(M,): the largest of each column of (n, M), which are not below 0; 0 where there are no rows."""
    return torch.from_numpy(x.max(axis=0, initial=0))


def _patterns(available: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of (n, M) bool, and the number (n,) of each row among them."""
    keys = np.zeros(len(available), dtype=np.int64)
    for column in available.T:
        if len(keys) and keys.max() >= 2**62:
            keys = np.unique(keys, return_inverse=True)[1]
        keys = 2 * keys + column
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    return available[first], number


@dataclass(frozen=True)
class Columns:
    """Arrays, or tuples of arrays, with a common first axis. `dataclasses.fields` would take longer here than copying
    small columns does."""

    def __getitem__(self, rows: np.ndarray | slice | list[int]) -> Self:
        return self._each(lambda x: x[rows])

    def __len__(self) -> int:
        return len(getattr(self, next(iter(self.__dataclass_fields__))))

    def empty(self, rows: int) -> Self:
        """Room for rows of the same shapes and types."""
        return self._each(lambda x: np.empty((rows, *x.shape[1:]), dtype=x.dtype))

    def write(self, start: int, rows: Self) -> None:
        """Copy rows to the place from `start` on."""
        for mine, theirs in zip(self._arrays(), rows._arrays(), strict=True):
            mine[start : start + len(rows)] = theirs

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in their order; at least one part."""
        return parts[0]._each(lambda *arrays: np.concatenate(arrays), *parts[1:])

    def _arrays(self) -> Iterator[np.ndarray]:
        for column in map(self.__getattribute__, self.__dataclass_fields__):
            yield from column if isinstance(column, tuple) else (column,)

    def _each(self, make: Callable[..., np.ndarray], *others: Self) -> Self:
        """The same columns with what is made of each array and those of the others in its place."""
        columns = zip(*(map(x.__getattribute__, self.__dataclass_fields__) for x in (self, *others)), strict=True)
        return type(self)(*(tuple(map(make, *x)) if isinstance(x[0], tuple) else make(*x) for x in columns))


@dataclass(frozen=True)
class Candidates(Columns):
    """P pairs of a text and a video that may belong to the answer.

    Attributes:
        text: (P,) int64, the text's number.
        video: (P,) int64, the video's row address.
        score, error: (P,) float32, the score by codes and the bound on its error.
    """

    text: np.ndarray
    video: np.ndarray
    score: np.ndarray
    error: np.ndarray

    def reaching(self, limit: np.ndarray) -> Candidates:
        """Those whose upper bound reaches their text's limit; limit (T,) float."""
        return self[self.score.astype(np.float64) + self.error >= limit[self.text]]


Item = TypeVar("Item")


@dataclass(frozen=True)
class ChunkScores:
    """Scores of T texts with n videos.

    Attributes:
        addresses: (n,) int64, the videos' row addresses.
        scores: (t, n) float32, and which texts these are, of all texts in their order, made as they are taken; minus
            infinity leaves a video out.
        largest_error: (T, 1) float32, at least the error of any score.
        errors: the bounds (P,) on the errors of some scores, from the numbers (P,) of their texts and videos.
    """

    addresses: np.ndarray
    scores: Iterator[tuple[slice, Tensor]]
    largest_error: Tensor
    errors: Callable[[Tensor, Tensor], Tensor]


def scan(score: Callable[[Item], ChunkScores], items: Iterable[Item], texts: int, k: int) -> Candidates:
    """The pairs whose upper bound reaches the k-th highest lower bound of their text.

    Args:
        score: called on several threads.
        items: each has videos of its own.
    """
    parts = [Candidates(*(np.empty(0, dtype) for dtype in (np.int64, np.int64, np.float32, np.float32)))]
    if not texts:  # there is nothing to put together of a chunk
        return parts[0]
    highest = torch.full((texts, k), -torch.inf, dtype=torch.float32, device="cpu")  # of the lower bounds

    def leading(item: Item) -> tuple[Candidates, Tensor]:
        return _leading(score(item), lambda: highest)

    for candidates, lower in in_order(leading, items):
        parts.append(candidates)
        highest = torch.cat([highest, lower], dim=1).topk(k).values
    return Candidates.concatenate(parts).reaching(highest[:, -1].double().numpy())


def _leading(chunk: ChunkScores, highest: Callable[[], Tensor]) -> tuple[Candidates, Tensor]:
    """The pairs that may belong to the answer, given k lower bounds (T, k) of other videos, as high as they are by
    then, and the lower bounds of the videos of the highest scores here, at most k a text."""
    pairs, bounds = [], []
    for texts, scores in chunk.scores:
        others, largest_error = highest()[texts], chunk.largest_error[texts]
        k = others.shape[1]
        lower = scores.topk(min(k, len(chunk.addresses))).values - largest_error
        least = others[:, -1:].clamp_min(torch.finfo(torch.float32).min)  # above that of those left out
        if 0 < k == lower.shape[1]:
            least = torch.maximum(least, lower[:, -1:])
        text, video = (scores >= least - largest_error).nonzero().unbind(1)
        pairs.append((text + texts.start, video, scores[text, video]))
        bounds.append(lower)
    text, video, score = map(torch.cat, zip(*pairs, strict=True))
    error = chunk.errors(text, video)
    return Candidates(text.numpy(), chunk.addresses[video.numpy()], score.numpy(), error.numpy()), torch.cat(bounds)


@dataclass(frozen=True)
class Vectors(Columns):
    """n videos as they are stored.

    Attributes:
        addresses: (n,) int64, ascending.
        joint: (n, sum of D) float32, zeros for a missing expert, and only for one.
        bias: (n,) float64, the number that a query bank takes from the scores; 0 without one.
    """

    addresses: np.ndarray
    joint: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Scored(Columns):
    """P pairs of a text and a video with their scores.

    Attributes:
        text, video: (P,) int64, as in `Candidates`.
        shares: (P, M) float64, what each expert adds to the score.
        score: (P,) float64.
    """

    text: np.ndarray
    video: np.ndarray
    shares: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Best(Columns):
    """The answer to one text: its videos of the highest scores, best first, equal scores by id.

    Attributes:
        ids: (n,) of str.
        video, shares, score: as in `Scored`.
    """

    ids: np.ndarray
    video: np.ndarray
    shares: np.ndarray
    score: np.ndarray


ReadVectors = Callable[[np.ndarray], Vectors]
ReadFine = Callable[[np.ndarray], Iterable[tuple[np.ndarray, Chunk]]]


def select(
    candidates: Candidates, queries: Queries, k: int, dims: Sequence[int], vectors: ReadVectors, fine: ReadFine
) -> Scored:
    """The k highest scores of each text, exactly, and all that equal the k-th.

    Args:
        vectors: reads the videos at ascending row addresses.
        fine: reads their fine codes, in chunks with the addresses of their rows.
    """
    texts, size = len(queries), 4 * sum(dims)
    first = _ranks(candidates.text, candidates.score) < max(k, FEW_BYTES // (size * max(1, texts)))
    scored = score_pairs(candidates[first], queries, dims, vectors)
    limit = _kth_highest(scored, texts, k)
    rest = candidates[~first].reaching(limit)
    distinct = np.unique(rest.video)
    if len(distinct) * size > FINE_BYTES:
        rest = _refined(rest, queries, fine(distinct)).reaching(limit)
    if len(rest):
        scored = Scored.concatenate([scored, score_pairs(rest, queries, dims, vectors)])
    return with_ties(scored, texts, k)


def with_ties(scored: Scored, texts: int, k: int) -> Scored:
    """The k highest scores of each text, and all that equal the k-th."""
    return scored[scored.score >= _kth_highest(scored, texts, k)[scored.text]]


def best_of(scored: Scored, ids: np.ndarray, texts: int, k: int) -> list[Best]:
    """The k best videos of each text, of pairs with the ids (P,) of str."""
    best = Best(ids, scored.video, scored.shares, scored.score)
    return [best[rows] for rows in _best_rows(scored, ids, texts, k)]


def without_ties(scored: Scored, ids: np.ndarray, texts: int, k: int) -> Scored:
    """The pairs of the k best videos of each text alone."""
    return scored[np.concatenate(_best_rows(scored, ids, texts, k))]


def _best_rows(scored: Scored, ids: np.ndarray, texts: int, k: int) -> list[np.ndarray]:
    """The rows of each text's k best pairs, best first."""
    order = np.lexsort((ids, -scored.score, scored.text))
    starts = np.searchsorted(scored.text[order], np.arange(texts + 1))
    return [order[start : min(stop, start + k)] for start, stop in pairwise(starts.tolist())]


def score_pairs(pairs: Candidates, queries: Queries, dims: Sequence[int], vectors: ReadVectors) -> Scored:
    """CE's score of each pair from the float32 vectors, in float64; the pairs come in another order. Each video is
    computed alike, wherever it lies, so that equal vectors have equal scores."""
    joint = np.concatenate([x.numpy() for x in queries.embeddings], axis=1).astype(np.float64)
    joint *= np.repeat(queries.weights.numpy().astype(np.float64), dims, axis=1)
    videos, row = np.unique(pairs.video, return_inverse=True)

    def scored(rows: slice) -> Scored:
        some = pairs[(row >= rows.start) & (row < rows.stop)]
        return _scored(some, vectors(videos[rows]), queries, joint, dims)

    at_once = max(1, SCORED_BYTES // (4 * sum(dims)))
    return Scored.concatenate(list(in_order(scored, slices(len(videos), at_once))) or [scored(slice(0, 0))])


def _scored(pairs: Candidates, stored: Vectors, queries: Queries, joint: np.ndarray, dims: Sequence[int]) -> Scored:
    """The pairs of some videos; joint (T, sum of D) float64 are the texts times their experts' weights."""
    weights = queries.weights.numpy().astype(np.float64)
    row = np.searchsorted(stored.addresses, pairs.video)
    starts = np.cumsum([0, *dims])[:-1]
    available = np.logical_or.reduceat(stored.joint != 0, starts, axis=1).astype(np.float64)
    shares = np.empty((len(pairs), len(dims)))
    for text in np.unique(pairs.text):
        at = np.flatnonzero(pairs.text == text)
        for rows in slices(len(at), QUANTISE_ROWS):
            videos = row[at[rows]]
            total = available[videos] @ weights[text]
            parts = np.add.reduceat(stored.joint[videos] * joint[text], starts, axis=1)
            shares[at[rows]] = parts / np.where(total > 0, total, 1)[:, None]
    score = shares.sum(1) - queries.corrected.numpy()[pairs.text] * stored.bias[row]
    return Scored(pairs.text, pairs.video, shares, score)


def _refined(pairs: Candidates, queries: Queries, chunks: Iterable[tuple[np.ndarray, Chunk]]) -> Candidates:
    """The pairs with what their fine codes add to the score, and the narrower bounds that these give."""
    score, error = pairs.score.astype(np.float64), np.full(len(pairs), np.inf)
    for addresses, chunk in chunks:
        mine = np.flatnonzero(np.isin(pairs.video, addresses))
        text = torch.from_numpy(pairs.text[mine])
        video = torch.from_numpy(np.searchsorted(addresses, pairs.video[mine]))
        for texts, scores in chunk.scores(queries):
            at = ((text >= texts.start) & (text < texts.stop)).nonzero()[:, 0].numpy()  # a tensor of one is a number
            score[mine[at]] += scores[text[at] - texts.start, video[at]].numpy()
        # What 14 bits of the text leave of the coarse codes' products: a mean of the experts' is at most the largest.
        of_coarse = (queries.errors + ROUNDING * queries.lengths) * chunk.reach * FINE_STEPS
        error[mine] = (chunk.errors(queries, text, video) + of_coarse.amax(1)[text]).numpy()
    return Candidates(pairs.text, pairs.video, score, error)


def _ranks(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(P,): the place of each value among those of its group, the highest first."""
    order = np.lexsort((-value, group))
    ordered = group[order]
    first = np.searchsorted(ordered, ordered)
    ranks = np.empty(len(group), dtype=np.int64)
    ranks[order] = np.arange(len(group)) - first
    return ranks


def _kth_highest(scored: Scored, texts: int, k: int) -> np.ndarray:
    """(T,): the k-th highest score of each text; minus infinity where there are fewer."""
    limit = np.full(texts, -np.inf)
    last = _ranks(scored.text, scored.score) == k - 1
    limit[scored.text[last]] = scored.score[last]
    return limit
