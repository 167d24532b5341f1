"""The pair function g and its mean over an expert's pairs, which gate the experts (paper, section 3.2, eq. 2 to 5).

What is saved against CENet's loop over all pairs:
- g's first layer on cat(x_i, x_j) is A x_i + B x_j + b, so each half is computed once per expert, not per pair;
- the mean over pairs is linear, so g's last layer comes after it.
What is not changed: an expert is gated in the model's order, with the already gated embeddings of the experts
before it, so B x_j is computed again for each expert once it is gated.

Which pairs there are is told by `AllPairs` or `AvailablePairs`; B videos, M experts, n videos that have one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.config import CEConfig
from ..base.linear import spare_rows
from .kernels import Parameters, fold, negated_mish


class Pairs:
    """The layers of g, and the gating of one expert after the other."""

    def __init__(self, config: CEConfig, parameters: Parameters) -> None:
        self._include_self, dim = config.include_self, config.shared_dim
        layers = [parameters.linear("ce.g_reason_1")]
        step = 3 if config.use_bn_reason else 2  # [BatchNorm,] activation, linear
        for k in range(config.num_g_layers - 1):
            if config.use_bn_reason:
                layers[-1] = fold(layers[-1], *parameters.batch_norm(f"ce.g_reason_shared.{step * k}"))
            layers.append(parameters.linear(f"ce.g_reason_shared.{step * k + step - 1}"))
        self._activate = F.relu_
        if config.use_mish:
            on_gpu = parameters.device.type == "cuda"  # where F.mish is one kernel
            self._activate = F.mish if on_gpu else negated_mish
            if not on_gpu:  # negated_mish wants the negative of what comes before an activation
                layers[:-1] = [(-weight, -bias) for weight, bias in layers[:-1]]
        weight, bias = layers[0]
        self._left = parameters.pack(weight[:, :dim], bias)
        self._right = parameters.pack(weight[:, dim:])
        self._hidden = [parameters.pack(*layer) for layer in layers[1:-1]]
        self._last = parameters.pack(*layers[-1]) if len(layers) > 1 else None

    def gate(
        self, inputs: Sequence[Tensor], gates: Sequence[Callable[..., Tensor]], pairs: AllPairs | AvailablePairs
    ) -> list[Tensor]:
        """Each expert's rows (n, D), gated in the model's order -> the same rows, gated, in float32."""
        self._start(pairs, inputs)
        gated = []
        for i, (x, gate) in enumerate(zip(inputs, gates, strict=True)):
            gated.append(gate(x, self._mask(pairs, i)))
            if i + 1 < len(inputs):  # the experts after this one are paired with it as it is now
                pairs.replace_right(i, self._right(gated[i].to(x.dtype)))
        return gated

    def _start(self, pairs: AllPairs | AvailablePairs, inputs: Sequence[Tensor]) -> None:
        together, sizes = torch.cat(list(inputs)), [len(x) for x in inputs]
        pairs.start(self._left(together), self._right(together), sizes, self._include_self)

    def _mask(self, pairs: AllPairs | AvailablePairs, i: int) -> Tensor | None:
        """The mean of g over expert i's pairs, (n, D); 0 for a video that has no other expert to pair it with."""
        x = pairs.sums(i)
        if not len(x):
            return None
        for layer in self._hidden:
            x = layer(self._activate(x))
        mean = spare_rows(pairs.mean(i, x if self._last is None else self._activate(x)))
        mask = mean if self._last is None else self._last(mean)
        alone = pairs.alone(i)
        if alone is not None:
            mask[: len(alone)].masked_fill_(alone, 0)
        return mask


class AllPairs:
    """Every expert of each of B videos with every expert; with `available` (B, M), the missing have no weight."""

    def __init__(self, size: int, available: Tensor | None = None) -> None:
        self._size = size
        self._there = None if available is None else available.T.unsqueeze(2)  # (M, B, 1)

    def start(self, left: Tensor, right: Tensor, sizes: Sequence[int], include_self: bool) -> None:
        """Both halves of g's first layer, expert below expert; all have the same number of rows, some perhaps spare."""
        left, right = (x.unflatten(0, (len(sizes), -1)) for x in (left, right))
        self._left, self._right = left[:, : self._size], right[:, : self._size]  # (M, B, D)
        self._include_self = include_self
        if self._there is None and not include_self:
            self._there = torch.ones(len(sizes), self._size, 1, dtype=torch.bool, device=right.device)

    def replace_right(self, i: int, right: Tensor) -> None:
        self._right[i] = right[: self._size]

    def sums(self, i: int) -> Tensor:
        """g's first layer for expert i's pairs: (M * B, D)"""
        return (self._left[i] + self._right).flatten(0, 1)

    def mean(self, i: int, x: Tensor) -> Tensor:
        """The mean over the pairs: (M * B, D) -> (B, D)"""
        x = x.unflatten(0, self._right.shape[:2])
        if self._there is None:
            return x.mean(0)
        partners = self._partners(i)
        return x.masked_fill_(~partners, 0).sum(0) / partners.sum(0).clamp_min_(1).to(x.dtype)

    def alone(self, i: int) -> Tensor | None:
        """(B, 1) bool, or None where no video is."""
        return None if self._there is None else ~self._partners(i).any(0)

    def _partners(self, i: int) -> Tensor:
        if self._include_self:
            return self._there
        partners = self._there.clone()
        partners[i] = False
        return partners


class AvailablePairs:
    """Only the pairs of experts that are there, gathered.

    Args:
        available: (B, M) bool.
        rows: for each expert the rows (n,) of the videos that have it; None for all.
    """

    def __init__(self, available: Tensor, rows: Sequence[Tensor | None]) -> None:
        self._available, self._rows = available, rows

    def start(self, left: Tensor, right: Tensor, sizes: Sequence[int], include_self: bool) -> None:
        """The same, with sizes of their own."""
        self._left, rights = left.split(sizes), right.split(sizes)
        size, experts = self._available.shape
        self._right = right.new_empty(experts, size, right.shape[1])  # of missing experts nothing is read
        self._counts, self._own, self._at = [], [], []  # per expert: partners (n,); per pair: row of left, of right
        for i, rows in enumerate(self._rows):
            self.replace_right(i, rights[i])
            partners = self._available if rows is None else self._available[rows]  # (n, M)
            if not include_self:
                partners = partners.clone()
                partners[:, i] = False
            own, partner = partners.nonzero().unbind(1)
            self._counts.append(partners.sum(1))
            self._own.append(own)
            self._at.append(partner * size + (own if rows is None else rows[own]))

    def replace_right(self, i: int, right: Tensor) -> None:
        rows = self._rows[i]
        if rows is None:
            self._right[i] = right[: self._right.shape[1]]
        else:
            self._right[i, rows] = right[: len(rows)]

    def sums(self, i: int) -> Tensor:
        """(pairs, D), the pairs of one video side by side"""
        return self._right.flatten(0, 1).index_select(0, self._at[i]).add_(self._left[i].index_select(0, self._own[i]))

    def mean(self, i: int, x: Tensor) -> Tensor:
        """(pairs, D) -> (n, D)"""
        starts = self._counts[i].cumsum(0) - self._counts[i]
        return F.embedding_bag(torch.arange(len(x), device=x.device), x, starts, mode="mean")

    def alone(self, i: int) -> Tensor | None:
        return None if self._counts[i].all() else (self._counts[i] == 0).unsqueeze(1)
