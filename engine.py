"""The fast inference model: CENet's outputs from CENet's weights, with only the arithmetic that is needed.

What is saved against CENet's forward pass, for the form "pairwise" (paper, section 3.2, eq. 2 to 5):
- the first layer of the pair function g on cat(x_i, x_j) is A x_i + B x_j + b, so each half is computed once
  per expert and not once per pair;
- the mean over pairs is linear, so g's last layer comes after it;
- pairs with a missing expert are not computed, and a missing expert's embedding is a constant;
- BatchNorms are folded into the layers before them; nine text layers share one pooled text.
What is not changed: an expert is gated in the model's order, with the already gated embeddings of the
experts before it, so B x_j is computed again for each expert once it is gated.

MoEE and its variant with reduced dimensions share the same code without pairs. CENet's other forms run through
`model.CEModel`; `supports` tells which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import CEConfig
from .kernels import Parameters, Pooling, fold, int8_linear, negated_mish, normalise
from .model import Modality

CHUNK = 256
"""Items computed at once: enough for the matrix products to be efficient, and 60 MB of working memory."""


DTYPES = ("float32", "bfloat16", "float16", "int8")
"""Number formats: float16 is for CUDA, int8 for the text layers of single queries on CPU."""


def supports(config: CEConfig) -> bool:
    """True for the forms that this engine computes."""
    return config.use_ce in ("pairwise", "") and config.num_h_layers == 0 and not config.concat_experts


def check_dtype(config: CEConfig, dtype: str, device: torch.device) -> None:
    """Raise ValueError where the form, the device or the processor cannot compute in `dtype`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    if dtype == "float32":
        return
    if not supports(config):
        raise ValueError(
            f"dtype: {dtype!r} is for use_ce 'pairwise' and '' without h layers or concat_experts; this config's "
            f"use_ce {config.use_ce!r} with {config.num_h_layers} h layers runs in 'float32'"
        )
    if (dtype == "float16" and device.type == "cpu") or (dtype == "int8" and device.type == "cuda"):
        raise ValueError(f"dtype: {dtype!r} is not for {device.type}; use 'float32' or 'bfloat16'")
    if dtype == "bfloat16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ValueError("dtype: this processor has no fast bfloat16; use 'float32'")


class Engine:
    """Both sides, or the one asked for; takes the same calls as `model.CEModel`.

    Args:
        weights: all weights of the model under CENet's names; those of the side that is built are popped.
    """

    def __init__(
        self,
        config: CEConfig,
        weights: MutableMapping[str, Tensor],
        modality: Modality = None,
        device: torch.device | str = "cpu",
        dtype: str = "float32",
    ) -> None:
        if dtype == "int8":
            number = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
        else:
            number = getattr(torch, dtype)
        parameters = Parameters(weights, number, torch.device(device))
        self.encode_video = VideoEngine(config, parameters) if modality != "text" else None
        self.encode_text = TextEngine(config, parameters, int8=dtype == "int8") if modality != "video" else None


class VideoEngine:
    """Features to video embeddings; holds the video side's weights only."""

    def __init__(self, config: CEConfig, parameters: Parameters) -> None:
        self._config, self._dtype = config, parameters.dtype
        self._experts = [_VideoExpert(config, i, parameters) for i in range(len(config.experts))]
        self._standardise = [parameters.standardise(expert) for expert in config.experts if config.standardise]
        self._pairs = _Pairs(config, parameters) if config.use_ce else None
        with torch.no_grad():
            self._absent = [self._absent_embedding(i, parameters.device) for i in range(len(config.experts))]

    def __call__(self, features: Mapping[str, Tensor], available: Tensor) -> dict[str, Tensor]:
        """Features (B, dim) or (B, N, dim), availability (B, M) bool -> {expert: (B, D)} float32."""
        size = len(available)
        embds = {
            name: available.new_empty(size, dim, dtype=torch.float32) for name, dim in self._config.output_dims.items()
        }
        for rows in _even_slices(size, CHUNK):
            there = available[rows]
            inputs = [self._project(i, features[name][rows], there[:, i]) for i, name in enumerate(embds)]
            gated = self._gate(inputs, there)
            for i, embd in enumerate(embds.values()):
                _place(embd[rows], there[:, i], gated[i], otherwise=self._absent[i])
        return embds

    def _project(self, i: int, x: Tensor, there: Tensor) -> Tensor:
        """The available rows of one expert's features, pooled and projected: (n, D)."""
        x = _select(x, there)
        if self._standardise:
            x = self._standardise[i](x)
        return self._experts[i].project(x.to(self._dtype))

    def _gate(self, inputs: list[Tensor], available: Tensor) -> list[Tensor]:
        if self._pairs is None:
            return [expert.gate(x) for expert, x in zip(self._experts, inputs, strict=True)]
        return self._pairs.gate(inputs, available, [expert.gate for expert in self._experts])

    def _absent_embedding(self, i: int, device: torch.device) -> Tensor:
        """What CENet gives for a missing expert, (D,): zeros through the biases, no pairs."""
        expert = self._config.experts[i]
        zeros = torch.zeros(
            (1, 1, expert.dim) if expert.variable else (1, expert.dim), device=device, dtype=self._dtype
        )
        return self._experts[i].gate(self._experts[i].project(zeros))[0]


class _VideoExpert:
    """One expert's own layers: pool, project, and gate."""

    def __init__(self, config: CEConfig, i: int, parameters: Parameters) -> None:
        expert = config.experts[i]
        self._pool = Pooling(parameters, f"pooling.{expert.name}", expert.clusters) if expert.variable else None
        self._normalises = config.shares_dim
        unit = f"ce.video_GU.{i}"
        first = f"ce.video_dim_reduce.{i}.fc" if config.shares_dim else f"{unit}.fc"
        self._first = parameters.pack(*parameters.linear(first, tokens=expert.clusters))
        if config.use_ce:
            # batch_norm is that of the pairs' mask, batch_norm2 that of the expert itself.
            mask_scale, mask_shift = parameters.batch_norm(f"{unit}.cg.batch_norm")
            scale, shift = parameters.batch_norm(f"{unit}.cg.batch_norm2")
            self._mask_scale = parameters.keep(mask_scale)
            shift = shift + mask_shift
        else:
            scale, shift = parameters.batch_norm(f"{unit}.cg.batch_norm")
        self._gate = parameters.pack(*fold(parameters.linear(f"{unit}.cg.fc"), scale, shift))

    def project(self, x: Tensor) -> Tensor:
        """(n, dim) or (n, N, dim) -> (n, D)"""
        y = self._first(x if self._pool is None else self._pool(x))
        return normalise(y.float()).to(y.dtype) if self._normalises else y

    def gate(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Context gating (paper, eq. 5), with the mask that the pairs give: (n, D) -> (n, D) float32 of length 1."""
        gate = self._gate(x)
        if mask is not None:
            gate.addcmul_(mask, self._mask_scale)
        return normalise(gate.sigmoid_().mul_(x).float())


class _Pairs:
    """The pair function g and its mean over an expert's pairs (paper, eq. 2 and 3)."""

    def __init__(self, config: CEConfig, parameters: Parameters) -> None:
        self._include_self, self._dim = config.include_self, config.shared_dim
        layers = [parameters.linear("ce.g_reason_1")]
        step = 3 if config.use_bn_reason else 2  # [BatchNorm,] activation, linear
        for k in range(config.num_g_layers - 1):
            if config.use_bn_reason:
                layers[-1] = fold(layers[-1], *parameters.batch_norm(f"ce.g_reason_shared.{step * k}"))
            layers.append(parameters.linear(f"ce.g_reason_shared.{step * k + step - 1}"))
        if config.use_mish:  # negated_mish wants the negative of what comes before an activation
            layers[:-1] = [(-weight, -bias) for weight, bias in layers[:-1]]
        self._activate = negated_mish if config.use_mish else F.relu_
        weight, bias = layers[0]
        self._left = parameters.pack(weight[:, : self._dim], bias)
        self._right = parameters.pack(weight[:, self._dim :])
        self._hidden = [parameters.pack(*layer) for layer in layers[1:-1]]
        self._last = parameters.pack(*layers[-1]) if len(layers) > 1 else None

    def gate(self, inputs: list[Tensor], available: Tensor, gates: list[Callable[..., Tensor]]) -> list[Tensor]:
        """Each expert's available rows (n_i, D), gated in the model's order -> the same rows, gated."""
        complete = self._include_self and bool(available.all())
        counts = [len(x) for x in inputs]
        together = torch.cat(inputs)
        left = self._left(together).split(counts)
        right = together.new_zeros(*available.shape, self._dim)  # (B, M, D); rows of missing experts are not read
        for i, x in enumerate(self._right(together).split(counts)):
            _place(right[:, i], available[:, i], x)
        gated = []
        for i, x in enumerate(inputs):
            if not len(x):
                gated.append(x)
                continue
            mask = self._mean(left[i], right) if complete else self._mean_of_available(i, left[i], right, available)
            gated.append(gates[i](x, mask))
            if i + 1 < len(inputs):  # the experts after this one are paired with it as it is now
                _place(right[:, i], available[:, i], self._right(gated[i].to(right.dtype)))
        return gated

    def _mean(self, left: Tensor, right: Tensor) -> Tensor:
        """Mean of g over all pairs of one expert, everything being available: (B, D), (B, M, D) -> (B, D)."""
        pairs = (left.unsqueeze(1) + right).flatten(0, 1)  # (B * M, D)
        return self._finish(self._hide(pairs).unflatten(0, right.shape[:2]).mean(1))

    def _mean_of_available(self, i: int, left: Tensor, right: Tensor, available: Tensor) -> Tensor:
        """The same over the available pairs; 0 for a video with none."""
        partners = available[available[:, i]]  # (n, M): the pairs of each video that has expert i
        if not self._include_self:
            partners = partners.clone()
            partners[:, i] = False
        counts = partners.sum(1)
        own, partner = partners.nonzero().unbind(1)
        at = available[:, i].nonzero().flatten()[own] * available.shape[1] + partner
        pairs = right.flatten(0, 1).index_select(0, at).add_(left.index_select(0, own))  # (pairs, D)
        if not len(pairs):
            return left.new_zeros(left.shape)
        ends = counts.cumsum(0)
        mean = F.embedding_bag(
            torch.arange(len(pairs), device=at.device), self._hide(pairs), ends - counts, mode="mean"
        )
        return self._finish(mean).masked_fill_((counts == 0).unsqueeze(1), 0)

    def _hide(self, x: Tensor) -> Tensor:
        for layer in self._hidden:
            x = layer(self._activate(x))
        return x if self._last is None else self._activate(x)

    def _finish(self, mean: Tensor) -> Tensor:
        return mean if self._last is None else self._last(mean)


class TextEngine:
    """Token embeddings to text embeddings and expert weights; holds the text side's weights only."""

    def __init__(self, config: CEConfig, parameters: Parameters, int8: bool = False) -> None:
        self._config, self._dtype = config, parameters.dtype
        clusters = config.text.clusters
        self._pool = Pooling(parameters, "text_pooling", clusters) if clusters else None
        self._weigh = parameters.pack(*parameters.linear("ce.moe_fc", tokens=clusters))
        self._experts = [_TextExpert(i, clusters, parameters, int8) for i in range(len(config.experts))]

    def __call__(self, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(T, W, dim) -> {expert: (T, D)} and expert weights (T, M), both float32."""
        size, dims = len(tokens), self._config.output_dims
        embds = {name: tokens.new_empty(size, dim, dtype=torch.float32) for name, dim in dims.items()}
        weights = tokens.new_full((size, len(dims)), 1 / len(dims), dtype=torch.float32)
        for rows in _even_slices(size, CHUNK):
            pooled = tokens[rows].to(self._dtype)
            pooled = self._pool(pooled) if self._pool else pooled.flatten(1)
            if not self._config.freeze_weights:
                weights[rows] = self._weigh(pooled).float().softmax(dim=1)
            for embd, expert in zip(embds.values(), self._experts, strict=True):
                embd[rows] = expert(pooled)
        return embds, weights


class _TextExpert:
    """The gated embedding unit of one expert (paper, eq. 6): pooled text (T, pooled_dim) -> (T, D) float32."""

    def __init__(self, i: int, clusters: int, parameters: Parameters, int8: bool) -> None:
        pack = int8_linear if int8 else parameters.pack
        self._first = pack(*parameters.linear(f"ce.text_GU.{i}.fc", tokens=clusters))
        gate = parameters.linear(f"ce.text_GU.{i}.cg.fc")
        self._gate = parameters.pack(*fold(gate, *parameters.batch_norm(f"ce.text_GU.{i}.cg.batch_norm")))

    def __call__(self, pooled: Tensor) -> Tensor:
        y = self._first(pooled)
        return normalise(self._gate(y).sigmoid_().mul_(y).float())


def _even_slices(size: int, most: int) -> Iterator[slice]:
    """Slices of nearly equal length, at most `most`: a last chunk of one row would cost as much as a full one."""
    count = math.ceil(size / most)
    for k in range(count):
        yield slice(size * k // count, size * (k + 1) // count)


def _select(x: Tensor, rows: Tensor) -> Tensor:
    return x if bool(rows.all()) else x[rows]


def _place(target: Tensor, rows: Tensor, values: Tensor, otherwise: Tensor | None = None) -> None:
    """values in the True rows of target; `otherwise`, if given, in the others."""
    if len(values) == len(target):
        target.copy_(values)
        return
    if otherwise is not None:
        target.copy_(otherwise)
    target[rows] = values.to(target.dtype)
