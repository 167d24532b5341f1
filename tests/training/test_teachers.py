"""Scores of teachers, and what a student makes of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import collaborative_experts as package
from collaborative_experts.training.losses import distillation
from collaborative_experts.training.teachers import drop_captions, teacher_scores
from helpers import QUICK, captioned, untrained


def test_scores_are_the_mean_of_the_teachers(tmp_path):
    data = captioned(12)
    weights, scores = [], []
    for seed in range(2):
        op = untrained()
        result = op.train(QUICK, data, folder=str(tmp_path / f"{seed}"), seed=seed, epochs=1)
        text = op.encode_text(np.asarray(data.tokens, dtype=np.float32))
        scores.append(package.similarity(text, op.encode_video(data.features.experts, data.features.ind)))
        weights.append(result.weights_path)
    found = teacher_scores([(path, data) for path in weights])
    np.testing.assert_allclose(found, np.mean(scores, axis=0), atol=1e-5)
    assert np.abs(found - scores[0]).max() > 1e-3


def test_the_worst_captions_are_left_out_but_each_video_keeps_one():
    data = captioned(10)
    rng = np.random.default_rng(0)
    taught = replace(data, teacher=rng.standard_normal((len(data.tokens), len(data))).astype(np.float32))
    left = drop_captions(taught, 0.25)
    order = []
    for t, target in enumerate(data.targets):
        own = taught.teacher[t, target]
        order.append((sum(score > own for score in taught.teacher[t]), -own, t))
    dropped, kept = [], set(range(len(order)))
    for _, _, t in sorted(order, reverse=True):
        others = [s for s in kept if data.targets[s] == data.targets[t] and s != t]
        if len(dropped) < round(0.25 * len(order)) and others:
            dropped.append(t)
            kept.discard(t)
    np.testing.assert_array_equal(left.tokens, data.tokens[sorted(kept)])
    np.testing.assert_array_equal(left.teacher, taught.teacher[sorted(kept)])
    assert len(drop_captions(taught, 0.99).tokens) == len(data)
    assert len(drop_captions(taught, 0.0).tokens) == len(data.tokens)
    with pytest.raises(ValueError, match="drop_captions: expected scores of teachers"):
        drop_captions(data, 0.1)


def test_distance_of_scores_is_smooth_l1():
    scores, teacher = torch.tensor([[0.1, 0.5], [0.0, -0.2]]), torch.tensor([[0.1, 0.45], [0.3, -0.2]])
    difference = np.array([0.0, 0.5, 3.0, 0.0])  # over the temperature
    expected = np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    assert float(distillation(scores, teacher, 0.1)) == pytest.approx(expected, rel=1e-5)


def test_scores_follow_their_videos_and_captions():
    data = captioned(10)
    teacher = np.arange(len(data.tokens) * 10, dtype=np.float32).reshape(-1, 10)
    part = replace(data, teacher=teacher)[[7, 2]]
    rows = np.flatnonzero(np.isin(data.targets, [7, 2]))
    np.testing.assert_array_equal(part.teacher, teacher[rows][:, [7, 2]])
    with pytest.raises(ValueError, match="expected teacher"):
        replace(data, teacher=teacher[:, :5])
