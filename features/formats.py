"""The formats of feature files. Each opens as a `Source`: the ids of one expert's file, and its rows by position.

A new format is a context manager that yields a `Source`, and its suffix in `FORMATS`. Its row in the table at the head
of features.py and its layouts in tests/features/test_formats.py complete it.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..base.archives import check_archive, check_expansion
from ..base.checks import check_unique, video_id
from ..base.dependencies import extra, is_panic
from ..base.forks import import_lance
from ..base.lance_files import check_footers
from ..base.matrices import to_matrix
from .hdf5_heaps import check_heaps
from .safe_pickle import load_arrays, load_tensors

ID_NAMES = ("video_id", "ids")
TABLE_NAME = "features"
"""The array of a table, where it is not named after the expert."""

NUMBER_BYTES = 8
"""Memory that a number of a Parquet file takes."""

CSV_BLOCK_BYTES = 1 << 24
"""Text that is parsed at once. A line must fit in."""


class Source(Protocol):
    """An open feature file of one expert."""

    @property
    def path(self) -> Path: ...

    @property
    def ids(self) -> tuple[str, ...]: ...

    def rows(self, positions: np.ndarray) -> Sequence[ArrayLike]:
        """The rows at these positions of `ids`, which ascend."""


class FeatureFileError(ValueError):
    """A feature file that is damaged or has another layout. The message begins with its path."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes a library raise into a `FeatureFileError` that names the file."""
    try:
        yield
    except (ImportError, FileNotFoundError, FeatureFileError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        form = "a folder of ID.npy" if path.is_dir() and path.suffix != LANCE else path.suffix
        said = " ".join(str(error).split()).removeprefix(f"{path}: ") or type(error).__name__
        raise FeatureFileError(f"{path}: cannot be read as {form}: {said}") from None


def open_source(path: Path, expert: str) -> AbstractContextManager[Source]:
    """Open the file, or the folder of ID.npy, of one expert.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the suffix is unknown, the file is damaged, or it has another layout.
        ImportError: the format's library is missing; the message names the extra that brings it.
    """
    if path.is_dir() and path.suffix != LANCE:
        return _open_folder(path, expert)
    if path.suffix not in FORMATS:
        raise FeatureFileError(f"{path}: expected {readable_formats()}; got the suffix {path.suffix!r}")
    if not path.is_file() and not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such file of features")
    return FORMATS[path.suffix](path, expert)


def expert_names(path: Path) -> list[str]:
    """The experts of one file that holds several: its arrays beside ids, its HDF5 groups, or its columns.

    Raises:
        ValueError: the suffix is of no such format, or the arrays are of videos instead of experts.
    """
    if path.suffix == LANCE:
        return _lance_experts(path, _lance_dataset(path))
    if path.suffix not in _SEVERAL_EXPERTS:
        raise FeatureFileError(
            f"{path}: expected one .npz, .h5 or .lance with several experts, or a folder of files, each named after "
            "its expert; in Python also {expert: path}"
        )
    with _SEVERAL_EXPERTS[path.suffix](path) as arrays:
        with reading(path):
            names = [name for name in arrays if name not in ID_NAMES]
            has_ids = any(name in arrays for name in ID_NAMES)
            videos = [] if has_ids else [name for name in names if not hasattr(arrays[name], "keys")]
        if videos:
            raise FeatureFileError(
                f"{path}: expected arrays of experts beside {' or '.join(ID_NAMES)}, got {videos[0]!r} and no ids; "
                "a file with one array a video is one expert's: pass {expert: path}"
            )
    return names


def readable_formats() -> str:
    """A phrase that names every format, for messages."""
    return f"a file of features ({', '.join(FORMATS)}) or a folder of ID.npy"


def is_note(path: Path) -> bool:
    """True for what may lie beside features unread: hidden files, README, Markdown and the errors of `extract`."""
    is_text = path.name.upper().startswith("README") or path.suffix == ".md" or path.name.endswith(".errors.csv")
    return path.name.startswith(".") or is_text


# --- the two layouts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """Ids and an array with one row a video: in memory, mapped, or in an HDF5 file."""

    path: Path
    ids: tuple[str, ...]
    array: Any

    def __post_init__(self) -> None:
        if not hasattr(self.array, "shape"):
            raise FeatureFileError(f"{self.path}: expected an array for its ids, got {type(self.array).__name__}")
        shape, videos = tuple(self.array.shape), len(self.ids)
        if len(shape) not in (2, 3) or shape[0] != videos:
            raise FeatureFileError(
                f"{self.path}: expected ({videos}, dim) or ({videos}, N, dim) for its ids, got {shape}"
            )

    def rows(self, positions: np.ndarray) -> Sequence[ArrayLike]:
        return self.array[positions] if len(positions) else []


@dataclass(frozen=True)
class _ByVideo:
    """One array a video, under a key that spells its id."""

    path: Path
    ids: tuple[str, ...]
    keys: tuple[Any, ...]
    arrays: Any

    def rows(self, positions: np.ndarray) -> Sequence[ArrayLike]:
        return [self.arrays[self.keys[position]][()] for position in positions]


def _from_arrays(path: Path, arrays: Any, expert: str) -> Source:
    """A table where there are ids beside an array, else one array a video."""
    with reading(path):
        id_name = _name_of_ids(arrays)
        names = list(arrays)
    if id_name is not None:
        return _table_of(path, arrays, expert, id_name)
    with reading(path):
        ids = _to_ids(names)
    _check_not_a_table(path, arrays, expert)
    check_unique(ids, str(path))
    return _ByVideo(path, ids, tuple(names), arrays)


def _table_of(path: Path, arrays: Any, expert: str, id_name: str) -> Source:
    with reading(path):
        name = next((name for name in (expert, TABLE_NAME) if name in arrays), None)
        if name is None:
            raise FeatureFileError(
                f"{path}: expected an array {expert!r} or {TABLE_NAME!r} beside {id_name!r}, got {list(arrays)}; "
                "a file of several experts is passed by itself, not in a folder"
            )
        ids = _column_of_ids(path, arrays[id_name][()])
        array = arrays[name]
    return _Table(path, ids, array)


def _check_not_a_table(path: Path, arrays: Any, expert: str) -> None:
    """Refuse arrays that look like a table without its ids, and would be read as videos."""
    names = list(arrays)
    if "arr_0" in names:
        raise FeatureFileError(
            f"{path}: expected arrays with names, got {', '.join(map(str, names[:3]))}; "
            f"save them as np.savez(path, video_id=ids, {TABLE_NAME}=array)"
        )
    if len(names) != 1:
        return
    with reading(path):
        shape = tuple(arrays[names[0]].shape)
    if names[0] in (expert, TABLE_NAME) or (path.suffix == ".npz" and len(shape) > 1):
        raise FeatureFileError(
            f"{path}: expected ids ({' or '.join(ID_NAMES)}) beside its only array {names[0]!r}, got {shape} and no "
            f"ids; the tokens of one single video are read from a folder {expert}/ID.npy"
        )


def _name_of_ids(names: Any) -> str | None:
    return next((name for name in ID_NAMES if name in names), None)


def _column_of_ids(path: Path, values: np.ndarray) -> tuple[str, ...]:
    if np.ndim(values) != 1:
        raise FeatureFileError(f"{path}: expected one id a row, got an array of shape {np.shape(values)}")
    return _to_ids(values.tolist())


def _to_ids(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(video_id, values))


# --- NumPy ------------------------------------------------------------------------------------------------


@contextmanager
def _npz_arrays(path: Path) -> Iterator[Any]:
    with reading(path):
        if zipfile.is_zipfile(path):
            check_archive(path)
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise FeatureFileError(f"{path}: expected an archive of np.savez, got a single array")
    with file:
        yield file


@contextmanager
def _open_npz(path: Path, expert: str) -> Iterator[Source]:
    with _npz_arrays(path) as arrays:
        yield _from_arrays(path, arrays, expert)


@contextmanager
def _open_npy(path: Path, expert: str) -> Iterator[Source]:
    with reading(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise FeatureFileError(f"{path}: expected a single array, got an archive of np.savez")
    yield _Table(path, _ids_beside(path), array)


def _ids_beside(path: Path) -> tuple[str, ...]:
    text, binary = path.with_suffix(".ids.txt"), path.with_suffix(".ids.npy")
    if text.is_file():
        with reading(text), text.open(encoding="utf-8-sig") as lines:
            return tuple(line.strip() for line in lines if line.strip())
    if binary.is_file():
        with reading(binary):
            return _column_of_ids(binary, np.load(binary, allow_pickle=False))
    raise FileNotFoundError(
        f"{path}: expected its ids in {text.name} (one a line) or {binary.name}, found neither; "
        "a folder of ID.npy, one a video, is passed as {expert: folder}"
    )


@dataclass(frozen=True)
class _NpyFiles:
    """The arrays of `.npy` files by their paths."""

    def __getitem__(self, path: Path) -> np.ndarray:
        with reading(path):
            return np.load(path, allow_pickle=False)


@contextmanager
def _open_folder(path: Path, expert: str) -> Iterator[Source]:
    """A folder named after the expert with a file ID.npy for each video."""
    files = sorted(file for file in path.iterdir() if not is_note(file))
    unread = [file for file in files if file.suffix != ".npy"]
    if unread or not files:
        raise FeatureFileError(
            f"{path}: expected a folder of ID.npy, one file a video, got {unread[0].name if unread else 'no file'}"
        )
    yield _ByVideo(path, _to_ids(file.stem for file in files), tuple(files), _NpyFiles())


# --- HDF5 -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Hdf5Group:
    """A group whose datasets are looked up only if the file holds them."""

    path: Path
    group: Any

    def __iter__(self) -> Iterator[str]:
        return iter(self.group)

    def __contains__(self, name: object) -> bool:
        return name in self.group

    def __getitem__(self, name: str) -> Any:
        x = self.group[name]
        if hasattr(x, "keys"):
            return _Hdf5Group(self.path, x)
        if x.external:
            raise FeatureFileError(f"{self.path}, {name!r}: refused, its numbers are to be read from another file")
        check_expansion(self.path, x.nbytes)
        check_heaps(self.path, x)
        return x

    def keys(self) -> Iterator[str]:
        return iter(self)


@contextmanager
def _hdf5_arrays(path: Path) -> Iterator[_Hdf5Group]:
    h5py = extra("h5py", "features")
    with reading(path):
        file = h5py.File(path, "r")
    with file:
        yield _Hdf5Group(path, file)


@contextmanager
def _open_hdf5(path: Path, expert: str) -> Iterator[Source]:
    """Either layout, at the top or in a group named after the expert."""
    with _hdf5_arrays(path) as file:
        with reading(path):
            in_group = expert in file and hasattr(file[expert], "keys")
            group = file[expert] if in_group else file
            id_name = _name_of_ids(group)
            ids = () if id_name else tuple(_names_of_datasets(group.group))
        if id_name:
            yield _table_of(path, group, expert, id_name)
            return
        if not in_group and len(ids) == 1:
            _check_not_a_table(path, {name: group[name] for name in ids}, expert)
        yield _ByVideo(path, ids, ids, group)


def _names_of_datasets(group: Any) -> Iterator[str]:
    """The paths of all datasets below a group: an id with a slash lies in a group of its own."""
    h5o = extra("h5py", "features").h5o
    start = h5o.get_info(group.id)
    seen = {(start.fileno, start.addr)}
    waiting = [(group, "")]
    while waiting:
        parent, prefix = waiting.pop()
        for name in parent:
            info = h5o.get_info(parent.id, name.encode())
            if info.type != h5o.TYPE_GROUP:
                yield prefix + name
            elif (info.fileno, info.addr) not in seen:  # a group may link to one above it
                seen.add((info.fileno, info.addr))
                waiting.append((parent[name], f"{prefix}{name}/"))


# --- tables of columns ------------------------------------------------------------------------------------


class _ParquetRows:
    """A table of which one row group is held at a time."""

    def __init__(self, path: Path, file: Any, expert: str) -> None:
        self.path, self._file = path, file
        names = file.schema_arrow.names
        id_name = _name_of_ids(names)
        column = next((name for name in (expert, TABLE_NAME) if name in names), None)
        if id_name is None or column is None:
            raise FeatureFileError(
                f"{path}: expected the columns video_id or ids, and {expert!r} or {TABLE_NAME!r}; got {names}"
            )
        self._column = column
        with reading(path):
            _check_columns_of_groups(file)
            check_expansion(path, NUMBER_BYTES * _leaves(file.metadata))
            self.ids = _to_ids(file.read([id_name])[id_name].to_pylist())
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=int)
        self._held: tuple[int, Any] = (-1, None)

    def rows(self, positions: np.ndarray) -> Sequence[ArrayLike]:
        return [self._row(int(position)) for position in positions]

    def _row(self, position: int) -> np.ndarray:
        group = int(np.searchsorted(self._ends, position, side="right"))
        if self._held[0] != group:
            self._held = (group, self._file.read_row_group(group, [self._column])[self._column].combine_chunks())
        start = self._ends[group - 1] if group else 0
        value = self._held[1][position - int(start)]
        return np.array(value.as_py(), dtype=np.float64) if value.is_valid else np.empty(0)


def _check_columns_of_groups(file: Any) -> None:
    """Raise OSError where what a file says of a column is damaged, by beginning to read each, but no row.

    To ask `metadata` for such a column would end the process.
    """
    for group in range(file.num_row_groups):
        next(file.reader.iter_batches(0, row_groups=[group]), None)


def _leaves(metadata: Any) -> int:
    """Numbers and texts in all columns. Runs of equal ones may take no bytes to speak of."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return sum(group.column(i).num_values for group in groups for i in range(metadata.num_columns))


@contextmanager
def _open_parquet(path: Path, expert: str) -> Iterator[Source]:
    parquet = extra("pyarrow.parquet", "features")
    with reading(path):
        file = parquet.ParquetFile(path)
    with file:
        yield _ParquetRows(path, file, expert)


@contextmanager
def _open_csv(path: Path, expert: str) -> Iterator[Source]:
    """A table held as float32, which is a fraction of its text; an empty cell is NaN."""
    arrow, arrow_csv = extra("pyarrow", "features"), extra("pyarrow.csv", "features")
    with reading(path), path.open(newline="", encoding="utf-8-sig") as file:
        columns = next(csv.reader(file), [])
    id_name = _check_columns(path, columns)
    types = dict.fromkeys(columns, arrow.float32()) | {id_name: arrow.string()}
    at = columns.index(id_name)
    ids: list[str] = []
    parts = [np.empty((0, len(columns) - 1), dtype=np.float32)]
    with reading(path):
        batches = arrow_csv.open_csv(
            path,
            read_options=arrow_csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
            convert_options=arrow_csv.ConvertOptions(column_types=types),
        )
        for batch in batches:
            ids += batch.column(at).to_pylist()
            numbers = [batch.column(i).to_numpy(zero_copy_only=False) for i in range(len(columns)) if i != at]
            parts.append(np.stack(numbers, axis=1))
    yield _Table(path, tuple(ids), np.concatenate(parts))


def _check_columns(path: Path, columns: list[str]) -> str:
    """The name of the column of ids, or ValueError unless the others can be a vector."""
    id_names = [name for name in columns if name in ID_NAMES]
    if len(id_names) != 1 or len(columns) < 2:
        raise FeatureFileError(
            f"{path}: expected one column of ids ({' or '.join(ID_NAMES)}), the others being the vector; "
            f"got {', '.join(columns[:4]) or 'no columns'}"
        )
    nameless = [i for i, name in enumerate(columns, start=1) if not name or re.fullmatch(r"Unnamed: \d+", name)]
    if nameless:  # the second is what pandas calls the first once it has read it
        raise FeatureFileError(
            f"{path}: expected a name for every column, got {columns[nameless[0] - 1]!r} for column {nameless[0]}; "
            "pandas writes its row numbers so, unless to_csv is given index=False"
        )
    return id_names[0]


# --- pickles and PyTorch files ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Values:
    """Arrays and plain numbers looked up alike. `nan` in place of an array is the CE authors' form of missing."""

    content: Mapping[Any, Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.content)

    def __contains__(self, key: object) -> bool:
        return key in self.content

    def __getitem__(self, key: Any) -> np.ndarray:
        x = np.asarray(self.content[key])
        return np.empty(0) if x.ndim == 0 and x.dtype.kind == "f" and np.isnan(x) else x


@contextmanager
def _open_pickle(path: Path, expert: str) -> Iterator[Source]:
    with reading(path):
        content = load_arrays(path)
    yield _from_arrays(path, _Values(_check_dict(path, content, "array")), expert)


@dataclass(frozen=True)
class _TensorRows:
    """A tensor that is read like an array, a few rows at a time. NumPy has no bfloat16: it is read as float32."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def __getitem__(self, rows: Any) -> np.ndarray:
        x = self.tensor[rows].detach()
        return (x.float() if x.dtype.is_floating_point and x.dtype not in _NUMPY_FLOATS else x).numpy()


_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


@contextmanager
def _open_torch(path: Path, expert: str) -> Iterator[Source]:
    with reading(path):
        content = load_tensors(path)
    arrays: dict[Any, _TensorRows | np.ndarray] = {}
    for key, x in _check_dict(path, content, "tensor").items():
        if isinstance(x, torch.Tensor) and x.layout == torch.strided and x.device.type == "cpu" and not x.is_quantized:
            with reading(path):
                check_expansion(path, x.nbytes)  # a tensor may be a few numbers that are repeated
            arrays[key] = _TensorRows(x)
        elif key in ID_NAMES and isinstance(x, list | tuple):
            arrays[key] = np.array(x)
        else:
            raise FeatureFileError(f"{path}, {key!r}: expected a dense tensor, got {_kind(x)}")
    yield _from_arrays(path, arrays, expert)


def _check_dict(path: Path, content: object, item: str) -> dict[Any, Any]:
    if not isinstance(content, dict):
        raise FeatureFileError(
            f"{path}: expected a dict {{video id: {item}}}, or {{'video_id': ids, {TABLE_NAME!r}: {item}}}; "
            f"got {_kind(content)}"
        )
    return content


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}, {str(value.layout).removeprefix('torch.')}, on {value.device}"
    return type(value).__name__


# --- Lance ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LanceRows:
    """One column of a dataset that `extract` wrote. The rows that are asked for are held."""

    path: Path
    ids: tuple[str, ...]
    dataset: Any
    column: str

    def rows(self, positions: np.ndarray) -> Sequence[ArrayLike]:
        if not len(positions):
            return []
        with reading(self.path):
            column = self.dataset.take(positions.tolist(), columns=[self.column])[self.column]
            return [_lance_array(value.values) if value.is_valid else np.empty(0) for value in column]


def _lance_array(values: Any) -> np.ndarray:
    """A vector, or tokens of a fixed size."""
    if hasattr(values.type, "list_size"):
        return to_matrix(values)
    return values.to_numpy(zero_copy_only=False)


@contextmanager
def _open_lance(path: Path, expert: str) -> Iterator[Source]:
    dataset = _lance_dataset(path)
    experts = _lance_experts(path, dataset)
    if expert not in experts:
        raise FeatureFileError(f"{path}: expected an expert {expert!r}, got {', '.join(experts)}")
    with reading(path):
        ids = _to_ids(dataset.to_table(columns=["id"])["id"].to_pylist())
    yield _LanceRows(path, ids, dataset, expert)


def _lance_dataset(path: Path) -> Any:
    lance = import_lance("extract-offline")
    with reading(path):
        check_footers(path)
        return lance.dataset(str(path))


def _lance_experts(path: Path, dataset: Any) -> list[str]:
    with reading(path):
        return list(json.loads(dataset.schema.metadata[LANCE_HEADER])["experts"])


# ----------------------------------------------------------------------------------------------------------

LANCE = ".lance"
LANCE_HEADER = b"collaborative_experts.features"
"""The key of what a dataset of `extract` says of itself (extract/dataset.py)."""

FORMATS: Mapping[str, Callable[[Path, str], AbstractContextManager[Source]]] = {
    ".npz": _open_npz,
    ".npy": _open_npy,
    ".h5": _open_hdf5,
    ".hdf5": _open_hdf5,
    ".parquet": _open_parquet,
    ".csv": _open_csv,
    ".pt": _open_torch,
    ".pth": _open_torch,
    ".pkl": _open_pickle,
    ".pickle": _open_pickle,
    LANCE: _open_lance,
}

_SEVERAL_EXPERTS: Mapping[str, Callable[[Path], AbstractContextManager[Any]]] = {
    ".npz": _npz_arrays,
    ".h5": _hdf5_arrays,
    ".hdf5": _hdf5_arrays,
}
