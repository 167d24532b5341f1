"""`embed`: files of features to an index."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from ..base.dependencies import extra
from ..features.features import Files, iter_features
from ..features.formats import LANCE
from ..hub.operator import CollaborativeExperts
from ..retrieval.index import VideoIndex

Clip = tuple[str, tuple[float, float]]
"""A media file, and the first and last second of a clip in it."""


def embed(features: Files, weights: str | Path, to: str | Path, device: str | None = None) -> int:
    """Embed the videos of files of features and add them to an index; returns the number of videos added.

    An id that is in the index is replaced, so that a run that was interrupted is simply started again. Videos without
    any expert are left out. Memory holds one batch of videos.

    Args:
        features: a file, a folder or {expert: file}, as `read_features` takes them.
        to: the index, as `VideoIndex` takes it. It keeps the path of the weights, which `search` asks it for.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `read_features`, the operator and `VideoIndex.add`.
    """
    op = CollaborativeExperts(weights_path=weights, device=device, modality="video")
    clips = read_clips(features)
    added = 0
    with VideoIndex(to) as index:
        for batch in iter_features(features, config=op.config):
            kept = batch[np.flatnonzero(batch.available.any(1))]
            found = [clips.get(video) for video in kept.ids]
            uris, spans = [clip and clip[0] for clip in found], [clip and clip[1] for clip in found]
            index.add(kept.ids, op.encode_video(kept.experts, kept.ind), uris=uris, spans=spans)
            if len(kept):
                index.note_weights(weights)
            added += len(kept)
    return added


def read_clips(features: Files) -> dict[str, Clip]:
    """{id: its clip} of a dataset of `extract`. Other files know no clips; a missing one is told of by its reader."""
    if not isinstance(features, str | Path) or Path(features).suffix != LANCE or not Path(features).exists():
        return {}
    dataset = extra("lance", "index").dataset(str(features))
    rows = dataset.to_table(columns=["id", "uri", "start_s", "end_s"]).to_pylist()
    return {row["id"]: (row["uri"], (row["start_s"], row["end_s"])) for row in rows}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("features", type=Path, metavar="FEATURES", help="a file or folder, as of extract or your own")
    parser.add_argument("--weights", type=Path, required=True, help="what train wrote, such as run/best.safetensors")
    parser.add_argument("--to", required=True, metavar="VIDEOS.lance", help="the index; ids in it are replaced")
    parser.add_argument("--device", help="where the model runs; default: a GPU where there is one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "example: %(prog)s features.lance --weights run/best.safetensors --to videos.lance"


def run_command(options: argparse.Namespace) -> int:
    """Run the command, say what was added, and return the exit status."""
    count = embed(options.features, options.weights, options.to, options.device)
    if options.json:
        print(json.dumps({"index": options.to, "added": count}))
        return 0
    print(f"{options.to}: {count:,} videos of {options.features} added")
    return 0
