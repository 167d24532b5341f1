"""Feature files on disk -> `experts` and `ind` for a list of videos.

A file holds the features of one expert for many videos, in one of two layouts:

- a table: ids (`video_id` or `ids`) and an array of one row a video, named after the expert or `features`;
- one array a video, named by its id.

| file | layouts | held in memory |
|---|---|---|
| `.npz` | both | a table as a whole, else the videos of a batch |
| `.npy` | table, ids in `NAME.ids.txt` (one a line) or `NAME.ids.npy` beside `NAME.npy` | the videos of a batch |
| `.h5`, `.hdf5` | both, at the top or in a group named after the expert; ids may have slashes | the videos of a batch |
| `.parquet` | table, a row being a list, or a list of lists (tokens) | one row group |
| `.csv` | table of a column of ids and one column a number, in the vector's order | the whole, as float32 |
| `.pt`, `.pth` | both, `{id: tensor}` or `{"video_id": ids, "features": tensor}` | the videos of a batch |
| `.pkl`, `.pickle` | both, `{id: array}` as the CE authors publish; only NumPy arrays | the whole |
| folder | `NAME/ID.npy`, one file a video | the videos of a batch |
| `.lance` | what `extract` writes: a row a clip, a column an expert | the videos of a batch |

A row is one vector (dim,) for a fixed expert, or tokens (N, dim). A video without a row is missing, and so is one whose
row is empty or holds NaN. No file can run code.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np

from ..base.checks import check_size, check_unique, nearest, video_id
from ..base.config import CEConfig, ExpertConfig
from ..base.dependencies import extra
from .expert_reader import ExpertFeatures, ExpertReader
from .formats import FORMATS, LANCE, Source, expert_names, is_note, open_source, readable_formats
from .id_overlap import check_files, check_request

BATCH = 1024

Files = Mapping[str, str | Path] | str | Path
"""{expert: file}; or one file with several experts (`.npz`, HDF5, `.lance`); or a folder of files named by experts."""

VideoIds = Sequence[str] | Sequence[int] | np.ndarray
"""Ids of videos. Integers count as their decimal digits."""


@dataclass(frozen=True)
class Features:
    """Features of B videos in the form that an operator takes. `features[rows]` selects videos.

    Attributes:
        ids: the B videos.
        experts: {expert: (B, dim) float32 with NaN rows where missing, or a list of B (N, dim) float32 and None}.
        ind: {expert: (B,) int64}, 1 where the video has the expert and 0 where it is missing.
    """

    ids: tuple[str, ...]
    experts: dict[str, ExpertFeatures]
    ind: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> Features:
        rows = np.arange(len(self))[rows]
        return Features(
            tuple(self.ids[row] for row in rows),
            {
                name: x[rows] if isinstance(x, np.ndarray) else [x[row] for row in rows]
                for name, x in self.experts.items()
            },
            {name: x[rows] for name, x in self.ind.items()},
        )

    @property
    def available(self) -> np.ndarray:
        """(B, M) bool, True where the video has the expert; experts in the order of `experts`."""
        return np.stack(list(self.ind.values()), axis=1).astype(bool)

    def summary(self) -> str:
        """A table of the experts: the shape of a video's features, and how many videos have them."""
        width = max(len("expert"), *map(len, self.experts))
        lines = [f"{'expert':{width}}  features         videos  missing"]
        for name, x in self.experts.items():
            videos = int(self.ind[name].sum())
            lines.append(f"{name:{width}}  {_shape_text(x):15} {videos:7,} {len(self) - videos:8,}")
        return "\n".join(lines)


def read_features(files: Files, ids: VideoIds | None = None, config: CEConfig | None = None) -> Features:
    """Read the features of some videos, or of all that any of the files has.

    Args:
        files: {expert: path}, a folder, or one `.npz` or HDF5 file with the arrays of several experts. The head of this
            module lists the formats.
        ids: the videos, in this order. None takes all ids, in the order in which the files have them.
        config: the model's config, which names and dimensions are checked against. None takes what the files have.

    Raises:
        FileNotFoundError: a file, or the ids beside it, are not there.
        TypeError, ValueError: a file that cannot be read or has another layout, a file of a folder that has no known
            format, files that share no ids with each other or with `ids`, an id twice, Inf, an unknown expert, another
            dimension. The message names file, id, what was expected and what came.
        ImportError: the library of a format is missing. The message names the extra that brings it.

    Warns:
        UserWarning: files that share less than 5% of their ids with each other or with `ids`; a folder or a file that
            lacks an expert of the model altogether.

    >>> np.savez("motion.npz", video_id=["a", "b"], motion=np.ones((2, 512)))
    >>> features = read_features({"motion": "motion.npz"}, ["b", "c"])
    >>> features.experts["motion"].shape, features.ind["motion"].tolist()
    ((2, 512), [1, 0])
    """
    return _join(list(iter_features(files, ids, config)))


def iter_features(
    files: Files, ids: VideoIds | None = None, config: CEConfig | None = None, batch_size: int = BATCH
) -> Iterator[Features]:
    """Read features in batches of videos, with a progress bar, for files larger than memory.

    Args and errors are those of `read_features`. The joined batches are its result.
    """
    batch_size = check_size(batch_size, "batch_size")
    tqdm = extra("tqdm", "features").tqdm
    with FeatureReader(files, config) as reader:
        wanted = reader.ids if ids is None else _to_ids(ids)
        reader.check_request(wanted)
        with tqdm(total=len(wanted), unit=" videos", desc="features", leave=False) as progress:
            for start in range(0, max(len(wanted), 1), batch_size):
                batch = reader.read(wanted[start : start + batch_size])
                yield batch
                progress.update(len(batch))


def read_ids(files: Files) -> tuple[str, ...]:
    """The ids of the videos that any of the files has. Files and errors are those of `read_features`."""
    with ExitStack() as stack:
        return _all_ids(_open_all(files, None, stack))


class FeatureReader:
    """Open files of features, read by video id as often as wanted. A context manager.

    Args and errors are those of `read_features`.

    Attributes:
        ids: the videos that any of the files has, in the order in which the files have them.
    """

    def __init__(self, files: Files, config: CEConfig | None = None) -> None:
        with ExitStack() as stack:
            sources = _open_all(files, config, stack)
            self._readers = [ExpertReader(name, source, _expert(config, name)) for name, source in sources.items()]
            self._ids_of_files = {f"{source.path}, {name!r},": source.ids for name, source in sources.items()}
            check_files(self._ids_of_files)
            self.ids = _all_ids(sources)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def check_request(self, ids: Sequence[str]) -> None:
        """Raise ValueError for an id twice or files that have none of the ids; warn where they have hardly any."""
        check_unique(ids, "ids")
        check_request(ids, self._ids_of_files)

    def read(self, ids: Sequence[str]) -> Features:
        """The features of these videos, in this order. A video that no file has is missing."""
        experts = {reader.name: reader.read(ids) for reader in self._readers}
        return Features(tuple(ids), experts, {name: _availability(x) for name, x in experts.items()})


# --- files ------------------------------------------------------------------------------------------------


def _open_all(files: Files, config: CEConfig | None, stack: ExitStack) -> dict[str, Source]:
    paths = _find_files(files)
    if not paths:
        raise ValueError(f"{files}: expected files of features ({', '.join(FORMATS)}), found none")
    for name in paths:
        if config is not None and name not in config.expert_names:
            raise ValueError(f"features: the model has no expert {name!r}{nearest(name, config.expert_names)}")
    absent = [name for name in config.expert_names if name not in paths] if config else []
    if absent and not isinstance(files, Mapping):  # which says what is wanted
        warnings.warn(
            f"features: {files} has none of {', '.join(map(repr, absent))}, which the model knows; no video has them",
            stacklevel=2,
        )
    return {name: stack.enter_context(open_source(path, name)) for name, path in paths.items()}


def _find_files(files: Files) -> dict[str, Path]:
    """{expert: path of its file or folder}."""
    if isinstance(files, Mapping):
        return {name: Path(path) for name, path in files.items()}
    path = Path(files)
    if path.is_dir() and path.suffix != LANCE:
        return _find_in_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"features: there is no file or folder {path}")
    return dict.fromkeys(expert_names(path), path)


def _find_in_folder(folder: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    unread = []
    for path in sorted(folder.iterdir()):
        if is_note(path):
            continue
        if path.is_dir() or (path.suffix in FORMATS and not path.stem.endswith(".ids")):
            for name in _names_in_folder(path):
                if paths.setdefault(name, path) != path:
                    raise ValueError(f"{folder}: expected one file an expert, got {path.name} and {paths[name].name}")
        elif not _belongs_to_npy(path):
            unread.append(path.name)
    if unread:
        others = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        raise ValueError(
            f"{folder}: {', '.join(unread[:3])}{others} cannot be read; expected only {readable_formats()} for each "
            "expert, ids beside .npy, README or .md; move other files away"
        )
    return paths


def _names_in_folder(path: Path) -> list[str]:
    """The experts of one entry of a folder of features."""
    if path.suffix == LANCE:
        return expert_names(path)
    return [path.name if path.is_dir() else path.stem]


def _belongs_to_npy(path: Path) -> bool:
    """True for the ids beside an array: `NAME.ids.txt` or `NAME.ids.npy` with `NAME.npy`."""
    name = path.name.removesuffix(".txt").removesuffix(".npy")
    return name.endswith(".ids") and path.with_name(f"{name.removesuffix('.ids')}.npy").is_file()


# --- helpers ----------------------------------------------------------------------------------------------


def _to_ids(ids: VideoIds) -> tuple[str, ...]:
    if isinstance(ids, str | bytes):
        raise TypeError(f"ids: expected a list of ids, got {ids!r}")
    return tuple(map(video_id, ids))


def _all_ids(sources: Mapping[str, Source]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(source.ids for source in sources.values())))


def _expert(config: CEConfig | None, name: str) -> ExpertConfig | None:
    return next((expert for expert in config.experts if expert.name == name), None) if config else None


def _availability(x: ExpertFeatures) -> np.ndarray:
    """(B,) int64, 1 where the video has the expert."""
    if isinstance(x, np.ndarray):
        return (~np.isnan(x).any(axis=1) & (x.shape[1] > 0)).astype(np.int64)
    return np.array([row is not None for row in x], dtype=np.int64)


def _join(batches: list[Features]) -> Features:
    if len(batches) == 1:
        return batches[0]
    return Features(
        tuple(chain.from_iterable(batch.ids for batch in batches)),
        {name: _join_rows([batch.experts[name] for batch in batches]) for name in batches[0].experts},
        {name: np.concatenate([batch.ind[name] for batch in batches]) for name in batches[0].ind},
    )


def _join_rows(parts: list[ExpertFeatures]) -> ExpertFeatures:
    matrices = [part for part in parts if isinstance(part, np.ndarray)]
    return np.concatenate(matrices) if matrices else list(chain.from_iterable(parts))


def _shape_text(x: ExpertFeatures) -> str:
    if isinstance(x, np.ndarray):
        return f"({x.shape[1]},)"
    sequences = [row for row in x if row is not None]
    if not sequences:
        return "tokens"
    shortest, longest = min(map(len, sequences)), max(map(len, sequences))
    return f"({shortest if shortest == longest else f'{shortest}-{longest}'}, {sequences[0].shape[1]})"
