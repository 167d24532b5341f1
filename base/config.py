"""What a model is made of: experts, text, and the choices of Collaborative Experts (CE).

`CEConfig` is the one description of a model that the other modules read. It is built from any of the
dict forms that people have (`CEConfig.from_dict`) and written back as the short one (`CEConfig.to_dict`).

Paper: Liu et al., "Use What You Have" (arXiv 1907.13487), section 3. Two deviations from
`towhee.models.collaborative_experts`: an expert of any name may be a token sequence (CENet knows only
audio, ocr and speech), and the number of experts is not limited to ten.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

USE_CE = ("pairwise", "pairwise-star", "pairwise-star-specific", "pairwise-star-tensor", "triplet", "")
"""The forms of collaboration that CENet knows; "" is none at all: a mixture of embedding experts (MoEE)."""

CONCAT = "concat"
"""Name of the one embedding that `concat_experts` gives."""

MAX_TOKENS = {"audio": 29, "ocr": 49, "speech": 32}
"""Token limits of the authors' MSR-VTT training; 37 words for the text."""


def nearest(name: object, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for a misspelt name, else the list of known ones."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(map(repr, known))}"


def _check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def _check_size(value: object, where: str, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{where}: expected at least {least}, got {value}")


def _check_mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: expected a dict, got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class ExpertConfig:
    """One expert: a network whose features describe the video.

    Attributes:
        name: the key of its features in `experts`, of its availability in `ind`, of its embedding.
        dim: size of its feature vector, or of each token's vector.
        clusters: NetVLAD clusters that pool its token sequence; 0 for a fixed expert (one vector a video).
        max_tokens: length to which lists of sequences are padded or cut; None refuses such lists.
        output_dim: size of its embedding where experts need not agree (MoEE); None means `shared_dim`.
    """

    name: str
    dim: int
    clusters: int = 0
    max_tokens: int | None = None
    output_dim: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"config: an expert's name is a non-empty string, got {self.name!r}")
        where = f"config: experts[{self.name!r}]"
        _check_size(self.dim, f"{where}, dim")
        _check_size(self.clusters, f"{where}, clusters", least=0)
        for key in ("max_tokens", "output_dim"):
            if getattr(self, key) is not None:
                _check_size(getattr(self, key), f"{where}, {key}")

    @property
    def variable(self) -> bool:
        """True for a token sequence (B, N, dim), False for one vector a video (B, dim)."""
        return self.clusters > 0

    @property
    def pooled_dim(self) -> int:
        """Size of the one vector per video that CE projects: NetVLAD's output, or the feature itself."""
        return self.dim * max(self.clusters, 1)


@dataclass(frozen=True)
class TextConfig:
    """The text side: token embeddings of size `dim`, pooled by NetVLAD with `clusters` + `ghost_clusters`.

    With `clusters` 0 a text is one averaged vector (W = 1), which is not pooled.
    """

    dim: int = 768
    clusters: int = 28
    ghost_clusters: int = 1
    max_tokens: int | None = 37

    def __post_init__(self) -> None:
        _check_size(self.dim, "config: text, dim")
        _check_size(self.clusters, "config: text, clusters", least=0)
        _check_size(self.ghost_clusters, "config: text, ghost_clusters", least=0)
        if self.max_tokens is not None:
            _check_size(self.max_tokens, "config: text, max_tokens")

    @property
    def variable(self) -> bool:
        """True: a text is a token sequence."""
        return True

    @property
    def pooled_dim(self) -> int:
        """Size of the one vector per text that CE projects."""
        return self.dim * max(self.clusters, 1)


@dataclass(frozen=True)
class CEConfig:
    """A Collaborative Experts model; everything that decides its parameters and its embeddings.

    Attributes:
        experts: in the model's own order, which is part of the model: an expert is gated with the
            already gated embeddings of the experts before it.
        text: the text side.
        shared_dim: size D of every embedding (of MoEE's, where an expert names no `output_dim`).
        use_ce: form of the collaborative gating (paper, section 3.2), one of `USE_CE`.
        mimic_ce_dims: MoEE with CE's dimension reduction (an ablation of the authors').
        include_self: an expert's pair with itself counts.
        use_mish: Mish between the layers of the pair function, else ReLU.
        use_bn_reason: batch normalisation in the pair function.
        num_g_layers: layers of the pair function g (paper, eq. 2).
        num_h_layers: layers of h, after the pairs are summed.
        concat_experts: no embedding per expert (an ablation of the authors'): the pooled features side by side are
            the video's vector, the pooled text is the text's, the shorter one padded with zeros.
        freeze_weights: every expert has the weight 1/M instead of one predicted from the text.
        standardise: features are raw, and brought to mean 0 and deviation 1 with what training learned of them.
    """

    experts: tuple[ExpertConfig, ...]
    text: TextConfig = field(default_factory=TextConfig)
    shared_dim: int = 768
    use_ce: str = "pairwise"
    mimic_ce_dims: bool = False
    concat_experts: bool = False
    include_self: bool = True
    use_mish: bool = True
    use_bn_reason: bool = True
    num_g_layers: int = 3
    num_h_layers: int = 0
    freeze_weights: bool = False
    standardise: bool = False

    def __post_init__(self) -> None:
        if not self.experts:
            raise ValueError("config: experts: expected at least one expert, got none")
        repeated = {name for name in self.expert_names if self.expert_names.count(name) > 1}
        if repeated:
            raise ValueError(f"config: experts: named twice: {', '.join(sorted(repeated))}")
        if self.use_ce not in USE_CE:
            raise ValueError(f"config: use_ce: expected one of {', '.join(map(repr, USE_CE))}, got {self.use_ce!r}")
        if self.concat_experts and self.shares_dim:
            raise ValueError("config: concat_experts goes with neither use_ce nor mimic_ce_dims")
        if self.use_ce and len(self.experts) < 2:
            raise ValueError(f'config: use_ce {self.use_ce!r} pairs experts, but there is one; set use_ce to "" (MoEE)')
        _check_size(self.shared_dim, "config: shared_dim")
        _check_size(self.num_g_layers, "config: num_g_layers")
        _check_size(self.num_h_layers, "config: num_h_layers", least=0)
        for name in (*_SWITCHES, "standardise"):
            # Towhee's dict has 0 and 1 here.
            if not isinstance(getattr(self, name), int) or getattr(self, name) not in (0, 1):
                raise TypeError(f"config: {name}: expected True or False, got {getattr(self, name)!r}")
            object.__setattr__(self, name, bool(getattr(self, name)))
        if self.shares_dim:
            for expert in self.experts:
                if expert.output_dim not in (None, self.shared_dim):
                    raise ValueError(
                        f"config: experts[{expert.name!r}], output_dim: expected shared_dim {self.shared_dim} "
                        f"(only MoEE's experts may differ), got {expert.output_dim}"
                    )

    @property
    def expert_names(self) -> tuple[str, ...]:
        return tuple(expert.name for expert in self.experts)

    @property
    def shares_dim(self) -> bool:
        """True where every expert is first projected to `shared_dim`."""
        return bool(self.use_ce) or self.mimic_ce_dims

    @property
    def output_dims(self) -> dict[str, int]:
        """Size of each embedding by its name, the same on the text and on the video side."""
        if self.concat_experts:
            return {CONCAT: max(self.text.pooled_dim, sum(expert.pooled_dim for expert in self.experts))}
        return {expert.name: expert.output_dim or self.shared_dim for expert in self.experts}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> CEConfig:
        """Read Towhee's dict (has `expert_dims`), the CE authors' (has `arch`) or the short one (has `experts`).

        Raises:
            TypeError, ValueError: naming the key, what was expected and what came. Nothing is ignored silently.
        """
        _check_mapping(config, "config")
        if "expert_dims" in config:
            return _from_towhee(config)
        if "arch" in config:
            return _from_authors(config)
        if "experts" in config:
            return _from_short(config)
        raise ValueError(
            "config: expected the key 'experts' (short form), 'expert_dims' (Towhee's dict) or 'arch' (the CE authors' "
            f"config.json), got {list(config)}"
        )

    @classmethod
    def from_json(cls, path: str | Path) -> CEConfig:
        """Read a JSON file that holds any of the dict forms. Raises FileNotFoundError, and as `from_dict`."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"config: there is no file {path}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"config: {path} is not JSON: {error}") from error
        return cls.from_dict(content)

    def to_dict(self) -> dict[str, Any]:
        """The short form, complete and fit for JSON: `CEConfig.from_dict(config.to_dict()) == config`."""
        short = asdict(self)
        short["experts"] = {expert.pop("name"): expert for expert in short["experts"]}
        return short


_SWITCHES = (
    "mimic_ce_dims",
    "concat_experts",
    "include_self",
    "use_mish",
    "use_bn_reason",
    "freeze_weights",
)


def _from_short(config: Mapping[str, Any]) -> CEConfig:
    _check_keys(config, (f.name for f in fields(CEConfig)), "config")
    experts = []
    for name, entry in _check_mapping(config["experts"], "config: experts").items():
        if isinstance(entry, int):
            entry = {"dim": entry}
        where = f"config: experts[{name!r}]"
        _check_keys(_check_mapping(entry, where), (f.name for f in fields(ExpertConfig)[1:]), where)
        if "dim" not in entry:
            raise ValueError(f"{where}: expected the key 'dim', got {list(entry)}")
        tokens = {"max_tokens": MAX_TOKENS[name]} if entry.get("clusters") and name in MAX_TOKENS else {}
        experts.append(ExpertConfig(name, **(tokens | dict(entry))))
    text = _check_mapping(config.get("text", {}), "config: text")
    _check_keys(text, (f.name for f in fields(TextConfig)), "config: text")
    return CEConfig(**(dict(config) | {"experts": tuple(experts), "text": TextConfig(**text)}))


# Keys of Towhee's dict that change nothing about an embedding, and are therefore not kept.
_WITHOUT_EFFECT = ("disable_nan_checks", "verbose", "num_classes", "test_caption_mode", "trn_cat")
# Keys that CENet takes, but that cannot be honoured here unless they are off: CENet itself fails at the score
# (l2renorm), compares missing experts too (keep_missing_modalities), needs CUDA (trn_config), gives random outputs
# (randomise_feats), was never published so (concat_mix_experts); the others are of the spatial expert "detection-sem".
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
_TOWHEE_OWN = (
    "task",
    "text_dim",
    "expert_dims",
    "vlad_clusters",
    "ghost_clusters",
    "feat_aggregation",
    "ce_shared_dim",
)
_TOWHEE_SAME = ("use_ce", "num_h_layers", "num_g_layers", *_SWITCHES)


def _from_towhee(config: Mapping[str, Any]) -> CEConfig:
    """The keyword arguments of `towhee.models`' CENet, as `create_model(config)` takes them."""
    _check_keys(config, (*_TOWHEE_OWN, *_TOWHEE_SAME, *_MUST_BE_OFF, *_WITHOUT_EFFECT), "config")
    if "retrieval" not in str(config.get("task", "retrieval")):
        raise ValueError(f"config: task: expected 'retrieval', got {config['task']!r}")
    _check_off(config, "config")
    clusters = _optional(config, "vlad_clusters")
    if "text" not in clusters:
        raise ValueError(f"config: vlad_clusters: expected the key 'text', got {list(clusters)}")
    text = TextConfig(
        dim=config.get("text_dim", 768),
        clusters=clusters["text"],
        ghost_clusters=_optional(config, "ghost_clusters").get("text", 0),
    )
    same, own_dims = _same_as_cenet(config)
    experts = tuple(
        _expert_from_towhee(name, dims, config, own_dims)
        for name, dims in _check_mapping(config["expert_dims"], "config: expert_dims").items()
    )
    return CEConfig(experts=experts, text=text, shared_dim=config.get("ce_shared_dim", 768), **same)


def _check_off(given: Mapping[str, Any], where: str) -> None:
    for key in _MUST_BE_OFF:
        if given.get(key):
            raise ValueError(f"{where}: {key}={given[key]!r} is not supported by this operator")


def _same_as_cenet(given: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The choices that CENet and CEConfig name alike, and whether each expert's embedding has a size of its own."""
    same = {key: given[key] for key in _TOWHEE_SAME if key in given}
    return same, not any((same.get("use_ce", "pairwise"), same.get("mimic_ce_dims"), same.get("concat_experts")))


def _expert_from_towhee(name: str, dims: Any, config: Mapping[str, Any], own_dims: bool) -> ExpertConfig:
    where = f"config: expert_dims[{name!r}]"
    if name == "detection-sem":
        raise ValueError(f"{where}: the spatial expert 'detection-sem' is not supported by this operator")
    if not isinstance(dims, tuple | list) or len(dims) != 2:
        raise ValueError(f"{where}: expected (input size, output size), got {dims!r}")
    _check_size(dims[0], f"{where}, input size")
    _check_size(dims[1], f"{where}, output size")
    pooled, output_dim = dims[0], dims[1] if own_dims else None
    temporal = _optional(_optional(config, "feat_aggregation"), name).get("temporal")
    variable = temporal == "vlad" if temporal else name in config["vlad_clusters"]
    if not variable:
        return ExpertConfig(name, pooled, output_dim=output_dim)
    if name not in config["vlad_clusters"]:
        raise ValueError(f"{where}: a 'vlad' expert needs its number of clusters in vlad_clusters")
    clusters = config["vlad_clusters"][name]
    _check_size(clusters, f"config: vlad_clusters[{name!r}]")
    if pooled % clusters:
        raise ValueError(f"{where}: expected a multiple of its {clusters} clusters, got {pooled}")
    return ExpertConfig(name, pooled // clusters, clusters, MAX_TOKENS.get(name), output_dim)


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


def _from_authors(config: Mapping[str, Any]) -> CEConfig:
    """The `config.json` that the CE authors publish beside each model; what it leaves out has their defaults."""
    arch = _section(config, "arch")
    if arch.get("type", "CENet") != "CENet":
        raise ValueError(f"config: arch, type: expected 'CENet', got {arch['type']!r}")
    args, experts = _section(arch, "args", "arch"), _section(config, "experts")
    loader = _section(_section(config, "data_loader"), "args", "data_loader")
    known = ("vlad_clusters", "ghost_clusters", *_TOWHEE_SAME, *_MUST_BE_OFF, *_WITHOUT_EFFECT)
    _check_keys(args, known, "config: arch, args")
    _check_off(args, "config: arch, args")
    same, own_dims = _same_as_cenet(args)
    modalities = _need(experts, "modalities", "experts")
    if not isinstance(modalities, list | tuple) or not all(isinstance(name, str) for name in modalities):
        raise TypeError(f"config: experts, modalities: expected a list of names, got {modalities!r}")
    dropped = [name.strip() for name in str(experts.get("drop_feats", "")).split(",")]
    names = [name for name in sorted(modalities) if name not in dropped]
    return CEConfig(
        experts=tuple(_expert_from_authors(name, experts, args, loader, own_dims) for name in names),
        text=_text_from_authors(experts, args, loader),
        shared_dim=experts.get("ce_shared_dim", 768),
        **same,
    )


def _expert_from_authors(name: str, experts: Mapping, args: Mapping, loader: Mapping, own_dims: bool) -> ExpertConfig:
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
        dim = _VLAD_DIMS[name]
        clusters = _need(_section(args, "vlad_clusters", "arch, args"), name, "arch, args, vlad_clusters")
        limit = _optional(loader, "max_tokens").get(name, MAX_TOKENS[name])
        return ExpertConfig(name, dim, clusters, limit, output_dim=dim if own_dims else None)
    forms = str(temporal).split("-")
    if not set(forms) <= {"avg", "max", "ent", "std"}:
        raise ValueError(
            f"config: {where}: expected 'vlad' or forms of avg, max, ent, std joined by '-', got {temporal!r}"
        )
    if name == "face":
        dim = _need(experts, "face_dim", "experts")
    else:
        sizes = _section(features, "feat_dims", where)
        size = _need(sizes, str(_need(features, "type", where)), f"{where}, feat_dims")
        _check_size(size, f"config: {where}, feat_dims")
        dim = size * len(forms)
    return ExpertConfig(name, dim, output_dim=dim if own_dims else None)


def _text_from_authors(experts: Mapping, args: Mapping, loader: Mapping) -> TextConfig:
    dims = {encoder: dim for dim, encoders in TEXT_DIMS.items() for encoder in encoders}
    encoder = str(experts.get("text_feat"))
    dim = experts.get("text_dim") or dims.get(encoder)
    if dim is None:
        raise ValueError(
            f"config: experts, text_feat: the dimension of {encoder!r} is not known{nearest(encoder, dims)}; "
            "add it to the block as text_dim"
        )
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
    return TextConfig(dim, clusters, _optional(args, "ghost_clusters").get("text", 0), tokens)


def _need(block: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in block:
        raise ValueError(f"config: {where}: expected the key {key!r}, got {list(block)}")
    return block[key]


def _optional(block: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _check_mapping(block.get(key, {}), f"config: {key}")


def _section(block: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    path = f"{where}, {key}" if where else key
    return _check_mapping(_need(block, key, where or "the CE authors' config.json"), f"config: {path}")


MSRVTT = CEConfig(
    experts=(
        ExpertConfig("audio", 128, clusters=8, max_tokens=29),
        ExpertConfig("face", 512),
        ExpertConfig("i3d.i3d.0", 1024),
        ExpertConfig("imagenet.resnext101_32x48d.0", 2048),
        ExpertConfig("imagenet.senet154.0", 2048),
        ExpertConfig("ocr", 300, clusters=43, max_tokens=49),
        ExpertConfig("r2p1d.r2p1d-ig65m.0", 512),
        ExpertConfig("scene.densenet161.0", 2208),
        ExpertConfig("speech", 300, clusters=19, max_tokens=32),
    )
)
"""The default: the authors' `msrvtt-train-full-ce`, nine experts, 183.4 M parameters, the default of CENet too."""
