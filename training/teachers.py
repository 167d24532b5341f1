"""Teachers of a student: models with other sentence encoders, whose mean scores it learns besides the captions.

TeachText (Croitoru et al., ICCV 2021): the student's scores of a batch are drawn to the mean of the teachers' by a
smooth L1 distance (section 3.2), so that it costs no more than one model when it is used. The same section leaves out
captions that teachers rank worst. The distance is taken between scores over the temperature, as InfoNCE's logits are;
the paper's loss takes plain scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..model.cenet import model_of
from ..model.checkpoint import read_config, read_weights
from ..retrieval.arrays import as_numpy
from ..retrieval.similarity import similarity
from .data import CaptionedVideos, VideoTensors
from .validation import embed_texts, embed_videos


def teacher_scores(teachers: Iterable[tuple[Path, CaptionedVideos]]) -> np.ndarray:
    """(T, B) float32, the mean scores of all captions with all videos.

    Args:
        teachers: weights that `train` wrote, and the same videos and captions with the words of their encoder.
    """
    scores = [_scores(weights, dataset) for weights, dataset in teachers]
    return np.mean(scores, axis=0, dtype=np.float32)


def _scores(weights: Path, dataset: CaptionedVideos) -> np.ndarray:
    config = read_config(weights)
    if config is None:
        raise ValueError(f"{weights}: expected weights that training wrote, with their config")
    model = model_of(dict(read_weights(weights)), config)
    videos = VideoTensors(dataset, config, "teacher")
    text = embed_texts(model, videos, np.arange(len(dataset.tokens)))
    return as_numpy(similarity(text, embed_videos(model, videos, np.arange(len(videos)))))


def drop_captions(dataset: CaptionedVideos, share: float) -> CaptionedVideos:
    """The data set without the share of captions for which its teachers rank the right video worst.

    Among equal ranks those with the lower score are worse. Each video keeps its best caption.

    Args:
        share: from 0 to below 1.

    Raises:
        ValueError: the data set has no scores of teachers.
    """
    if dataset.teacher is None:
        raise ValueError("drop_captions: expected scores of teachers, got none")
    own = dataset.teacher[np.arange(len(dataset.targets)), dataset.targets]
    rank = (dataset.teacher > own[:, None]).sum(1)
    best_first = np.lexsort((-own, rank))
    _, best = np.unique(dataset.targets[best_first], return_index=True)
    droppable = np.delete(best_first, best)
    kept = np.setdiff1d(best_first, droppable[max(0, len(droppable) - round(share * len(own))) :])
    return replace(dataset, targets=dataset.targets[kept], tokens=dataset.tokens[kept], teacher=dataset.teacher[kept])
