"""What training reaches on real features, and what it costs beside a plain loop over CENet.

    python benchmarks/training.py FOLDER [--seeds 3] [--quick]

FOLDER holds `experts.npz` and `captions.csv` with the splits train, extra (videos without motion) and test. Nothing
here chooses anything by the test videos. Figures are means over seeds, text to video. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, resident

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from towhee.models.collaborative_experts import CENet

from collaborative_experts import (
    CaptionedVideos,
    CEConfig,
    CollaborativeExperts,
    SentenceEncoder,
    TrainingConfig,
    caption_videos,
    config_for,
    read_captions,
    read_features,
)
from collaborative_experts.apps.evaluate import ablate
from collaborative_experts.apps.run_file import MODEL, TEXT
from collaborative_experts.retrieval.evaluation import evaluate_scores
from collaborative_experts.training.data import VideoTensors
from collaborative_experts.training.loop import train
from collaborative_experts.training.losses import max_margin
from helpers import towhee_dict

FIGURES = ("r1", "r5", "r10", "median_rank", "geometric_mean")
CCA_SIZES, CCA_RIDGES = (16, 32, 64, 128, 256), (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained."""

    model: Mapping[str, Any]
    text: Mapping[str, Any]
    training: TrainingConfig
    splits: tuple[str, ...] = ("train", "extra")

    def config(self, data: CaptionedVideos) -> CEConfig:
        text = {"dim": data.tokens.shape[2], "max_tokens": data.tokens.shape[1], **self.text}
        return config_for(data.features, text, standardise=True, **self.model)


OURS = Recipe(MODEL, TEXT, TrainingConfig())
PAPERS = Recipe(
    {"use_ce": "pairwise", "shared_dim": 512},
    {"clusters": 20, "ghost_clusters": 1},
    TrainingConfig(
        loss="max_margin", epochs=40, batch_size=128, learning_rate=1e-3, weight_decay=0.0,
        expert_dropout=0.0, feature_dropout=0.0, average=0.0,
    ),
)  # fmt: skip
RECIPES = {
    "this operator's defaults": OURS,
    "without the videos that lack motion": replace(OURS, splits=("train",)),
    "the paper's loss": replace(OURS, training=replace(OURS.training, loss="max_margin")),
    "the paper's model (pairwise, 512)": replace(OURS, model=PAPERS.model, text=PAPERS.text),
    "the paper's recipe": PAPERS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed and two epochs, to see that it runs")
    options = parser.parse_args()
    seeds, epochs = (1, 2) if options.quick else (options.seeds, None)
    print(" ".join(f"{key}={value}" for key, value in machine().items()), flush=True)
    with tempfile.TemporaryDirectory() as cache:
        corpus = Corpus(options.folder, Path(cache))
        results = {"machine": machine(), "quality": quality(corpus, seeds, epochs), "cost": cost(corpus, epochs or 5)}
    print(json.dumps(results))


@dataclass
class Corpus:
    """The data sets of a folder; words are embedded once, in `cache`."""

    folder: Path
    cache: Path
    _sets: dict[tuple[str, ...], CaptionedVideos] = field(default_factory=dict)

    def __call__(self, *splits: str) -> CaptionedVideos:
        if splits not in self._sets:
            captions = read_captions(self.folder / "captions.csv", splits)
            features = read_features(self.folder / "experts.npz", captions.unique_ids())
            self._sets[splits] = caption_videos(features, captions, SentenceEncoder(), self.cache, TEXT["max_tokens"])
        return self._sets[splits]


# --- quality ------------------------------------------------------------------------------------------------


def quality(corpus: Corpus, seeds: int, epochs: int | None) -> dict[str, dict[str, float]]:
    """Figures on the test videos."""
    print(f"\n{'text to video, 500 videos':38} {'R@1':>6} {'R@5':>6} {'R@10':>6} {'MdR':>6} {'geo. mean':>9}")
    rows = {"linear CCA": [cca(corpus)]}
    show("linear CCA", rows["linear CCA"])
    for name, recipe in RECIPES.items():
        found = [figures_of(corpus, recipe, seed, epochs) for seed in range(seeds)]
        rows[name] = [figures["all experts"] for figures in found]
        show(name, rows[name])
        if recipe is OURS:
            for part in [part for part in found[0] if part.startswith("only")]:
                rows[f"its {part}"] = [figures[part] for figures in found]
                show(f"  {part}", rows[f"its {part}"])
    return {name: mean(found) for name, found in rows.items()}


def mean(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([figures[key] for figures in found])) for key in FIGURES}


def show(name: str, found: list[dict[str, float]]) -> None:
    figures = mean(found)
    print(f"{name:38} " + " ".join(f"{figures[key]:6.1f}" for key in FIGURES[:-1])
          + f" {figures['geometric_mean']:9.1f}", flush=True)  # fmt: skip


def figures_of(corpus: Corpus, recipe: Recipe, seed: int, epochs: int | None) -> dict[str, dict[str, float]]:
    """Train, and evaluate with all experts and with each alone."""
    data = corpus(*recipe.splits)
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(recipe.training, folder=folder, seed=seed, epochs=epochs or recipe.training.epochs)
        result = train(recipe.config(data), settings, data)
        found = ablate(CollaborativeExperts(weights_path=result.weights_path, device="cpu"), corpus("test"))
    return {name: evaluation.to_dict()["text_to_video"] for name, evaluation in found.items()}


def cca(corpus: Corpus) -> dict[str, float]:
    """Canonical correlations of standardised features with mean words; size and ridge chosen on held-out videos."""
    data = corpus("train", "extra")
    held_out = np.random.default_rng(0).permutation(len(data))
    fifth = len(data) // 5
    part, validation = data[np.sort(held_out[fifth:])], data[np.sort(held_out[:fifth])]
    choices = [(size, ridge) for size in CCA_SIZES for ridge in CCA_RIDGES]
    best = max(choices, key=lambda choice: cca_figures(part, validation, *choice)["geometric_mean"])
    return cca_figures(data, corpus("test"), *best)


def cca_figures(data: CaptionedVideos, test: CaptionedVideos, size: int, ridge: float) -> dict[str, float]:
    experts = data.features.experts
    center = {name: np.nanmean(x, axis=0) for name, x in experts.items()}
    scale = {name: np.nanstd(x, axis=0) + 1e-6 for name, x in experts.items()}

    def video(part: CaptionedVideos) -> np.ndarray:
        x = part.features.experts
        return np.nan_to_num(np.hstack([(x[name] - center[name]) / scale[name] for name in experts]))

    def words(part: CaptionedVideos) -> np.ndarray:
        tokens = np.asarray(part.tokens, dtype=np.float32)
        return tokens.sum(1) / (tokens != 0).any(2).sum(1, keepdims=True)

    x, y = video(data)[data.targets], words(data)
    middle = y.mean(0)
    y = y - middle
    white_x, white_y = whitening(x, ridge), whitening(y, ridge)
    left, strengths, right = np.linalg.svd(white_x.T @ (x.T @ y / len(x)) @ white_y, full_matrices=False)
    a = video(test) @ white_x @ (left[:, :size] * strengths[:size])
    b = (words(test) - middle) @ white_y @ (right[:size].T * strengths[:size])
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (b, a)]
    return evaluate_scores(unit[0] @ unit[1].T, test.targets).to_dict()["text_to_video"]


def whitening(z: np.ndarray, ridge: float) -> np.ndarray:
    """W such that z @ W has the covariance 1, but for a ridge relative to the mean variance."""
    covariance = z.T @ z / len(z)
    covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return np.linalg.cholesky(np.linalg.inv(covariance))


# --- cost ---------------------------------------------------------------------------------------------------


def cost(corpus: Corpus, epochs: int) -> dict[str, dict[str, float]]:
    """Seconds of an epoch and peak memory, each in a process of its own."""
    corpus("train", "extra")  # words are embedded before anything is measured
    print(f"\n{'an epoch of 998 videos':38} {'CENet s':>8} {'ours s':>8} {'ratio':>6} {'CENet MB':>9} {'ours MB':>8}")
    found = {}
    for name, recipe in (("the paper's recipe", PAPERS), ("this operator's defaults", OURS)):
        arguments = corpus.folder, corpus.cache, recipe, epochs
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            theirs, ours = (pool.apply(work, arguments) for work in (cenet_cost, our_cost))
        found[name] = {"cenet": theirs, "ours": ours}
        print(f"{name:38} {theirs['seconds']:8.2f} {ours['seconds']:8.2f} {theirs['seconds'] / ours['seconds']:5.1f}x "
              f"{theirs['peak'] / 1e6:9.0f} {ours['peak'] / 1e6:8.0f}", flush=True)  # fmt: skip
    return found


def our_cost(folder: Path, cache: Path, recipe: Recipe, epochs: int) -> dict[str, float]:
    data = Corpus(folder, cache)("train", "extra")
    start = resident("VmRSS")
    with tempfile.TemporaryDirectory() as run:
        result = train(recipe.config(data), replace(recipe.training, folder=run, epochs=epochs), data)
    return {"seconds": median(row["seconds"] for row in result.history), "peak": resident("VmHWM") - start}


def cenet_cost(folder: Path, cache: Path, recipe: Recipe, epochs: int) -> dict[str, float]:
    """A plain loop: the same batches and loss, CENet as it is, Adam."""
    data = Corpus(folder, cache)("train", "extra")
    start = resident("VmRSS")
    config = replace(recipe.config(data), standardise=False)
    videos = VideoTensors(data, config, "data")
    statistics = videos.statistics(config)
    for name, x in videos.features.items():
        x.sub_(statistics[f"standardise.{name}.mean"]).div_(statistics[f"standardise.{name}.std"])
    model = CENet(**copy.deepcopy(towhee_dict(config))).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.training.learning_rate)
    rng, seconds, size = np.random.default_rng(0), [], recipe.training.batch_size
    for _ in range(epochs):
        begin, order = time.perf_counter(), rng.permutation(len(data))
        for start_row in range(0, len(data) - size + 1, size):
            rows = order[start_row : start_row + size]
            features, available, tokens = videos.batch(rows, videos.one_caption_each(rows, rng))
            ind = {name: available[:, m].float() for m, name in enumerate(config.expert_names)}
            experts = {name: x.masked_fill(ind[name][:, None] == 0, torch.nan) for name, x in features.items()}
            loss = max_margin(model(experts, ind, tokens[:, None])["cross_view_conf_matrix"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - begin)
    return {"seconds": median(seconds), "peak": resident("VmHWM") - start}


def median(seconds: Any) -> float:
    """Without the first epoch, the warm-up."""
    return float(np.median(list(seconds)[1:]))


if __name__ == "__main__":
    main()
