"""Figures of a model on a validation set, and their form as columns of `metrics.csv`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields

import numpy as np
import torch

from ..base.slices import slices
from ..model.cenet import CEModel
from ..retrieval.embeddings import TextEmbeddings, VideoEmbeddings
from ..retrieval.evaluation import Evaluation, RetrievalMetrics, evaluate
from .data import VideoTensors

ROWS_AT_ONCE = 256
VIDEO_TO_TEXT = "video_to_text_"
"""Prefix of the columns of that direction. Those of text to video have none."""


def evaluate_model(model: CEModel, data: VideoTensors) -> Evaluation:
    """Figures of all videos and captions of a set, in evaluation mode."""
    model.eval()
    text, video = _embed(model, data)
    return evaluate(text, video, data.targets)


def to_columns(evaluation: Evaluation) -> dict[str, float]:
    """{"video_to_text_r1": ..., "r1": ...}"""
    video_to_text = {VIDEO_TO_TEXT + name: x for name, x in asdict(evaluation.video_to_text).items()}
    return video_to_text | asdict(evaluation.text_to_video)


def from_columns(row: Mapping[str, float]) -> Evaluation:
    """The evaluation that `to_columns` wrote into a row."""
    names = [field.name for field in fields(RetrievalMetrics)]
    return Evaluation(
        text_to_video=RetrievalMetrics(**{name: row[name] for name in names}),
        video_to_text=RetrievalMetrics(**{name: row[VIDEO_TO_TEXT + name] for name in names}),
    )


@torch.no_grad()
def _embed(model: CEModel, data: VideoTensors) -> tuple[TextEmbeddings, VideoEmbeddings]:
    names, device = model.config.expert_names, next(model.parameters()).device
    videos = [
        model.encode_video(
            {name: data.features[name][rows].to(device) for name in names}, data.available[rows].to(device)
        )
        for rows in slices(len(data), ROWS_AT_ONCE)
    ]
    texts = [
        model.encode_text(torch.from_numpy(np.asarray(data.tokens[rows], dtype=np.float32)).to(device))
        for rows in slices(len(data.tokens), ROWS_AT_ONCE)
    ]
    text = TextEmbeddings(
        {name: torch.cat([embds[name] for embds, _ in texts]) for name in names},
        torch.cat([weights for _, weights in texts]),
    )
    return text, VideoEmbeddings({name: torch.cat([embds[name] for embds in videos]) for name in names}, data.available)
