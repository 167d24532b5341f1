"""Files whose ids do not meet are named, with an id of each and the likely cause."""

import warnings

import numpy as np
import pytest

from collaborative_experts import read_features

ZEROS, SUFFIX, CASE = "leading zeros", "a file suffix", "upper and lower case"
SPAN = "the span of a clip: name clips, or extract with --clips whole"
PATH, SPACES, ALL = "the path before the name", "spaces around them", "path, suffix or leading zeros"
SPELLINGS = {
    "leading zeros": (["7", "12", "13"], ["0007", "0012"], f"'0007' .* '7' in the second; they differ in {ZEROS}"),
    "integers": ([7, 12, 13], ["007", "012"], f"they differ in {ZEROS}"),
    "suffix": (["a", "b", "c"], ["a.mp4", "b.mp4"], f"'a.mp4' .* 'a' in the second; they differ in {SUFFIX}"),
    "larger file": (["7.mp4", "8.mp4", "9"], ["7", "8"], f"'7' .* '7.mp4' in the second; they differ in {SUFFIX}"),
    "case": (["Vid", "Wid", "Xid"], ["vID", "wID"], f"they differ in {CASE}"),
    "path": (["vid", "wid", "xid"], ["videos/vid", "videos/wid"], f"they differ in {PATH}"),
    "path of Windows": (["vid", "wid", "xid"], [r"C:\vid", r"C:\wid"], f"they differ in {PATH}"),
    "spaces": (["vid", "wid", "xid"], ["vid ", "wid "], f"they differ in {SPACES}"),
    "span": (["a.mp4#t=0.0,3.0", "a.mp4#t=3.0,4.5", "b.mp4#t=0.0,2.0"], ["a.mp4", "b.mp4"], f"they differ in {SPAN}"),
    "all": (["7", "8", "9"], ["/data/007.MP4", "/data/008.MP4"], f"they differ in {ALL}"),
    "no likely cause": (["a1", "a2", "a3"], ["b1", "b2"], "such as 'b1' in the first and 'a1' in the second$"),
}  # fmt: skip


def save(folder, **experts):
    """A table for each expert with these ids; returns {expert: path}."""
    for name, ids in experts.items():
        np.savez(folder / f"{name}.npz", video_id=ids, features=np.ones((len(ids), 4), dtype=np.float32))
    return {name: folder / f"{name}.npz" for name in experts}


@pytest.fixture(autouse=True)
def no_warnings():
    """A warning that a test does not expect fails it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize("case", SPELLINGS)
def test_two_files_without_common_ids(tmp_path, case):
    larger, smaller, message = SPELLINGS[case]
    files = save(tmp_path, audio=larger, ocr=smaller)
    with pytest.raises(ValueError, match=rf"ocr\.npz, 'ocr', and .*audio\.npz, 'audio', share no ids, .*{message}"):
        read_features(files)


@pytest.mark.parametrize("case", sorted(set(SPELLINGS) - {"no likely cause"}))
def test_ids_asked_for_in_another_spelling(tmp_path, case):
    of_file, asked_for, message = SPELLINGS[case]
    with pytest.raises(ValueError, match=rf"the ids asked for and .*motion\.npz, 'motion', share no ids, .*{message}"):
        read_features(save(tmp_path, motion=of_file), asked_for)


def test_many_ids_asked_for_and_none_there(tmp_path):
    files = save(tmp_path, motion=[f"a{i}" for i in range(30)])
    assert not read_features(files, [f"b{i}" for i in range(19)]).available.any()
    with pytest.raises(ValueError, match=r"share no ids, such as 'b0' in the first and 'a0' in the second$"):
        read_features(files, [f"b{i}" for i in range(20)])


def test_a_rare_expert_may_miss_all_of_a_batch(tmp_path):
    """A file is held against the other files, and a request against all files at once."""
    files = save(tmp_path, motion=range(1000), ocr=[3, 5])
    features = read_features(files, range(100, 200))
    assert features.ind["ocr"].sum() == 0
    assert features.ind["motion"].sum() == 100


def test_a_rare_expert_may_share_ids_with_the_largest_file_alone(tmp_path):
    files = save(tmp_path, audio=["a", "b", "c", "d"], motion=["a", "b"], ocr=["d"])
    assert read_features(files).ind["ocr"].tolist() == [0, 0, 0, 1]


def test_two_pairs_of_files(tmp_path):
    """Each file has a partner, and the pairs have different spellings."""
    plain, padded = [str(i) for i in range(40)], [f"{i:04}" for i in range(40)]
    files = save(tmp_path, audio=plain, motion=plain, ocr=padded, speech=padded)
    with pytest.raises(ValueError, match=r"'ocr', and .*audio\.npz, 'audio', share no ids"):
        read_features(files)


@pytest.mark.parametrize(("shared", "is_warned_of"), [(1, True), (4, True), (5, False)])
def test_hardly_any_common_ids(tmp_path, shared, is_warned_of):
    plain = [str(i) for i in range(1, 201)]
    padded = [*plain[:shared], *(f"0{video}" for video in plain[shared:100])]
    files = save(tmp_path, audio=plain, ocr=padded)
    if not is_warned_of:
        assert len(read_features(files)) == 295
        return
    message = rf"ocr\.npz, 'ocr', and .* share only {shared} of 100 ids, .* they differ in leading zeros"
    with pytest.warns(UserWarning, match=message):
        read_features(files)
    with pytest.warns(UserWarning, match=f"the ids asked for and .* share only {shared} of 100 ids"):
        read_features({"audio": files["audio"]}, padded)


def test_the_other_file_named_is_the_one_of_the_other_id(tmp_path):
    files = save(tmp_path, audio=["a", "b", "c", "d"], motion=["a", "b", "7"], ocr=["007"])
    with pytest.raises(ValueError, match=r"'ocr', and .*motion\.npz, 'motion', share no ids, such as '007' .* '7' in"):
        read_features(files)
    with pytest.raises(
        ValueError, match=r"asked for and .*motion\.npz, 'motion', share no ids, such as '07' .* '7' in"
    ):
        read_features({name: files[name] for name in ("audio", "motion")}, ["07"])


def test_a_file_without_videos_is_no_stranger(tmp_path):
    files = save(tmp_path, audio=["a", "b"])
    np.savez(tmp_path / "ocr.npz", video_id=np.empty(0, dtype="U1"), ocr=np.empty((0, 4)))
    assert read_features(files | {"ocr": tmp_path / "ocr.npz"}).ind["ocr"].tolist() == [0, 0]
