"""The same features through every format, by video and as tables; what is refused; files that are not loaded whole."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from collaborative_experts import CEConfig, Features, iter_features, read_features
from collaborative_experts.features.formats import FORMATS as READ
from collaborative_experts.model.inputs import clean_video

IDS = ("v1", "7", "v3", "ü4")
RNG = np.random.default_rng(0)
FIXED = RNG.standard_normal((4, 5)).astype(np.float32)
FIXED[2] = np.nan
SEQUENCES = [RNG.standard_normal((n, 3)).astype(np.float32) for n in (2, 4, 1)] + [np.empty((0, 3), np.float32)]
FORMATS = (
    "npz",
    "npz by video",
    "npy",
    "npy, ids as npy",
    "h5",
    "h5 by video",
    "h5 by group",
    "parquet",
    "pkl",
    "pickle",
)


def write(folder, layout, name, ids, rows):
    """Rows (an array, or a list of arrays) in one of the layouts; returns the path."""
    suffix = layout.replace(",", " ").split()[0]
    path = folder / f"{name}.{suffix}"
    by_video = dict(zip(ids, rows, strict=True))
    if layout == "npz":
        np.savez(path, video_id=np.array(ids), **{name: rows})
    elif layout == "npz by video":
        np.savez(path, **by_video)
    elif layout.startswith("npy"):
        np.save(path, rows)
        if layout == "npy":
            path.with_suffix(".ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
        else:
            np.save(path.with_suffix(".ids.npy"), np.array(ids))
    elif layout.startswith("h5"):
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            if layout == "h5":
                file["ids"], file["features"] = list(ids), rows
            target = file.create_group(name) if layout == "h5 by group" else file
            for video, row in by_video.items() if layout != "h5" else ():
                target[video] = row
    elif layout == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table({"video_id": list(ids), name: [None if x is None else x.tolist() for x in rows]})
        parquet.write_table(table, path, row_group_size=2)
    else:
        path.write_bytes(pickle.dumps(by_video, protocol=5 if layout == "pkl" else 2))
    return path


def same(a, b):
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    return all((x is None) == (y is None) and (x is None or np.array_equal(x, y)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("layout", FORMATS)
class TestFormats:
    def test_one_vector_a_video(self, layout, tmp_path):
        path = write(tmp_path, layout, "motion", IDS, FIXED)
        found = read_features({"motion": path})
        assert sorted(found.ids) == sorted(IDS)
        ordered = read_features({"motion": path}, IDS)
        assert same(ordered.experts["motion"], FIXED)
        assert ordered.experts["motion"].dtype == np.float32
        assert ordered.ind["motion"].tolist() == [1, 1, 0, 1]

    def test_the_ids_that_are_asked_for_in_their_order(self, layout, tmp_path):
        path = write(tmp_path, layout, "motion", IDS, FIXED)
        found = read_features({"motion": path}, ["ü4", "stranger", 7, "v3"])
        assert found.ids == ("ü4", "stranger", "7", "v3")
        assert same(found.experts["motion"], np.stack([FIXED[3], [np.nan] * 5, FIXED[1], [np.nan] * 5]))
        assert found.available.tolist() == [[True], [False], [True], [False]]

    def test_sequences(self, layout, tmp_path):
        if layout in ("npz", "npy", "npy, ids as npy", "h5"):
            rows = np.stack([np.resize(x, (4, 3)) if len(x) else np.full((4, 3), np.nan) for x in SEQUENCES])
        else:
            rows = SEQUENCES
        path = write(tmp_path, layout, "speech", IDS, rows)
        found = read_features({"speech": path}, IDS)
        assert same(found.experts["speech"], [*rows[:3], None])
        assert found.ind["speech"].tolist() == [1, 1, 1, 0]

    def test_in_batches_as_at_once(self, layout, tmp_path):
        path = write(tmp_path, layout, "motion", IDS, FIXED)
        whole = read_features({"motion": path}, IDS)
        parts = list(iter_features({"motion": path}, IDS, batch_size=3))
        assert [part.ids for part in parts] == [IDS[:3], IDS[3:]]
        assert same(np.concatenate([part.experts["motion"] for part in parts]), whole.experts["motion"])

    def test_a_damaged_file_is_named(self, layout, tmp_path):
        path = write(tmp_path, layout, "motion", IDS, FIXED)
        content = path.read_bytes()
        for damaged in (b"", content[: len(content) // 2], b"\x93" * 200):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"motion{path.suffix}"):
                read_features({"motion": path}, IDS)


def test_several_experts_with_different_videos(tmp_path):
    motion = write(tmp_path, "npz", "motion", IDS[:3], FIXED[:3])
    speech = write(tmp_path, "pkl", "speech", ("v9", *IDS[1:]), SEQUENCES)
    found = read_features({"motion": motion, "speech": speech})
    assert found.ids == ("v1", "7", "v3", "v9", "ü4")
    assert found.ind["motion"].tolist() == [1, 1, 0, 0, 0]
    assert found.ind["speech"].tolist() == [0, 1, 1, 1, 0]
    assert found.summary().splitlines() == [
        "expert  features         videos  missing",
        "motion  (5,)                  2        3",
        "speech  (1-4, 3)              3        2",
    ]
    part = found[[3, 1]]
    assert part.ids == ("v9", "7")
    assert same(part.experts["speech"], [SEQUENCES[0], SEQUENCES[1]])
    assert len(found[1:3]) == 2
    assert isinstance(part, Features)


def test_a_folder_and_one_file_of_all(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    write(folder, "npy", "motion", IDS, FIXED)
    write(folder, "pkl", "speech", IDS, SEQUENCES)
    (folder / "notes.md").write_text("not a feature file")
    assert list(read_features(folder).experts) == ["motion", "speech"]
    np.savez(tmp_path / "all.npz", video_id=[3, 5], motion=FIXED[:2], audio=FIXED[1:3])
    found = read_features(tmp_path / "all.npz")
    assert found.ids == ("3", "5")
    assert found.ind["audio"].tolist() == [1, 0]
    same_file = {"audio": tmp_path / "all.npz", "motion": tmp_path / "all.npz"}
    assert list(read_features(same_file).experts) == ["audio", "motion"]


def test_straight_into_an_operator(tmp_path, small_op):
    rng = np.random.default_rng(1)
    audio = [rng.standard_normal((n, 128)).astype(np.float32) for n in (3, 9)]
    face = rng.standard_normal((2, 12)).astype(np.float32)
    face[1] = np.nan
    files = {
        "audio": write(tmp_path, "pkl", "audio", IDS[:2], audio),
        "face": write(tmp_path, "npy", "face", IDS[:2], face),
    }
    found = read_features(files, config=small_op.config)
    ours = small_op.encode_video(found.experts, found.ind)
    expected = small_op.encode_video({"audio": audio, "face": face}, {"audio": [1, 1], "face": [1, 0]})
    assert np.array_equal(ours.joint(), expected.joint())
    assert np.array_equal(ours.available, expected.available)


def test_the_authors_forms_of_missing_and_of_one_token(tmp_path):
    content = {"a": np.ones((1, 5)), "b": float("nan"), "c": np.empty((0, 5)), b"d": np.full(5, np.nan)}
    (tmp_path / "face.pkl").write_bytes(pickle.dumps(content, protocol=2))
    config = CEConfig.from_dict({"experts": {"face": 5}, "use_ce": ""})
    found = read_features({"face": tmp_path / "face.pkl"}, config=config)
    assert found.ids == ("a", "b", "c", "d")
    assert found.ind["face"].tolist() == [1, 0, 0, 0]
    assert found.experts["face"].shape == (4, 5)


def test_nothing_at_all(tmp_path):
    path = write(tmp_path, "npz", "motion", IDS, FIXED)
    assert len(read_features({"motion": path}, [])) == 0
    assert read_features({"motion": path}, ["x"]).experts["motion"].shape == (1, 5)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


class EvilCodec:
    def __reduce__(self):
        import _codecs

        return _codecs.encode, ("YQ==", "base64")


@pytest.mark.parametrize(
    ("content", "what"),
    [(Evil(), "builtins.print"), ({"a": Evil()}, "builtins.print"), (EvilCodec(), "_codecs.encode")],
)
def test_a_pickle_that_would_run_code_is_refused(tmp_path, content, what, capsys):
    (tmp_path / "motion.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"motion\.pkl: .*refused, it would call {what}"):
        read_features({"motion": tmp_path / "motion.pkl"})
    assert capsys.readouterr().out == ""


def table(folder, **arrays):
    np.savez(folder / "motion.npz", **arrays)
    return {"motion": folder / "motion.npz"}


CONFIG = CEConfig.from_dict({"experts": {"motion": 5, "audio": {"dim": 3, "clusters": 2}}, "use_ce": ""})
BAD = {
    "an id twice": ({"video_id": ["a", "a"], "motion": FIXED[:2]}, {}, ValueError, "each video once, got 'a' twice"),
    "asked for twice": ({"video_id": ["a", "b"], "motion": FIXED[:2]}, {"ids": ["b", "b"]}, ValueError, "ids: .*'b' twice"),
    "ids of another number": ({"video_id": ["a"], "motion": FIXED[:2]}, {}, ValueError, r"expected \(1, dim\).*got \(2, 5\)"),
    "no such array": ({"video_id": ["a"], "other": FIXED[:1]}, {}, ValueError, "expected an array 'motion' or 'features'"),
    "Inf": ({"video_id": ["a"], "motion": [[1, np.inf]]}, {}, ValueError, "video 'a': expected finite .* got Inf"),
    "beyond float32": ({"video_id": ["a"], "motion": [[1, 1e300]]}, {}, ValueError, "video 'a': expected finite"),
    "another dimension": ({"video_id": ["a"], "motion": np.ones((1, 4))}, {"config": CONFIG}, ValueError, r"\(5,\), got \(4,\)"),
    "tokens for a fixed expert": ({"a": np.ones((2, 5))}, {"config": CONFIG}, ValueError, "average its tokens first"),
    "unequal dimensions": ({"a": np.ones(5), "b": np.ones(4)}, {}, ValueError, r"video 'b': expected \(5,\), got \(4,\)"),
    "vectors and tokens": ({"a": np.ones(5), "b": np.ones((2, 5))}, {}, ValueError, r"video 'b': expected \(5,\), got \(2, 5\)"),
    "text": ({"a": np.array(["x"])}, {}, ValueError, "video 'a': expected numbers, got <U1"),
    "four axes": ({"a": np.ones((1, 2, 3))}, {}, ValueError, r"expected \(dim,\) or tokens \(N, dim\), got \(1, 2, 3\)"),
    "ids of a wrong type": ({"a": np.ones(5)}, {"ids": [1.5]}, TypeError, "ids: expected text or integers, got 1.5"),
    "a batch of none": ({"a": np.ones(5)}, {"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(tmp_path, case):
    arrays, arguments, error, message = BAD[case]
    with pytest.raises(error, match=message):
        list(iter_features(table(tmp_path, **arrays), **arguments))


def test_which_files_are_refused(tmp_path):
    path = write(tmp_path, "npz", "motion", IDS, FIXED)
    with pytest.raises(FileNotFoundError, match=r"no\.npz: there is no such file"):
        read_features({"motion": tmp_path / "no.npz"})
    with pytest.raises(ValueError, match=r"got the suffix '\.mat'"):
        read_features({"motion": tmp_path / "motion.mat"})
    with pytest.raises(ValueError, match="unknown expert 'motoin'; did you mean 'motion'"):
        read_features({"motoin": path}, config=CONFIG)
    with pytest.raises(ValueError, match="expected a folder, or one"):
        read_features(write(tmp_path, "pkl", "motion", IDS, FIXED))
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        read_features(tmp_path / "none")
    with pytest.raises(ValueError, match=r"expected files of features .* found none"):
        read_features({})
    (tmp_path / "motion.ids.txt").write_text("a")
    np.save(tmp_path / "sound.npy", FIXED)
    with pytest.raises(FileNotFoundError, match=r"sound\.npy: expected its ids in sound\.ids\.txt \(one a line\)"):
        read_features({"sound": tmp_path / "sound.npy"})
    write(tmp_path, "pkl", "motion", IDS, FIXED)
    with pytest.raises(ValueError, match=r"one file an expert, got motion\.\w+ and motion\.\w+"):
        read_features(tmp_path)
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match=r"list\.pkl: expected a dict .* got list"):
        read_features({"list": tmp_path / "list.pkl"})


def test_one_file_of_videos_is_not_one_of_experts(tmp_path):
    """Without ids its arrays would be taken for experts, one video's each."""
    for layout in ("npz", "h5"):
        path = write(tmp_path, f"{layout} by video", "motion", IDS, FIXED)
        with pytest.raises(ValueError, match=rf"motion\.{layout}: .* no ids; .* one expert's: pass {{expert: path}}"):
            read_features(path)
        assert set(read_features({"motion": path}).ids) == set(map(str, IDS))


@pytest.mark.parametrize("damage", ["cut off", "bytes changed"])
@pytest.mark.parametrize("layout", [name for name in FORMATS if "npy" not in name])
def test_damaged_contents_are_named(tmp_path, layout, damage):
    """Whatever a library raises in the middle of a file, the error says which; or the damage hit nothing that counts."""
    if layout.startswith("h5") and damage == "bytes changed":
        pytest.skip("HDF5's own library may follow changed addresses for ever")
    path = write(tmp_path, layout, "motion", IDS, FIXED)
    whole, messages = path.read_bytes(), []
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        changed = bytes(255 - byte for byte in whole[at : at + 8]) + whole[at + 8 :]
        path.write_bytes(whole[:at] + (changed if damage == "bytes changed" else b""))
        try:
            read_features({"motion": path})
        except (ValueError, TypeError) as error:
            messages.append(str(error))
    assert len(messages) > 3
    assert all("motion" in message for message in messages)


@pytest.mark.parametrize(("library", "layout"), [("h5py", "h5"), ("pyarrow.parquet", "parquet"), ("tqdm", "npz")])
def test_a_missing_library_names_its_extra(tmp_path, monkeypatch, library, layout):
    path = write(tmp_path, layout, "motion", IDS, FIXED)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library} cannot be imported .*collaborative_experts\[features\]"):
        read_features({"motion": path})


def test_a_mapped_file_is_not_loaded_whole(tmp_path):
    """2 GB on paper, without blocks on disk; a thousand rows of it must not take its size in memory."""
    rows = 1_000_000
    array = np.lib.format.open_memmap(tmp_path / "motion.npy", "w+", np.float32, (rows, 512))
    array[5] = 1
    del array
    np.save(tmp_path / "motion.ids.npy", np.arange(rows))
    code = (
        "import resource, sys\n"
        "from collaborative_experts import iter_features, read_features\n"
        "read_features({'motion': sys.argv[1]}, [3])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "ids = range(0, 1_000_000, 1000)\n"
        "found = sum(int(part.experts['motion'][0, 0]) for part in iter_features({'motion': sys.argv[1]}, [5, *ids]))\n"
        "print(found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "motion.npy")]
    found, kilobytes = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert found == "1"
    assert int(kilobytes) < 300_000


def test_real_features(root):
    path = root.parent / "shared" / "data" / "trecvid-vtt" / "experts.npz"
    if not path.is_file():
        pytest.skip("the trecvid-vtt features are not here")
    found = read_features(path)
    assert len(found) == 1498
    assert {name: int((flag == 0).sum()) for name, flag in found.ind.items()} == {"motion": 410, "audio": 0}


def test_every_suffix_is_tested():
    assert {f".{layout.replace(',', ' ').split()[0]}" for layout in FORMATS} == set(READ) - {".hdf5"}


def test_what_newcomers_do(tmp_path):
    """Ids under another name, and the features themselves in place of their parts."""
    np.savez(tmp_path / "motion.npz", id=np.array(IDS), motion=np.ones((len(IDS), 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"expected numbers, got <U\d+ \(ids are looked for as video_id or ids\)"):
        read_features({"motion": tmp_path / "motion.npz"})
    features = read_features({"motion": write(tmp_path, "npy", "motion", IDS, FIXED)})
    with pytest.raises(TypeError, match=r"got Features; pass features\.experts, features\.ind"):
        clean_video(features, None, CONFIG)


def test_a_pickle_cannot_pass_bytes_for_objects(tmp_path):
    """numpy.ndarray, called from a pickle with the type of objects, would follow pointers out of the file."""

    class Forged:
        def __reduce__(self):
            return np.ndarray, ((1, 2), "O", b"A" * 16)

    path = tmp_path / "motion.pkl"
    path.write_bytes(pickle.dumps({"v1": Forged()}))
    with pytest.raises(ValueError, match=r"motion\.pkl"):
        read_features({"motion": path})
