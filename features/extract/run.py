"""A run: media files in, `features.lance` and `features.errors.csv` out.

Threads decode while the networks run; both leave Python's lock while they work. Clips of different files share batches.
Clips that wait are bounded by their bytes, and a file that cannot be read is listed while the others go on.
"""

from __future__ import annotations

import csv
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...base.checks import check_choice, check_size, check_unmasked, is_unicode
from ...base.dependencies import extra
from ...base.files import errors_path, local_path, write_errors
from .clips import Clip, Clips, MediaFile, read_clips
from .dataset import FeatureDataset, Making, Row, file_of, package_versions, writing
from .expert import Extracted, Extractor, Output, describe
from .media import MEDIA_SUFFIXES, MediaError

BATCH = 16
"""Clips that go through the experts at once."""

WAITING_BYTES = 48 * 2**20
"""Memory of clips that wait, and of a batch. A single clip may be larger."""

COMMIT_S = 10.0
"""Seconds after which rows are written: a run that is killed loses no more."""

COMMIT_ROWS = 1024
LONGEST_WAIT_S = 5.0
"""Seconds that a run which is interrupted waits for decoders. One may be within a clip of hours."""

MOST_FAILURES = 20
"""Clips in a row that an expert fails on, after which the run stops: the fault is not in the clips."""


@dataclass(frozen=True)
class Problem:
    """Something that could not be read.

    Attributes:
        file: the name of the media file.
        clip: the clip's id, empty where the whole file is meant.
        expert: the expert that failed, empty for the file itself.
        reason: the cause in words.
    """

    file: str
    clip: str
    expert: str
    reason: str


@dataclass
class Report:
    """The outcome of a run.

    Attributes:
        path: the dataset.
        files: media files that were read to their end in this run.
        skipped: media files that were complete before.
        clips: rows that were added.
        media_s: seconds of media in them.
        seconds: duration of the run.
        waiting_s: seconds in which the networks waited for decoding.
        problems: what could not be read.
    """

    path: Path
    files: int = 0
    skipped: int = 0
    clips: int = 0
    media_s: float = 0.0
    seconds: float = 0.0
    waiting_s: float = 0.0
    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.clips:,} clips of {self.files:,} files added in {self.seconds:.1f} s"]
        if self.skipped:
            lines.append(f"{self.skipped:,} files were complete before")
        if self.problems:
            problems = "1 problem" if len(self.problems) == 1 else f"{len(self.problems):,} problems"
            lines.append(f"{problems}, listed in {errors_path(self.path)}:")
            lines += [f"  {x.clip or x.file}: {x.expert and x.expert + ': '}{x.reason}" for x in self.problems[:10]]
            if len(self.problems) > 10:
                lines.append(f"  and {len(self.problems) - 10:,} more")
        return "\n".join(lines)


Reading = Callable[[Sequence[MediaFile], FeatureDataset, Report], None]
"""Reads media files into a dataset."""


def find_media(source: Path) -> list[MediaFile]:
    """The media files of a folder and those below it, or one file, in the order of their names.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there is no media file in the folder.
    """
    if source.is_file():
        return [_media_file(source, source.name)]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file or folder of media")
    paths = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in MEDIA_SUFFIXES
        and (path.is_file() or (path.is_symlink() and not path.exists()))  # a link to nothing is listed as unread
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]
    if not paths:
        raise ValueError(f"{source}: expected media files ({' '.join(sorted(MEDIA_SUFFIXES))}), found none")
    return [_media_file(path, path.relative_to(source).as_posix()) for path in paths]


def _media_file(path: Path, name: str) -> MediaFile:
    """Bytes of names that are no UTF-8, which no dataset holds, are escaped: `\\xe9` in the name, `%E9` in the uri."""
    whole = path.absolute()
    uri = str(whole) if is_unicode(str(whole)) else whole.as_uri()
    return MediaFile(path, name.encode(errors="surrogateescape").decode(errors="backslashreplace"), uri)


def extract_features(
    files: Sequence[MediaFile],
    to: str | Path,
    extractors: Sequence[Extractor],
    clips: Clips | None = None,
    workers: int = 1,
    dtype: str = "float16",
    read: Reading | None = None,
) -> Report:
    """Write the features of media files to a dataset, going on where an earlier run stood.

    Args:
        files: what `find_media` gives.
        to: a path that ends in `.lance`. `NAME.errors.csv` is written beside it.
        extractors: what `make_extractors` gives.
        clips: how files are cut; None takes each as a whole.
        workers: files that are decoded at the same time.
        dtype: "float16" or "float32", in which features are kept.
        read: reads the files into the dataset and notes in the report what it has done; None reads them here.

    Raises:
        ValueError: the dataset holds features of another making, or of other files of the same names.
        OSError: another run writes to the dataset, or it cannot be written.
        RuntimeError: an expert fails on every clip.
    """
    workers = check_size(workers, "workers")
    check_choice(dtype, ("float16", "float32"), "dtype")
    clips, to = clips or Clips(), Path(to)
    making = Making(clips.to_dict(), dtype, {x.name: describe(x) for x in extractors}, package_versions())
    with writing(to):
        dataset = FeatureDataset(to, making)
        _check_same_files(files, dataset)
        waiting = [file for file in files if file.name not in dataset.complete]
        report = Report(to, skipped=len(files) - len(waiting), problems=_read_problems(dataset))

        def append(rows: Sequence[Row]) -> None:
            write_problems(report)
            dataset.append(rows)

        try:
            if read is None:
                read_rows(waiting, clips, extractors, dataset.ids, workers, dtype, append, report)
            else:
                read(waiting, dataset, report)
        finally:
            write_problems(report)
        dataset.compact()
    return report


def _check_same_files(files: Sequence[MediaFile], dataset: FeatureDataset) -> None:
    """Raise ValueError for a file that bears the name of another one in the dataset, and would be passed over.

    A folder may be moved or copied: a file that is gone or has the same size is taken for the same one.
    """
    for file in files:
        uri = dataset.complete.get(file.name, file.uri)
        other = local_path(uri) if uri != file.uri else None
        if other is not None and file.path.is_file() and file.path.stat().st_size != other.stat().st_size:
            raise ValueError(
                f"{dataset.path}: holds {file.name!r} of {other}, another file than {file.path}; "
                "extract a folder above both, or write to another dataset"
            )


def read_rows(
    files: Sequence[MediaFile],
    clips: Clips,
    extractors: Sequence[Extractor],
    known: set[str],
    workers: int,
    dtype: str,
    append: Callable[[Sequence[Row]], None],
    report: Report,
) -> None:
    """Read media files into rows, except the clips that are known, and note in the report what was done.

    Args:
        append: takes some rows, every few seconds. The other arguments are those of `extract_features`.
    """
    run = _Run(append, extractors, report, np.dtype(dtype))
    run.process(_Reader(files, clips, extractors, known, workers))


# --- networks ---------------------------------------------------------------------------------------------


class _Run:
    """The side of the networks: batches through every expert, rows to whoever keeps them."""

    def __init__(
        self,
        append: Callable[[Sequence[Row]], None],
        extractors: Sequence[Extractor],
        report: Report,
        dtype: np.dtype,
    ) -> None:
        self._append, self._extractors, self._report, self._dtype = append, extractors, report, dtype
        self._rows: list[Row] = []
        self._failures = dict.fromkeys((x.name for x in extractors), 0)

    def process(self, reader: _Reader) -> None:
        """Everything that the reader gives."""
        begin = committed = time.perf_counter()
        tqdm = extra("tqdm", "extract-offline").tqdm
        total = sum(reader.sizes.values())
        try:
            with reader, tqdm(total=total, unit="B", unit_scale=True, desc="extract", mininterval=0.5) as bar:
                for batch in reader.batches():
                    self._process_batch(batch)
                    if time.perf_counter() - committed > COMMIT_S or len(self._rows) >= COMMIT_ROWS:
                        self._commit(reader)
                        committed = time.perf_counter()
                    rate = self._report.clips / (time.perf_counter() - begin)
                    bar.set_postfix_str(f"{rate:.1f} clips/s, {len(self._report.problems)} problems", refresh=False)
                    bar.update(reader.done_bytes - bar.n)
                bar.update(total - bar.n)
        finally:
            self._commit(reader)
            self._report.files, self._report.waiting_s = reader.files_done, reader.waiting_s
            self._report.seconds = time.perf_counter() - begin

    def _process_batch(self, batch: Sequence[Clip]) -> None:
        outputs = {x.name: self._run_expert(x, batch) for x in self._extractors}
        for i, clip in enumerate(batch):
            of_clip = {name: rows[i] for name, rows in outputs.items()}
            self._rows.append(Row(clip.id, clip.uri, clip.start_s, clip.end_s, clip.is_last, of_clip))
            self._report.clips += 1
            self._report.media_s += clip.end_s - clip.start_s

    def _commit(self, reader: _Reader) -> None:
        self._report.problems += reader.take_problems()
        rows, self._rows = self._rows, []
        self._append(rows)

    def _run_expert(self, extractor: Extractor, batch: Sequence[Clip]) -> list[Extracted | None]:
        """The outputs for a batch. Where it fails, its clips are tried one by one, and those that fail are missing."""
        try:
            outputs = self._call(extractor, batch)
            self._failures[extractor.name] = 0
            return outputs
        except Exception as error:  # an expert may be anyone's code
            if len(batch) > 1:
                return [x for clip in batch for x in self._run_expert(extractor, [clip])]
            reason = f"{type(error).__name__}: {error}"
            self._report.problems.append(Problem(file_of(batch[0].id), batch[0].id, extractor.name, reason))
            self._failures[extractor.name] += 1
            if self._failures[extractor.name] >= MOST_FAILURES:
                raise RuntimeError(
                    f"expert {extractor.name!r} failed on {MOST_FAILURES} clips in a row: {reason}"
                ) from error
            return [None]

    def _call(self, extractor: Extractor, batch: Sequence[Clip]) -> list[Extracted | None]:
        outputs = list(extractor(batch))
        if len(outputs) != len(batch):
            raise ValueError(f"expected {len(batch)} outputs, one a clip, got {len(outputs)}")
        return [self._checked(output, extractor) for output in outputs]

    def _checked(self, output: Output, extractor: Extractor) -> Extracted | None:
        """The output with its array, or ValueError unless it has the expert's form."""
        if output is None:
            return None
        array = output.array if isinstance(output, Extracted) else output
        check_unmasked(array, "array", "return None where a clip has nothing of the expert")
        extracted = output if isinstance(output, Extracted) else Extracted(np.asarray(output))
        x = np.asarray(extracted.array)
        expected = f"(N, {extractor.dim})" if extractor.sequence else f"({extractor.dim},)"
        if x.ndim != 1 + extractor.sequence or x.shape[-1] != extractor.dim or x.dtype.kind not in "fiu":
            raise ValueError(f"expected {expected} of numbers, got {x.shape} of {x.dtype}")
        largest = np.finfo(self._dtype).max
        if not (np.abs(x) <= largest).all():
            raise ValueError(f"expected finite numbers up to {largest:g} ({self._dtype}), got others")
        _check_words(extracted)
        return Extracted(x, extracted.text, extracted.labels, extracted.scores) if len(x) else None


def _check_words(extracted: Extracted) -> None:
    """Raise ValueError for words that a dataset cannot hold."""
    for word in (extracted.text or "", *extracted.labels):
        if not isinstance(word, str) or not is_unicode(word):
            raise ValueError(f"expected text and labels in Unicode, got {word!r}")
    if len(extracted.labels) != len(extracted.scores):
        raise ValueError(f"expected a score for each of {len(extracted.labels)} labels, got {len(extracted.scores)}")


# --- decoding ---------------------------------------------------------------------------------------------


class _Reader:
    """The side of decoding: threads that read files, and a queue of clips that is bounded by bytes.

    Clips of one file stay in their order.
    """

    def __init__(
        self,
        files: Sequence[MediaFile],
        clips: Clips,
        extractors: Iterable[Extractor],
        known: set[str],
        workers: int,
    ) -> None:
        self._files = deque(files)
        self._clips, self._known = clips, frozenset(known)
        self._views = frozenset(view for x in extractors for view in x.views)
        self._with_sound = any(x.reads_sound for x in extractors)
        self._queue: deque[Clip] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(workers, len(files)))]
        self._running = len(self._threads)
        self.sizes = {file.name: file.path.stat().st_size for file in files if file.path.is_file()}
        self._shares: dict[str, float] = {}
        self._problems: list[Problem] = []
        self.files_done = 0
        self.waiting_s = 0.0

    def __enter__(self) -> _Reader:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(LONGEST_WAIT_S)

    @property
    def done_bytes(self) -> int:
        """Bytes of the files, as far as they were read."""
        with self._changed:
            return int(sum(self.sizes.get(name, 0) * share for name, share in self._shares.items()))

    def take_problems(self) -> list[Problem]:
        """What could not be read since the last call."""
        with self._changed:
            problems, self._problems = self._problems, []
        return problems

    def batches(self) -> Iterator[list[Clip]]:
        """All clips that are not known, as many at once as are there, up to a batch."""
        while batch := self._next_batch():
            yield batch

    def _next_batch(self) -> list[Clip]:
        begin = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._running)
            self.waiting_s += time.perf_counter() - begin
            batch: list[Clip] = []
            size = 0
            while self._queue and len(batch) < BATCH and (not batch or size + self._queue[0].nbytes <= WAITING_BYTES):
                batch.append(self._queue.popleft())
                size += batch[-1].nbytes
            self._bytes -= size
            self._changed.notify_all()
        return batch

    def _work(self) -> None:
        try:
            while not self._stopped:
                try:
                    file = self._files.popleft()
                except IndexError:
                    return
                self._read(file)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _read(self, file: MediaFile) -> None:
        notes: list[str] = []
        is_complete = False
        try:
            for clip in read_clips(file, self._clips, self._views, self._with_sound, notes):
                if not self._put(file, clip):
                    return
            is_complete = True
        except (MediaError, OSError) as error:
            notes = [str(error), *(note for note in notes if note not in str(error))]
        except Exception as error:  # a damaged file may make a decoder raise anything
            notes.append(f"{type(error).__name__}: {error}")
        with self._changed:
            self.files_done += is_complete
            self._shares[file.name] = 1.0
            if notes:
                self._problems.append(Problem(file.name, "", "", "; ".join(notes)))

    def _put(self, file: MediaFile, clip: Clip) -> bool:
        """False where the run is being stopped."""
        with self._changed:
            self._shares[file.name] = clip.progress
            if clip.id in self._known:
                return not self._stopped
            size = clip.nbytes
            self._changed.wait_for(lambda: self._stopped or not self._queue or self._bytes + size <= WAITING_BYTES)
            self._queue.append(clip)
            self._bytes += size
            self._changed.notify_all()
            return not self._stopped


# --- NAME.errors.csv --------------------------------------------------------------------------------------

_COLUMNS = ("file", "clip", "expert", "reason")


def write_problems(report: Report) -> None:
    """List what could not be read, so far.

    This comes before the rows of the same clips are added: a clip that is in the dataset is not read again, and whoever
    kills the run between the two finds its problem listed.
    """
    write_errors(errors_path(report.path), _COLUMNS, [(x.file, x.clip, x.expert, x.reason) for x in report.problems])


def _read_problems(dataset: FeatureDataset) -> list[Problem]:
    """The problems that earlier runs had with files and clips that are not read again."""
    path = errors_path(dataset.path)
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    problems = [Problem(*(row.get(x) or "" for x in _COLUMNS)) for row in rows]
    return [x for x in problems if x.file in dataset.complete or x.clip in dataset.ids]
