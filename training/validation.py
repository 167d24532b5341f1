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
MOST_CAPTIONS = 1000
"""Captions that are evaluated. Of more, as many are taken evenly."""

VIDEO_TO_TEXT = "video_to_text_"
"""Prefix of the columns of that direction. Those of text to video have none."""


def evaluate_model(model: CEModel, data: VideoTensors) -> Evaluation:
    """Figures of a set's videos and captions, in evaluation mode; of more than 1,000 captions, of so many."""
    model.eval()
    captions = some_captions(data, MOST_CAPTIONS)
    video = embed_videos(model, data, np.arange(len(data)))
    return evaluate(embed_texts(model, data, captions), video, data.targets[captions])


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


def some_captions(data: VideoTensors, most: int) -> np.ndarray:
    """The rows of all captions, or of as many as these, taken evenly."""
    count = len(data.tokens)
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).round().astype(np.int64)


@torch.no_grad()
def embed_videos(model: CEModel, data: VideoTensors, videos: np.ndarray) -> VideoEmbeddings:
    """Embeddings of the videos in these rows."""
    names, device = model.config.expert_names, next(model.parameters()).device
    rows = torch.from_numpy(videos)
    parts = [
        model.encode_video(
            {name: data.features[name][part].to(device) for name in names}, data.available[part].to(device)
        )
        for part in rows.split(ROWS_AT_ONCE)
    ]
    return VideoEmbeddings({name: torch.cat([embds[name] for embds in parts]) for name in names}, data.available[rows])


@torch.no_grad()
def embed_texts(model: CEModel, data: VideoTensors, captions: np.ndarray) -> TextEmbeddings:
    """Embeddings of the captions in these rows."""
    device = next(model.parameters()).device
    parts = [
        model.encode_text(torch.from_numpy(np.asarray(data.tokens[captions[rows]], dtype=np.float32)).to(device))
        for rows in slices(len(captions), ROWS_AT_ONCE)
    ]
    embds = {name: torch.cat([embds[name] for embds, _ in parts]) for name in model.config.expert_names}
    return TextEmbeddings(embds, torch.cat([weights for _, weights in parts]))
