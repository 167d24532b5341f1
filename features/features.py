"""Feature files on disk -> `experts` and `ind` for a list of videos.

A file holds the features of one expert for many videos, in one of two layouts:

- a table: ids (`video_id` or `ids`) and an array of one row a video, named after the expert or `features`;
- one array a video, by its id.

| suffix | layouts | read |
|---|---|---|
| `.npz` | both | a table as a whole, else by video |
| `.npy` | table, ids in `NAME.ids.txt` (one a line) or `NAME.ids.npy` beside `NAME.npy` | by video, mapped |
| `.h5`, `.hdf5` | both; arrays of videos may lie in a group named after the expert | by video |
| `.parquet` | table, a row's features being a list, or a list of lists (tokens) | by row group |
| `.pkl`, `.pickle` | one array a video, `{id: array}`, as the CE authors publish | as a whole; only NumPy arrays |

A row is one vector (dim,) for a fixed expert, or tokens (N, dim). A video without a row, and a row that is empty or
holds NaN, is missing.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..base.checks import check_unique, nearest, video_id
from ..base.config import CEConfig
from ..base.dependencies import extra

ID_NAMES = ("video_id", "ids")
BATCH = 1024

Files = Mapping[str, str | Path] | str | Path
"""{expert: file}; or one file, whose arrays are the experts'; or a folder of files named after their experts."""


@dataclass(frozen=True)
class Features:
    """Features of B videos, as an operator takes them. `features[rows]` are those of some.

    Attributes:
        ids: the B videos.
        experts: {expert: (B, dim) float32 with NaN where missing, or a list of B (N, dim) float32 and None}.
        ind: {expert: (B,) int64}, 1 where it is there.
    """

    ids: tuple[str, ...]
    experts: dict[str, np.ndarray | list[np.ndarray | None]]
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
        """(B, M) bool, experts in the order of `experts`."""
        return np.stack(list(self.ind.values()), axis=1).astype(bool)

    def summary(self) -> str:
        """A table: what each expert's features are, and for how many videos they are missing."""
        width = max(len("expert"), *map(len, self.experts))
        lines = [f"{'expert':{width}}  features         videos  missing"]
        for name, x in self.experts.items():
            there = int(self.ind[name].sum())
            lines.append(f"{name:{width}}  {_describe(x):15} {there:7,} {len(self) - there:8,}")
        return "\n".join(lines)


def read_features(files: Files, ids: Sequence[Any] | None = None, config: CEConfig | None = None) -> Features:
    """The features of some videos, or of all that any of the files has.

    Args:
        files: {expert: path}, the path of one file with several experts' arrays, or of a folder; see the module's head.
        ids: the videos, in this order; None takes all ids, in the order in which the files have them. Integers count
            as their decimal digits.
        config: the model's, which names and dimensions are checked against; None takes what is there.

    Raises:
        FileNotFoundError: a file, or the ids beside it, are not there.
        TypeError, ValueError: a file that cannot be read or has another layout, an id twice, Inf, an unknown expert,
            another dimension; naming file, id, what was expected and what came.
        ImportError: a format's library is missing, naming the extra that brings it.
    """
    return _join(list(iter_features(files, ids, config)))


def iter_features(
    files: Files, ids: Sequence[Any] | None = None, config: CEConfig | None = None, batch_size: int = BATCH
) -> Iterator[Features]:
    """The same in batches, for files larger than memory, with a progress bar; errors as `read_features`."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: expected an integer of at least 1, got {batch_size!r}")
    tqdm = extra("tqdm", "features").tqdm
    with ExitStack() as stack:
        sources = {
            name: stack.enter_context(_open(path, name)) for name, path in _find_files(files, config, stack).items()
        }
        readers = [_Reader(name, source, config) for name, source in sources.items()]
        wanted = _all_ids(sources) if ids is None else tuple(map(video_id, ids))
        check_unique(wanted, "ids")
        with tqdm(total=len(wanted), unit=" videos", desc="features", leave=False) as progress:
            for start in range(0, max(len(wanted), 1), batch_size):
                batch = wanted[start : start + batch_size]
                experts = {reader.name: reader.read(batch) for reader in readers}
                yield Features(batch, experts, {name: _there(x) for name, x in experts.items()})
                progress.update(len(batch))


def read_ids(files: Files) -> tuple[str, ...]:
    """The ids of the videos that any of the files has; files and errors as for `read_features`."""
    with ExitStack() as stack:
        return _all_ids(
            {name: stack.enter_context(_open(path, name)) for name, path in _find_files(files, None, stack).items()}
        )


def config_for(features: Features, text: Mapping[str, Any], **choices: Any) -> CEConfig:
    """A model for these features: every expert with its dimension, token sequences with 8 clusters and, as padding and
    limit, the longest one's length, 50 at most.

    Args:
        text: the text side, as in the short form of a config: {"dim": 384, ...}.
        choices: the rest of the short form, such as `shared_dim=512`; `experts={name: {...}}` adds to what is found.

    Raises:
        TypeError, ValueError: as `CEConfig.from_dict`, or an expert that no video has.
    """
    given = dict(choices.pop("experts", {}))
    experts = {}
    for name, x in features.experts.items():
        rows = [row for row in x if row is not None] if isinstance(x, list) else x
        if not features.ind[name].any():
            raise ValueError(f"features: expert {name!r} is missing in every video; leave it out, or mend its ids")
        own = {"dim": int(rows[0].shape[-1])}
        if isinstance(x, list):
            own |= {"clusters": 8, "max_tokens": min(max(map(len, rows)), 50)}
        experts[name] = own | given.pop(name, {})
    if given:
        raise ValueError(f"config: experts: there are no features of {', '.join(map(repr, given))}")
    if len(experts) == 1:
        choices = {"use_ce": ""} | choices  # nothing to collaborate with
    return CEConfig.from_dict({"experts": experts, "text": dict(text), **choices})


# --- which files ------------------------------------------------------------------------------------------


def _find_files(files: Files, config: CEConfig | None, stack: ExitStack) -> dict[str, Path]:
    if isinstance(files, Mapping):
        found = {name: Path(path) for name, path in files.items()}
    elif Path(files).is_dir():
        found = {path.stem: path for path in sorted(Path(files).iterdir()) if _is_feature_file(path)}
        repeated = [path for path in Path(files).iterdir() if _is_feature_file(path) and found[path.stem] != path]
        if repeated:
            raise ValueError(
                f"{files}: expected one file an expert, got {repeated[0].name} and {found[repeated[0].stem].name}"
            )
    else:
        path = Path(files)
        if not path.exists():
            raise FileNotFoundError(f"features: there is no file or folder {path}")
        if path.suffix not in (".npz", ".h5", ".hdf5"):
            raise ValueError(
                f"{path}: expected a folder, or one .npz or .h5 with several experts; else pass {{expert: path}}"
            )
        arrays = stack.enter_context(_SUFFIXES[path.suffix][0](_existing(path)))
        found = {name: path for name in arrays if name not in ID_NAMES}
        if not any(name in arrays for name in ID_NAMES):
            _check_groups(path, arrays)
    if not found:
        raise ValueError(f"{files}: expected files of features ({', '.join(_SUFFIXES)}), found none")
    for name in found:
        if config is not None and name not in config.expert_names:
            raise ValueError(f"features: unknown expert {name!r}{nearest(name, config.expert_names)}")
    return found


def _check_groups(path: Path, arrays: Any) -> None:
    """Without ids, one file of several experts can only be HDF5 with a group for each; else its arrays are videos."""
    with _reading(path):
        videos = [name for name in arrays if path.suffix == ".npz" or not hasattr(arrays[name], "keys")]
    if videos:
        raise ValueError(
            f"{path}: expected arrays of experts beside {' or '.join(ID_NAMES)}, got {videos[0]!r} and no ids; "
            "a file with one array a video is one expert's: pass {expert: path}"
        )


def _is_feature_file(path: Path) -> bool:
    return path.suffix in _SUFFIXES and not path.stem.endswith(".ids")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of features")
    return path


def _all_ids(sources: Mapping[str, _Source]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(video for source in sources.values() for video in source.ids))


# --- one expert -------------------------------------------------------------------------------------------


class _Source(Protocol):
    """The rows of one file."""

    path: Path
    ids: tuple[str, ...]

    def rows(self, at: np.ndarray) -> Sequence[Any]:
        """The rows at these positions, which ascend."""

    def shape(self) -> tuple[int, ...] | None:
        """Of a row, where all have the same."""


class _Reader:
    """Rows of one expert by video id, checked."""

    def __init__(self, name: str, source: _Source, config: CEConfig | None) -> None:
        self.name, self._source = name, source
        check_unique(source.ids, str(source.path))
        self._position = {video: row for row, video in enumerate(source.ids)}
        expert = next((e for e in config.experts if e.name == name), None) if config else None
        self._sequence, self._dim = (expert.variable, expert.dim) if expert else self._guess()

    def _guess(self) -> tuple[bool, int | None]:
        """From the first row that is not missing: whether rows are sequences, and their dimension."""
        for row in range(len(self._source.ids)):
            x = self._clean(self._rows([row])[0], self._source.ids[row])
            if x is not None:
                return x.ndim == 2, x.shape[-1]
        return False, None

    def read(self, ids: Sequence[str]) -> np.ndarray | list[np.ndarray | None]:
        places = [(self._position[video], i) for i, video in enumerate(ids) if video in self._position]
        places.sort()
        found: list[np.ndarray | None] = [None] * len(ids)
        for (_, i), row in zip(places, self._rows([at for at, _ in places]), strict=True):
            found[i] = self._fit(self._clean(row, ids[i]), ids[i])
        if self._sequence:
            return found
        matrix = np.full((len(ids), self._dim or 0), np.nan, dtype=np.float32)
        for i, x in enumerate(found):
            if x is not None:
                matrix[i] = x
        return matrix

    def _rows(self, at: list[int]) -> Sequence[Any]:
        with _reading(self._source.path):
            return self._source.rows(np.array(at, dtype=int))

    def _clean(self, row: Any, video: str) -> np.ndarray | None:
        """A row as float32; None where it is missing."""
        where = f"{self._source.path}, {self.name!r}, video {video!r}"
        try:
            x = np.asarray(row)
            if x.dtype == object:
                x = np.stack([np.asarray(token, dtype=np.float64) for token in x]) if x.size else np.empty(0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: expected a vector, or tokens of equal size: {error}") from error
        if x.size == 0:
            return None
        if x.dtype.kind not in "fiu":
            hint = f" (ids are looked for as {' or '.join(ID_NAMES)})" if x.dtype.kind in "SU" else ""
            raise ValueError(f"{where}: expected numbers, got {x.dtype}{hint}")
        if np.isnan(x).any():
            return None
        if x.ndim not in (1, 2):
            raise ValueError(f"{where}: expected (dim,) or tokens (N, dim), got {x.shape}")
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if np.isinf(x).any():
            raise ValueError(f"{where}: expected finite features, or NaN where the expert is missing; got Inf")
        return x

    def _fit(self, x: np.ndarray | None, video: str) -> np.ndarray | None:
        if x is None:
            return None
        if not self._sequence and x.ndim == 2 and len(x) == 1:
            x = x[0]
        if x.ndim != (2 if self._sequence else 1) or x.shape[-1] != self._dim:
            expected = f"(N, {self._dim})" if self._sequence else f"({self._dim},)"
            hint = (
                "; average its tokens first, or give the expert clusters" if x.ndim == 2 and not self._sequence else ""
            )
            raise ValueError(
                f"{self._source.path}, {self.name!r}, video {video!r}: expected {expected}, got {x.shape}{hint}"
            )
        return x


def _there(x: np.ndarray | list[np.ndarray | None]) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return (~np.isnan(x).any(axis=1) & (x.shape[1] > 0)).astype(np.int64)
    return np.array([row is not None for row in x], dtype=np.int64)


def _join(parts: list[Features]) -> Features:
    if len(parts) == 1:
        return parts[0]
    experts: dict[str, Any] = {}
    for name, first in parts[0].experts.items():
        pieces = [part.experts[name] for part in parts]
        experts[name] = np.concatenate(pieces) if isinstance(first, np.ndarray) else list(chain.from_iterable(pieces))
    return Features(
        tuple(chain.from_iterable(part.ids for part in parts)),
        experts,
        {name: np.concatenate([part.ind[name] for part in parts]) for name in parts[0].ind},
    )


def _describe(x: np.ndarray | list[np.ndarray | None]) -> str:
    if isinstance(x, np.ndarray):
        return f"({x.shape[1]},)"
    rows = [row for row in x if row is not None]
    if not rows:
        return "tokens"
    low, high = min(map(len, rows)), max(map(len, rows))
    return f"({low if low == high else f'{low}-{high}'}, {rows[0].shape[1]})"


# --- formats ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """Ids and an array of one row a video, in memory, mapped, or in an HDF5 file."""

    path: Path
    ids: tuple[str, ...]
    array: Any

    def rows(self, at: np.ndarray) -> Sequence[Any]:
        return self.array[at] if len(at) else []


@dataclass(frozen=True)
class _ByVideo:
    """One array a video."""

    path: Path
    keys: dict[str, Any]
    arrays: Any

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.keys)

    def rows(self, at: np.ndarray) -> Sequence[Any]:
        names = list(self.keys.values())
        return [self.arrays[names[row]][()] for row in at]


@contextmanager
def _open(path: Path, expert: str) -> Iterator[_Source]:
    """The file's source; whatever its bytes make a library raise is a ValueError that names it."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"{path}: expected a file of features ({', '.join(_SUFFIXES)}), got the suffix {path.suffix!r}"
        )
    opener, make = _SUFFIXES[path.suffix]
    with opener(_existing(path)) as content:
        yield make(path, content, expert)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (ImportError, FileNotFoundError):
        raise
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as {path.suffix}: {error}") from error


@contextmanager
def _npz(path: Path) -> Iterator[Any]:
    with _reading(path):
        file = np.load(path, allow_pickle=False)
    with file:
        yield file


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    h5py = extra("h5py", "features")
    with _reading(path):
        file = h5py.File(path, "r")
    with file:
        yield file


def _from_arrays(path: Path, arrays: Any, expert: str) -> _Source:
    """A `.npz` or HDF5 file in either layout."""
    id_name = next((name for name in ID_NAMES if name in arrays), None)
    if id_name is None:
        group = arrays[expert] if expert in arrays and hasattr(arrays[expert], "keys") else arrays
        return _ByVideo(path, {name: name for name in group}, group)
    name = next((name for name in (expert, "features") if name in arrays), None)
    if name is None:
        raise ValueError(f"{path}: expected an array {expert!r} or 'features' beside {id_name!r}, got {list(arrays)}")
    with _reading(path):
        ids = tuple(video_id(video) for video in arrays[id_name][()].tolist())
        array = arrays[name]
    return _table(path, ids, array)


def _table(path: Path, ids: tuple[str, ...], array: Any) -> _Table:
    if len(array.shape) not in (2, 3) or len(array) != len(ids):
        raise ValueError(f"{path}: expected ({len(ids)}, dim) or ({len(ids)}, N, dim) for its ids, got {array.shape}")
    return _Table(path, ids, array)


@contextmanager
def _npy(path: Path) -> Iterator[Any]:
    with _reading(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    yield array


def _from_npy(path: Path, array: np.ndarray, expert: str) -> _Source:
    text, binary = path.with_suffix(".ids.txt"), path.with_suffix(".ids.npy")
    if text.is_file():
        with _reading(text):
            ids = tuple(line.strip() for line in text.read_text(encoding="utf-8").splitlines() if line.strip())
    elif binary.is_file():
        with _reading(binary):
            ids = tuple(video_id(video) for video in np.load(binary, allow_pickle=False).tolist())
    else:
        raise FileNotFoundError(f"{path}: expected its ids in {text.name} (one a line) or {binary.name}, found neither")
    return _table(path, ids, array)


class _Parquet:
    """A table of which one row group is held at a time."""

    def __init__(self, path: Path, file: Any, expert: str) -> None:
        self.path, self._file = path, file
        names = file.schema_arrow.names
        id_name = next((name for name in ID_NAMES if name in names), None)
        column = next((name for name in (expert, "features") if name in names), None)
        if id_name is None or column is None:
            raise ValueError(f"{path}: expected the columns video_id or ids, and {expert!r} or 'features'; got {names}")
        self._column = column
        with _reading(path):
            self.ids = tuple(video_id(video) for video in file.read([id_name])[id_name].to_pylist())
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=int)
        self._held: tuple[int, Any] = (-1, None)

    def rows(self, at: np.ndarray) -> Sequence[Any]:
        return [self._row(int(row)) for row in at]

    def _row(self, row: int) -> Any:
        group = int(np.searchsorted(self._ends, row, side="right"))
        if self._held[0] != group:
            self._held = (group, self._file.read_row_group(group, [self._column])[self._column].combine_chunks())
        start = self._ends[group - 1] if group else 0
        value = self._held[1][row - int(start)]
        return np.empty(0) if not value.is_valid else np.array(value.as_py(), dtype=np.float64)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    module = extra("pyarrow.parquet", "features")
    with _reading(path):
        file = module.ParquetFile(path)
    with file:
        yield file


class _ArraysOnly(pickle.Unpickler):
    """Lets in dicts of NumPy arrays, in every way in which NumPy has written them, and nothing else."""

    _ALLOWED = frozenset(
        (f"numpy.{core}.{name}", attribute)
        for core in ("core", "_core")
        for name, attribute in (("multiarray", "scalar"), ("numeric", "_frombuffer"))
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty
        if (module, name) == ("numpy", "ndarray"):
            return None
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):
            return _no_bytes
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"refused, it would call {module}.{name}; only NumPy arrays are let in")


def _empty(*_: Any) -> np.ndarray:
    """What NumPy fills an array's state into; `numpy.ndarray` itself would take bytes for pointers to objects."""
    return np.empty(0, dtype=np.int8)


def _dtype(*arguments: Any) -> np.dtype:
    dtype = np.dtype(*arguments)
    if dtype.hasobject:
        raise pickle.UnpicklingError("refused, arrays of objects; only arrays of numbers are let in")
    return dtype


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 2 wrote bytes; any other codec is none of a feature file's business."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused, it would call _codecs.encode with {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """What an empty array is made of, as Python 3 writes it for Python 2."""
    return b""


@contextmanager
def _pickle(path: Path) -> Iterator[Any]:
    with _reading(path), path.open("rb") as file:
        content = _ArraysOnly(file, encoding="latin1").load()
    yield content


def _from_pickle(path: Path, content: Any, expert: str) -> _Source:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict {{video id: array}}, got {type(content).__name__}")
    keys = [(video_id(key), key) for key in content]
    check_unique([name for name, _ in keys], str(path))
    return _ByVideo(path, dict(keys), _Values(content))


@dataclass(frozen=True)
class _Values:
    """Looks arrays and plain numbers up alike; `nan` in place of an array is how the CE authors say missing."""

    content: dict[Any, Any]

    def __getitem__(self, key: Any) -> np.ndarray:
        x = np.asarray(self.content[key])
        return np.empty(0) if x.ndim == 0 and x.dtype.kind == "f" and np.isnan(x) else x


_SUFFIXES: dict[str, tuple[Callable, Callable]] = {
    ".npz": (_npz, _from_arrays),
    ".npy": (_npy, _from_npy),
    ".h5": (_hdf5, _from_arrays),
    ".hdf5": (_hdf5, _from_arrays),
    ".parquet": (_parquet, _Parquet),
    ".pkl": (_pickle, _from_pickle),
    ".pickle": (_pickle, _from_pickle),
}
