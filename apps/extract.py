"""`extract`: a folder of media files to `features.lance`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..features.extract.clips import Clips
from ..features.extract.expert import PRESETS, make_extractors
from ..features.extract.run import Report, extract_features, find_media
from ..training.encoder import SentenceEncoder

EXIT_PROBLEMS = 3
"""The exit status of a run that came to its end and could not read everything."""


def extract(
    folder: str | Path,
    to: str | Path,
    *,
    preset: str = "offline",
    experts: Iterable[str] | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    clips: str | float = "whole",
    overlap_s: float = 0.0,
    fps: float | None = None,
    workers: int = 1,
    device: str | None = None,
    encoder: str | None = None,
    dtype: str = "float16",
) -> Report:
    """Extract the features of all media files below a folder, going on where an earlier run stood.

    Args:
        folder: videos, images and audio files, also in folders below; or one file.
        to: a path that ends in `.lance`. What could not be read stands in `errors.csv` beside it.
        preset: "offline" needs no network: its weights come with pip packages. "best" takes weights from a hub.
        experts: some of the preset's, or dotted names of classes of yours.
        settings: {expert: {parameter: value}}, such as {"speech": {"model": "folder"}}.
        clips: "whole", "shots", or a length in seconds.
        overlap_s: seconds that a clip of some length shares with the one before.
        fps: frames a second for the experts of single frames. None takes their own, mostly 1.
        workers: files that are decoded at the same time.
        device: where networks run. None is a GPU where there is one.
        encoder: the sentence encoder for words that are read or heard: a folder or a name. None is MiniLM-L6.
        dtype: "float16" or "float32", in which features are kept.

    Raises:
        FileNotFoundError, TypeError, ValueError: a wrong argument, or a dataset of another making.
        ImportError: a package is missing; the message names the extra that brings it.
        RuntimeError: an expert fails on every clip.
    """
    chosen = Clips(clips, overlap_s)
    files = find_media(Path(folder))
    extractors = make_extractors(preset, experts, settings, device, SentenceEncoder(encoder), fps)
    return extract_features(files, to, extractors, chosen, workers, dtype)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="media files, also in folders below; or one file")
    parser.add_argument("--to", type=Path, required=True, metavar="FEATURES.lance", help="the dataset to write to")
    parser.add_argument("--preset", choices=list(PRESETS), default="offline", help="default: offline")
    parser.add_argument("--experts", metavar="A,B", help="some of the preset's, or dotted names of classes of yours")
    parser.add_argument("--clips", default="whole", help="whole (default), shots, or a length in seconds")
    parser.add_argument("--overlap", type=float, default=0.0, metavar="SECONDS", help="of a clip with the one before")
    parser.add_argument("--fps", type=float, help="frames a second for the experts of single frames")
    parser.add_argument("--workers", type=int, default=1, help="files that are decoded at the same time; default: 1")
    parser.add_argument("--device", help="where networks run; default: a GPU where there is one")
    parser.add_argument("--encoder", help="sentence encoder for words that are read or heard; default: MiniLM-L6")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="default: float16")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="EXPERT.KEY=VALUE",
        help="a setting of an expert, such as speech.model=FOLDER; may be repeated",
    )
    parser.epilog = (
        "example: %(prog)s videos --to features.lance --clips shots\n\n"
        f"The exit status is {EXIT_PROBLEMS} where not all media could be read; errors.csv beside the dataset says why."
    )


def run_command(options: argparse.Namespace) -> int:
    """Run the command, print its report, and return the exit status."""
    try:
        clips: str | float = float(options.clips)
    except ValueError:
        clips = options.clips
    report = extract(
        options.folder,
        options.to,
        preset=options.preset,
        experts=options.experts.split(",") if options.experts else None,
        settings=parse_settings(options.set),
        clips=clips,
        overlap_s=options.overlap,
        fps=options.fps,
        workers=options.workers,
        device=options.device,
        encoder=options.encoder,
        dtype=options.dtype,
    )
    print(report)
    return EXIT_PROBLEMS if report.problems else 0


def parse_settings(texts: Iterable[str]) -> dict[str, dict[str, object]]:
    """`["speech.model=folder"]` -> `{"speech": {"model": "folder"}}`. Numbers become numbers."""
    settings: dict[str, dict[str, object]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        expert, dot, parameter = key.rpartition(".")
        if not (equals and dot and expert and parameter):
            raise ValueError(f"--set: expected EXPERT.KEY=VALUE, got {text!r}")
        try:
            settings.setdefault(expert, {})[parameter] = float(value)
        except ValueError:
            settings.setdefault(expert, {})[parameter] = value
    return settings
