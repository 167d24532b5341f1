"""`search`: sentences, or a video, to the videos of an index."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..hub.operator import CollaborativeExperts
from ..hub.zero_shot import ZeroShotOperator
from ..retrieval.index import SentenceOperator, VideoIndex
from ..retrieval.result import SearchResult
from ..retrieval.zero_shot import ZeroShot


def search(
    store: str | Path,
    sentences: Sequence[str],
    weights: str | Path | None = None,
    k: int = 10,
    where: str | None = None,
    device: str | None = None,
) -> SearchResult:
    """The k best videos of an index for each sentence, by the encoder that the weights were trained with.

    Args:
        weights: what the index was made with; None for an index of `embed --zero-shot`.

    Raises:
        FileNotFoundError: there are no such weights.
        TypeError, ValueError: weights that the index was not made with, or as `VideoIndex.search`.
    """
    op = sentence_operator(store, weights, device)
    with VideoIndex(store, operator=op) as index:
        return index.search(list(sentences), k, where=where)


def sentence_operator(store: str | Path, weights: str | Path | None, device: str | None = None) -> SentenceOperator:
    """The object that embeds sentences for an index: that of `embed --zero-shot`, or the operator of the weights.

    Raises:
        ValueError: an index of a trained model, without weights.
    """
    with VideoIndex(store) as index:
        zero_shot = ZeroShot.from_identity(index.model)
    if zero_shot is not None and weights is None:
        return ZeroShotOperator(zero_shot, device)
    if weights is None:
        raise ValueError("search: expected --weights FILE, the weights that the index was made with")
    return CollaborativeExperts(weights_path=weights, device=device, modality="text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("store", metavar="VIDEOS.lance", help="what embed wrote")
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help='such as "a dog runs on a beach"')
    parser.add_argument("--like", metavar="ID", help="in place of sentences: videos like this one")
    parser.add_argument("--weights", type=Path, help="what a trained index was made with; sentences need them")
    parser.add_argument("-k", type=int, default=10, help="answers for each sentence; default: 10")
    parser.add_argument("--where", metavar="SQL", help='such as "start_s >= 60"')
    parser.add_argument("--device", help="where the model runs; default: a GPU where there is one")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_command(options: argparse.Namespace) -> int:
    """Run the command, print the answers, and return the exit status."""
    if bool(options.sentences) == (options.like is not None):
        raise ValueError("search: expected sentences, or --like ID")
    if options.like is not None:
        with VideoIndex(options.store) as index:
            found = index.search_like([options.like], options.k, where=options.where)
    else:
        found = search(options.store, options.sentences, options.weights, options.k, options.where, options.device)
    if options.json:
        print(json.dumps(found.to_dict()))
        return 0
    for text, asked in enumerate(options.sentences or [f"like {options.like}"]):
        print(f"> {asked}\n{found[text]}\n")
    return 0
