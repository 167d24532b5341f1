"""`embed`: files of features to an index, by a trained model or without one."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from .bulk import bulk_embed
from .search import TRUST_HELP
from .tasks import EXIT_PROBLEMS, add_pool_arguments, pool_of
from .zero_shot import embed_zero_shot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("features", type=Path, metavar="FEATURES", help="a file or folder, as of extract or your own")
    parser.add_argument("store", nargs="?", metavar="VIDEOS.lance", help="the index; or with --to")
    parser.add_argument("--weights", type=Path, help="what train wrote, such as run/best.safetensors")
    parser.add_argument("--zero-shot", action="store_true", help="no weights: the features of extract as they are")
    parser.add_argument("--captions", type=Path, help="with --zero-shot: a CSV to fit the experts' weights on")
    parser.add_argument("--encoder", help="with --zero-shot: the sentence encoder; default: MiniLM-L6")
    parser.add_argument("--trust", action="store_true", help=f"with --zero-shot: {TRUST_HELP}")
    parser.add_argument("--to", metavar="VIDEOS.lance", help="the index; ids in it are replaced")
    parser.add_argument("--device", help="where networks run; default: a GPU where there is one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_pool_arguments(parser)
    parser.epilog = (
        "example: %(prog)s features.lance --weights run/best.safetensors --to videos.lance\n\n"
        f"The exit status is {EXIT_PROBLEMS} where not all features could be read; videos.errors.csv says why."
    )


def run_command(options: argparse.Namespace) -> int:
    """Run the command, say what was added, and return the exit status."""
    to = options.to or options.store
    if to is None or (options.to and options.store):
        raise ValueError("embed: expected one index, with --to VIDEOS.lance")
    if options.zero_shot == (options.weights is not None):
        raise ValueError("embed: expected --weights FILE, or --zero-shot")
    pool = pool_of(options)
    if options.zero_shot:
        if pool is not None:
            raise ValueError("embed: --zero-shot works in one process; expected no --ray")
        return _run_zero_shot(options, to)
    if options.captions or options.encoder or options.trust:
        raise ValueError("embed: --captions, --encoder and --trust belong to --zero-shot")
    report = bulk_embed(options.features, options.weights, to, pool, options.device)
    print(json.dumps(dataclasses.asdict(report)) if options.json else report)
    return EXIT_PROBLEMS if report.errors else 0


def _run_zero_shot(options: argparse.Namespace, to: str) -> int:
    added = embed_zero_shot(options.features, to, options.captions, options.encoder, options.device, options.trust)
    print(json.dumps({"to": to, "added": added}) if options.json else f"{to}: {added:,} videos added")
    return 0
