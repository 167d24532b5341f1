"""A linear model in closed form, which a refit joins to the models that it trains (`members`).

On few videos a ridge regression from an expert's features to the mean of a video's captions finds what networks miss,
and the mean of both models' scores is better than either. The sentences are whitened in part beforehand, which leads
from a ridge regression towards a CCA. How far, how strong the ridge is, and how much the linear model counts, is
chosen by the validation videos, which may leave it out. They also choose how far the text decides the experts' weights:
where experts say the same, each with noise of its own, what members learned of them is noise, too.

It has the form of a member: one layer a side, and gates that are 1/2 for everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..base.config import CEConfig
from ..base.slices import slices
from ..base.threads import in_order
from ..model.cenet import CEModel, meta_model, model_of
from .data import VideoTensors
from .members import EXPERT_WEIGHTS, Linear, can_join, join
from .validation import evaluate_model

WHITENINGS, RIDGES = (0.0, 0.25, 0.5), (3.0, 10.0, 30.0)
"""What is chosen from: the power of sentences' inverse covariance, and the ridge relative to the mean variance."""

COUNTS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""How much the linear model counts beside the others together; 0 leaves it out."""

SHARPNESSES = (0.5, 0.0)
"""What the logits of the experts' weights may be multiplied by, besides 1; 0 weighs all alike."""

TEXT_RIDGE = 0.3
"""Added to the covariance of sentences before it is inverted, relative to the mean variance."""

MOST_DIM = 4096
"""With an expert of more features there is no linear model: its time grows with the third power."""

ROWS_AT_ONCE = 256

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class LinearChoice:
    """What validation chose; see the module's constants."""

    whitening: float
    ridge: float
    count: float
    sharpness: float = 1.0


@dataclass(frozen=True)
class _Expert:
    """Of the videos that have an expert: the features' mean (dim,), their covariance (dim, dim) and their
    cross-covariance (dim, text_dim) with the mean of a video's captions."""

    mean: Tensor
    covariance: Tensor
    cross: Tensor


class Moments:
    """Means and covariances of pooled features and sentences in float64, all that the closed forms take.

    Args:
        model: whose standardisation and pooling are used; both follow from the data alone where models can be joined.
    """

    @torch.no_grad()
    def __init__(self, model: CEModel, data: VideoTensors) -> None:
        dim, size = model.config.text.dim, len(data)
        total, square = _zeros(dim), _zeros(dim, dim)
        targets, captions = _zeros(size, dim), torch.from_numpy(data.targets)
        for rows in slices(len(captions), ROWS_AT_ONCE):
            x = model.text_pooling(torch.from_numpy(np.asarray(data.tokens[rows], dtype=np.float32))).double()
            total, square = total + x.sum(0), square + x.T @ x
            targets.index_add_(0, captions[rows], x)
        self.text_mean = total / len(captions)
        self.text_covariance = square / len(captions) - self.text_mean.outer(self.text_mean)
        targets = targets / captions.bincount(minlength=size)[:, None] - self.text_mean
        self.experts = [self._expert(model, data, m, targets) for m in range(len(model.config.experts))]
        self._regressions: dict[float, list[Tensor]] = {}

    @cached_property
    def text_directions(self) -> tuple[Tensor, Tensor]:
        """Principal directions of sentences, as columns, and their strengths before them, ascending."""
        strengths, basis = torch.linalg.eigh(_with_ridge(self.text_covariance, TEXT_RIDGE))
        return strengths, basis

    def regressions(self, ridge: float) -> list[Tensor]:
        """Of each expert (dim, text_dim), the ridge regression to the mean of a video's captions."""
        if ridge not in self._regressions:
            solve = torch.linalg.solve
            self._regressions[ridge] = [solve(_with_ridge(x.covariance, ridge), x.cross) for x in self.experts]
        return self._regressions[ridge]

    def solve(self) -> None:
        """Make what all choices share beforehand, with all cores: threads would each make it anew."""
        for ridge in RIDGES:
            self.regressions(ridge)
        _ = self.text_directions

    def _expert(self, model: CEModel, data: VideoTensors, m: int, targets: Tensor) -> _Expert:
        expert = model.config.experts[m]
        there = data.available[:, m].nonzero().flatten()
        dim = expert.pooled_dim
        total, square = _zeros(dim), _zeros(dim, dim)
        cross = _zeros(dim, targets.shape[1])
        for rows in there.split(ROWS_AT_ONCE):
            x = data.features[expert.name][rows]
            if model.config.standardise:
                x = model.standardise._modules[expert.name](x)
            x = (model.pooling._modules[expert.name](x) if expert.variable else x).double()
            total, square, cross = total + x.sum(0), square + x.T @ x, cross + x.T @ targets[rows]
        mean = total / len(there)
        cross = cross / len(there) - mean.outer(targets[there].mean(0))
        return _Expert(mean, square / len(there) - mean.outer(mean), cross)


def can_be_linear(config: CEConfig) -> bool:
    return can_join(config) and max(expert.pooled_dim for expert in config.experts) <= MOST_DIM


def choose_linear(
    moments: Moments, weights: Mapping[str, Tensor], config: CEConfig, validation: VideoTensors
) -> tuple[LinearChoice, dict[float, float]]:
    """The choice that is best, text to video, on the validation videos, and the geometric mean there for each count.

    Args:
        moments: of the videos that are trained on.
        weights: of a model that was trained on them, for which `can_join` is true.
    """

    def score(model: tuple[Mapping[str, Tensor], CEConfig]) -> float:
        return evaluate_model(model_of(*model), validation).text_to_video.geometric_mean

    def alone(choice: tuple[float, float]) -> tuple[Mapping[str, Tensor], CEConfig]:
        linear = fit_linear(moments, [weights], config, LinearChoice(*choice, 1.0))
        return {**weights, **linear.state}, replace(config, shared_dim=linear.dim)

    def joined(choice: LinearChoice) -> tuple[Mapping[str, Tensor], CEConfig]:
        return join_linear(moments, [weights], config, choice)

    moments.solve()
    fits = _scored(list(product(WHITENINGS, RIDGES)), lambda fit: score(alone(fit)))
    whitening, ridge = max(fits, key=fits.__getitem__)
    counts = _scored(COUNTS, lambda count: score(joined(LinearChoice(whitening, ridge, count))))
    sharp = LinearChoice(whitening, ridge, max(counts, key=counts.__getitem__))
    softer = _scored([replace(sharp, sharpness=x) for x in SHARPNESSES], lambda choice: score(joined(choice)))
    scores = {sharp: counts[sharp.count]} | softer
    return max(scores, key=scores.__getitem__), counts


def _scored(choices: Sequence[Choice], score: Callable[[Choice], float]) -> dict[Choice, float]:
    return dict(zip(choices, in_order(score, choices), strict=True))


def join_linear(
    moments: Moments, members: list[Mapping[str, Tensor]], config: CEConfig, choice: LinearChoice
) -> tuple[dict[str, Tensor], CEConfig]:
    """Weights and config of the model that joins the members and the linear model, where it counts."""
    linear = fit_linear(moments, members, config, choice) if choice.count else None
    joined, config = join(members, config, linear)
    if choice.sharpness != 1:
        joined |= {name: choice.sharpness * x for name, x in joined.items() if name.startswith(EXPERT_WEIGHTS)}
    return joined, config


def fit_linear(moments: Moments, members: list[Mapping[str, Tensor]], config: CEConfig, choice: LinearChoice) -> Linear:
    """The linear model, with vectors so long beside those of the members as it counts."""
    covariance = moments.text_covariance
    length = math.sqrt(choice.count * len(members))
    strengths, basis = moments.text_directions
    dim = min(config.shared_dim, len(strengths))
    strengths, basis = strengths[-dim:], basis[:, -dim:]  # ascending: the directions that vary most
    text = basis * strengths**-choice.whitening  # (text_dim, dim)
    shapes = meta_model(replace(config, shared_dim=dim)).state_dict()
    state = {name: _zeros(*x.shape).float() for name, x in shapes.items() if name.startswith("ce.")}
    for name, x in state.items():
        if name.endswith((".batch_norm.weight", ".batch_norm.running_var")):
            x.fill_(1)
    for m, (expert, regression) in enumerate(zip(moments.experts, moments.regressions(choice.ridge), strict=True)):
        video = regression @ text
        sides = {
            f"ce.text_GU.{m}.fc": (text, moments.text_mean, covariance),
            f"ce.video_dim_reduce.{m}.fc": (video, expert.mean, expert.covariance),
        }
        for name, (layer, mean, spread) in sides.items():
            theirs = sum(_square_length(member, name, mean, spread) for member in members) / len(members)
            own = ((spread @ layer) * layer).sum().clamp_min(torch.finfo(torch.float32).tiny)
            scaled = layer.T * length * (theirs / own).sqrt()
            state[f"{name}.weight"], state[f"{name}.bias"] = scaled.float(), -(scaled @ mean).float()
    return Linear(state, dim, length)


def _zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64, device="cpu")


def _with_ridge(covariance: Tensor, ridge: float) -> Tensor:
    variance = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return covariance + ridge * variance * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def _square_length(weights: Mapping[str, Tensor], name: str, mean: Tensor, covariance: Tensor) -> Tensor:
    """The mean square of the length of what a layer makes of vectors with this mean and covariance."""
    layer, bias = weights[f"{name}.weight"].cpu().double(), weights[f"{name}.bias"].cpu().double()
    return ((layer @ covariance) * layer).sum() + (layer @ mean + bias).square().sum()
