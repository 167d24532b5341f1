"""The report of an evaluation: captions of the test videos as queries, those that fared worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..base.slices import slices
from ..features.extract.clip_facts import ClipFacts, iter_clip_facts
from ..features.features import Files
from ..features.formats import LANCE
from ..hub.operator import CollaborativeExperts
from ..retrieval.arrays import as_numpy
from ..retrieval.embeddings import TextEmbeddings, VideoEmbeddings
from ..retrieval.evaluation import Evaluation
from ..retrieval.explain import explain
from ..retrieval.similarity import similarity
from ..training.captions import keep_videos_with_features, read_captions
from ..training.data import CaptionedVideos
from .report import Answer, Query, Report
from .run_file import TEST, Run

QUERIES, ANSWERS = 40, 5
"""Captions that are shown, and videos of each."""

ROWS = 256
"""Captions whose scores are held at a time."""


def encode_captions(op: CollaborativeExperts, dataset: CaptionedVideos) -> TextEmbeddings:
    """The captions' embeddings, with the padding of those that the model averages left out, as in training."""
    tokens = np.asarray(dataset.tokens, dtype=np.float32)
    return op.encode_text(tokens if op.config.text.clusters else list(tokens))


def report_run(
    name: str,
    run: Run,
    op: CollaborativeExperts,
    dataset: CaptionedVideos,
    found: Mapping[str, Evaluation],
    count: int = QUERIES,
) -> Report:
    """The report of an evaluation: the figures and `count` captions of the test videos.

    Half of the captions are those whose videos have the worst ranks; the others lie evenly over all ranks. The video
    that a caption describes is marked, and added below the best ones where it is not among them.

    Args:
        name: the title.
        dataset: the run's test split.
        found: the result of `evaluate_run`.
    """
    _, captions, targets = keep_videos_with_features(dataset.features, read_captions(run.captions, run.test or TEST))
    text = encode_captions(op, dataset)
    video = op.encode_video(dataset.features.experts, dataset.features.ind)
    ranks = find_ranks(text, video, targets)
    caption_of = dict(zip(reversed(captions.video_ids), reversed(captions.sentences), strict=True))
    rows = Rows(dataset.features.ids, _clips(run.features), caption_of)
    shown = choose(ranks, count)
    queries = [_query(captions.sentences[t], t, int(targets[t]), float(ranks[t]), text, video, rows) for t in shown]
    note = f"{len(shown)} of {len(ranks):,} captions among {len(rows.ids):,} videos, the worst first"
    return Report(name, op.config.expert_names, queries, note, _figures(found))


def _clips(features: Files) -> dict[str, ClipFacts]:
    """{id: its clip} of a dataset of `extract`; other files know no clips."""
    if not isinstance(features, str | Path) or Path(features).suffix != LANCE:
        return {}
    return {clip.id: clip for clips, _ in iter_clip_facts(Path(features)) for clip in clips}


class Rows:
    """The videos by their rows: ids, clips and a caption of each."""

    def __init__(self, ids: Sequence[str], clips: Mapping[str, ClipFacts], caption_of: Mapping[str, str]) -> None:
        self.ids, self._clips, self._caption_of = ids, clips, caption_of

    def answer(self, row: int, rank: int, score: float, shares: Mapping[str, float], is_right: bool) -> Answer:
        name = self.ids[row]
        clip = self._clips.get(name)
        uri, (start_s, end_s) = (clip.uri, clip.span) if clip else (None, (None, None))
        return Answer(rank, name, score, shares, uri, start_s, end_s, self._caption_of.get(name, ""), is_right)


def find_ranks(text: TextEmbeddings, video: VideoEmbeddings, targets: np.ndarray) -> np.ndarray:
    """(T,) float64: the rank of each text's video from 1 on, the mean over the orders of equal scores."""
    ranks = np.empty(len(targets))
    for rows in slices(len(targets), ROWS):
        scores = as_numpy(similarity(text[rows], video))
        own = np.take_along_axis(scores, targets[rows, None], axis=1)
        ranks[rows] = 1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
    return ranks


def choose(ranks: np.ndarray, count: int) -> list[int]:
    """Rows of `count` texts, the worst rank first: half are the worst of all, the others lie evenly over the rest."""
    order = np.argsort(-ranks, kind="stable")
    worst, rest = order[: (count + 1) // 2], order[(count + 1) // 2 :]
    evenly = rest[np.unique(np.linspace(0, len(rest) - 1, min(count // 2, len(rest))).round().astype(int))]
    return [*worst.tolist(), *evenly.tolist()]


def _query(
    sentence: str, t: int, target: int, rank: float, text: TextEmbeddings, video: VideoEmbeddings, rows: Rows
) -> Query:
    scores = as_numpy(similarity(text[t : t + 1], video))[0]
    order = np.argsort(-scores, kind="stable")
    places = [(int(row), place) for place, row in enumerate(order[:ANSWERS], start=1)]
    if target not in order[:ANSWERS]:
        places.append((target, round(rank)))
    answers = []
    for row, place in places:
        why = explain(text, video, t, row)
        shares = dict(zip(why.experts, map(float, why.shares), strict=True))
        answers.append(rows.answer(row, place, float(scores[row]), shares, row == target))
    return Query(sentence, answers, f"{rows.ids[target]} has rank {rank:,.10g} of {len(rows.ids):,}")


def _figures(found: Mapping[str, Evaluation]) -> list[list[str]]:
    lines = [["text to video", "R@1", "R@5", "R@10", "median rank"]]
    for name, result in found.items():
        x = result.text_to_video
        lines.append([name, f"{x.r1:.1f}%", f"{x.r5:.1f}%", f"{x.r10:.1f}%", f"{x.median_rank:.1f}"])
    return lines
