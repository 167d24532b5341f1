"""The reference: towhee.models' CENet itself, in float64, given what it wants (NaN in missing rows, a fresh copy)."""

import copy

import numpy as np
import torch
from towhee.models.collaborative_experts import CENet

from collaborative_experts import CEConfig, ExpertConfig, TextConfig

SMALL = CEConfig(
    experts=(
        ExpertConfig("audio", 128, clusters=2, max_tokens=5),
        ExpertConfig("face", 12),
        ExpertConfig("motion", 20),
        ExpertConfig("ocr", 300, clusters=3, max_tokens=6),
    ),
    text=TextConfig(dim=24, clusters=3, ghost_clusters=1, max_tokens=7),
    shared_dim=16,
)
"""Small, with the names and dimensions that CENet insists on for token sequences."""


def towhee_dict(config: CEConfig) -> dict:
    """The keyword arguments of CENet for a config."""
    variable = {expert.name: expert.clusters for expert in config.experts if expert.variable}
    names = {"audio", "ocr", "speech", *config.expert_names}
    return {
        "task": "retrieval",
        "use_ce": config.use_ce,
        "text_dim": config.text.dim,
        "l2renorm": False,
        "expert_dims": {
            expert.name: (expert.pooled_dim, expert.output_dim or config.shared_dim) for expert in config.experts
        },
        "vlad_clusters": {"text": config.text.clusters, **variable},
        "ghost_clusters": {"text": config.text.ghost_clusters},
        "disable_nan_checks": False,
        "keep_missing_modalities": False,
        "test_caption_mode": "indep",
        "randomise_feats": "",
        "feat_aggregation": {name: {"temporal": "vlad" if name in variable else "avg"} for name in names},
        "ce_shared_dim": config.shared_dim,
        "trn_config": {},
        "trn_cat": 0,
        "include_self": int(config.include_self),
        "use_mish": int(config.use_mish),
        "use_bn_reason": int(config.use_bn_reason),
        "num_h_layers": config.num_h_layers,
        "num_g_layers": config.num_g_layers,
        "freeze_weights": config.freeze_weights,
        "mimic_ce_dims": config.mimic_ce_dims,
        "concat_experts": config.concat_experts,
    }


def cenet(config: CEConfig, seed: int = 0) -> CENet:
    """CENet in evaluation mode, with random weights and random BatchNorm statistics, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CENet(**copy.deepcopy(towhee_dict(config)))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.5)
                module.running_var.uniform_(0.5, 2)
                torch.nn.init.normal_(module.weight, mean=1, std=0.2)
                torch.nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def run_cenet(model: CENet, experts: dict, ind: dict, text: torch.Tensor) -> dict:
    """CENet's outputs in float64 on copies; rows with ind 0 become NaN, as it expects."""
    model = copy.deepcopy(model).double()
    experts = {name: torch.as_tensor(np.asarray(x)).double().clone() for name, x in experts.items()}
    ind = {name: torch.as_tensor(np.asarray(x)).double() for name, x in ind.items()}
    for name, x in experts.items():
        x[ind[name] == 0] = torch.nan
    with torch.no_grad():
        return model(experts, ind, torch.as_tensor(np.asarray(text)).double())


def random_inputs(config: CEConfig, videos: int, captions: int = 1, seed: int = 0) -> tuple[dict, dict, np.ndarray]:
    """experts, ind (all ones) and text (B, K, W, dim) as NumPy arrays."""
    rng = np.random.default_rng(seed)
    experts = {
        expert.name: rng.standard_normal(
            (videos, expert.max_tokens or 4, expert.dim) if expert.variable else (videos, expert.dim), dtype=np.float32
        )
        for expert in config.experts
    }
    ind = {name: np.ones(videos, dtype=np.int64) for name in experts}
    text = rng.standard_normal((videos, captions, config.text.max_tokens or 6, config.text.dim), dtype=np.float32)
    return experts, ind, text


def largest_difference(ours: dict, theirs: dict) -> float:
    """Largest absolute difference over two dicts of arrays with the same keys."""
    assert list(ours) == list(theirs)
    worst = 0.0
    for name in ours:
        a, b = np.asarray(ours[name], dtype=np.float64), np.asarray(theirs[name], dtype=np.float64)
        assert a.shape == b.shape, f"{name}: {a.shape} is not {b.shape}"
        worst = max(worst, float(np.abs(a - b).max(initial=0)))
    return worst
