"""CENet's modules for a `CEConfig`, with CENet's parameter names and its two sides separately callable.

The layers are those of `towhee.models.collaborative_experts`, so that a state dict of CENet's loads as it is. They
are put together anew: experts have any name and number, one side works without the other, and there is no
`drop_nans`, which writes into the caller's tensors.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from towhee.models.collaborative_experts import (
    CEModule,
    ContextGating,
    GatedEmbeddingUnit,
    MimicCEGatedEmbeddingUnit,
    NetVLAD,
    ReduceDim,
)  # fmt: skip

from ..base.config import CONCAT, CEConfig, ExpertConfig
from .inputs import mean_token

Modality = Literal["video", "text"] | None
"""The side that is held and computed. None means both."""

_SIDES = {
    "video": ("video_dim_reduce", "dim_reduce", "g_reason_1", "g_reason_unshared_weights", "g_reason_shared",
              "h_reason", "video_GU"),
    "text": ("moe_fc", "text_GU"),
}  # fmt: skip
"""The children of CEModule that each side uses."""


class _AnyNames(nn.Module):
    """Holds modules by any name; nn.ModuleDict refuses some, such as "audio.vggish", "keys" and "training"."""

    def train(self, mode: bool = True) -> _AnyNames:
        for child in self.children():
            child.train(mode)
        return self


LEAST_PROBABILITY = 1e-7
"""Smaller ones count as this where the logarithm is taken."""


class Standardise(nn.Module):
    """Raw features of one expert (..., dim), or their logarithms, to mean 0 and standard deviation 1 over the training
    videos.

    Of a token sequence, tokens that are zero are padding and stay so: NetVLAD was trained with zeros there.
    """

    def __init__(self, expert: ExpertConfig) -> None:
        super().__init__()
        self.sequence, self.logarithm = expert.variable, expert.logarithm
        self.register_buffer("mean", torch.zeros(expert.dim, dtype=torch.float32, device="cpu"))
        self.register_buffer("std", torch.ones(expert.dim, dtype=torch.float32, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        y = (self.scale(x) - self.mean) / self.std
        return y.masked_fill_((x == 0).all(-1, keepdim=True), 0) if self.sequence else y

    def scale(self, x: Tensor) -> Tensor:
        """What is standardised of raw features."""
        return x.clamp_min(LEAST_PROBABILITY).log_() if self.logarithm else x

    @property
    def typical(self) -> Tensor:
        """(dim,), raw features that become zeros."""
        return self.mean.exp() if self.logarithm else self.mean


class _Gate(nn.Module):
    """ContextGating's parameters and result, without the concatenation that `glu` takes: the halves of its gradient are
    not contiguous, and from such batch normalisation computes its own ten times as slowly."""

    def __init__(self, plain: ContextGating) -> None:
        super().__init__()
        self.fc = plain.fc
        self.batch_norm = plain.batch_norm
        self.normalises = plain.add_batch_norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return x * (self.batch_norm(y) if self.normalises else y).sigmoid()


class _Unit(nn.Module):
    """Layers of CENet one after the other, then normalised, as its ReduceDim and gated embedding units do."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        for name, layer in plain.named_children():
            self.add_module(name, _Gate(layer) if isinstance(layer, ContextGating) else layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return _Normalise.apply(x) if self.training else nn.functional.normalize(x)


class _Normalise(torch.autograd.Function):
    """`normalize` of rows (B, D) with a gradient in four passes instead of eleven."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        y = x / length
        ctx.save_for_backward(y, length)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, length = ctx.saved_tensors
        along = (gradient * y).sum(1, keepdim=True)
        return torch.addcmul(gradient, y, along, value=-1) / length


class CEModel(nn.Module):
    """Collaborative Experts in evaluation mode, from clean tensors (inputs.py) to embeddings.

    The state dict has the names and shapes of CENet's, with `modality` those of that side only.
    """

    def __init__(self, config: CEConfig, modality: Modality = None) -> None:
        super().__init__()
        self.config = config
        self.ce = _ce_module(config)
        if modality != "text":
            if config.standardise:
                self.standardise = _AnyNames()
                for expert in config.experts:
                    self.standardise._modules[expert.name] = Standardise(expert)
            self.pooling = _AnyNames()
            for expert in config.experts:
                if expert.variable:
                    self.pooling._modules[expert.name] = NetVLAD(expert.clusters, expert.dim)
        if modality != "video" and config.text.clusters:
            self.text_pooling = NetVLAD(config.text.clusters, config.text.dim, config.text.ghost_clusters)
        if modality is not None:
            for name in _SIDES["text" if modality == "video" else "video"]:
                if hasattr(self.ce, name):
                    delattr(self.ce, name)
        self.eval()

    def encode_video(self, features: Mapping[str, Tensor], available: Tensor) -> dict[str, Tensor]:
        """Features (B, dim) or (B, N, dim) of every expert, anything where missing; available (B, M) -> (B, D) each."""
        pooled = OrderedDict()
        for i, expert in enumerate(self.config.experts):
            x = features[expert.name]
            if self.config.standardise:
                x = self.standardise._modules[expert.name](x)
            if not available[:, i].all():
                x = x.masked_fill(~available[:, i].view(-1, *[1] * (x.ndim - 1)), 0)
            pooled[expert.name] = self.pooling._modules[expert.name](x) if expert.variable else x
        if self.config.concat_experts:
            return {CONCAT: _padded(torch.cat(list(pooled.values()), dim=1), self.config)}
        if self.config.summed_dim:
            return self._embed_with_sum(pooled, available)
        ind = dict(zip(pooled, available.to(next(iter(pooled.values())).dtype).unbind(1), strict=True))
        embds = self.ce(None, pooled, ind, None)["embeddings"]
        if "star" in self.config.use_ce:
            # CENet averages the available experts here, 0/0 where there is none.
            nothing = ~available.any(1, keepdim=True)
            embds = {name: embd.masked_fill(nothing, 0) for name, embd in embds.items()}
        return dict(embds)

    def _embed_with_sum(self, pooled: Mapping[str, Tensor], available: Tensor) -> dict[str, Tensor]:
        """What CENet does without pairs, but for the sum in the last numbers of the reduced vectors."""
        reduced = [unit.fc(x) for unit, x in zip(self.ce.video_dim_reduce, pooled.values(), strict=True)]
        x, there = torch.stack(reduced, dim=1), available.unsqueeze(2)  # (B, M, D), (B, M, 1)
        own, last = x.tensor_split([-self.config.summed_dim], dim=2)
        total = last.masked_fill(~there, 0).sum(1, keepdim=True)
        x = nn.functional.normalize(torch.cat([own, torch.where(there, total, last)], dim=2), dim=2)
        return {name: unit(x[:, i]) for i, (name, unit) in enumerate(zip(pooled, self.ce.video_GU, strict=True))}

    def encode_text(self, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Token embeddings (T, W, dim) -> embeddings (T, D) per expert, expert weights (T, M) that sum to 1."""
        pooled = self.text_pooling(tokens) if self.config.text.clusters else mean_token(tokens)
        if self.config.concat_experts:
            return {CONCAT: _padded(pooled, self.config)}, pooled.new_ones(len(pooled), 1)
        embds = {name: unit(pooled) for name, unit in zip(self.config.expert_names, self.ce.text_GU, strict=True)}
        if self.config.freeze_weights:
            return embds, pooled.new_full((len(pooled), len(embds)), 1 / len(embds))
        return embds, self.ce.moe_fc(pooled).softmax(dim=1)


def _padded(x: Tensor, config: CEConfig) -> Tensor:
    """Zeros up to the size of the longer side. (CENet zeroes a video that is shorter than the text altogether.)"""
    return nn.functional.pad(x, (0, config.output_dims[CONCAT] - x.shape[1]))


def _ce_module(config: CEConfig) -> CEModule:
    ce = CEModule(
        task="retrieval",
        expert_dims={
            expert.name: (expert.pooled_dim, expert.output_dim or config.shared_dim) for expert in config.experts
        },
        text_dim=config.text.pooled_dim,
        same_dim=config.shared_dim,
        use_ce=config.use_ce,
        mimic_ce_dims=config.mimic_ce_dims,
        include_self=config.include_self,
        use_mish=config.use_mish,
        use_bn_reason=config.use_bn_reason,
        num_g_layers=config.num_g_layers,
        num_h_layers=config.num_h_layers,
        freeze_weights=config.freeze_weights,
        keep_missing_modalities=False,
        trn_config={},
        trn_cat=0,
        random_feats=set(),
        vlad_feat_sizes={},
        disable_nan_checks=True,
        test_caption_mode="indep",
        concat_experts=config.concat_experts,
        concat_mix_experts=False,
        l2renorm=False,
        num_classes=None,
        verbose=False,
    )
    # CENet's own name for a forward pass of the video side that returns before the scores.
    ce.task = "compute_video_embeddings"
    for layers in ce.children():
        for i, unit in enumerate(layers if isinstance(layers, nn.ModuleList) else ()):
            if isinstance(unit, GatedEmbeddingUnit | MimicCEGatedEmbeddingUnit | ReduceDim):
                layers[i] = _Unit(unit)
    return ce


MOST_PARAMETERS = 2**31
"""Initial ones that are made: ten times those of the default model."""


def meta_model(config: CEConfig, modality: Modality = None) -> CEModel:
    """The model without storage: names and shapes to check a file against, and a place to assign tensors to."""
    with _LayersOnMeta():
        return CEModel(config, modality)


def model_of(weights: Mapping[str, Tensor], config: CEConfig, device: str | torch.device = "cpu") -> CEModel:
    """The model with these weights, which it shares where they lie on the device, ready to embed."""
    model = meta_model(config)
    model.load_state_dict(weights, strict=False, assign=True)
    return model.to(device).eval()


class _LayersOnMeta(TorchFunctionMode):
    """Makes the layers' parameters on the meta device, and NetVLAD's small ones as zeros. `with torch.device("meta")`
    would do, but for the arithmetic around them PyTorch then imports its compiler, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.empty:
            return torch.empty(*args, **(kwargs or {}) | {"device": "meta"})
        if func is torch.randn:  # and the global random state stays as it was
            return torch.zeros(*args, **kwargs or {})
        return func(*args, **(kwargs or {}))


def initial_state(config: CEConfig, modality: Modality = None, seed: int = 0) -> dict[str, Tensor]:
    """CENet's initial distribution, each layer from a generator of its own.

    A layer's values depend on its name and `seed` alone, so that an operator of one side holds the same
    numbers as one of both, on every machine and in every thread. The global random state is not touched.

    Raises:
        ValueError: the config is of a model larger than `MOST_PARAMETERS`.
    """
    model = meta_model(config, modality)
    state = model.state_dict()
    size = sum(x.numel() for x in state.values())
    if size > MOST_PARAMETERS:
        raise ValueError(f"config: expected a model of at most {MOST_PARAMETERS:,} parameters, got {size:,}")
    for name, module in model.named_modules():
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        for key, x in _initial_parameters(module, generator).items():
            state[f"{name}.{key}"] = x
    return state


def _initial_parameters(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """As the layer's own constructor draws them, without the global generator."""
    if isinstance(module, NetVLAD):
        shapes = {"clusters": module.clusters.shape, "clusters2": module.clusters2.shape}
        scale = module.feature_size**-0.5
        return {
            key: torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu") * scale
            for key, shape in shapes.items()
        }
    if isinstance(module, nn.Linear):
        bound = module.in_features**-0.5
        shapes = {"weight": module.weight.shape, "bias": module.bias.shape}
        empty = {key: torch.empty(shape, dtype=torch.float32, device="cpu") for key, shape in shapes.items()}
        return {key: x.uniform_(-bound, bound, generator=generator) for key, x in empty.items()}
    if isinstance(module, nn.BatchNorm1d):
        size = module.num_features
        zeros = torch.zeros(size, dtype=torch.float32, device="cpu")
        ones = torch.ones_like(zeros)
        return {
            "weight": ones,
            "bias": zeros,
            "running_mean": zeros.clone(),
            "running_var": ones.clone(),
            "num_batches_tracked": torch.tensor(0, device="cpu"),
        }
    if isinstance(module, Standardise):
        return {"mean": torch.zeros_like(module.mean), "std": torch.ones_like(module.std)}
    return {}
