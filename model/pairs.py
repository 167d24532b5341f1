"""The pair function g and its mean over an expert's pairs, which is the mask of the expert's gate (paper, section 3.2,
eq. 2 to 4). The loop over the experts is the engine's.

Work that is saved against CENet's loop over all pairs:
- g's first layer on cat(x_i, x_j) is A x_i + B x_j + b, so each half is computed once per expert, not per pair;
- the mean over pairs is linear, so g's last layer comes after it.
The order is CENet's: an expert is gated in the model's order, with the already gated embeddings of the experts
before it, so B x_j is computed again for each expert once it is gated.

`AllPairs` and `AvailablePairs` hold both halves for the pairs that are computed. B videos, M experts, n videos that
have one expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.config import CEConfig
from ..base.linear import spare_rows
from .kernels import Parameters, fold, negated_mish


def pair_layers(config: CEConfig, parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
    """Weight (out, in) and bias (out,) of g's layers, BatchNorms folded in. What follows a layer is an activation."""
    layers = [parameters.linear("ce.g_reason_1")]
    step = 3 if config.use_bn_reason else 2  # [BatchNorm,] activation, linear
    for k in range(config.num_g_layers - 1):
        if config.use_bn_reason:
            layers[-1] = fold(layers[-1], *parameters.batch_norm(f"ce.g_reason_shared.{step * k}"))
        layers.append(parameters.linear(f"ce.g_reason_shared.{step * k + step - 1}"))
    return layers


def negate_hidden(layers: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The layers with the negative of what comes before an activation, as `negated_mish` wants it."""
    return [*((-weight, -bias) for weight, bias in layers[:-1]), layers[-1]]


class PairFunction:
    """The layers of g."""

    def __init__(self, config: CEConfig, parameters: Parameters) -> None:
        self._include_self, dim = config.include_self, config.shared_dim
        layers = pair_layers(config, parameters)
        self._activate = F.relu_
        if config.use_mish:
            on_gpu = parameters.device.type == "cuda"  # where F.mish is one kernel
            self._activate = F.mish if on_gpu else negated_mish
            layers = layers if on_gpu else negate_hidden(layers)
        weight, bias = layers[0]
        self._left = parameters.pack(weight[:, :dim], bias)
        self._right = parameters.pack(weight[:, dim:])
        self._hidden = [parameters.pack(*layer) for layer in layers[1:-1]]
        self._last = parameters.pack(*layers[-1]) if len(layers) > 1 else None

    def all_pairs(self, inputs: Sequence[Tensor], size: int, available: Tensor | None = None) -> AllPairs:
        """The pairs of M experts, each with the rows (B, D) of all `size` videos and spare rows below."""
        left, right = (x.unflatten(0, (len(inputs), -1))[:, :size] for x in self._halves(inputs))
        return AllPairs(left, right, available, self._include_self)

    def available_pairs(
        self, inputs: Sequence[Tensor], available: Tensor, rows: Sequence[Tensor | None]
    ) -> AvailablePairs:
        """The pairs of M experts, each with the rows (n, D) of the videos that have it and spare rows below."""
        sizes = [len(x) for x in inputs]
        left, right = (x.split(sizes) for x in self._halves(inputs))
        return AvailablePairs(left, right, available, rows, self._include_self)

    def _halves(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A x_i + b and B x_j, expert below expert."""
        together = torch.cat(list(inputs))
        return self._left(together), self._right(together)

    def mask(self, pairs: AllPairs | AvailablePairs, i: int) -> Tensor | None:
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

    def update(self, pairs: AllPairs | AvailablePairs, i: int, gated: Tensor) -> None:
        """Pair the experts after expert i with it as it is now, (n, D)."""
        pairs.replace_right(i, self._right(gated))


class AllPairs:
    """Every expert of each of B videos with every expert.

    Args:
        left, right: (M, B, D), both halves of g's first layer. `right` is written to.
        available: (B, M) bool, missing experts have no weight. None where nothing is missing.
        include_self: whether an expert is paired with itself, too.
    """

    def __init__(self, left: Tensor, right: Tensor, available: Tensor | None, include_self: bool) -> None:
        self._left, self._right, self._include_self = left, right, include_self
        self._has_expert: Tensor | None = None  # (M, B, 1)
        if available is not None:
            self._has_expert = available.T.unsqueeze(2)
        elif not include_self:
            self._has_expert = torch.ones(*right.shape[:2], 1, dtype=torch.bool, device=right.device)

    def replace_right(self, i: int, right: Tensor) -> None:
        self._right[i] = right[: self._right.shape[1]]

    def sums(self, i: int) -> Tensor:
        """g's first layer for expert i's pairs: (M * B, D)"""
        return (self._left[i] + self._right).flatten(0, 1)

    def mean(self, i: int, x: Tensor) -> Tensor:
        """The mean over the pairs: (M * B, D) -> (B, D)"""
        x = x.unflatten(0, self._right.shape[:2])
        if self._has_expert is None:
            return x.mean(0)
        partners = self._partners(i, self._has_expert)
        return x.masked_fill_(~partners, 0).sum(0) / partners.sum(0).clamp_min_(1).to(x.dtype)

    def alone(self, i: int) -> Tensor | None:
        """(B, 1) bool, or None where no video is."""
        return None if self._has_expert is None else ~self._partners(i, self._has_expert).any(0)

    def _partners(self, i: int, there: Tensor) -> Tensor:
        if self._include_self:
            return there
        partners = there.clone()
        partners[i] = False
        return partners


class AvailablePairs:
    """Only the pairs of experts that are there, gathered.

    Args:
        left, right: for each expert its rows (n, D) of both halves of g's first layer.
        available: (B, M) bool.
        rows: for each expert the rows (n,) of the videos that have it; None for all.
        include_self: whether an expert is paired with itself, too.
    """

    def __init__(
        self,
        left: Sequence[Tensor],
        right: Sequence[Tensor],
        available: Tensor,
        rows: Sequence[Tensor | None],
        include_self: bool,
    ) -> None:
        self._left, self._rows = left, rows
        size, experts = available.shape
        self._right = right[0].new_empty(experts, size, right[0].shape[1])  # of missing experts nothing is read
        self._counts, self._own, self._at = [], [], []  # per expert: partners (n,); per pair: row of left, of right
        for i, at in enumerate(rows):
            self.replace_right(i, right[i])
            partners = available if at is None else available[at]  # (n, M)
            if not include_self:
                partners = partners.clone()
                partners[:, i] = False
            own, partner = partners.nonzero().unbind(1)
            self._counts.append(partners.sum(1))
            self._own.append(own)
            self._at.append(partner * size + (own if at is None else at[own]))

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
