"""The fast inference model: CENet's outputs from CENet's weights, with only the arithmetic that is needed.

What is saved against CENet's forward pass, for the form "pairwise" (paper, section 3.2, eq. 2 to 5):
- of the pair function g, what `pairs.py` tells;
- on CPU nothing is computed of a missing expert, whose embedding is a constant;
- BatchNorms are folded into the layers before them; nine text layers share one pooled text.

MoEE and its variant with reduced dimensions share the same code without pairs. CENet's other forms run through
`model.CEModel`; `supports` tells which.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import Tensor

from ..base.config import CEConfig
from ..base.linear import Int8Rows, int8_rows, spare_rows
from ..base.slices import even_slices
from .cenet import Modality
from .graphs import Graphs
from .kernels import Parameters, Pooling, fold, normalise
from .pairs import AllPairs, AvailablePairs, PairFunction

CHUNK = 256
"""Items computed at once: enough for the matrix products to be efficient, and 60 MB of working memory."""

GPU_CHUNK = 2048
"""The same on a GPU, which wants more at once: 350 MB of working memory for the default model."""

DTYPES = ("float32", "bfloat16", "float16", "int8")
"""Number formats: float16 is for CUDA, int8 for the text layers of a few queries on CPU."""


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
    if dtype == "int8" and not torch.backends.mkldnn.is_available():
        raise ValueError("dtype: 'int8' needs a PyTorch with oneDNN; use 'float32'")
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
    """Features to video embeddings; holds the video side's weights only.

    On CPU a missing expert costs nothing: one that a chunk lacks altogether is left out, one that some of its
    videos lack is computed for the others. On a GPU everything is computed, and the missing get no weight: then no
    size depends on the data, nothing waits for the host, and small batches can replay a graph.
    """

    def __init__(self, config: CEConfig, parameters: Parameters) -> None:
        self._dims = config.output_dims
        self._experts = [_VideoExpert(config, i, parameters) for i in range(len(config.experts))]
        self._g = PairFunction(config, parameters) if config.use_ce else None
        self._summed_dim, self._normalises = config.summed_dim, config.shares_dim
        self._graphs = Graphs() if parameters.device.type == "cuda" else None
        with torch.no_grad():
            self._absent = [expert.gate(self._normalise(expert.absent()))[0].clone() for expert in self._experts]

    def __call__(self, features: Mapping[str, Tensor], available: Tensor) -> dict[str, Tensor]:
        """Features (B, dim) or (B, N, dim), availability (B, M) bool -> {expert: (B, D)} float32."""
        size = len(available)
        embds = {name: available.new_empty(size, dim, dtype=torch.float32) for name, dim in self._dims.items()}
        for rows in even_slices(size, GPU_CHUNK if self._graphs else CHUNK):
            chunk = available[rows], *(features[name][rows] for name in embds)
            parts = self._graphs(self.embed_masked, *chunk) if self._graphs else self._embed_available(*chunk)
            for embd, part in zip(embds.values(), parts, strict=True):
                embd[rows] = part
        return embds

    def _embed_available(self, available: Tensor, *features: Tensor) -> list[Tensor]:
        """Embeddings (B, D) of each expert for one chunk, computed where there is one."""
        size, counts = len(available), available.sum(0).tolist()
        present = [i for i, count in enumerate(counts) if count]
        rows = [available[:, i].nonzero().flatten() if counts[i] < size else None for i in present]
        experts = [self._experts[i] for i in present]
        inputs = [
            expert.project(features[i] if at is None else features[i][at])
            for i, expert, at in zip(present, experts, rows, strict=True)
        ]
        if self._summed_dim and present:
            self._sum_available(inputs, rows, size)
        inputs = [self._normalise(x) for x in inputs]
        pairs: AllPairs | AvailablePairs | None = None
        if self._g and present:
            there, complete = available[:, present], all(at is None for at in rows)
            pairs = self._g.all_pairs(inputs, size) if complete else self._g.available_pairs(inputs, there, rows)
        embds = [absent.expand(size, -1) for absent in self._absent]
        for i, at, embd in zip(present, rows, self._gate(experts, inputs, pairs), strict=True):
            embds[i] = embd[:size] if at is None else embds[i].index_copy(0, at, embd[: len(at)])
        return embds

    def embed_masked(self, available: Tensor, *features: Tensor) -> list[Tensor]:
        """The same with everything computed, so that all sizes follow from those of the arguments."""
        size, there = len(available), available.unbind(1)
        inputs = [expert.project(x, at) for expert, x, at in zip(self._experts, features, there, strict=True)]
        if self._summed_dim:
            last = [x[:size, -self._summed_dim :] for x in inputs]
            total = torch.stack([x * at.unsqueeze(1) for x, at in zip(last, there, strict=True)]).sum(0)
            for x in last:
                x.copy_(total)  # of a missing expert nothing is read below
        inputs = [self._normalise(x) for x in inputs]
        pairs = self._g.all_pairs(inputs, size, available) if self._g else None
        gated = self._gate(self._experts, inputs, pairs)
        return [
            torch.where(at.unsqueeze(1), embd[:size], absent)
            for at, embd, absent in zip(there, gated, self._absent, strict=True)
        ]

    def _sum_available(self, inputs: Sequence[Tensor], rows: Sequence[Tensor | None], size: int) -> None:
        """Put the sum over a video's experts into the last numbers of their vectors; `rows` as experts have them."""
        last = [x[:, -self._summed_dim :] for x in inputs]
        total = last[0].new_zeros(size, self._summed_dim)
        for x, at in zip(last, rows, strict=True):
            total = total + x[:size] if at is None else total.index_add_(0, at, x[: len(at)])
        for x, at in zip(last, rows, strict=True):
            x[: size if at is None else len(at)] = total if at is None else total[at]

    def _normalise(self, x: Tensor) -> Tensor:
        """Reduced vectors (n, D) at length 1; those of experts that are not reduced as they are."""
        return normalise(x.float()).to(x.dtype) if self._normalises else x

    def _gate(
        self, experts: Sequence[_VideoExpert], inputs: Sequence[Tensor], pairs: AllPairs | AvailablePairs | None
    ) -> list[Tensor]:
        """Each expert's rows (n, D), gated one after the other -> the same rows in float32, of length 1."""
        if self._g is None or pairs is None:
            return [expert.gate(x) for expert, x in zip(experts, inputs, strict=True)]
        gated: list[Tensor] = []
        for i, (expert, x) in enumerate(zip(experts, inputs, strict=True)):
            mask = self._g.mask(pairs, i)  # paper, section 3.2, eq. 2 to 4
            gated.append(expert.gate(x, mask))  # eq. 5
            if i + 1 < len(inputs):  # the experts after this one are paired with it as it is now
                self._g.update(pairs, i, gated[i].to(x.dtype))
        return gated


class _VideoExpert:
    """One expert's own layers: pool, project, and gate."""

    def __init__(self, config: CEConfig, i: int, parameters: Parameters) -> None:
        expert = config.experts[i]
        self._dim, self._dtype, self._device = expert.dim, parameters.dtype, parameters.device
        self._standardise = parameters.standardise(expert) if config.standardise else None
        self._pool = Pooling(parameters, f"pooling.{expert.name}", expert.clusters) if expert.variable else None
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

    def project(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """Features (n, dim) or (n, N, dim) -> (n, D), and spare rows below; zeros in place of rows not `there`"""
        if self._standardise is not None:
            x = self._standardise(x)
        if there is not None:
            x = x.masked_fill(~there.view(-1, *[1] * (x.ndim - 1)), 0)
        return self._first(spare_rows(self._pool(x) if self._pool else x.to(self._dtype)))

    def gate(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Context gating (paper, eq. 5), with the mask that the pairs give: (n, D) -> (n, D) float32 of length 1."""
        gate = self._gate(x)
        if mask is not None:
            gate.addcmul_(mask, self._mask_scale)
        return normalise(gate.sigmoid_().mul_(x).float())

    def absent(self) -> Tensor:
        """What CENet makes of a missing expert's zeros: (1, D), and spare rows below."""
        size = (1, self._dim) if self._pool is None else (1, 1, self._dim)
        return self.project(
            torch.zeros(size, device=self._device), torch.zeros(1, dtype=torch.bool, device=self._device)
        )


class TextEngine:
    """Token embeddings to text embeddings and expert weights; holds the text side's weights only."""

    def __init__(self, config: CEConfig, parameters: Parameters, int8: bool = False) -> None:
        self._dims, self._dtype, clusters = config.output_dims, parameters.dtype, config.text.clusters
        self._pool = Pooling(parameters, "text_pooling", clusters) if clusters else None
        self._weigh = parameters.pack(*parameters.linear("ce.moe_fc", tokens=clusters))
        self._experts = [_TextExpert(i, clusters, parameters, int8) for i in range(len(config.experts))]
        self._equal_weights, self._int8 = config.freeze_weights, int8
        self._graphs = Graphs() if parameters.device.type == "cuda" else None

    def __call__(self, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(T, W, dim) -> {expert: (T, D)} and expert weights (T, M), both float32."""
        size, dims = len(tokens), self._dims
        embds = {name: tokens.new_empty(size, dim, dtype=torch.float32) for name, dim in dims.items()}
        weights = tokens.new_empty(size, len(dims), dtype=torch.float32)
        for rows in even_slices(size, GPU_CHUNK if self._graphs else CHUNK):
            parts = self._graphs(self.embed, tokens[rows]) if self._graphs else self.embed(tokens[rows])
            for whole, part in zip((*embds.values(), weights), parts, strict=True):
                whole[rows] = part
        return embds, weights

    def embed(self, tokens: Tensor) -> list[Tensor]:
        """Embeddings (T, D) of each expert for one chunk, and last the expert weights (T, M)."""
        size = len(tokens)
        pooled = self._pool(tokens) if self._pool else tokens.flatten(1).to(self._dtype)
        spare = spare_rows(pooled)
        prepared = int8_rows(pooled) if self._int8 else spare
        embds = [expert(prepared)[:size] for expert in self._experts]
        if self._equal_weights:
            return [*embds, embds[0].new_full((size, len(embds)), 1 / len(embds))]
        return [*embds, self._weigh(spare)[:size].float().softmax(dim=1)]


class _TextExpert:
    """The gated embedding unit of one expert (paper, eq. 6): pooled text (T, pooled_dim) -> (T, D) float32, with
    spare rows below."""

    def __init__(self, i: int, clusters: int, parameters: Parameters, int8: bool) -> None:
        pack = parameters.pack_int8 if int8 else parameters.pack
        self._first = pack(*parameters.linear(f"ce.text_GU.{i}.fc", tokens=clusters))
        gate = parameters.linear(f"ce.text_GU.{i}.cg.fc")
        self._gate = parameters.pack(*fold(gate, *parameters.batch_norm(f"ce.text_GU.{i}.cg.batch_norm")))

    def __call__(self, pooled: Tensor | Int8Rows) -> Tensor:
        y = self._first(pooled)
        return normalise(self._gate(y).sigmoid_().mul_(y).float())
