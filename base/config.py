"""The description of a model: its experts, its text side, and the choices of Collaborative Experts (CE).

`CEConfig` is the one description of a model that the other modules read. It is built from any of the
dict forms that people have (`CEConfig.from_dict`) and written back as the short one (`CEConfig.to_dict`).

Paper: Liu et al., "Use What You Have" (arXiv 1907.13487), section 3. Two deviations from
`towhee.models.collaborative_experts`: an expert of any name may be a token sequence (CENet knows only
audio, ocr and speech), and the number of experts is not limited to ten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from .checks import check_keys, check_mapping, check_size, set_flag, set_size
from .foreign_configs import short_from_authors, short_from_towhee

USE_CE = ("pairwise", "pairwise-star", "pairwise-star-specific", "pairwise-star-tensor", "triplet", "")
"""The forms of collaboration that CENet knows; "" means none, which is a mixture of embedding experts (MoEE)."""

CONCAT = "concat"
"""Name of the one embedding that `concat_experts` gives."""

LARGEST, MOST_POOLED, MOST_LAYERS, MOST_EXPERTS = 2**20, 2**22, 64, 1000
"""Largest dimension and number of clusters or tokens; numbers that a pooled sequence may have; layers of g and of h;
experts. A file that asks for more is damaged or malicious, and would fill the memory before weights are looked at."""

MAX_TOKENS = {"audio": 29, "ocr": 49, "speech": 32}
"""Token limits of the authors' MSR-VTT training; 37 words for the text."""


@dataclass(frozen=True)
class ExpertConfig:
    """One expert: a network whose features describe the video.

    Attributes:
        name: the key of its features in `experts`, of its availability in `ind`, of its embedding.
        dim: size of its feature vector, or of each token's vector.
        clusters: NetVLAD clusters that pool its token sequence; 0 for a fixed expert (one vector a video).
        max_tokens: length to which lists of sequences are padded or cut; None refuses such lists.
        output_dim: size of its embedding where experts need not agree (MoEE); None means `shared_dim`.
        logarithm: its features are probabilities, of which a model that standardises takes the logarithm first.
    """

    name: str
    dim: int
    clusters: int = 0
    max_tokens: int | None = None
    output_dim: int | None = None
    logarithm: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"config: an expert's name is a non-empty string, got {self.name!r}")
        where = f"config: experts[{self.name!r}]"
        set_size(self, "dim", f"{where}, dim", most=LARGEST)
        set_size(self, "clusters", f"{where}, clusters", least=0, most=LARGEST)
        for key in ("max_tokens", "output_dim"):
            if getattr(self, key) is not None:
                set_size(self, key, f"{where}, {key}", most=LARGEST)
        set_flag(self, "logarithm", f"{where}, logarithm")
        check_size(self.pooled_dim, f"{where}, dim * clusters", most=MOST_POOLED)

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

    With `clusters` 0 a text is one averaged vector (W = 1), which is not pooled. Of lists, each sequence is averaged.
    """

    dim: int = 768
    clusters: int = 28
    ghost_clusters: int = 1
    max_tokens: int | None = 37

    def __post_init__(self) -> None:
        set_size(self, "dim", "config: text, dim", most=LARGEST)
        set_size(self, "clusters", "config: text, clusters", least=0, most=LARGEST)
        set_size(self, "ghost_clusters", "config: text, ghost_clusters", least=0, most=LARGEST)
        if self.max_tokens is not None:
            set_size(self, "max_tokens", "config: text, max_tokens", most=LARGEST)
        all_clusters = max(self.clusters + self.ghost_clusters, 1)
        check_size(self.dim * all_clusters, "config: text, dim * (clusters + ghost_clusters)", most=MOST_POOLED)

    @property
    def variable(self) -> bool:
        """True: a text is a token sequence."""
        return True

    @property
    def words(self) -> int | None:
        """The first tokens of a text that count, None for all. Where texts are averaged, `max_tokens` 1 is the authors'
        word for what is left of them; then, and without it, as many count as by default."""
        return TextConfig.max_tokens if not self.clusters and self.max_tokens in (None, 1) else self.max_tokens

    @property
    def pooled_dim(self) -> int:
        """Size of the one vector per text that CE projects."""
        return self.dim * max(self.clusters, 1)


@dataclass(frozen=True)
class CEConfig:
    """The settings of a Collaborative Experts model that decide its parameters and its embeddings.

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
        standardise: features are raw, and brought to mean 0 and deviation 1 with what training learned of them; of
            experts with `logarithm` their logarithms are.
        summed_dim: of MoEE with reduced dimensions (`mimic_ce_dims`), so many of the last numbers of an expert's
            reduced vector are the sum over the video's available experts. It is taken before vectors are brought to
            length 1, so that an expert that says much counts more (`training.linear`). The paper's models have none.
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
    summed_dim: int = 0

    def __post_init__(self) -> None:
        if not self.experts:
            raise ValueError("config: experts: expected at least one expert, got none")
        if len(self.experts) > MOST_EXPERTS:
            raise ValueError(f"config: experts: expected at most {MOST_EXPERTS:,}, got {len(self.experts):,}")
        repeated = {name for name in self.expert_names if self.expert_names.count(name) > 1}
        if repeated:
            raise ValueError(f"config: experts: named twice: {', '.join(sorted(repeated))}")
        if self.use_ce not in USE_CE:
            raise ValueError(f"config: use_ce: expected one of {', '.join(map(repr, USE_CE))}, got {self.use_ce!r}")
        if self.concat_experts and self.shares_dim:
            raise ValueError("config: concat_experts goes with neither use_ce nor mimic_ce_dims")
        if self.use_ce and len(self.experts) < 2:
            raise ValueError(f'config: use_ce {self.use_ce!r} pairs experts, but there is one; set use_ce to "" (MoEE)')
        set_size(self, "shared_dim", "config: shared_dim", most=LARGEST)
        set_size(self, "num_g_layers", "config: num_g_layers", most=MOST_LAYERS)
        set_size(self, "num_h_layers", "config: num_h_layers", least=0, most=MOST_LAYERS)
        set_size(self, "summed_dim", "config: summed_dim", least=0, most=self.shared_dim)
        for name in (entry.name for entry in fields(self) if entry.type == "bool"):
            set_flag(self, name, f"config: {name}")
        if self.summed_dim and (self.use_ce or not self.mimic_ce_dims):
            raise ValueError('config: summed_dim is for mimic_ce_dims with use_ce ""')
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

        >>> experts = {"motion": 512, "audio": {"dim": 128, "clusters": 8}}
        >>> config = CEConfig.from_dict({"experts": experts, "text": {"dim": 384}})
        >>> [(expert.name, expert.dim, expert.clusters) for expert in config.experts]
        [('motion', 512, 0), ('audio', 128, 8)]
        """
        check_mapping(config, "config")
        if "expert_dims" in config:
            return _from_short(short_from_towhee(config))
        if "arch" in config:
            return _from_short(short_from_authors(config))
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
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"config: {path} is not JSON: {error}") from None
        return cls.from_dict(content)

    def to_dict(self) -> dict[str, Any]:
        """The short form, fit for JSON: `CEConfig.from_dict(config.to_dict()) == config`. It is a part of a model's
        identity, and has what was added later, `logarithm` and `summed_dim`, only where it is not false or 0."""
        short = asdict(self)
        for expert in short["experts"]:
            if not expert["logarithm"]:
                del expert["logarithm"]
        if not self.summed_dim:
            del short["summed_dim"]
        short["experts"] = {expert.pop("name"): expert for expert in short["experts"]}
        return short


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


def _from_short(config: Mapping[str, Any]) -> CEConfig:
    check_keys(config, (f.name for f in fields(CEConfig)), "config")
    experts = []
    for name, entry in check_mapping(config["experts"], "config: experts").items():
        if isinstance(entry, int | np.integer):
            entry = {"dim": entry}
        where = f"config: experts[{name!r}]"
        check_keys(check_mapping(entry, where), (f.name for f in fields(ExpertConfig)[1:]), where)
        if "dim" not in entry:
            raise ValueError(f"{where}: expected the key 'dim', got {list(entry)}")
        tokens: dict[str, Any] = (
            {"max_tokens": MAX_TOKENS[name]} if entry.get("clusters") and name in MAX_TOKENS else {}
        )
        experts.append(ExpertConfig(name, **(tokens | dict(entry))))
    text = check_mapping(config.get("text", {}), "config: text")
    check_keys(text, (f.name for f in fields(TextConfig)), "config: text")
    return CEConfig(**(dict(config) | {"experts": tuple(experts), "text": TextConfig(**text)}))
