"""`search`: sentences, or a video, to the videos of an index."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..hub.operator import CollaborativeExperts
from ..retrieval.index import VideoIndex
from ..retrieval.result import SearchResult


def search(
    store: str | Path,
    sentences: Sequence[str],
    weights: str | Path,
    k: int = 10,
    where: str | None = None,
    device: str | None = None,
) -> SearchResult:
    """The k best videos of an index for each sentence, by the encoder that the weights were trained with.

    Raises:
        FileNotFoundError: there are no such weights.
        TypeError, ValueError: weights that the index was not made with, or as `VideoIndex.search`.
    """
    op = CollaborativeExperts(weights_path=weights, device=device, modality="text")
    with VideoIndex(store, operator=op) as index:
        return index.search(list(sentences), k, where=where)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("store", metavar="VIDEOS.lance", help="what embed wrote")
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help='such as "a dog runs on a beach"')
    parser.add_argument("--like", metavar="ID", help="in place of sentences: videos like this one")
    parser.add_argument("--weights", type=Path, help="the weights that the index was made with; sentences need them")
    parser.add_argument("-k", type=int, default=10, help="answers for each sentence; default: 10")
    parser.add_argument("--where", metavar="SQL", help='such as "start_s >= 60"')
    parser.add_argument("--device", help="where the model runs; default: a GPU where there is one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = 'example: %(prog)s videos.lance "a dog runs on a beach" "a crowd cheers" -k 5'


def run_command(options: argparse.Namespace) -> int:
    """Run the command, print the answers, and return the exit status."""
    if bool(options.sentences) == (options.like is not None):
        raise ValueError("search: expected sentences, or --like ID")
    if options.like is not None:
        with VideoIndex(options.store) as index:
            found = index.search_like([options.like], options.k, where=options.where)
    elif options.weights is None:
        raise ValueError("search: expected --weights FILE, the weights that the index was made with")
    else:
        found = search(options.store, options.sentences, options.weights, options.k, options.where, options.device)
    if options.json:
        print(json.dumps(found.to_dict()))
        return 0
    for text, asked in enumerate(options.sentences or [f"like {options.like}"]):
        print(f"> {asked}\n{found[text]}\n")
    return 0
