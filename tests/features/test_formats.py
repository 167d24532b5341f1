"""The same features through every format; damaged files; layouts that are refused; files that are not loaded whole."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from collaborative_experts import iter_features, read_features
from collaborative_experts.features import formats
from helpers import same_features, write_features
from warm_process import Process

IDS = ("v1", "7", "v3", "ü4")
RNG = np.random.default_rng(0)
FIXED = RNG.standard_normal((4, 5)).astype(np.float32)
FIXED[2] = np.nan
SEQUENCES = [RNG.standard_normal((n, 3)).astype(np.float32) for n in (2, 4, 1)] + [np.empty((0, 3), np.float32)]
LAYOUTS = (
    "npz",
    "npz by video",
    "npy",
    "npy, ids as npy",
    "h5",
    "h5 by video",
    "h5 by video, in a group",
    "h5, table in a group",
    "parquet",
    "csv",
    "pt",
    "pt by video",
    "pth",
    "pkl",
    "pickle",
    "folder",
    "lance",
)
TABLES = ("npz", "npy", "npy, ids as npy", "h5", "h5, table in a group", "pt", "pth")
"""Layouts in which all videos have the same number of tokens."""


def damageable(path):
    """The file itself, or one of a folder's. Of a dataset it is the list of its files."""
    if path.suffix == ".lance":
        return min((path / "_versions").iterdir())  # the newest, by its name
    return path / f"{IDS[0]}.npy" if path.is_dir() else path


@pytest.mark.parametrize("layout", LAYOUTS)
class TestFormats:
    def test_one_vector_a_video(self, layout, tmp_path):
        path = write_features(tmp_path, layout, "motion", IDS, FIXED)
        features = read_features({"motion": path})
        assert sorted(features.ids) == sorted(IDS)
        ordered = read_features({"motion": path}, IDS)
        assert same_features(ordered.experts["motion"], FIXED)
        assert ordered.experts["motion"].dtype == np.float32
        assert ordered.ind["motion"].tolist() == [1, 1, 0, 1]

    def test_the_ids_that_are_asked_for_in_their_order(self, layout, tmp_path):
        path = write_features(tmp_path, layout, "motion", IDS, FIXED)
        features = read_features({"motion": path}, ["ü4", "stranger", 7, "v3"])
        assert features.ids == ("ü4", "stranger", "7", "v3")
        assert same_features(features.experts["motion"], np.stack([FIXED[3], [np.nan] * 5, FIXED[1], [np.nan] * 5]))
        assert features.available.tolist() == [[True], [False], [True], [False]]

    def test_sequences(self, layout, tmp_path):
        if layout == "csv":
            pytest.skip("a line of CSV is one vector")
        if layout in TABLES:
            rows = np.stack([np.resize(x, (4, 3)) if len(x) else np.full((4, 3), np.nan) for x in SEQUENCES])
        else:
            rows = SEQUENCES
        path = write_features(tmp_path, layout, "speech", IDS, rows)
        features = read_features({"speech": path}, IDS)
        assert same_features(features.experts["speech"], [*rows[:3], None])
        assert features.ind["speech"].tolist() == [1, 1, 1, 0]

    def test_in_batches_as_at_once(self, layout, tmp_path):
        path = write_features(tmp_path, layout, "motion", IDS, FIXED)
        whole = read_features({"motion": path}, IDS)
        parts = list(iter_features({"motion": path}, IDS, batch_size=3))
        assert [part.ids for part in parts] == [IDS[:3], IDS[3:]]
        assert same_features(np.concatenate([part.experts["motion"] for part in parts]), whole.experts["motion"])

    def test_a_damaged_file_is_named(self, layout, tmp_path):
        path = write_features(tmp_path, layout, "motion", IDS, FIXED)
        damaged_file = damageable(path)
        content = damaged_file.read_bytes()
        for damaged in (b"", content[: len(content) // 2], b"\x93" * 200):
            damaged_file.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"motion{path.suffix}"):
                read_features({"motion": path}, IDS)


@pytest.mark.parametrize("damage", ["cut off", "bytes changed"])
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if "npy" not in layout and layout != "csv"])
def test_damage_anywhere_names_the_file(tmp_path, layout, damage):
    """A library may raise anything in the middle of a file; damage of the numbers alone is not seen."""
    path = write_features(tmp_path, layout, "motion", IDS, FIXED)
    damaged_file = damageable(path)
    whole, messages = damaged_file.read_bytes(), []
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        changed = bytes(255 - byte for byte in whole[at : at + 8]) + whole[at + 8 :]
        damaged_file.write_bytes(whole[:at] + (changed if damage == "bytes changed" else b""))
        try:
            read_features({"motion": path})
        except (ValueError, TypeError) as error:
            messages.append(str(error))
    assert len(messages) > 3
    assert all("motion" in message for message in messages)


@pytest.mark.parametrize(
    ("library", "layout"), [("h5py", "h5"), ("pyarrow.parquet", "parquet"), ("pyarrow.csv", "csv"), ("tqdm", "npz")]
)
def test_a_missing_library_names_its_extra(tmp_path, monkeypatch, library, layout):
    path = write_features(tmp_path, layout, "motion", IDS, FIXED)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library} cannot be imported .*collaborative_experts\[features\]"):
        read_features({"motion": path})


def test_a_mapped_file_is_not_loaded_whole(tmp_path):
    """2 GB on paper, without blocks on disk; some rows of it must not take its size in memory."""
    rows, dim = 200_000, 2560
    array = np.lib.format.open_memmap(tmp_path / "motion.npy", "w+", np.float32, (rows, dim))
    array[5] = 1
    del array
    np.save(tmp_path / "motion.ids.npy", np.arange(rows))
    code = (
        "import sys\n"
        "from helpers import peak_memory\n"
        "from collaborative_experts import iter_features, read_features\n"
        "read_features({'motion': sys.argv[2]}, [0])\n"
        "before = peak_memory()\n"
        "ids = range(0, 200_000, 1000)\n"
        "ones = sum(int(part.experts['motion'][0, 0]) for part in iter_features({'motion': sys.argv[1]}, [5, *ids]))\n"
        "print(ones, peak_memory() - before)\n"
    )
    for name, content in (("small.npy", np.ones((1, dim), np.float32)), ("small.ids.npy", np.arange(1))):
        np.save(tmp_path / name, content)
    files = tmp_path / "motion.npy", tmp_path / "small.npy"
    process = Process(code, *files)
    printed = process.stdout.read()
    assert process.wait() == 0, process.stderr.read()
    ones, taken = printed.split()
    assert ones == "1"
    assert int(taken) < 300e6


def test_every_suffix_is_tested():
    suffixes = {f".{layout.replace(',', ' ').split()[0]}" for layout in LAYOUTS} - {".folder"}
    assert suffixes == set(formats.FORMATS) - {".hdf5"}


# --- one format at a time ---------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["", "motion/"])
def test_hdf5_ids_with_slashes(tmp_path, group):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "motion.h5", "w") as file:
        for video, row in zip(("a/1", "a/b/2", "c", "d/1"), FIXED, strict=True):
            file[group + video] = row
        file[f"{group}a/above"] = h5py.SoftLink("/")  # groups that link in a circle are read once
    features = read_features({"motion": tmp_path / "motion.h5"})
    assert sorted(features.ids) == ["a/1", "a/b/2", "c", "d/1"]
    features = read_features({"motion": tmp_path / "motion.h5"}, ["d/1", "c", "a/b/2", "a/1"])
    assert same_features(features.experts["motion"], FIXED[::-1])


def test_hdf5_links_that_lead_nowhere(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "motion.h5", "w") as file:
        file["a"], file["b"] = FIXED[0], h5py.SoftLink("/nothing")
    with pytest.raises(ValueError, match=r"motion\.h5: cannot be read as \.h5: "):
        read_features({"motion": tmp_path / "motion.h5"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int16])
def test_tensors_of_any_number(tmp_path, dtype):
    content = {7: torch.arange(3).to(dtype), "v": torch.nn.Parameter(torch.arange(3.0) + 1)}
    torch.save(content, tmp_path / "motion.pt")
    features = read_features({"motion": tmp_path / "motion.pt"})
    assert features.ids == ("7", "v")
    assert features.experts["motion"].tolist() == [[0, 1, 2], [1, 2, 3]]


def test_tensor_table_with_ids_as_a_tensor(tmp_path):
    torch.save({"ids": torch.tensor([3, 1]), "features": torch.ones(2, 4, 5)}, tmp_path / "ocr.pth")
    features = read_features({"ocr": tmp_path / "ocr.pth"})
    assert features.ids == ("3", "1")
    assert [x.shape for x in features.experts["ocr"]] == [(4, 5), (4, 5)]


def test_files_of_pytorch_before_1_6(tmp_path):
    torch.save({"v": torch.arange(3.0)}, tmp_path / "motion.pt", _use_new_zipfile_serialization=False)
    assert read_features({"motion": tmp_path / "motion.pt"}).experts["motion"].tolist() == [[0, 1, 2]]


def test_csv_as_spreadsheets_write_it(tmp_path, monkeypatch):
    """A byte order mark, line ends of Windows, quotes, ids with zeros in another column than the first, empty cells."""
    text = '\ufeff"x","ids","y"\r\n1,"0007",0.5\r\n,"a, b",2\r\nNaN,c,3\r\n-1e-3,d,4\r\n'
    (tmp_path / "motion.csv").write_text(text, encoding="utf-8", newline="")
    monkeypatch.setattr(formats, "CSV_BLOCK_BYTES", 30)  # several blocks
    features = read_features({"motion": tmp_path / "motion.csv"})
    assert features.ids == ("0007", "a, b", "c", "d")
    assert features.ind["motion"].tolist() == [1, 0, 0, 1]
    assert same_features(features.experts["motion"][[0, 3]], np.float32([[1, 0.5], [-1e-3, 4]]))


def test_ids_as_a_text_editor_writes_them(tmp_path):
    """A byte order mark, line ends of Windows, an empty line, and a sign that ends a line for some."""
    np.save(tmp_path / "motion.npy", FIXED[:3])
    (tmp_path / "motion.ids.txt").write_text("\ufeffa b\r\nc\u2028d\r\n\r\ne", encoding="utf-8", newline="")
    assert read_features({"motion": tmp_path / "motion.npy"}).ids == ("a b", "c\u2028d", "e")


def test_pickled_table(tmp_path):
    (tmp_path / "motion.pkl").write_bytes(pickle.dumps({"video_id": list(IDS), "motion": FIXED}))
    features = read_features({"motion": tmp_path / "motion.pkl"})
    assert features.ids == IDS
    assert same_features(features.experts["motion"], FIXED)


def test_folder_of_token_sequences_beside_notes(tmp_path):
    path = write_features(tmp_path, "folder", "ocr", IDS[:3], SEQUENCES[:3])
    for name in (".hidden", "README.txt", "notes.md"):
        (path / name).write_text("how these were made")
    features = read_features(tmp_path)
    assert list(features.experts) == ["ocr"]
    assert features.ids == ("7", "v1", "v3")


# --- refused ----------------------------------------------------------------------------------------------


def save_text(path, text):
    path.write_text(text, encoding="utf-8")


def save_hdf5(path, **arrays):
    with pytest.importorskip("h5py").File(path, "w") as file:
        for name, x in arrays.items():
            file[name] = x


MATRIX = np.ones((3, 5), dtype=np.float32)
REFUSED = {
    "npz of one positional array": (
        "motion.npz",
        lambda p: np.savez(p, MATRIX),
        "expected arrays with names, got arr_0",
    ),
    "npz of positional ids and array": (
        "motion.npz",
        lambda p: np.savez(p, ["a"], MATRIX),
        "got arr_0, arr_1; save them as",
    ),
    "npz of the expert's array": (
        "motion.npz",
        lambda p: np.savez(p, motion=MATRIX),
        r"ids \(video_id or ids\) beside its only array 'motion', got \(3, 5\)",
    ),
    "npz without arrays": ("motion.npz", lambda p: np.savez(p), "cannot be read as .npz: its directory has 0 entries"),
    "npz of a matrix": ("motion.npz", lambda p: np.savez(p, x=MATRIX), r"only array 'x', got \(3, 5\) and no ids"),
    "npz of token sequences": ("motion.npz", lambda p: np.savez(p, x=MATRIX[None]), r"only array 'x', got \(1, 3, 5\)"),
    "npz of one vector, named features": (
        "motion.npz",
        lambda p: np.savez(p, features=MATRIX[0]),
        r"only array 'features', got \(5,\)",
    ),
    "h5 of the expert's array": ("motion.h5", lambda p: save_hdf5(p, motion=MATRIX), "only array 'motion'"),
    "pt of the expert's tensor": (
        "motion.pt",
        lambda p: torch.save({"motion": torch.ones(3, 5)}, p),
        "only array 'motion'",
    ),
    "pt of a bare tensor": (
        "motion.pt",
        lambda p: torch.save(torch.ones(3, 5), p),
        r"expected a dict .*got a tensor \(3, 5\)",
    ),
    "pt of a sparse tensor": (
        "motion.pt",
        lambda p: torch.save({"a": torch.eye(2).to_sparse()}, p),
        "'a': expected a dense tensor, got a tensor .*sparse_coo",
    ),
    "pt of dicts": ("motion.pt", lambda p: torch.save({"a": {"b": 1}}, p), "'a': expected a dense tensor, got dict"),
    "npz that is an npy": (
        "motion.npz",
        lambda p: np.save(p.open("wb"), MATRIX),
        "expected an archive of np.savez, got a single array",
    ),
    "npy that is an npz": (
        "motion.npy",
        lambda p: np.savez(p.open("wb"), MATRIX),
        "expected a single array, got an archive",
    ),
    "ids of a table that are no list": (
        "motion.npz",
        lambda p: np.savez(p, ids="abc", motion=MATRIX),
        r"expected one id a row, got an array of shape \(\)",
    ),
    "csv without ids": (
        "motion.csv",
        lambda p: save_text(p, "name,x,y\na,1,2\n"),
        r"column of ids \(video_id or ids\), .* got name, x, y",
    ),
    "csv of ids alone": (
        "motion.csv",
        lambda p: save_text(p, "video_id\na\n"),
        "expected one column of ids .* got video_id",
    ),
    "csv of two columns of ids": (
        "motion.csv",
        lambda p: save_text(p, "ids,video_id,x\n1,a,2\n"),
        "expected one column of ids .* got ids, video_id, x",
    ),
    "csv with the row numbers of pandas": (
        "motion.csv",
        lambda p: save_text(p, ",video_id,x\n0,a,2\n"),
        "name for every column, got '' for column 1; pandas writes its row numbers so",
    ),
    "csv with the row numbers that pandas has read again": (
        "motion.csv",
        lambda p: save_text(p, "video_id,Unnamed: 0,x\na,0,2\n"),
        "name for every column, got 'Unnamed: 0' for column 2; pandas writes its row numbers so",
    ),
    "csv cut off within a line": ("motion.csv", lambda p: save_text(p, "video_id,x,y\na,1,2\nb,1"), "got 2"),
    "csv of text": (
        "motion.csv",
        lambda p: save_text(p, "video_id,x,words\na,1,two\n"),
        r"CSV column #2: .*invalid value 'two'",
    ),
    "csv of unequal lines": ("motion.csv", lambda p: save_text(p, "video_id,x,y\na,1\n"), "Expected 3 columns, got 2"),
    "csv without lines": ("motion.csv", lambda p: save_text(p, ""), "got no columns"),
    "folder of other files": (
        "motion",
        lambda p: (p.mkdir(), save_text(p / "a.json", "{}")),
        "expected a folder of ID.npy, one file a video, got a.json",
    ),
    "empty folder": ("motion", lambda p: p.mkdir(), "expected a folder of ID.npy, one file a video, got no file"),
    "folder with a file of objects": (
        "motion",
        lambda p: (p.mkdir(), np.save(p / "a.npy", np.array([{}]))),
        r"/a\.npy: cannot be read as \.npy",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_layouts(tmp_path, case):
    name, save, message = REFUSED[case]
    save(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}.*?{message}"):
        read_features({"motion": tmp_path / name})


def test_one_vector_is_one_video(tmp_path):
    """A vector cannot be a table without ids."""
    np.savez(tmp_path / "motion.npz", v1=MATRIX[0])
    assert read_features({"motion": tmp_path / "motion.npz"}).ids == ("v1",)


def test_numbers_that_an_hdf5_file_does_not_hold_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(range(16)))
    for number, settings in enumerate(
        ({"shape": (2, 10**9), "chunks": (1, 1024)}, {"shape": (2, 8), "external": [(tmp_path / "secret", 0, 64)]})
    ):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["ids"] = ["a", "b"]
            file.create_dataset("features", dtype="f4", **settings)
        with pytest.raises(ValueError, match=rf"{number}\.h5.*: refused, its (numbers|\d+ bytes|[\d,]+ bytes)"):
            read_features({"motion": tmp_path / f"{number}.h5"})


@pytest.mark.parametrize("chunks", [None, (2,)])
@pytest.mark.parametrize("damaged", ["heap", "object", "value"])
def test_sizes_in_an_hdf5_file_that_cannot_be_are_refused(tmp_path, damaged, chunks):
    """HDF5 would take so much memory, or never end."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "motion.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("ids", data=["a", "b"], dtype=h5py.string_dtype(), chunks=chunks)
        file["features"] = MATRIX[:2]
    assert read_features({"motion": path}).ids == ("a", "b")
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    value = content.index(b"\1\0\0\0" + heap.to_bytes(8, "little"))
    at = {"heap": heap + 8, "object": heap + 16 + 8, "value": value}[damaged]
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"motion\.h5.*: refused, its (heap at )?[\d,]+ "):
        read_features({"motion": path})


def test_a_dataset_of_a_file_that_counts_more_buffers_than_it_holds_is_refused(tmp_path):
    """Lance ends the process where it has no memory for them."""
    pytest.importorskip("lance")
    path = write_features(tmp_path, "lance", "motion", ("a", "b"), np.ones((2, 3), dtype=np.float32))
    file = next(path.glob("data/*.lance"))
    content = file.read_bytes()
    file.write_bytes(content[:-16] + b"\xff" * 4 + content[-12:])
    with pytest.raises(ValueError, match=r"motion\.lance: cannot be read as \.lance: its file data/.* is damaged$"):
        read_features({"motion": path})


def test_a_parquet_file_of_one_number_repeated_is_refused(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = arrow.array(np.zeros(2**24, np.float32))
    motion = arrow.ListArray.from_arrays(arrow.array([0, 2**23, 2**24], arrow.int32()), values)
    parquet.write_table(arrow.table({"ids": ["a", "b"], "motion": motion}), tmp_path / "motion.parquet")
    with pytest.raises(ValueError, match=r"motion\.parquet: .*refused, its .* would unpack to"):
        read_features({"motion": tmp_path / "motion.parquet"})


def test_an_error_of_a_library_becomes_one_line(tmp_path):
    with (
        pytest.raises(ValueError, match=r"^motion\.csv: cannot be read as \.csv: one two$"),
        formats.reading(Path("motion.csv")),
    ):
        raise OSError("one\n  two\n")
