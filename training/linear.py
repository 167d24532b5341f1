"""A linear model in closed form, which a refit joins to the models that it trains (`members`).

On few videos a ridge regression from an expert's features to the mean of a video's captions finds what networks miss,
and the mean of both models' scores is better than either. The sentences are whitened in part beforehand, which leads
from a ridge regression towards a CCA. How far, how strong the ridge is, and how much the linear model counts, is
chosen by the validation videos, which may leave it out. They also choose how far the text decides the experts' weights:
where experts say the same, each with noise of its own, what members learned of them is noise, too.

A regression's prediction is the longer the more an expert says of a video. A mean of cosines, one an expert, does not
know it, which the sum of the predictions does. So a part of the linear model may be of such sums.

It has the form of a member: one layer a side, and gates that are 1/2 for everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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

SUMMED = (0.25,)
"""What part of the linear model may be of sums over experts, besides none."""

SUMMED_DIM = 128
"""The most numbers of that part. With all directions of sentences scores are much the same, and embeddings larger."""

TEXT_RIDGE = 0.3
"""Added to the covariance of sentences before it is inverted, relative to the mean variance."""

MOST_DIM = 4096
"""With an expert of more features there is no linear model: its time grows with the third power."""

ROWS_AT_ONCE = 256

TEXT_LAYER, VIDEO_LAYER = "ce.text_GU.{}.fc", "ce.video_dim_reduce.{}.fc"
"""The first layers of an expert's two sides."""

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class LinearChoice:
    """What validation chose; see the module's constants."""

    whitening: float
    ridge: float
    count: float
    sharpness: float = 1.0
    summed: float = 0.0


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
        self._model, self._data = model, data
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
        self.experts = [self._expert(m, targets) for m in range(len(model.config.experts))]
        self._regressions: dict[float, list[Tensor]] = {}
        self._sums: dict[float, Tensor] = {}

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

    @torch.no_grad()
    def sums(self, ridge: float) -> Tensor:
        """(text_dim, text_dim), the covariance of the sum of the predictions of a video's experts, where it has one."""
        if ridge not in self._sums:
            total = _zeros(len(self._data), len(self.text_mean))
            for m, (expert, regression) in enumerate(zip(self.experts, self.regressions(ridge), strict=True)):
                for rows, x in self._pooled(m):
                    total[rows] += (x - expert.mean) @ regression
            self._sums[ridge] = total.T @ total / self._data.available.any(1).sum()
        return self._sums[ridge]

    def solve(self) -> None:
        """Make what all choices share beforehand, with all cores: threads would each make it anew."""
        for ridge in RIDGES:
            self.regressions(ridge)
        _ = self.text_directions

    def _expert(self, m: int, targets: Tensor) -> _Expert:
        dim = self._model.config.experts[m].pooled_dim
        total, square = _zeros(dim), _zeros(dim, dim)
        cross = _zeros(dim, targets.shape[1])
        for rows, x in self._pooled(m):
            total, square, cross = total + x.sum(0), square + x.T @ x, cross + x.T @ targets[rows]
        there = self._data.available[:, m]
        size = there.sum()
        mean = total / size
        cross = cross / size - mean.outer(targets[there].mean(0))
        return _Expert(mean, square / size - mean.outer(mean), cross)

    def _pooled(self, m: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the videos that have an expert, and its pooled features (rows, dim) in float64."""
        model, expert = self._model, self._model.config.experts[m]
        for rows in self._data.available[:, m].nonzero().flatten().split(ROWS_AT_ONCE):
            x = self._data.features[expert.name][rows]
            if model.config.standardise:
                x = model.standardise._modules[expert.name](x)
            yield rows, (model.pooling._modules[expert.name](x) if expert.variable else x).double()


def can_be_linear(config: CEConfig) -> bool:
    return can_join(config) and max(expert.pooled_dim for expert in config.experts) <= MOST_DIM


def choose_linear(
    moments: Moments, weights: Mapping[str, Tensor], config: CEConfig, validation: VideoTensors
) -> tuple[LinearChoice, dict[str, float]]:
    """The choice that is best, text to video, on the validation videos.

    Returns:
        It, and the geometric mean on these videos: "without" is that of `weights` alone, "with" that of the choice.

    Args:
        moments: of the videos that are trained on.
        weights: of a model that was trained on them, for which `can_join` is true.
    """

    def score(model: tuple[Mapping[str, Tensor], CEConfig]) -> float:
        return evaluate_model(model_of(*model), validation).text_to_video.geometric_mean

    def alone(fit: tuple[float, float]) -> tuple[Mapping[str, Tensor], CEConfig]:
        [linear] = fit_linear(moments, [weights], config, LinearChoice(*fit, 1.0))
        return {**weights, **linear.state}, replace(config, shared_dim=linear.dim)

    moments.solve()
    fits = _scored(list(product(WHITENINGS, RIDGES)), lambda fit: score(alone(fit)))
    whitening, ridge = max(fits, key=fits.__getitem__)
    found: dict[LinearChoice, float] = {}

    def best_of(choices: Sequence[LinearChoice]) -> LinearChoice:
        new = [choice for choice in choices if choice not in found]
        found.update(_scored(new, lambda choice: score(join_linear(moments, [weights], config, choice))))
        return max(choices, key=found.__getitem__)

    choice = best_of([LinearChoice(whitening, ridge, count) for count in COUNTS])
    if len(config.experts) > 1:
        choice = best_of([choice, *(replace(choice, sharpness=x) for x in SHARPNESSES)])
        if choice.count:
            moments.sums(ridge)  # beforehand, with all cores
            choice = best_of([choice, *(replace(choice, summed=x) for x in SUMMED)])
    return choice, {"without": found[LinearChoice(whitening, ridge, 0.0)], "with": found[choice]}


def _scored(choices: Sequence[Choice], score: Callable[[Choice], float]) -> dict[Choice, float]:
    return dict(zip(choices, in_order(score, choices), strict=True))


def join_linear(
    moments: Moments, members: list[Mapping[str, Tensor]], config: CEConfig, choice: LinearChoice
) -> tuple[dict[str, Tensor], CEConfig]:
    """Weights and config of the model that joins the members and the linear model, where it counts."""
    joined, config = join(members, config, fit_linear(moments, members, config, choice) if choice.count else [])
    if choice.sharpness != 1:
        joined |= {name: choice.sharpness * x for name, x in joined.items() if name.startswith(EXPERT_WEIGHTS)}
    return joined, config


def fit_linear(
    moments: Moments, members: list[Mapping[str, Tensor]], config: CEConfig, choice: LinearChoice
) -> list[Linear]:
    """The linear model, with vectors so long beside those of the members as it counts. It has two parts where one is
    of sums over experts."""
    theirs = _Lengths.of(moments, members)
    parts = [(1 - choice.summed, False)] + ([(choice.summed, True)] if choice.summed else [])
    return [
        _fit_part(moments, theirs, config, choice, math.sqrt(share * choice.count * len(members)), summed)
        for share, summed in parts
    ]


@dataclass(frozen=True)
class _Lengths:
    """The members' mean square lengths of texts and of videos for each expert, before gates."""

    text: list[Tensor]
    video: list[Tensor]

    @classmethod
    def of(cls, moments: Moments, members: Sequence[Mapping[str, Tensor]]) -> _Lengths:
        text, video = [], []
        for m, expert in enumerate(moments.experts):
            name = TEXT_LAYER.format(m)
            text.append(_members_square_length(members, name, moments.text_mean, moments.text_covariance))
            video.append(_members_square_length(members, VIDEO_LAYER.format(m), expert.mean, expert.covariance))
        return cls(text, video)


def _fit_part(
    moments: Moments, theirs: _Lengths, config: CEConfig, choice: LinearChoice, length: float, summed: bool
) -> Linear:
    """A part whose vectors are `length` times as long as a member's."""
    strengths, basis = moments.text_directions
    dim = min(SUMMED_DIM if summed else config.shared_dim, len(strengths))
    strengths, basis = strengths[-dim:], basis[:, -dim:]  # ascending: the directions that vary most
    text = basis * strengths**-choice.whitening  # (text_dim, dim)
    videos = [regression @ text for regression in moments.regressions(choice.ridge)]
    if summed:  # one scale for all: it is by their lengths that experts differ in the sum
        scale = _scale(torch.stack(theirs.video).mean(), _square_length(text, moments.sums(choice.ridge)))
        scales = [scale] * len(videos)
    else:
        own = (_square_length(layer, x.covariance) for layer, x in zip(videos, moments.experts, strict=True))
        scales = [_scale(member, mine) for member, mine in zip(theirs.video, own, strict=True)]
    text_square_length = _square_length(text, moments.text_covariance)
    state = _without_gates(replace(config, shared_dim=dim))
    for m, (expert, video) in enumerate(zip(moments.experts, videos, strict=True)):
        text_scale = _scale(theirs.text[m], text_square_length)
        state |= _layer(TEXT_LAYER.format(m), length * text_scale * text, moments.text_mean)
        state |= _layer(VIDEO_LAYER.format(m), length * scales[m] * video, expert.mean)
    return Linear(state, dim, length, summed)


def _without_gates(config: CEConfig) -> dict[str, Tensor]:
    """A state whose gates are 1/2 for everything, and whose other layers are zeros."""
    shapes = meta_model(config).state_dict()
    state = {name: _zeros(*x.shape).float() for name, x in shapes.items() if name.startswith("ce.")}
    for name, x in state.items():
        if name.endswith((".batch_norm.weight", ".batch_norm.running_var")):
            x.fill_(1)
    return state


def _layer(name: str, layer: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Weight and bias of x -> (x - mean) @ layer."""
    return {f"{name}.weight": layer.T.float(), f"{name}.bias": -(mean @ layer).float()}


def _zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64, device="cpu")


def _with_ridge(covariance: Tensor, ridge: float) -> Tensor:
    variance = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return covariance + ridge * variance * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def _square_length(layer: Tensor, covariance: Tensor) -> Tensor:
    """The mean square length of x @ layer, where x has the mean 0 and this covariance."""
    return ((covariance @ layer) * layer).sum()


def _members_square_length(
    members: Sequence[Mapping[str, Tensor]], name: str, mean: Tensor, covariance: Tensor
) -> Tensor:
    """The mean square length, over members too, of what their layer of that name makes of x."""
    lengths = []
    for weights in members:
        layer, bias = weights[f"{name}.weight"].cpu().double().T, weights[f"{name}.bias"].cpu().double()
        lengths.append(_square_length(layer, covariance) + (mean @ layer + bias).square().sum())
    return torch.stack(lengths).mean()


def _scale(theirs: Tensor, own: Tensor) -> Tensor:
    """What makes vectors of the mean square length `own` as long as `theirs`."""
    return (theirs / own.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
