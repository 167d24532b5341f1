"""Plain models that training is measured against: a linear CCA, a ridge regression, a two-layer MLP.

Each takes the standardised features of all experts side by side, zeros where one is missing and token sequences as
their mean, and the mean of a sentence's token embeddings. Each chooses its own settings, or the number of its steps,
on a fifth of the training videos, and is then fitted to all of them. Each returns scores (T, B) of the test set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collaborative_experts import CaptionedVideos
from collaborative_experts.retrieval.evaluation import evaluate_scores

Matrices = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Features (B, dim), mean words (T, dim) and targets (T,)."""

CCA_SIZES, CCA_RIDGES = (32, 64, 128), (0.1, 1.0)
RIDGES = (0.1, 1.0, 3.0, 10.0, 30.0)
WIDTH, DIM, DROPOUT, TEMPERATURE, LEARNING_RATE, WEIGHT_DECAY = 512, 256, 0.3, 0.07, 1e-3, 1e-2
BATCH, MOST_STEPS, STEPS_BETWEEN = 256, 400, 20


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of every feature of a training set."""

    mean: dict[str, np.ndarray]
    deviation: dict[str, np.ndarray]

    @classmethod
    def of(cls, data: CaptionedVideos) -> Scaling:
        rows = {name: np.vstack([np.atleast_2d(x) for x in there(data, name)]) for name in data.features.experts}
        return cls({name: x.mean(0) for name, x in rows.items()}, {name: x.std(0) + 1e-6 for name, x in rows.items()})

    def matrices(self, data: CaptionedVideos) -> Matrices:
        columns = []
        for name, ind in data.features.ind.items():
            column = np.zeros((len(data), len(self.mean[name])))
            pooled = [np.atleast_2d(x).mean(0) for x in there(data, name)]
            column[np.asarray(ind, dtype=bool)] = (np.stack(pooled) - self.mean[name]) / self.deviation[name]
            columns.append(column)
        tokens = np.asarray(data.tokens, dtype=np.float32)
        words = tokens.sum(1) / (tokens != 0).any(2).sum(1, keepdims=True)
        return np.hstack(columns), words.astype(np.float64), data.targets


def there(data: CaptionedVideos, name: str) -> list[np.ndarray]:
    """The features of an expert where it is not missing: vectors, or sequences."""
    x, ind = data.features.experts[name], data.features.ind[name]
    return [np.asarray(row, dtype=np.float64) for row, flag in zip(x, ind, strict=True) if flag]


def geometric_mean(scores: np.ndarray, targets: np.ndarray) -> float:
    return evaluate_scores(scores.astype(np.float32), targets).text_to_video.geometric_mean


def choose(fit: Callable[..., np.ndarray], choices: list[Any], data: CaptionedVideos, test: CaptionedVideos) -> Any:
    """Scores of the test set by the choice that was best on held-out training videos."""
    order = np.random.default_rng(0).permutation(len(data))
    part, held_out = data[np.sort(order[len(data) // 5 :])], data[np.sort(order[: len(data) // 5])]
    scaling = Scaling.of(part)
    inside, outside = scaling.matrices(part), scaling.matrices(held_out)
    best = max(choices, key=lambda choice: geometric_mean(fit(inside, outside, choice), held_out.targets))
    scaling = Scaling.of(data)
    return fit(scaling.matrices(data), scaling.matrices(test), best)


def unit(x: np.ndarray) -> np.ndarray:
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-9)


# --- CCA and ridge regression ---------------------------------------------------------------------------------


def cca(data: CaptionedVideos, test: CaptionedVideos) -> np.ndarray:
    """Canonical correlations; their number and the ridge are chosen."""
    return choose(cca_scores, list(product(CCA_SIZES, CCA_RIDGES)), data, test)


def cca_scores(data: Matrices, test: Matrices, choice: tuple[int, float]) -> np.ndarray:
    size, ridge = choice
    x, middle = data[0][data[2]], data[1].mean(0)
    y = data[1] - middle
    white_x, white_y = whitening(x, ridge), whitening(y, ridge)
    left, strengths, right = np.linalg.svd(white_x.T @ (x.T @ y / len(x)) @ white_y, full_matrices=False)
    video = test[0] @ white_x @ (left[:, :size] * strengths[:size])
    text = (test[1] - middle) @ white_y @ (right[:size].T * strengths[:size])
    return unit(text) @ unit(video).T


def whitening(z: np.ndarray, ridge: float) -> np.ndarray:
    """W such that z @ W has the covariance 1, but for a ridge relative to the mean variance."""
    covariance = z.T @ z / len(z)
    covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return np.linalg.cholesky(np.linalg.inv(covariance))


def ridge(data: CaptionedVideos, test: CaptionedVideos) -> np.ndarray:
    """A regression from features to the mean of a video's captions; the ridge is chosen."""
    return choose(ridge_scores, list(RIDGES), data, test)


def ridge_scores(data: Matrices, test: Matrices, strength: float) -> np.ndarray:
    x, middle = data[0], data[1].mean(0)
    y = np.zeros((len(x), data[1].shape[1]))
    np.add.at(y, data[2], data[1] - middle)
    y /= np.bincount(data[2], minlength=len(x))[:, None]
    covariance = x.T @ x
    covariance += strength * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return unit(test[1] - middle) @ unit(test[0] @ np.linalg.solve(covariance, x.T @ y)).T


# --- MLP ------------------------------------------------------------------------------------------------------


def mlp(data: CaptionedVideos, test: CaptionedVideos) -> np.ndarray:
    """Two layers a side and InfoNCE; the number of steps is chosen."""
    order = np.random.default_rng(0).permutation(len(data))
    part, held_out = data[np.sort(order[len(data) // 5 :])], data[np.sort(order[: len(data) // 5])]
    scaling = Scaling.of(part)
    curve = mlp_scores(scaling.matrices(part), scaling.matrices(held_out), MOST_STEPS)
    best = max(curve, key=lambda steps: geometric_mean(curve[steps], held_out.targets))
    scaling = Scaling.of(data)
    return mlp_scores(scaling.matrices(data), scaling.matrices(test), best)[best]


def mlp_scores(data: Matrices, test: Matrices, steps: int) -> dict[int, np.ndarray]:
    """Scores of the test set after every 20 steps."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    middle, spread = data[1].mean(0), data[1].std(0) + 1e-4
    words, test_words = (torch.from_numpy((one[1] - middle) / spread).float() for one in (data, test))
    x, test_x = (torch.from_numpy(one[0]).float() for one in (data, test))
    sides = nn.ModuleList([side(words.shape[1]), side(x.shape[1])])
    log_temperature = nn.Parameter(torch.tensor(math.log(TEMPERATURE)))
    optimizer = torch.optim.AdamW([*sides.parameters(), log_temperature], LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    captions_of = [np.flatnonzero(data[2] == row) for row in range(len(x))]
    found = {}
    for step in range(1, steps + 1):
        videos = rng.choice(len(x), min(BATCH, len(x)), replace=False)
        captions = [rng.choice(captions_of[row]) for row in videos]
        sides.train()
        logits = side_scores(sides, words[captions], x[videos]) / log_temperature.exp()
        matching = torch.arange(len(videos))
        loss = F.cross_entropy(logits, matching) + F.cross_entropy(logits.T, matching)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % STEPS_BETWEEN == 0:
            sides.eval()
            with torch.no_grad():
                found[step] = side_scores(sides, test_words, test_x).numpy()
    return found


def side(dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, WIDTH), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(WIDTH, DIM))


def side_scores(sides: nn.ModuleList, words: Tensor, x: Tensor) -> Tensor:
    return F.normalize(sides[0](words), dim=1) @ F.normalize(sides[1](x), dim=1).T


BASELINES = {"linear CCA": cca, "ridge regression": ridge, "two-layer MLP": mlp}
