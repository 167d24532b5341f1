"""`embed`: files of features to an index, by a trained model or without one."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ..features.extract.clip_facts import ClipFacts, iter_clip_facts
from ..features.features import Files, iter_features
from ..features.formats import LANCE
from ..hub.operator import CollaborativeExperts
from ..retrieval.index import VideoIndex
from .zero_shot import embed_zero_shot


def embed(features: Files, weights: str | Path, to: str | Path, device: str | None = None) -> int:
    """Embed the videos of files of features and add them to an index; returns the number of videos added.

    An id that is in the index is replaced, so that a run that was interrupted is simply started again. Videos without
    any expert are left out. Memory holds one batch of videos.

    Args:
        features: a file, a folder or {expert: file}, as `read_features` takes them.
        to: the index, as `VideoIndex` takes it.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `read_features`, the operator and `VideoIndex.add`.
    """
    op = CollaborativeExperts(weights_path=weights, device=device, modality="video")
    clips = _read_clips(features)
    added = 0
    with VideoIndex(to) as index:
        for batch in iter_features(features, config=op.config):
            kept = batch[np.flatnonzero(batch.available.any(1))]
            found = [clips.get(video) for video in kept.ids]
            index.add(
                kept.ids,
                op.encode_video(kept.experts, kept.ind),
                uris=[clip and clip.uri for clip in found],
                spans=[clip and clip.span for clip in found],
                metadata=[clip and clip.metadata for clip in found],
            )
            added += len(kept)
    return added


def _read_clips(features: Files) -> dict[str, ClipFacts]:
    """{id: its clip} of a dataset of `extract`. Other files know no clips; a missing one is told of by its reader."""
    if not isinstance(features, str | Path) or Path(features).suffix != LANCE or not Path(features).exists():
        return {}
    return {clip.id: clip for clips, _ in iter_clip_facts(Path(features)) for clip in clips}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("features", type=Path, metavar="FEATURES", help="a file or folder, as of extract or your own")
    parser.add_argument("store", nargs="?", metavar="VIDEOS.lance", help="the index; or with --to")
    parser.add_argument("--weights", type=Path, help="what train wrote, such as run/best.safetensors")
    parser.add_argument("--zero-shot", action="store_true", help="no weights: the features of extract as they are")
    parser.add_argument("--captions", type=Path, help="with --zero-shot: a CSV to fit the experts' weights on")
    parser.add_argument("--encoder", help="with --zero-shot: the sentence encoder; default: MiniLM-L6")
    parser.add_argument("--to", metavar="VIDEOS.lance", help="the index; ids in it are replaced")
    parser.add_argument("--device", help="where networks run; default: a GPU where there is one")


def run_command(options: argparse.Namespace) -> int:
    """Run the command, say what was added, and return the exit status."""
    to = options.to or options.store
    if to is None or (options.to and options.store):
        raise ValueError("embed: expected one index, with --to VIDEOS.lance")
    if options.zero_shot == (options.weights is not None):
        raise ValueError("embed: expected --weights FILE, or --zero-shot")
    if options.zero_shot:
        count = embed_zero_shot(options.features, to, options.captions, options.encoder, options.device)
    elif options.captions or options.encoder:
        raise ValueError("embed: --captions and --encoder belong to --zero-shot")
    else:
        count = embed(options.features, options.weights, to, options.device)
    print(f"{to}: {count:,} videos of {options.features} added")
    return 0
