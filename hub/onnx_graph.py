"""The ONNX graph of a model's video side, text side or both: the engine's algebra, written node by node.

The same is saved as in `model.engine`: a pair's first layer is computed per expert, the last one after the mean over
the pairs, BatchNorms are folded into the layers before them, one pooled text serves all experts. Unlike the engine on
CPU, the graph computes missing experts as well: their features count as zeros and their pairs not at all, which gives
the embedding that the engine has for them. No size depends on what the data hold.

B videos, T texts, M experts, D shared dimension, N tokens of an expert, W tokens of a text.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.config import CEConfig, ExpertConfig
from ..base.linear import EPSILON
from ..model.cenet import LEAST_PROBABILITY, Modality
from ..model.kernels import Parameters, fold
from ..model.pairs import negate_hidden, pair_layers
from .onnx_nodes import Graph

EXPERT_INPUT, AVAILABLE, TOKENS = "experts.{}", "available", "tokens"
"""Inputs: features (B, dim) or (B, N, dim) of each expert, availability (B, M) bool, token embeddings (T, W, dim)."""

VIDEO_OUTPUT, TEXT_OUTPUT, WEIGHTS = "video.{}", "text.{}", "weights"
"""Outputs: embeddings (B, D) and (T, D) of each expert, expert weights (T, M), all float32."""


def build_graph(config: CEConfig, weights: MutableMapping[str, Tensor], side: Modality, dtype: str) -> Any:
    """An `onnx.ModelProto` without metadata.

    Args:
        weights: all weights of the model under CENet's names; those of the side that is built are popped.
        side: "video" or "text"; None is both in one graph.
        dtype: "float32", or "float16" for matrices kept in half precision. Either way float32 is computed.
    """
    graph = Graph(half=dtype == "float16")
    parameters = Parameters(weights, torch.float32, torch.device("cpu"))
    if side != "text":
        _add_video_side(graph, config, parameters)
    if side != "video":
        _add_text_side(graph, config, parameters)
    return graph.to_model()


# --- the video side -----------------------------------------------------------------------------------


def _add_video_side(graph: Graph, config: CEConfig, parameters: Parameters) -> None:
    features = [
        graph.input(EXPERT_INPUT.format(x.name), ("B", f"N.{x.name}", x.dim) if x.variable else ("B", x.dim))
        for x in config.experts
    ]
    available = graph.input(AVAILABLE, ("B", len(config.experts)), boolean=True)
    there = [available] if len(features) == 1 else graph.add("Split", available, axis=1, outputs=len(features),
                                                            num_outputs=len(features))  # fmt: skip
    inputs = [
        _project(graph, config, i, parameters, x, at) for i, (x, at) in enumerate(zip(features, there, strict=True))
    ]
    if config.summed_dim:
        inputs = _sum_available(graph, config, inputs, there)
    if config.shares_dim:
        inputs = [graph.normalise(x) for x in inputs]
    pairs = _Pairs(graph, config, parameters, available, inputs) if config.use_ce else None
    for i, (x, at) in enumerate(zip(inputs, there, strict=True)):
        expert = config.experts[i].name
        y = _gate(graph, i, parameters, x, at, pairs)
        embedding = graph.normalise(y, named=VIDEO_OUTPUT.format(expert))
        if pairs is not None and i + 1 < len(inputs):
            pairs.replace_right(i, embedding)
        graph.output(embedding, ("B", config.output_dims[expert]))


def _project(graph: Graph, config: CEConfig, i: int, parameters: Parameters, x: str, there: str) -> str:
    """Standardise, pool and project the features of expert i: (B, D)"""
    expert = config.experts[i]
    x = _clean(graph, expert, parameters if config.standardise else None, x, there)
    if expert.variable:
        x = _pool(graph, parameters, f"pooling.{expert.name}", expert.clusters, x)
    first = f"ce.video_dim_reduce.{i}.fc" if config.shares_dim else f"ce.video_GU.{i}.fc"
    return graph.linear(x, *parameters.linear(first, tokens=expert.clusters))


def _sum_available(graph: Graph, config: CEConfig, inputs: Sequence[str], there: Sequence[str]) -> list[str]:
    """The experts' vectors (B, D), whose last numbers are the sum over a video's experts; a missing one's stay."""
    border, last_axis, own, last = graph.axes(config.shared_dim - config.summed_dim), graph.axes(1), [], []
    for x in inputs:
        own.append(graph.add("Slice", x, graph.axes(0), border, last_axis))
        last.append(graph.add("Slice", x, border, graph.axes(config.shared_dim), last_axis))
    total = graph.add("Sum", *(graph.add("Where", at, x, graph.number(0)) for x, at in zip(last, there, strict=True)))
    return [
        graph.add("Concat", x, graph.add("Where", at, total, y), axis=1)
        for x, y, at in zip(own, last, there, strict=True)
    ]


def _clean(graph: Graph, expert: ExpertConfig, parameters: Parameters | None, x: str, there: str) -> str:
    """Raw features standardised; zeros in place of missing ones and, as in training, of padding tokens."""
    if expert.variable:
        there = graph.add("Unsqueeze", there, graph.axes(1))
    if parameters is not None:
        if expert.variable:
            magnitude = graph.add("ReduceL1", x, graph.axes(-1))
            there = graph.add("And", there, graph.add("Greater", magnitude, graph.number(0)))
        standardise = parameters.standardise(expert)
        if standardise.logarithm:
            x = graph.add("Log", graph.add("Max", x, graph.number(LEAST_PROBABILITY)))
        x = graph.add("Sub", x, graph.constant(standardise.mean))
        x = graph.add("Div", x, graph.constant(standardise.std))
    return graph.add("Where", there, x, graph.number(0))


def _gate(graph: Graph, i: int, parameters: Parameters, x: str, there: str, pairs: _Pairs | None) -> str:
    """Context gating (paper, eq. 5) of expert i, with the mask that the pairs give: (B, D)"""
    unit = f"ce.video_GU.{i}.cg"
    if pairs is None:
        y = graph.linear(x, *fold(parameters.linear(f"{unit}.fc"), *parameters.batch_norm(f"{unit}.batch_norm")))
    else:
        # batch_norm is that of the pairs' mask, batch_norm2 that of the expert itself.
        mask_scale, mask_shift = parameters.batch_norm(f"{unit}.batch_norm")
        scale, shift = parameters.batch_norm(f"{unit}.batch_norm2")
        y = graph.linear(x, *fold(parameters.linear(f"{unit}.fc"), scale, shift + mask_shift))
        mask = graph.add("Mul", pairs.mask(i, there), graph.constant(mask_scale))
        y = graph.add("Add", y, mask)
    return graph.add("Mul", graph.add("Sigmoid", y), x)


class _Pairs:
    """The pair function g (paper, eq. 2 to 4); see `model.pairs`, whose order of computation this follows."""

    def __init__(
        self, graph: Graph, config: CEConfig, parameters: Parameters, available: str, inputs: Sequence[str]
    ) -> None:
        self._graph, self._config = graph, config
        self._available = graph.add("Cast", available, to=1)  # float32, (B, M)
        self._partners = self._share(self._available) if config.include_self else None
        layers = pair_layers(config, parameters)
        if config.use_mish:
            layers = negate_hidden(layers)  # see `_Pairs._activate`
        weight, bias = layers[0]
        left, right = weight.split(config.shared_dim, dim=1)
        self._right = graph.matrix(right.T)
        self._hidden = [(graph.matrix(w.T), graph.constant(b)) for w, b in layers[1:-1]]
        self._last = (graph.matrix(layers[-1][0]), graph.constant(layers[-1][1])) if len(layers) > 1 else None
        together = graph.add("Concat", *(graph.add("Unsqueeze", x, graph.axes(1)) for x in inputs), axis=1)
        halves = (
            graph.add("Add", graph.add("MatMul", together, graph.matrix(left.T)), graph.constant(bias)),
            graph.add("MatMul", together, self._right),
        )
        self._lefts, self._rights = (
            graph.add("Split", half, axis=1, outputs=len(inputs), num_outputs=len(inputs)) for half in halves
        )  # (B, 1, D) of each expert

    def replace_right(self, i: int, gated: str) -> None:
        """The experts after i are paired with it as it is now."""
        half = self._graph.add("MatMul", gated, self._right)
        self._rights[i] = self._graph.add("Unsqueeze", half, self._graph.axes(1))

    def mask(self, i: int, there: str) -> str:
        """The mean of g over expert i's pairs, (B, D); 0 where it has none."""
        graph = self._graph
        x = graph.add("Add", self._lefts[i], graph.add("Concat", *self._rights, axis=1))  # (B, M, D)
        for weight, bias in self._hidden:
            x = graph.add("Add", graph.add("MatMul", self._activate(x), weight), bias)
        partners, counts = self._partners or self._share(self._without(i))
        mean = graph.add("MatMul", partners, x if self._last is None else self._activate(x))
        mean = graph.add("Squeeze", mean, graph.axes(1))
        mask = mean if self._last is None else graph.add("Gemm", mean, *self._last, transB=1)
        counted = graph.add("And", there, graph.add("Greater", counts, graph.number(0)))
        return graph.add("Mul", mask, graph.add("Cast", counted, to=1))

    def _share(self, available: str) -> tuple[str, str]:
        """The weight of each expert in the mean, (B, 1, M), and the number of available experts, (B, 1)."""
        graph = self._graph
        counts = graph.add("ReduceSum", available, graph.axes(1))
        share = graph.add("Div", available, graph.add("Max", counts, graph.number(1)))
        return graph.add("Unsqueeze", share, graph.axes(1)), counts

    def _without(self, i: int) -> str:
        others = np.ones(len(self._config.experts), np.float32)
        others[i] = 0
        return self._graph.add("Mul", self._available, self._graph.constant(others))

    def _activate(self, x: str) -> str:
        """Mish of -x, the sign being folded into the layer before; or ReLU of x."""
        if not self._config.use_mish:
            return self._graph.add("Relu", x)
        # As `kernels.negated_mish`: mish(-x) = x (1 - 2 / (1 + q^2)) with q = sigmoid(x).
        graph, one = self._graph, self._graph.number(1)
        q = graph.add("Sigmoid", x)
        fraction = graph.add("Div", graph.number(-2), graph.add("Add", graph.add("Mul", q, q), one))
        return graph.add("Mul", x, graph.add("Add", fraction, one))


# --- the text side ------------------------------------------------------------------------------------


def _add_text_side(graph: Graph, config: CEConfig, parameters: Parameters) -> None:
    clusters = config.text.clusters
    tokens = graph.input(TOKENS, ("T", "W" if clusters else 1, config.text.dim))
    pooled = (
        _pool(graph, parameters, "text_pooling", clusters, tokens) if clusters else graph.add("Flatten", tokens, axis=1)
    )
    for i, (expert, dim) in enumerate(config.output_dims.items()):
        y = graph.linear(pooled, *parameters.linear(f"ce.text_GU.{i}.fc", tokens=clusters))
        gate = parameters.linear(f"ce.text_GU.{i}.cg.fc")
        gate = fold(gate, *parameters.batch_norm(f"ce.text_GU.{i}.cg.batch_norm"))
        y = graph.add("Mul", graph.add("Sigmoid", graph.linear(y, *gate)), y)
        graph.output(graph.normalise(y, named=TEXT_OUTPUT.format(expert)), ("T", dim))
    weights = graph.linear(pooled, *_weighing(config, parameters))
    graph.output(graph.add("Softmax", weights, axis=1, named=WEIGHTS), ("T", len(config.experts)))


def _weighing(config: CEConfig, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """The layer whose softmax is the expert weights; with equal weights, zeros."""
    weight, bias = parameters.linear("ce.moe_fc", tokens=config.text.clusters)
    return (weight * 0, bias * 0) if config.freeze_weights else (weight, bias)


def _pool(graph: Graph, parameters: Parameters, name: str, clusters: int, tokens: str) -> str:
    """NetVLAD, laid out as in `model.kernels.Pooling`: (B, N, dim) -> (B, clusters * dim)"""
    scale, shift = parameters.batch_norm(f"{name}.batch_norm")
    nearness = graph.add("MatMul", tokens, graph.matrix(parameters.take(f"{name}.clusters") * scale))
    assignment = graph.add("Softmax", graph.add("Add", nearness, graph.constant(shift)), axis=-1)
    if len(shift) > clusters:  # without the ghosts
        assignment = graph.add("Slice", assignment, graph.axes(0), graph.axes(clusters), graph.axes(2))
    assignment = graph.add("Transpose", assignment, perm=[0, 2, 1])  # (B, K, N)
    centres = graph.constant(parameters.take(f"{name}.clusters2")[0].T)
    taken = graph.add("Mul", graph.add("ReduceSum", assignment, graph.axes(2)), centres)
    vlad = graph.add("Sub", graph.add("MatMul", assignment, tokens), taken)  # (B, K, dim)
    lengths = graph.add("ReduceL2", vlad, graph.axes(2))
    clamped = graph.add("Max", lengths, graph.number(EPSILON))
    whole = graph.length(graph.add("Div", lengths, clamped), axis=1)
    return graph.add("Flatten", graph.add("Div", vlad, graph.add("Mul", clamped, whole)), axis=1)
