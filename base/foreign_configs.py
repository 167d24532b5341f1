"""Configs that others write, translated to the short form that `CEConfig.from_dict` reads.

- Towhee's: the keyword arguments of `towhee.models`' CENet, as `create_model(config)` takes them.
- The CE authors': the `config.json` beside each of their published models. What it leaves out has their defaults.

Both are read only. A key that is not known, or that this operator cannot honour, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checks import check_keys, check_mapping, check_size, check_unique, nearest

_SAME_NAMES = (
    "use_ce",
    "num_h_layers",
    "num_g_layers",
    "mimic_ce_dims",
    "concat_experts",
    "include_self",
    "use_mish",
    "use_bn_reason",
    "freeze_weights",
)
"""Choices that CENet and the short form name alike."""

_WITHOUT_EFFECT = ("disable_nan_checks", "verbose", "num_classes", "test_caption_mode", "trn_cat")
"""Keys that change nothing about an embedding, and are therefore not kept."""

# CENet itself fails at the score (l2renorm), compares missing experts too (keep_missing_modalities), needs CUDA
# (trn_config), gives random outputs (randomise_feats), was never published so (concat_mix_experts). The others are of
# the spatial expert "detection-sem".
_MUST_BE_OFF = (
    "l2renorm",
    "keep_missing_modalities",
    "randomise_feats",
    "trn_config",
    "concat_mix_experts",
    "kron_dets",
    "geometric_mlp",
    "rand_proj",
    "coord_dets",
    "spatial_feats",
)
"""Keys that CENet takes, but that cannot be honoured here unless they are off."""

_TOWHEE_ONLY = (
    "task",
    "text_dim",
    "expert_dims",
    "vlad_clusters",
    "ghost_clusters",
    "feat_aggregation",
    "ce_shared_dim",
)


def short_from_towhee(config: Mapping[str, Any]) -> dict[str, Any]:
    """The short form of Towhee's dict. Raises TypeError or ValueError, naming the key."""
    check_keys(config, (*_TOWHEE_ONLY, *_SAME_NAMES, *_MUST_BE_OFF, *_WITHOUT_EFFECT), "config")
    if "retrieval" not in str(config.get("task", "retrieval")):
        raise ValueError(f"config: task: expected 'retrieval', got {config['task']!r}")
    _check_off(config, "config")
    clusters = _optional(config, "vlad_clusters")
    if "text" not in clusters:
        raise ValueError(f"config: vlad_clusters: expected the key 'text', got {list(clusters)}")
    text = {
        "dim": config.get("text_dim", 768),
        "clusters": clusters["text"],
        "ghost_clusters": _optional(config, "ghost_clusters").get("text", 0),
    }
    choices = _choices(config)
    experts = {
        name: _towhee_expert(name, dims, config, _has_own_dims(choices))
        for name, dims in check_mapping(config["expert_dims"], "config: expert_dims").items()
    }
    return {"experts": experts, "text": text, "shared_dim": config.get("ce_shared_dim", 768), **choices}


def _towhee_expert(name: str, dims: Any, config: Mapping[str, Any], own_dims: bool) -> dict[str, Any]:
    where = f"config: expert_dims[{name!r}]"
    if name == "detection-sem":
        raise ValueError(f"{where}: the spatial expert 'detection-sem' is not supported by this operator")
    if not isinstance(dims, tuple | list) or len(dims) != 2:
        raise ValueError(f"{where}: expected (input size, output size), got {dims!r}")
    pooled_dim = check_size(dims[0], f"{where}, input size")
    output_dim = check_size(dims[1], f"{where}, output size")
    output = {"output_dim": output_dim} if own_dims else {}
    temporal = _optional(_optional(config, "feat_aggregation"), name).get("temporal")
    variable = temporal == "vlad" if temporal else name in config["vlad_clusters"]
    if not variable:
        return {"dim": pooled_dim, **output}
    if name not in config["vlad_clusters"]:
        raise ValueError(f"{where}: a 'vlad' expert needs its number of clusters in vlad_clusters")
    clusters = check_size(config["vlad_clusters"][name], f"config: vlad_clusters[{name!r}]")
    if pooled_dim % clusters:
        raise ValueError(f"{where}: expected a multiple of its {clusters} clusters, got {pooled_dim}")
    return {"dim": pooled_dim // clusters, "clusters": clusters, **output}


# --- the CE authors' config.json ------------------------------------------------------------------------

TEXT_DIMS = {
    300: ("w2v", "grovle", "mt_grovle", "hglmm_300d"),
    256: ("electra",),
    512: ("t5-small", "howto100m_mil_nce"),
    768: ("openai", "openai-gpt", "gpt2", "bert-base-uncased", "t5-base", "albert-base-v2", "roberta-base",
          "xlnet-base-cased"),
    1024: ("gpt2-medium", "t5-large", "t5-3b", "t5-11b", "albert-large-v2", "roberta-large", "xlnet-large-cased",
           "transfo-xl-wt103"),
    1280: ("gpt2-large", "ctrl"),
    1600: ("gpt2-xl", "gpt2-xl-finetune"),
    2048: ("albert-xlarge-v2",),
    6000: ("hglmm_6kd",),
}  # fmt: skip
"""Dimension of the token embeddings of the authors' text encoders, by the name in `experts["text_feat"]`."""

_VLAD_DIMS = {"audio": 128, "ocr": 300, "speech": 300}
"""Dimension of a token of the authors' sequence experts."""


def short_from_authors(config: Mapping[str, Any]) -> dict[str, Any]:
    """The short form of the CE authors' `config.json`. Raises TypeError or ValueError, naming the key."""
    arch = _section(config, "arch")
    if arch.get("type", "CENet") != "CENet":
        raise ValueError(f"config: arch, type: expected 'CENet', got {arch['type']!r}")
    args, experts = _section(arch, "args", "arch"), _section(config, "experts")
    loader = _section(_section(config, "data_loader"), "args", "data_loader")
    known = ("vlad_clusters", "ghost_clusters", *_SAME_NAMES, *_MUST_BE_OFF, *_WITHOUT_EFFECT)
    check_keys(args, known, "config: arch, args")
    _check_off(args, "config: arch, args")
    modalities = _need(experts, "modalities", "experts")
    if not isinstance(modalities, list | tuple) or not all(isinstance(name, str) for name in modalities):
        raise TypeError(f"config: experts, modalities: expected a list of names, got {modalities!r}")
    check_unique(modalities, "config: experts, modalities")
    dropped = [name.strip() for name in str(experts.get("drop_feats", "")).split(",")]
    names = [name for name in sorted(modalities) if name not in dropped]
    choices = _choices(args)
    return {
        "experts": {name: _authors_expert(name, experts, args, loader, _has_own_dims(choices)) for name in names},
        "text": _authors_text(experts, args, loader),
        "shared_dim": experts.get("ce_shared_dim", 768),
        **choices,
    }


def _authors_expert(
    name: str, experts: Mapping[str, Any], args: Mapping[str, Any], loader: Mapping[str, Any], own_dims: bool
) -> dict[str, Any]:
    where = f"data_loader, args, feat_aggregation, {name}"
    features = _section(
        _section(loader, "feat_aggregation", "data_loader, args"), name, "data_loader, args, feat_aggregation"
    )
    temporal = _need(features, "temporal", where)
    if name in ("detection", "detection-sem", "openpose") or features.get("binarise") or "trn_seg" in features:
        raise ValueError(f"config: the expert {name!r} as configured is not supported by this operator")
    if temporal == "vlad":
        if name not in _VLAD_DIMS:
            raise ValueError(f"config: {where}: NetVLAD is known for {', '.join(_VLAD_DIMS)} only")
        expert = {
            "dim": _VLAD_DIMS[name],
            "clusters": _need(_section(args, "vlad_clusters", "arch, args"), name, "arch, args, vlad_clusters"),
        }
        limits = _optional(loader, "max_tokens")
        if name in limits:
            expert["max_tokens"] = limits[name]
    else:
        expert = {"dim": _authors_fixed_dim(name, str(temporal), features, experts, where)}
    return expert | ({"output_dim": expert["dim"]} if own_dims else {})


def _authors_fixed_dim(
    name: str, temporal: str, features: Mapping[str, Any], experts: Mapping[str, Any], where: str
) -> int:
    """Dimension of a fixed expert: that of its features for each temporal form, such as 2 x 2048 for 'avg-max'."""
    forms = temporal.split("-")
    if not set(forms) <= {"avg", "max", "ent", "std"}:
        raise ValueError(
            f"config: {where}: expected 'vlad' or forms of avg, max, ent, std joined by '-', got {temporal!r}"
        )
    if name == "face":
        return _need(experts, "face_dim", "experts")
    sizes = _section(features, "feat_dims", where)
    size = _need(sizes, str(_need(features, "type", where)), f"{where}, feat_dims")
    return check_size(size, f"config: {where}, feat_dims") * len(forms)


def _authors_text(experts: Mapping[str, Any], args: Mapping[str, Any], loader: Mapping[str, Any]) -> dict[str, Any]:
    clusters = _need(_section(args, "vlad_clusters", "arch, args"), "text", "arch, args, vlad_clusters")
    tokens = _optional(loader, "max_tokens").get("text", 37)
    pooling = experts.get("text_agg", "vlad")
    if pooling not in ("vlad", "avg"):
        raise ValueError(f"config: experts, text_agg: expected 'vlad' or 'avg', got {pooling!r}")
    if (pooling == "avg") != (clusters == 0) or (clusters == 0 and tokens != 1):
        raise ValueError(
            "config: experts, text_agg: 'avg' goes with vlad_clusters['text'] 0 and max_tokens['text'] 1, got "
            f"{pooling!r}, {clusters} and {tokens}"
        )
    return {
        "dim": _authors_text_dim(experts),
        "clusters": clusters,
        "ghost_clusters": _optional(args, "ghost_clusters").get("text", 0),
        "max_tokens": tokens,
    }


def _authors_text_dim(experts: Mapping[str, Any]) -> int:
    """The encoder's dimension. `text_dim` is inherited in the authors' configs and not read by their code, so that it
    counts for an encoder that is not known only."""
    dims = {encoder: dim for dim, encoders in TEXT_DIMS.items() for encoder in encoders}
    encoder = str(experts.get("text_feat"))
    dim = dims.get(encoder) or experts.get("text_dim")
    if dim is None:
        raise ValueError(
            f"config: experts, text_feat: the dimension of {encoder!r} is not known{nearest(encoder, dims)}; "
            "add it to the block as text_dim"
        )
    return dim


# --- both -----------------------------------------------------------------------------------------------


def _choices(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: given[key] for key in _SAME_NAMES if key in given}


def _has_own_dims(choices: Mapping[str, Any]) -> bool:
    """True where each expert's embedding has a size of its own, as in MoEE."""
    return not (choices.get("use_ce", "pairwise") or choices.get("mimic_ce_dims") or choices.get("concat_experts"))


def _check_off(given: Mapping[str, Any], where: str) -> None:
    for key in _MUST_BE_OFF:
        if given.get(key):
            raise ValueError(f"{where}: {key}={given[key]!r} is not supported by this operator")


def _need(block: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in block:
        raise ValueError(f"config: {where}: expected the key {key!r}, got {list(block)}")
    return block[key]


def _optional(block: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return check_mapping(block.get(key, {}), f"config: {key}")


def _section(block: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    path = f"{where}, {key}" if where else key
    return check_mapping(_need(block, key, where or "the CE authors' config.json"), f"config: {path}")
