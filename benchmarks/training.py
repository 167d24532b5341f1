"""What training reaches on real features, and what it costs beside a plain loop over CENet.

    python benchmarks/training.py FOLDER [--seeds 3] [--quick]
    python benchmarks/training.py FOLDER --choose [--demo DEMO] [--seeds 2]

FOLDER holds `experts.npz` and `captions.csv` with the splits train, extra (videos without motion) and test. Nothing
here chooses anything by the test videos. Figures are means over seeds, text to video. `--choose` prints the geometric
mean of R@1, R@5 and R@10 on the sets by which defaults are chosen (`choice_sets`) instead. Ends with one line of JSON.
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
from baselines import BASELINES, geometric_mean
from choice_sets import choice_sets
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
from collaborative_experts.apps.evaluate import WITH_BANK, ablate
from collaborative_experts.apps.run_file import MODEL, SEQUENCE, TEXT
from collaborative_experts.model.cenet import Standardise
from collaborative_experts.retrieval.evaluation import Evaluation, evaluate_scores
from collaborative_experts.training.bank import bank_beside
from collaborative_experts.training.data import VideoTensors
from collaborative_experts.training.loop import train
from collaborative_experts.training.losses import max_margin
from collaborative_experts.training.run_folder import BEST
from helpers import towhee_dict

FIGURES = ("r1", "r5", "r10", "median_rank", "geometric_mean")
HELD_OUT = 0.15
"""Share of the training videos by which the number of steps is found, as in a run file."""

COST_BATCH = 256
"""Where a recipe lets the data choose."""


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained."""

    model: Mapping[str, Any]
    text: Mapping[str, Any]
    training: TrainingConfig
    sequence: Mapping[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ("train", "extra")

    def config(self, data: CaptionedVideos) -> CEConfig:
        text = {"dim": data.tokens.shape[2], "max_tokens": data.tokens.shape[1], **self.text}
        sequences = {name: self.sequence for name, x in data.features.experts.items() if isinstance(x, list)}
        alone = {"use_ce": ""} if len(data.features.experts) == 1 else {}  # there is no other to collaborate with
        return config_for(data.features, text, sequences, standardise=True, **(dict(self.model) | alone))


OURS = Recipe(MODEL, TEXT, TrainingConfig(), SEQUENCE)
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
    parser.add_argument("--choose", action="store_true", help="figures of the sets by which defaults are chosen")
    parser.add_argument("--demo", type=Path, help="a folder of examples/train_demo.py, for --choose")
    options = parser.parse_args()
    seeds, epochs = (1, 2) if options.quick else (options.seeds, None)
    print(" ".join(f"{key}={value}" for key, value in machine().items()), flush=True)
    corpus = Corpus(options.folder)
    if options.choose:
        results = {"choices": choices(corpus, options.demo, seeds, epochs)}
    else:
        results = {"quality": quality(corpus, seeds, epochs), "cost": cost(corpus, epochs or 5)}
    print(json.dumps({"machine": machine()} | results))


@dataclass
class Corpus:
    """The data sets of a folder; words are embedded once, and kept in the user's cache."""

    folder: Path
    _sets: dict[tuple[str, ...], CaptionedVideos] = field(default_factory=dict)

    def __call__(self, *splits: str) -> CaptionedVideos:
        if splits not in self._sets:
            captions = read_captions(self.folder / "captions.csv", splits)
            features = read_features(self.folder / "experts.npz", captions.unique_ids())
            self._sets[splits] = caption_videos(features, captions, SentenceEncoder(), max_tokens=TEXT["max_tokens"])
        return self._sets[splits]


# --- quality ------------------------------------------------------------------------------------------------


def quality(corpus: Corpus, seeds: int, epochs: int | None) -> dict[str, dict[str, float]]:
    """Figures on the test videos."""
    print(f"\n{'text to video, 500 videos':38} {'R@1':>6} {'R@5':>6} {'R@10':>6} {'MdR':>6} {'geo. mean':>9}")
    data, test = corpus("train", "extra"), corpus("test")
    rows = {}
    for name, baseline in BASELINES.items():
        found = evaluate_scores(baseline(data, test).astype(np.float32), test.targets)
        rows[name] = [found.to_dict()["text_to_video"]]
        show(name, rows[name])
    for name, recipe in RECIPES.items():
        found = [figures_of(corpus, recipe, seed, epochs) for seed in range(seeds)]
        rows[name] = [figures["all experts"] for figures in found]
        show(name, rows[name])
        if recipe is OURS:
            for part in [part for part in found[0] if part.startswith(("only", WITH_BANK))]:
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
    """Figures on the test videos, text to video."""
    found = evaluations(recipe, corpus(*recipe.splits), corpus("test"), seed, epochs)
    return {name: evaluation.to_dict()["text_to_video"] for name, evaluation in found.items()}


def evaluations(
    recipe: Recipe, data: CaptionedVideos, test: CaptionedVideos, seed: int, epochs: int | None
) -> dict[str, Evaluation]:
    """Train, and evaluate with all experts, with the query bank, and with each expert alone."""
    with tempfile.TemporaryDirectory() as folder:
        op = fit(recipe, data, folder, seed, epochs)
        return ablate(op, test, bank_beside(Path(folder) / BEST, op.identity))


def fit(recipe: Recipe, data: CaptionedVideos, folder: str, seed: int, epochs: int | None) -> CollaborativeExperts:
    """Train as the command `train` does."""
    settings = replace(recipe.training, folder=folder, seed=seed, epochs=epochs or recipe.training.epochs)
    order = np.random.default_rng(seed).permutation(len(data))
    held_out = round(HELD_OUT * len(data))
    part, validation = data[np.sort(order[held_out:])], data[np.sort(order[:held_out])]
    config = recipe.config(data)
    if settings.epochs:
        result = train(config, settings, data)
    else:
        result = train(config, settings, part, validation, refit_dataset=data)
    return CollaborativeExperts(weights_path=result.weights_path, device="cpu")


def choices(corpus: Corpus, demo: Path | None, seeds: int, epochs: int | None) -> dict[str, dict[str, list[float]]]:
    """The geometric mean of baselines and recipes on the sets by which defaults are chosen."""
    recipes = {"this operator's defaults": OURS, "the paper's recipe": PAPERS}
    found: dict[str, dict[str, list[float]]] = {}
    for fold in range(seeds):
        for name, data, test in choice_sets(corpus("train", "extra"), demo, fold):
            row = found.setdefault(name, {})
            for label, baseline in BASELINES.items():
                row.setdefault(label, []).append(geometric_mean(baseline(data, test), test.targets))
            for label, recipe in recipes.items():
                evaluated = evaluations(recipe, data, test, fold, epochs)
                for part, of in (("all experts", label), (WITH_BANK, f"{label}, with bank")):
                    row.setdefault(of, []).append(evaluated[part].text_to_video.geometric_mean)
            print(f"{name:14} " + "  ".join(f"{key} {np.mean(x):.1f}" for key, x in row.items()), flush=True)
    return found


# --- cost ---------------------------------------------------------------------------------------------------


def cost(corpus: Corpus, epochs: int) -> dict[str, dict[str, float]]:
    """Seconds of an epoch and peak memory, each in a process of its own."""
    corpus("train", "extra")  # words are embedded before anything is measured
    print(f"\n{'an epoch of 998 videos':38} {'CENet s':>8} {'ours s':>8} {'ratio':>6} {'CENet MB':>9} {'ours MB':>8}")
    found = {}
    for name, recipe in (("the paper's recipe", PAPERS), ("this operator's defaults", OURS)):
        arguments = corpus.folder, recipe, epochs
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            theirs, ours = (pool.apply(work, arguments) for work in (cenet_cost, our_cost))
        found[name] = {"cenet": theirs, "ours": ours}
        print(f"{name:38} {theirs['seconds']:8.2f} {ours['seconds']:8.2f} {theirs['seconds'] / ours['seconds']:5.1f}x "
              f"{theirs['peak'] / 1e6:9.0f} {ours['peak'] / 1e6:8.0f}", flush=True)  # fmt: skip
    return found


def our_cost(folder: Path, recipe: Recipe, epochs: int) -> dict[str, float]:
    data = Corpus(folder)("train", "extra")
    start = resident("VmRSS")
    with tempfile.TemporaryDirectory() as run:
        result = train(
            recipe.config(data),
            replace(recipe.training, folder=run, epochs=epochs, batch_size=recipe.training.batch_size or COST_BATCH),
            data,
        )
    return {"seconds": median(row["seconds"] for row in result.history), "peak": resident("VmHWM") - start}


def cenet_cost(folder: Path, recipe: Recipe, epochs: int) -> dict[str, float]:
    """A plain loop: the same batches and loss, CENet as it is, Adam."""
    data = Corpus(folder)("train", "extra")
    start = resident("VmRSS")
    config = replace(recipe.config(data), standardise=False)
    videos = VideoTensors(data, config, "data")
    statistics = videos.statistics(config)
    for expert in config.experts:
        layer = Standardise(expert)
        layer.load_state_dict({key: statistics[f"standardise.{expert.name}.{key}"] for key in ("mean", "std")})
        videos.features[expert.name] = layer(videos.features[expert.name])
    model = CENet(**copy.deepcopy(towhee_dict(config))).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.training.learning_rate)
    rng, seconds, size = np.random.default_rng(0), [], recipe.training.batch_size or COST_BATCH
    for _ in range(epochs):
        begin, order = time.perf_counter(), rng.permutation(len(data))
        for start_row in range(0, len(data), size):
            rows = order[np.arange(start_row, start_row + size) % len(order)]
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
