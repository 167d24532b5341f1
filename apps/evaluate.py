"""`evaluate`: figures of trained weights on the test videos of a run file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..base.files import replacing
from ..hub.operator import CollaborativeExperts
from ..model.checkpoint import read_notes
from ..retrieval.evaluation import Evaluation, evaluate, evaluate_scores
from ..retrieval.normalise import QueryBank
from ..retrieval.similarity import similarity
from ..training.bank import bank_beside
from ..training.data import CaptionedVideos
from ..training.encoder import EncoderIdentity, check_same_encoder
from ..training.model_card import EVALUATION, write_card
from ..training.run_folder import BEST
from .report import write_report
from .report_run import QUERIES, encode_captions, report_run
from .run_file import TEST, Run, add_run_arguments

WITH_BANK = "all, with bank"
"""The figures with all experts, corrected by the query bank."""


def evaluate_run(
    path: str | Path,
    weights: str | Path | None = None,
    changes: Sequence[str] = (),
    folder: str | Path | None = None,
    page: str | Path | None = None,
    queries: int = QUERIES,
) -> dict[str, Evaluation]:
    """Evaluate the run's best weights, or others, on its test split; also written as `evaluation.json`.

    Where training left a query bank beside the weights, figures with it stand second.

    Args:
        changes, folder: as for `Run.read`.
        page: an HTML file of captions, the worst first; None writes none.
        queries: captions of that page.

    Raises:
        ValueError: the weights were trained with another sentence encoder than the run's, or on other experts.
        Also as `Run.read` and the operator.
    """
    run = Run.read(path, changes, folder)
    weights = Path(weights) if weights else run.folder / BEST
    op = CollaborativeExperts(weights_path=weights)
    trained_with = read_notes(weights).get("encoder")
    if trained_with is not None:
        check_same_encoder(EncoderIdentity.from_dict(trained_with), run.sentence_encoder)
    dataset = run.dataset(run.test or TEST, op.config)
    of_this_run = weights == run.folder / BEST
    if of_this_run:
        run.warn_of_trained_videos()
    found = ablate(op, dataset, bank_beside(weights, op.identity))
    teachers = [teacher for teacher in run.teacher_runs() if (teacher.folder / BEST).is_file()]
    if teachers and len(teachers) == len(run.teachers):
        found |= evaluate_ensemble(teachers)
    run.folder.mkdir(parents=True, exist_ok=True)  # other weights need no run
    with replacing(run.folder / EVALUATION) as temporary:
        temporary.write_text(json.dumps(_plain(found), indent=2))
    if of_this_run:
        write_card(run.folder)
    if page is not None:
        write_report(report_run(f"Evaluation of {Path(path).name}", run, op, dataset, found, queries), page)
    return found


def ablate(op: CollaborativeExperts, dataset: CaptionedVideos, bank: QueryBank | None = None) -> dict[str, Evaluation]:
    """Figures with all experts, with each alone ("only motion"), and with each left out ("without motion").

    A bank of the same model adds figures with all experts, corrected by it.

    A video that lacks all experts of a row scores 0 with every text.
    """
    text = encode_captions(op, dataset)
    features, names = dataset.features, op.config.expert_names

    def with_experts(kept: Sequence[str]) -> Evaluation:
        ind = {name: flag * (name in kept) for name, flag in features.ind.items()}
        return evaluate(text, op.encode_video(features.experts, ind), dataset.targets)

    video = op.encode_video(features.experts, features.ind)
    found = {"all experts": evaluate(text, video, dataset.targets)}
    if bank is not None:
        found[WITH_BANK] = evaluate(text, video, dataset.targets, bank=bank)
    if len(names) > 1:
        found |= {f"only {name}": with_experts([name]) for name in names}
        found |= {f"without {name}": with_experts([other for other in names if other != name]) for name in names}
    return found


def evaluate_ensemble(runs: Sequence[Run]) -> dict[str, Evaluation]:
    """Figures of the mean scores of several runs, and of the mean of those that their banks correct."""
    scores, biases, targets = [], [], np.empty(0)
    for run in runs:
        op = CollaborativeExperts(weights_path=run.folder / BEST)
        dataset, bank = run.dataset(run.test or TEST, op.config), bank_beside(run.folder / BEST, op.identity)
        video = op.encode_video(dataset.features.experts, dataset.features.ind)
        scores.append(similarity(encode_captions(op, dataset), video))
        biases.append(bank.biases(video) if bank is not None else np.zeros(len(video)))
        targets = dataset.targets
    plain = np.mean(scores, axis=0)
    corrected = plain - np.mean(biases, axis=0)  # the texts of a video keep their order
    return {
        "teachers' mean": evaluate_scores(plain, targets),
        "teachers, with bank": evaluate_scores(corrected, targets),
    }


def table(found: Mapping[str, Evaluation]) -> str:
    """Figures of several evaluations, a row each: recalls in percent and median ranks, in both directions."""
    width = max(map(len, found))
    head = "   R@1    R@5   R@10    MdR"
    lines = [f"{'':{width}}  {'text to video':^{len(head)}}   {'video to text':^{len(head)}}".rstrip()]
    lines.append(f"{'':{width}}  {head}   {head}")
    for name, result in found.items():
        figures = "   ".join(
            f"{m.r1:6.1f} {m.r5:6.1f} {m.r10:6.1f} {m.median_rank:6.1f}"
            for m in (result.text_to_video, result.video_to_text)
        )
        lines.append(f"{name:{width}}  {figures}")
    queries = next(iter(found.values()))
    lines.append(
        f"{queries.text_to_video.queries:,} captions, {queries.video_to_text.queries:,} videos; recalls in percent"
    )
    return "\n".join(lines)


def _plain(found: Mapping[str, Evaluation]) -> dict[str, object]:
    """The figures fit for JSON."""
    return {name: result.to_dict() for name, result in found.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_run_arguments(parser)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="default: the run's best")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page of captions, the worst first")
    parser.add_argument("--queries", type=int, default=QUERIES, help=f"captions of that page; default: {QUERIES}")
    parser.epilog = "example: %(prog)s run.toml"


def run_command(options: argparse.Namespace) -> int:
    """Run the command, print the table, and return the exit status."""
    if options.queries < 1:
        raise ValueError(f"--queries: expected 1 or more, got {options.queries}")
    found = evaluate_run(options.run, options.weights, options.set, options.folder, options.html, options.queries)
    print(json.dumps(_plain(found)) if options.json else table(found))
    return 0
