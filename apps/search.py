"""`search`: sentences, or a video, to the videos of an index."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..retrieval.index import VideoIndex
from ..retrieval.result import SearchResult
from .report import report_search, write_report

if TYPE_CHECKING:
    from ..retrieval.index import SentenceOperator


TRUST_HELP = "models that the files name may be downloaded and run code of their folders"


def search(
    store: str | Path,
    sentences: Sequence[str],
    weights: str | Path | None = None,
    k: int = 10,
    where: str | None = None,
    device: str | None = None,
    trusted: bool = False,
) -> SearchResult:
    """The k best videos of an index for each sentence.

    Args:
        weights: the weights that the videos were embedded with. None takes those that the index names, or none for an
            index of `embed --zero-shot`.
        trusted: as for `sentence_operator`.

    Raises:
        FileNotFoundError: there is no index, or no such weights.
        TypeError, ValueError: a blank sentence, and as `sentence_operator` and `VideoIndex.search`.
    """
    if not all(sentence.strip() for sentence in sentences):
        raise ValueError("search: expected words in each sentence, got a blank one")
    with open_index(store) as index:
        index.operator = sentence_operator(index, weights, device, trusted)
        return index.search(list(sentences), k, where=where)


def open_index(store: str | Path) -> VideoIndex:
    """An index that exists. Raises FileNotFoundError otherwise, and as `VideoIndex`."""
    if "://" not in str(store) and not Path(store).exists():
        raise FileNotFoundError(f"{store}: there is no such index")
    return VideoIndex(store)


def sentence_operator(
    index: VideoIndex, weights: str | Path | None = None, device: str | None = None, trusted: bool = False
) -> SentenceOperator:
    """The object that embeds sentences for an index: that of `embed --zero-shot`, or the text side of its model.

    Args:
        weights: the model's weights; None takes the file that the index names (`VideoIndex.note_weights`).
        trusted: True if you know who wrote the index and the weights. Models for sentences that they name are then
            downloaded, and folders that they name may run code; else both is refused.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the index is empty or names no file, or the weights are of another model than its videos.
    """
    from ..retrieval.zero_shot import ZeroShot  # with PyTorch and Towhee, which a search by --like does without

    if not len(index):
        raise ValueError(f"{index.uri}: holds no videos yet")
    zero_shot = ZeroShot.from_identity(index.model)
    if zero_shot is not None and weights is None:
        from ..hub.zero_shot import ZeroShotOperator

        return ZeroShotOperator(zero_shot, device, trusted)
    from ..hub.operator import CollaborativeExperts
    from ..model.checkpoint import read_notes
    from ..training.encoder import SentenceEncoder

    path = index.weights_path if weights is None else Path(weights)
    if path is None:
        raise ValueError(f"{index.uri}: does not say which weights it was made with; pass --weights FILE")
    if weights is None and not path.is_file():
        raise FileNotFoundError(f"{index.uri}: was made with {path}, which is not there; pass --weights FILE")
    op = CollaborativeExperts(weights_path=path, device=device, modality="text")
    if index.model not in (None, op.identity):
        raise ValueError(
            f"{path}: expected the weights that {index.uri} was made with ({index.model.weights[:16]}), got others "
            f"({op.identity.weights[:16]})"
        )
    named = read_notes(path).get("encoder", {}).get("model")
    if trusted and named is not None:
        op.encode_sentences(["a first sentence"], SentenceEncoder(named))  # the operator keeps it
    return op


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("store", metavar="VIDEOS.lance", help="what embed wrote")
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help='such as "a dog runs on a beach"')
    parser.add_argument("--like", metavar="ID", help='videos like this one; --like="-ID" where it begins with "-"')
    parser.add_argument("--weights", type=Path, help="default: the file that the index names")
    parser.add_argument("--trust", action="store_true", help=TRUST_HELP)
    parser.add_argument("-k", type=int, default=10, help="answers for each sentence; default: 10")
    parser.add_argument("--where", metavar="SQL", help='such as "start_s >= 60"')
    parser.add_argument("--device", help="where the model runs; default: a GPU where there is one")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures, to look at or mail")
    parser.epilog = 'example: %(prog)s videos.lance "a dog runs on a beach" "a crowd cheers" -k 5'


def run_command(options: argparse.Namespace) -> int:
    """Run the command, print the answers, and return the exit status."""
    if bool(options.sentences) == (options.like is not None):
        raise ValueError("search: expected sentences, or --like ID, and not both")
    if options.like is not None:
        with open_index(options.store) as index:
            found = index.search_like([options.like], options.k, where=options.where)
    else:
        found = search(
            options.store, options.sentences, options.weights, options.k, options.where, options.device, options.trust
        )
    if options.json:
        print(json.dumps(found.to_dict()))
        return 0
    sentences = options.sentences or [f"like {options.like}"]
    if options.html:
        write_report(report_search(sentences, found), options.html)
        print(options.html)
        return 0
    for text, asked in enumerate(sentences):
        print(f"> {asked}\n{found[text].table()}\n")
    return 0
