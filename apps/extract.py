"""`extract`: a folder of media files to `features.lance`, in this process or by actors of Ray Data."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..base.dependencies import extra
from ..features.extract.clips import Clips, MediaFile
from ..features.extract.dataset import FeatureDataset, Making, Row, file_of, rows_table
from ..features.extract.expert import PRESETS, Extractor, make_extractors
from ..features.extract.run import Problem, Report, extract_features, find_media, read_rows, write_problems
from ..training.encoder import SentenceEncoder
from .tasks import EXIT_PROBLEMS, Pool, Task, add_pool_arguments, pool_of, run_tasks

TASK_BYTES = 2**28
"""Media files of a task: some small files, or one large one."""


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
    pool: Pool | None = None,
) -> Report:
    """Extract the features of all media files below a folder, going on where an earlier run stood.

    Args:
        folder: videos, images and audio files, also in folders below; or one file.
        to: a path that ends in `.lance`. What could not be read stands in `NAME.errors.csv` beside it.
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
        pool: actors of Ray Data that share the files, which every machine finds at the same path; None reads them here.

    Raises:
        FileNotFoundError, TypeError, ValueError: a wrong argument, or a dataset of another making.
        ImportError: a package is missing; the message names the extra that brings it.
        RuntimeError: an expert fails on every clip.
    """
    chosen = Clips(clips, overlap_s)
    files = find_media(Path(folder))
    make = partial(_make_extractors, preset, experts and list(experts), settings, device, encoder, fps)
    read = pool and partial(_read_on, pool, make, chosen, workers)
    return extract_features(files, to, make(), chosen, workers, dtype, read)


def _make_extractors(
    preset: str,
    experts: list[str] | None,
    settings: Mapping[str, Mapping[str, object]] | None,
    device: str | None,
    encoder: str | None,
    fps: float | None,
) -> list[Extractor]:
    return make_extractors(preset, experts, settings, device, SentenceEncoder(encoder), fps)


# --- on Ray -------------------------------------------------------------------------------------------------

REPORT = "report"
"""The column in which a worker's last row tells what it has done."""


def _read_on(
    pool: Pool,
    make: Callable[[], Sequence[Extractor]],
    clips: Clips,
    workers: int,
    files: Sequence[MediaFile],
    dataset: FeatureDataset,
    report: Report,
) -> None:
    """Read media files by a pool of actors into a dataset, which this process alone writes."""
    compute, begin = extra("pyarrow.compute", "index"), time.perf_counter()
    tasks = _tasks(files, dataset.ids)
    with extra("tqdm", "extract-offline").tqdm(total=len(files), unit=" files", desc="extract") as bar:
        for table in run_tasks(partial(ExtractingWorker, make, clips, workers, dataset.making), tasks, pool):
            is_row = compute.is_valid(table["id"])
            for text in table.filter(compute.invert(is_row))[REPORT].to_pylist():
                _add_report(report, json.loads(text))
            write_problems(report)
            dataset.append_table(table.filter(is_row).drop_columns(REPORT))
            bar.update(report.files - bar.n)
            report.seconds = time.perf_counter() - begin


def _tasks(files: Sequence[MediaFile], known: Iterable[str]) -> list[Task]:
    """Files in groups of up to `TASK_BYTES`, with the clips of them that are known."""
    known_of: dict[str, list[str]] = {}
    for clip in known:
        known_of.setdefault(file_of(clip), []).append(clip)
    tasks: list[dict[str, Any]] = []
    size = TASK_BYTES + 1  # full: the first file begins a task
    for file in files:
        added = file.path.stat().st_size if file.path.is_file() else 0  # it is gone, as its worker will tell
        size += added
        if size > TASK_BYTES:
            tasks.append({"files": [], "known": []})
            size = added
        tasks[-1]["files"].append([str(file.path.absolute()), file.name, file.uri])
        tasks[-1]["known"] += known_of.get(file.name, [])
    return tasks


class ExtractingWorker:
    """Reads media files. A task gives one table: the dataset's rows, and a last row that has a report alone."""

    def __init__(self, make: Callable[[], Sequence[Extractor]], clips: Clips, workers: int, making: Making) -> None:
        self._extractors, self._clips, self._workers, self._making = make(), clips, workers, making

    def __call__(self, task: Task) -> Iterator[Any]:
        files = [MediaFile(Path(path), name, uri) for path, name, uri in task["files"]]
        rows: list[Row] = []
        report = Report(Path())
        known = set(task["known"])
        read_rows(files, self._clips, self._extractors, known, self._workers, self._making.dtype, rows.extend, report)
        arrow = extra("pyarrow", "index")
        last = arrow.table({REPORT: [json.dumps(asdict(report), default=str)]})
        yield arrow.concat_tables([rows_table(rows, self._making), last], promote_options="default")


def _add_report(report: Report, other: Mapping[str, Any]) -> None:
    """Count what a worker has done."""
    for name in ("files", "clips", "media_s", "waiting_s"):
        setattr(report, name, getattr(report, name) + other[name])
    report.problems += [Problem(**problem) for problem in other["problems"]]


# --- the command --------------------------------------------------------------------------------------------


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
    add_pool_arguments(parser)
    parser.epilog = (
        "example: %(prog)s videos --to features.lance --clips shots\n\n"
        f"The exit status is {EXIT_PROBLEMS} where not all media could be read; features.errors.csv says why."
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
        experts=[name.strip() for name in options.experts.split(",")] if options.experts else None,
        settings=parse_settings(options.set),
        clips=clips,
        overlap_s=options.overlap,
        fps=options.fps,
        workers=options.workers,
        device=options.device,
        encoder=options.encoder,
        dtype=options.dtype,
        pool=pool_of(options),
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
