"""Features of several experts and videos: folders and files, ids in any order, and what is refused."""

import pickle

import numpy as np
import pytest

from collaborative_experts import CEConfig, Features, iter_features, read_features
from collaborative_experts.model.inputs import clean_video
from helpers import same_features, write_features

IDS = ("v1", "7", "v3", "ü4")
RNG = np.random.default_rng(0)
FIXED = RNG.standard_normal((4, 5)).astype(np.float32)
FIXED[2] = np.nan
SEQUENCES = [RNG.standard_normal((n, 3)).astype(np.float32) for n in (2, 4, 1)] + [np.empty((0, 3), np.float32)]


def test_several_experts_with_different_videos(tmp_path):
    motion = write_features(tmp_path, "npz", "motion", IDS[:3], FIXED[:3])
    speech = write_features(tmp_path, "pkl", "speech", ("v9", *IDS[1:]), SEQUENCES)
    features = read_features({"motion": motion, "speech": speech})
    assert features.ids == ("v1", "7", "v3", "v9", "ü4")
    assert features.ind["motion"].tolist() == [1, 1, 0, 0, 0]
    assert features.ind["speech"].tolist() == [0, 1, 1, 1, 0]
    assert features.summary().splitlines() == [
        "expert  features         videos  missing",
        "motion  (5,)                  2        3",
        "speech  (1-4, 3)              3        2",
    ]
    part = features[[3, 1]]
    assert part.ids == ("v9", "7")
    assert same_features(part.experts["speech"], [SEQUENCES[0], SEQUENCES[1]])
    assert len(features[1:3]) == 2
    assert isinstance(part, Features)


def test_a_folder_and_one_file_of_all(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    write_features(folder, "npy", "motion", IDS, FIXED)
    write_features(folder, "pkl", "speech", IDS, SEQUENCES)
    (folder / "notes.md").write_text("not a feature file")
    assert list(read_features(folder).experts) == ["motion", "speech"]
    np.savez(tmp_path / "all.npz", video_id=[3, 5], motion=FIXED[:2], audio=FIXED[1:3])
    features = read_features(tmp_path / "all.npz")
    assert features.ids == ("3", "5")
    assert features.ind["audio"].tolist() == [1, 0]
    same_file = {"audio": tmp_path / "all.npz", "motion": tmp_path / "all.npz"}
    assert list(read_features(same_file).experts) == ["audio", "motion"]


def test_straight_into_an_operator(tmp_path, small_op):
    rng = np.random.default_rng(1)
    audio = [rng.standard_normal((n, 128)).astype(np.float32) for n in (3, 9)]
    face = rng.standard_normal((2, 12)).astype(np.float32)
    face[1] = np.nan
    files = {
        "audio": write_features(tmp_path, "pkl", "audio", IDS[:2], audio),
        "face": write_features(tmp_path, "npy", "face", IDS[:2], face),
    }
    features = read_features(files, config=small_op.config)
    ours = small_op.encode_video(features.experts, features.ind)
    expected = small_op.encode_video({"audio": audio, "face": face}, {"audio": [1, 1], "face": [1, 0]})
    assert np.array_equal(ours.joint(), expected.joint())
    assert np.array_equal(ours.available, expected.available)


def test_the_authors_forms_of_missing_and_of_one_token(tmp_path):
    content = {"a": np.ones((1, 5)), "b": float("nan"), "c": np.empty((0, 5)), b"d": np.full(5, np.nan)}
    (tmp_path / "face.pkl").write_bytes(pickle.dumps(content, protocol=2))
    config = CEConfig.from_dict({"experts": {"face": 5}, "use_ce": ""})
    features = read_features({"face": tmp_path / "face.pkl"}, config=config)
    assert features.ids == ("a", "b", "c", "d")
    assert features.ind["face"].tolist() == [1, 0, 0, 0]
    assert features.experts["face"].shape == (4, 5)


def test_nothing_at_all(tmp_path):
    path = write_features(tmp_path, "npz", "motion", IDS, FIXED)
    assert len(read_features({"motion": path}, [])) == 0
    assert read_features({"motion": path}, ["x"]).experts["motion"].shape == (1, 5)


def table(folder, **arrays):
    np.savez(folder / "motion.npz", **arrays)
    return {"motion": folder / "motion.npz"}


CONFIG = CEConfig.from_dict({"experts": {"motion": 5, "audio": {"dim": 3, "clusters": 2}}, "use_ce": ""})
BAD = {
    "an id twice": ({"video_id": ["a", "a"], "motion": FIXED[:2]}, {}, ValueError, "each video once, got 'a' twice"),
    "asked for twice": ({"video_id": ["a", "b"], "motion": FIXED[:2]}, {"ids": ["b", "b"]}, ValueError, "ids: .*'b' twice"),
    "ids of another number": ({"video_id": ["a"], "motion": FIXED[:2]}, {}, ValueError, r"expected \(1, dim\).*got \(2, 5\)"),
    "no such array": ({"video_id": ["a"], "other": FIXED[:1]}, {}, ValueError, "expected an array 'motion' or 'features' .*; a file of several experts is passed by itself"),
    "Inf": ({"video_id": ["a"], "motion": [[1, np.inf]]}, {}, ValueError, "video 'a': expected finite .* got Inf"),
    "beyond float32": ({"video_id": ["a"], "motion": [[1, 1e300]]}, {}, ValueError, "video 'a': expected finite"),
    "another dimension": ({"video_id": ["a"], "motion": np.ones((1, 4))}, {"config": CONFIG}, ValueError, r"\(5,\), got \(4,\)"),
    "tokens for a fixed expert": ({"a": np.ones((2, 5)), "b": np.ones(5)}, {"config": CONFIG}, ValueError, "average its tokens first"),
    "unequal dimensions": ({"a": np.ones(5), "b": np.ones(4)}, {}, ValueError, r"video 'b': expected \(5,\), got \(4,\)"),
    "vectors and tokens": ({"a": np.ones(5), "b": np.ones((2, 5))}, {}, ValueError, r"video 'b': expected \(5,\), got \(2, 5\)"),
    "text": ({"a": np.array(["x"])}, {}, ValueError, "video 'a': expected numbers, got <U1"),
    "four axes": ({"a": np.ones((1, 2, 3)), "b": np.ones((2, 3))}, {}, ValueError, r"expected \(dim,\) or tokens \(N, dim\), got \(1, 2, 3\)"),
    "ids of a wrong type": ({"a": np.ones(5)}, {"ids": [1.5]}, TypeError, "ids: expected text or integers, got 1.5"),
    "ids that are one text": ({"a": np.ones(5)}, {"ids": "video7"}, TypeError, "ids: expected a list of ids, got 'video7'"),
    "a batch of none": ({"a": np.ones(5)}, {"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
    "a batch of True": ({"a": np.ones(5)}, {"batch_size": True}, TypeError, "batch_size: expected an integer, got True"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused(tmp_path, case):
    arrays, arguments, error, message = BAD[case]
    with pytest.raises(error, match=message):
        list(iter_features(table(tmp_path, **arrays), **arguments))


def test_experts_that_a_folder_lacks_altogether_are_warned_of(tmp_path, recwarn):
    path = write_features(tmp_path, "npz", "motion", IDS, FIXED)
    config = CEConfig.from_dict({"experts": {"motion": FIXED.shape[1], "face": 5, "ocr": 7}})
    read_features({"motion": path}, config=config)  # says what is wanted
    assert not recwarn
    with pytest.warns(UserWarning, match="has none of 'face', 'ocr', which the model knows; no video has them"):
        read_features(tmp_path, config=config)


def test_files_that_are_refused(tmp_path):
    path = write_features(tmp_path, "npz", "motion", IDS, FIXED)
    with pytest.raises(FileNotFoundError, match=r"no\.npz: there is no such file"):
        read_features({"motion": tmp_path / "no.npz"})
    with pytest.raises(ValueError, match=r"got the suffix '\.mat'"):
        read_features({"motion": tmp_path / "motion.mat"})
    with pytest.raises(ValueError, match="the model has no expert 'motoin'; did you mean 'motion'"):
        read_features({"motoin": path}, config=CONFIG)
    with pytest.raises(ValueError, match="or a folder of files, each named after its expert"):
        read_features(write_features(tmp_path, "pkl", "motion", IDS, FIXED))
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        read_features(tmp_path / "none")
    with pytest.raises(ValueError, match=r"expected files of features .* found none"):
        read_features({})
    (tmp_path / "motion.ids.txt").write_text("a")
    np.save(tmp_path / "sound.npy", FIXED)
    with pytest.raises(FileNotFoundError, match=r"sound\.npy: expected its ids in sound\.ids\.txt \(one a line\)"):
        read_features({"sound": tmp_path / "sound.npy"})
    write_features(tmp_path, "pkl", "motion", IDS, FIXED)
    with pytest.raises(ValueError, match=r"one file an expert, got motion\.\w+ and motion\.\w+"):
        read_features(tmp_path)
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match=r"list\.pkl: expected a dict .* got list"):
        read_features({"list": tmp_path / "list.pkl"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.docx", "notes.docx cannot be read; expected only"),
        (
            "ocr.mat",
            r"ocr.mat cannot be read; expected only a file of features \(.npz, .npy, .h5, .* a folder of ID.npy",
        ),
        ("ocr.csv.gz", "ocr.csv.gz cannot be read"),
        ("sound.ids.txt", "sound.ids.txt cannot be read; .* ids beside .npy"),  # of no sound.npy
        ("sound.ids.npy", "sound.ids.npy cannot be read"),
        ("raw/video.mp4", "raw: expected a folder of ID.npy, one file a video, got video.mp4"),
        ("ocr.csv", r"ocr.csv: expected one column of ids \(video_id or ids\)"),
        ("motion/a.npy", "one file an expert, got motion.npy and motion"),
    ],
)
def test_a_file_in_the_folder_that_is_not_read(tmp_path, name, message):
    write_features(tmp_path, "npy", "motion", IDS, FIXED)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("not features")
    with pytest.raises(ValueError, match=message):
        read_features(tmp_path)


def test_many_files_that_are_not_read(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.mat").touch()
    with pytest.raises(ValueError, match=r"0\.mat, 1\.mat, 2\.mat and 3 more cannot be read"):
        read_features(tmp_path)


@pytest.mark.parametrize("layout", ["npy", "npy, ids as npy"])
def test_files_that_may_lie_beside_features(tmp_path, layout):
    write_features(tmp_path, layout, "motion", IDS, FIXED)
    for name in (".DS_Store", ".cache.npz", "README", "readme.txt", "notes.md"):
        (tmp_path / name).write_text("not features")
    (tmp_path / ".git").mkdir()
    assert list(read_features(tmp_path).experts) == ["motion"]


def test_a_folder_of_one_experts_videos_is_passed_by_name(tmp_path):
    folder = write_features(tmp_path, "folder", "motion", IDS, FIXED)
    with pytest.raises(FileNotFoundError, match=r"a folder of ID\.npy, one a video, is passed as \{expert: folder\}"):
        read_features(folder)
    assert same_features(read_features({"motion": folder}, IDS).experts["motion"], FIXED)


def test_numpy_settings_of_the_caller_do_not_count(tmp_path):
    """A number too small for float32 is no error, and a signalling NaN is missing without a warning."""
    signalling = np.array([0x7FA00000, 0], dtype=np.uint32).view(np.float32)
    np.savez(tmp_path / "motion.npz", a=np.array([1e-310, 1e-42]), b=signalling)
    with np.errstate(all="raise"):
        features = read_features({"motion": tmp_path / "motion.npz"})
    assert features.ind["motion"].tolist() == [1, 0]


def test_one_file_of_videos_is_not_one_of_experts(tmp_path):
    """Its arrays would be taken for experts of one video each."""
    for layout in ("npz", "h5"):
        path = write_features(tmp_path, f"{layout} by video", "motion", IDS, FIXED)
        with pytest.raises(ValueError, match=rf"motion\.{layout}: .* no ids; .* one expert's: pass {{expert: path}}"):
            read_features(path)
        assert set(read_features({"motion": path}).ids) == set(map(str, IDS))


def test_real_features(root):
    path = root.parent / "shared" / "data" / "trecvid-vtt" / "experts.npz"
    if not path.is_file():
        pytest.skip("the trecvid-vtt features are not here")
    features = read_features(path)
    assert len(features) == 1498
    assert {name: int((flag == 0).sum()) for name, flag in features.ind.items()} == {"motion": 410, "audio": 0}


def test_common_mistakes(tmp_path):
    """Ids under another name, and `Features` in place of their parts."""
    np.savez(tmp_path / "motion.npz", id=np.array(IDS), motion=np.ones((len(IDS), 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"expected numbers, got <U\d+ \(ids are looked for as video_id or ids\)"):
        read_features({"motion": tmp_path / "motion.npz"})
    features = read_features({"motion": write_features(tmp_path, "npy", "motion", IDS, FIXED)})
    with pytest.raises(TypeError, match=r"got Features; pass features\.experts, features\.ind"):
        clean_video(features, None, CONFIG)
