"""Losses over the scores of a batch of videos with one caption each.

`max_margin` is the paper's bidirectional ranking loss (section 3.4, eq. 7). `info_nce` is the symmetric cross-entropy
of contrastive learning, which the paper does not use. Missing experts are left out of a score, as at inference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 0.09381161988446174
"""The authors' margin for MSR-VTT (their `configs/msrvtt/train-full-ce.json`)."""


def max_margin(scores: Tensor, margin: float = MARGIN) -> Tensor:
    """The bidirectional max-margin ranking loss (paper, eq. 7).

    Args:
        scores: (B, B), row t and column v. Text i belongs to video i.

    Returns:
        The mean over all pairs off the diagonal, in both directions.
    """
    matching = scores.diagonal()
    violations = F.relu(margin + scores - matching[:, None]) + F.relu(margin + scores - matching[None, :])
    mismatched = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return violations[mismatched].mean() / 2


def info_nce(scores: Tensor, temperature: Tensor | float) -> Tensor:
    """The symmetric cross-entropy of a text's video and a video's text among the batch.

    Args:
        scores: (B, B), as for `max_margin`.
    """
    logits = scores / temperature
    matching = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(logits, matching) + F.cross_entropy(logits.T, matching)) / 2


def distillation(scores: Tensor, teacher: Tensor, temperature: Tensor | float) -> Tensor:
    """The smooth L1 distance of scores (B, B) from a teacher's, both over the temperature (`teachers`)."""
    return F.smooth_l1_loss(scores / temperature, teacher / temperature)


LOSSES = {"infonce": info_nce, "max_margin": max_margin}


def batch_scores(text: Tensor, weights: Tensor, video: Tensor, available: Tensor) -> Tensor:
    """CE's score (T, B) of every text with every video, differentiable.

    Args:
        text: (T, M, D) embeddings.
        weights: (T, M), each text's weights of the experts.
        video: (B, M, D) embeddings.
        available: (B, M) bool, the videos' experts.
    """
    mask = available.to(video.dtype)
    weighted_sum = (text * weights.unsqueeze(2)).flatten(1) @ (video * mask.unsqueeze(2)).flatten(1).T
    total_weight = weights @ mask.T
    return weighted_sum / total_weight.masked_fill(total_weight == 0, 1)
