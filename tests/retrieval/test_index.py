"""The index against brute force: exact ids and scores; what survives closing, killing, and a full disk."""

import itertools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lance")

from collaborative_experts import (
    ModelIdentity,
    TextEmbeddings,
    VideoEmbeddings,
    VideoIndex,
    explain,
    similarity,
)
from collaborative_experts.retrieval import embedded, store
from collaborative_experts.retrieval import index as module
from helpers import SMALL, check_answers, random_inputs, some, write_lance
from warm_process import Process

NAMES = np.array([f"video {i:03}" for i in range(60)])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "videos.lance"


@pytest.fixture
def filled(path):
    text, video = some()
    with VideoIndex(path) as index:
        index.add(NAMES, video)
        yield index, text, video


@pytest.mark.parametrize("missing", [0, 0.2, 0.4, 0.9])
@pytest.mark.parametrize(("experts", "dim"), [(1, 8), (2, 5), (5, 16)])
def test_exact_as_brute_force(path, missing, experts, dim):
    for seed in range(2):
        text, video = some(4, 60, experts, dim, missing, seed)
        with VideoIndex(path.with_name(f"seed{seed}.lance")) as index:
            index.add(NAMES, video)
            for k in (1, 7, 60, 100):
                found = check_answers(index, text, video, NAMES, k)
                assert found.ids.shape == (4, min(k, 60))


@pytest.mark.parametrize("method", [None, "qb", "nnn", "qb-dynamic"])
def test_the_callers_defaults_change_nothing(other_defaults, tmp_path, method):
    text, video = some()

    def search(path):
        with VideoIndex(path) as index:
            index.add(NAMES, video)
            if method:
                index.calibrate(some(20, seed=3)[0], method)
            found = index.search(text, 7), index.search_like(NAMES[:2], 7), index.search(text, 7, ids=NAMES[::3])
            return [x.to_dict() for x in found]

    expected = search(tmp_path / "expected.lance")
    with other_defaults():
        assert search(tmp_path / "got.lance") == expected


def test_shares_are_the_explanation(filled):
    index, text, video = filled
    found = index.search(text, 3)
    for t, rank in itertools.product(range(5), range(3)):
        row = int(np.flatnonzero(found.ids[t, rank] == NAMES)[0])
        assert np.abs(explain(text, video, t, row).shares - found.shares[t, rank]).max() < 1e-6
    assert found.experts == video.experts


def test_one_text_has_no_axis(filled):
    index, text, _ = filled
    one, all_of_them = index.search(text[2], 4), index.search(text, 4)
    assert one.ids.tolist() == all_of_them.ids[2].tolist()
    assert one.shares.shape == (4, 3)


def test_more_texts_than_are_asked_at_once_and_none(filled, monkeypatch):
    index, text, video = filled
    monkeypatch.setattr(module, "TEXTS", 2)
    check_answers(index, text, video, NAMES, 60)
    assert index.search(text[:0], 3).ids.shape[0] == 0


def test_equal_scores_are_ordered_by_id(path):
    text, video = some(2, 60)
    copies = video[np.zeros(60, dtype=int)]
    with VideoIndex(path) as index:
        index.add(NAMES, copies)
        assert index.search(text, 60).ids.tolist() == [NAMES.tolist()] * 2


def test_more_equal_scores_than_are_asked_for_at_first(path):
    """The same video 300 times, in two patterns, and a few better ones: the first by id, wherever they lie."""
    text, video = some(texts=2, videos=300, experts=2, missing=0)
    for x in video.embds.values():
        x[:] = x[:1]
    video.available[::3, 1] = False
    for name, x in video.embds.items():
        x[50:53] = text.embds[name][0]
    names = np.array([f"video {i:03}" for i in range(300)])
    order = np.random.default_rng(0).permutation(300)
    with VideoIndex(path) as index:
        index.add(names[order], video[order])
        for k in (1, 3, 10, 200):
            check_answers(index, text, video, names, k)


def test_texts_of_tiny_weights(path):
    """A pattern's weight divides its scores: however small it is, the order is that of comparing with all."""
    text, video = some(experts=2, missing=0)
    text.weights[:, 0], text.weights[:, 1] = 1 - 1e-9, 1e-9
    video.available[::2, 0] = False
    with VideoIndex(path) as index:
        index.add(NAMES, video)
        check_answers(index, text, video, NAMES, 10)


def test_two_indexes_of_one_store_see_each_others_videos(path):
    text, video = some()
    with VideoIndex(path) as first, VideoIndex(path) as second:
        assert len(second) == 0
        assert second.experts == ()
        first.add(NAMES[:30], video[:30])
        assert second.experts == first.experts
        second.add(NAMES[30:], video[30:])
        assert len(first) == len(second) == 60
        for index in (first, second):
            check_answers(index, text, video, NAMES, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_embeddings_and_integer_ids(path, dtype):
    text, video = some()
    as_torch = VideoEmbeddings(
        {k: torch.tensor(x, dtype=dtype) for k, x in video.embds.items()}, torch.tensor(video.available)
    )
    video = VideoEmbeddings({k: x.float().numpy() for k, x in as_torch.embds.items()}, video.available)
    with VideoIndex(path) as index:
        index.add(range(60), as_torch)
        best = index.search(text, 1).ids[:, 0]
    assert best.tolist() == [str(i) for i in similarity(text, video).argmax(1)]


def test_adding_again_changes_nothing_and_other_embeddings_replace(filled):
    index, text, video = filled
    index.add(NAMES[:20], video[:20])
    assert len(index) == 60
    check_answers(index, text, video, NAMES, 60)
    other = some(seed=5)[1]
    index.add(NAMES[10:30], other[10:30])
    mixed = VideoEmbeddings(
        {k: np.concatenate([x[:10], other.embds[k][10:30], x[30:]]) for k, x in video.embds.items()},
        np.concatenate([video.available[:10], other.available[10:30], video.available[30:]]),
    )
    assert len(index) == 60
    check_answers(index, text, mixed, NAMES, 60)


def test_delete_and_restrict(filled):
    index, text, video = filled
    some_ids = [*NAMES[5:25:2], "a stranger"]
    found = index.search(text, 4, ids=some_ids)
    order = np.argsort(-similarity(text, video[5:25:2]), axis=1, kind="stable")[:, :4]
    assert found.ids.tolist() == NAMES[5:25:2][order].tolist()
    assert index.search(text, 50, ids=some_ids).ids.shape == (5, 10)
    assert index.search(text, 5, ids=["a stranger"]).ids.shape == (5, 0)
    index.delete([*NAMES[:30], "a stranger"])
    assert len(index) == 30
    check_answers(index, text, video[30:], NAMES[30:], 40)
    index.delete(NAMES)
    assert len(index) == 0
    assert index.search(text, 5).ids.shape == (5, 0)


def test_close_reopen_ask_again(path):
    text, video = some()
    index = VideoIndex(path)
    assert len(index) == 0
    assert index.experts == ()
    index.add(NAMES, video)
    index.close()
    index.close()
    with pytest.raises(ValueError, match="this index is closed"):
        index.search(text)
    with VideoIndex(path) as again:
        assert len(again) == 60
        assert again.experts == video.experts
        check_answers(again, text, video, NAMES, 20)


def test_only_embeddings_of_the_same_model(path, small_op):
    experts, ind, text = random_inputs(small_op.config, videos=3)
    video, texts = small_op.encode_video(experts, ind), small_op.encode_text(text)
    other = ModelIdentity(video.model.config, "f" * 64)
    with VideoIndex(path) as index:
        index.add(["a", "b", "c"], video)
        assert index.search(texts, 1).ids.shape == (3, 1)
        for stranger in (other, None):
            wrong = TextEmbeddings(texts.embds, texts.weights, model=stranger)
            with pytest.raises(ValueError, match="its videos were embedded by another model: the one with weights"):
                index.search(wrong)
            with pytest.raises(ValueError, match="another model"):
                index.add(["d", "e", "f"], VideoEmbeddings(video.embds, video.available, stranger))
        fewer = VideoEmbeddings({"face": video.embds["face"]}, video.available[:, :1], video.model)
        with pytest.raises(ValueError, match=r"expected embeddings of the experts .*, got \{'face': 16\}"):
            index.add(["d", "e", "f"], fewer)
        assert len(index) == 3


def broken(change):
    video = some(videos=3)[1]
    change(video)
    return video


def first_nan(video):
    video.available[1, 1] = True
    video.embds["e1"][1, 0] = np.nan


def first_zero(video):
    video.available[2, 2] = True
    video.embds["e2"][2] = 0


def nothing_available(video):
    video.available[1] = False


ABC = ["a", "b", "c"]
BAD = {
    "NaN": (ABC, first_nan, ValueError, "video 'b', expert 'e1': expected a finite embedding that is not zero"),
    "zeros": (ABC, first_zero, ValueError, "video 'c', expert 'e2': expected a finite embedding"),
    "no expert": (ABC, nothing_available, ValueError, "video 'b' has no expert at all"),
    "too few ids": (ABC[:2], len, ValueError, "expected an id for each of 3 videos, got 2"),
    "an id twice": (["a", "b", "a"], len, ValueError, "ids: expected each video once, got 'a' twice"),
    "an id of a wrong type": (["a", "b", 1.5], len, TypeError, "ids: expected text or integers, got 1.5"),
    "an id that is not Unicode": (["a", "b", "\ud83d"], len, ValueError, r"expected text in Unicode, got '\\ud83d'"),
    "an id of bytes that are not": (["a", "b", b"\xe9"], len, ValueError, r"expected text in Unicode, got '\\udce9'"),
    "the bytes of one id": (b"abc", len, TypeError, r"ids: expected a list of ids, got the single b'abc'"),
    "an empty id": (["a", "b", ""], len, ValueError, "ids: expected 1 to 512 bytes of UTF-8, got 0"),
    "a long id": (["a", "b", "ü" * 300], len, ValueError, "ids: expected 1 to 512 bytes of UTF-8, got 600"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_added(filled, case):
    index, text, video = filled
    ids, change, error, message = BAD[case]
    with pytest.raises(error, match=message):
        index.add(ids, broken(change))
    assert len(index) == 60
    check_answers(index, text, video, NAMES, 10)


def test_what_is_not_searched(filled, path):
    index, text, video = filled
    for k in (0, -1, 2.0, True, 100_000):
        with pytest.raises(ValueError, match="search: k: expected an integer from 1 to 16000"):
            index.search(text, k)
    with pytest.raises(TypeError, match=r"expected TextEmbeddings \(encode_text\) or sentences, got VideoEmb"):
        index.search(video)
    with pytest.raises(TypeError, match=r"add: expected VideoEmbeddings \(encode_video\), got TextEmbeddings"):
        index.add(NAMES[:5], text)
    with pytest.raises(ValueError, match=r"for these, open the index with operator=\.\.\."):
        index.search("a sentence")
    with VideoIndex(path.with_name("empty.lance")) as empty:
        for ask in (lambda: empty.search(text), empty.optimise):
            with pytest.raises(ValueError, match="holds no videos yet"):
                ask()
    next(iter(text.embds.values()))[1, 2] = np.nan
    with pytest.raises(ValueError, match="search: expected finite embeddings and weights, got NaN or Inf"):
        index.search(text)


def test_which_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no/videos\.lance: there is no folder"):
        VideoIndex(tmp_path / "no" / "videos.lance")
    with pytest.raises(ValueError, match=r"expected a path ending in \.lance, or http://host:port"):
        VideoIndex(tmp_path / "videos")
    with pytest.raises(ValueError, match=r"Lite with: python -m collaborative_experts convert \S+\.db \S+\.lance"):
        VideoIndex(tmp_path / "videos.db")
    with pytest.raises(ValueError, match="holds a single collection"):
        VideoIndex(tmp_path / "videos.lance", "films")


def test_an_index_stays_where_it_was_opened(tmp_path, monkeypatch):
    """Whatever folder the process goes to, and whatever lies there under the same name, which may have a colon."""
    text, video = some()
    opened = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        opened.append(VideoIndex("at:10.lance"))
        opened[-1].add([place], video[:1])
    first, second = opened
    first.add(NAMES, video)
    first.delete("here")
    first.optimise()
    check_answers(first, text, video, NAMES, 60)
    assert second.to_arrow()["id"].to_pylist() == ["there"]


def test_a_first_write_that_did_not_end(path):
    """Such as on a full disk: the next one makes the index."""
    text, video = some()
    for name in ("_versions", "_transactions", "data"):
        (path / name).mkdir(parents=True)
    (path / "_transactions" / "0-1.txn").write_bytes(b"half")
    with VideoIndex(path) as index:
        assert len(index) == 0
        index.add(NAMES, video)
        check_answers(index, text, video, NAMES, 60)


def test_what_is_no_index(tmp_path):
    """Other content is neither read nor touched."""
    (tmp_path / "file.lance").write_text("something else")
    with pytest.raises(OSError, match=r"file\.lance: cannot read"):
        VideoIndex(tmp_path / "file.lance")
    assert (tmp_path / "file.lance").read_text() == "something else"
    (tmp_path / "folder.lance").mkdir()
    (tmp_path / "folder.lance" / "notes.txt").write_text("something else")
    with pytest.raises(ValueError, match="expected a Lance dataset, found something else"):
        VideoIndex(tmp_path / "folder.lance")
    lance, arrow = pytest.importorskip("lance"), pytest.importorskip("pyarrow")
    lance.write_dataset(arrow.table({"id": ["a"]}), str(tmp_path / "other.lance"))
    with pytest.raises(ValueError, match="expected an index, as `embed` writes it; found another Lance dataset"):
        VideoIndex(tmp_path / "other.lance")
    header = {"layout": 2, "dims": {"motion": 4}, "model": None}
    later = arrow.table({"id": ["a"]}).replace_schema_metadata({"collaborative_experts.index": json.dumps(header)})
    lance.write_dataset(later, str(tmp_path / "later.lance"))
    with pytest.raises(ValueError, match=r"expected a store of VideoIndex of layout 1: .*layout 2"):
        VideoIndex(tmp_path / "later.lance")
    write_lance(tmp_path / "features.lance", "motion", ["a"], np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match="found features, of which `embed` makes one"):
        VideoIndex(tmp_path / "features.lance")


@pytest.mark.parametrize(("given", "expected"), [(None, None), (5, 5), ("8GB", 8 * 10**9), ("1.5 kb", 1500)])
def test_memory_in_words(given, expected):
    assert module._check_memory(given) == expected


@pytest.mark.parametrize("memory", ["lots", "8 XB", -3, True])
def test_memory_that_is_none(path, memory):
    with pytest.raises(ValueError, match="memory: expected bytes, or such as '8GB'"):
        VideoIndex(path, memory=memory)


def test_no_server():
    pytest.importorskip("pymilvus")
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9: no Milvus server answers"):
        VideoIndex("http://127.0.0.1:9")


def test_a_missing_library_names_its_extra(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(ImportError, match=r"lance cannot be imported .*collaborative_experts\[index\]"):
        VideoIndex(path)


# --- other processes --------------------------------------------------------------------------------------

HERE = Path(__file__).parent
HEAD = (
    f"import sys, itertools\nsys.path += {[str(HERE.parent), str(HERE)]!r}\n"
    "from test_index import NAMES, some, VideoIndex, check_answers\ntext, video = some()\n"
)


def test_ids_of_any_characters(path):
    names = np.array(sorted(["it's", "back\\slash", "new\nline", 'say "so"', "a\\n", "a\\'b"]))
    text, video = some(videos=len(names))
    with VideoIndex(path) as index:
        index.add(names, video)
        check_answers(index, text, video, names, 6)
        index.delete(names[:5])
        assert len(index) == 1


def test_says_what_it_is(path):
    with VideoIndex(path) as index:
        assert repr(index) == f"VideoIndex({str(path)!r}): 0 videos"
        index.add(NAMES, some()[1])
        assert repr(index).endswith(": 60 videos")
    assert repr(index).endswith(": closed")


def test_exact_after_many_changes(path):
    """Videos that are replaced and deleted between searches, by two indexes of one store, in pieces of any size."""
    rng = np.random.default_rng(0)
    with VideoIndex(path) as index, VideoIndex(path) as other:
        for seed in range(6):
            text, video = some(4, 60, seed=seed)
            for start in range(0, 60, 7):
                index.add(NAMES[start : start + 7], video[start : start + 7])
            other.add([f"{seed} {name}" for name in NAMES], video)
            gone = rng.permutation([f"{seed} {name}" for name in NAMES])
            for part in np.array_split(gone, 4):
                other.delete(part.tolist())
            check_answers(index, text, video, NAMES, 60)
            if seed == 3:
                report = other.optimise()
                assert report.rows == 60
                assert report.files[1] == 1 <= report.files[0]
            check_answers(other, text, video, NAMES, 60)


@pytest.mark.parametrize(
    ("threads", "videos", "held", "expected"),
    [
        (2, 1000, 1024, 4096),
        (2, 100_000, 1024, 25_000),
        (2, 100_001, 1024, 25_001),
        (16, 100_000, 1024, 6250),
        (2, 20_000, 6912, 5000),
        (2, 20_000, 3456, 10_000),
        (2, 10, 2**26, 1),
    ],
    indirect=["threads"],
)
def test_each_core_has_as_many_chunks(threads, videos, held, expected):
    assert embedded._videos_of_a_chunk(held, videos) == expected


@pytest.mark.parametrize(("experts_there", "pieces"), [(3, 6), (2, 4), (1, 4)])
@pytest.mark.parametrize("threads", [2], indirect=True)
def test_a_chunk_has_more_videos_where_experts_are_missing(threads, path, monkeypatch, experts_there, pieces):
    """But at most twice as many, for the first ones may not be as the others."""
    monkeypatch.setattr(embedded, "CHUNK_BYTES", 10 * 18)
    monkeypatch.setattr(embedded, "LEAST_CHUNK", 1)
    text, video = some(missing=0)
    video.available[:] = np.arange(3) < experts_there
    with VideoIndex(path) as index:
        index.add(NAMES, video)
        check_answers(index, text, video, NAMES, 7)
        assert len(index._backend._codes.snapshot().pieces) == pieces


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_codes_that_more_videos_join_are_few(threads, path, monkeypatch):
    """They are held a second time; a chunk that is nearly full is not."""
    monkeypatch.setattr(embedded, "CHUNK", 16)
    text, video = some()
    with VideoIndex(path) as index:
        for start, stop, joined in ((0, 31, None), (31, 34, 3), (34, 40, 9), (40, 60, None)):
            index.add(NAMES[start:stop], video[start:stop])
            check_answers(index, text, video[:stop], NAMES[:stop], 5)
            tail = index._backend._codes.snapshot().tail
            assert (tail and len(tail)) == joined


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_the_newest_videos_are_replaced_or_deleted_between_searches(threads, path, monkeypatch):
    """Nothing is left of the piece that the next ones would join."""
    monkeypatch.setattr(embedded, "CHUNK", 16)
    text, video = some()
    with VideoIndex(path) as index:
        for change in (
            lambda: index.add(NAMES[:32], video[:32]),
            lambda: index.add(NAMES[32:33], video[32:33]),
            lambda: index.add(NAMES[32:33], video[33:34]),
            lambda: index.delete(NAMES[32:33]),
            lambda: index.add(NAMES[32:], video[32:]),
        ):
            change()
            index.search(text, 5)
        check_answers(index, text, video, NAMES, 60)


def test_pieces_of_any_size(path, monkeypatch):
    """Chunks smaller than the additions, larger ones, and codes that are read at each search."""
    monkeypatch.setattr("collaborative_experts.retrieval.embedded.CHUNK", 16)
    monkeypatch.setattr("collaborative_experts.retrieval.store.ROWS", 16)
    monkeypatch.setattr("collaborative_experts.retrieval.store.WRITTEN_BYTES", 10 * 4 * 18)
    text, video = some()
    with VideoIndex(path) as index, VideoIndex(path, memory=0) as streaming:
        for rows in (slice(0, 3), slice(3, 20), slice(20, 60)):
            index.add(NAMES[rows], video[rows])
            for k in (1, 5, 70):
                check_answers(index, text, video[: rows.stop], NAMES[: rows.stop], k)
                check_answers(streaming, text, video[: rows.stop], NAMES[: rows.stop], k)
        index.delete(NAMES[:9])
        check_answers(index, text, video[9:], NAMES[9:], 60)
        check_answers(streaming, text, video[9:], NAMES[9:], 60)
        assert len(index._backend._codes.snapshot().pieces) >= 3
        assert streaming._backend._codes.snapshot().streamed


@pytest.mark.parametrize("memory", [None, 0])
def test_codes_are_read_in_ranges_only_where_nothing_is_deleted(path, memory, monkeypatch):
    """To find a range, Lance would go through all rows of a file with a deletion: 14 s for 100,000."""
    ranges, read = [], store._in_ranges
    monkeypatch.setattr(store, "_in_ranges", lambda *given: ranges.append(given) or read(*given))
    text, video = some()
    with VideoIndex(path) as index:
        index.add(NAMES, video)
    with VideoIndex(path, memory=memory) as index:
        check_answers(index, text, video, NAMES, 5)
        assert ranges
        index.delete(NAMES[:1])
    ranges.clear()
    with VideoIndex(path, memory=memory) as index:
        check_answers(index, text, video[1:], NAMES[1:], 5)
        assert not ranges


def test_of_a_store_with_deletions_rows_are_read_by_address(path, monkeypatch):
    """Lance would look for each place among all rows: a search of 100,000 videos took six times as long."""
    monkeypatch.setattr(store, "LISTED_IDS", 7)
    text, video = some()
    with VideoIndex(path) as index:
        index.add(NAMES[:30], video[:30])
        index.add(NAMES[30:], video[30:])
        index.delete(NAMES[[2, 40]])
        left = np.setdiff1d(np.arange(len(NAMES)), [2, 40])
        check_answers(index, text, video[left], NAMES[left], 40)
        snapshot = index._backend._codes.snapshot()
        addresses = snapshot.pieces[0].addresses[:20]
        rows = snapshot.rows(addresses)
        assert rows.positions is None
        assert (
            snapshot.store.read_ids(rows).tolist() == rows.take(["id"])["id"].to_pylist() == NAMES[left][:20].tolist()
        )
        assert snapshot.store.read_ids(snapshot.rows(addresses[:0])).tolist() == []


def test_of_ties_only_ids_are_read(path, monkeypatch):
    """All videos are one, of which the first by id are the answer."""
    text, video = some()
    read, described = [], store.VideoStore.read_described
    monkeypatch.setattr(
        store.VideoStore, "read_described", lambda self, rows: read.append(len(rows.addresses)) or described(self, rows)
    )
    with VideoIndex(path) as index:
        index.add(NAMES[::-1], video[[0] * len(NAMES)])
        assert index.search(text, 5).ids.tolist() == [NAMES[:5].tolist()] * len(text)
    assert read == [5]


def test_small_files_are_joined_while_adding(path, monkeypatch):
    monkeypatch.setattr("collaborative_experts.retrieval.store.MOST_SMALL_FRAGMENTS", 5)
    text, video = some()
    with VideoIndex(path) as index:
        for row, name in enumerate(NAMES):
            index.add(name, video[row])
        assert len(index._backend._codes.snapshot().fragments) < 6
        check_answers(index, text, video, NAMES, 20)


def python(code, *arguments):
    return Process(HEAD + code, *arguments)


@pytest.mark.parametrize("left", [0, 40, 500])
def test_a_truncated_data_file(filled, path, left):
    index, text, _ = filled
    index.close()
    (data,) = path.glob("data/*.lance")
    data.write_bytes(data.read_bytes()[:left])
    with VideoIndex(path) as again, pytest.raises(OSError, match=r"videos\.lance: cannot read"):
        again.search(text)


def test_a_byte_changed_anywhere_in_a_data_file(tmp_path):
    """Lance has no checksums, so changed numbers are numbers; all else is an error of the store in one line."""
    text, video = some(videos=20)
    with VideoIndex(tmp_path / "videos.lance") as index:
        index.add(NAMES[:20], video, metadata=[{"number": i} for i in range(20)])
    (file,) = (tmp_path / "videos.lance").glob("data/*.lance")
    whole, errors = file.read_bytes(), []
    for at in range(0, len(whole), len(whole) // 150):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :])
        try:
            with VideoIndex(tmp_path / "videos.lance") as index:
                index.search(text, 5)
                index.read(NAMES[:3])
        except OSError as error:
            errors.append(str(error))
    assert len(errors) > 10
    assert all("videos.lance: cannot read" in error and "\n" not in error for error in errors)


def test_a_damaged_index_of_the_ids(filled, path):
    """The error is of the store, and not of what the caller asked for."""
    index, _, _ = filled
    index.optimise()
    index.close()
    (data,), (lookup,) = (path.glob(f"_indices/*/page_{name}.lance") for name in ("data", "lookup"))
    data.write_bytes(bytes(data.stat().st_size))
    with VideoIndex(path) as again, pytest.raises(OSError, match=r"videos\.lance: cannot read"):
        again.read(NAMES[:1])
    content = lookup.read_bytes()  # a size that is changed in it ends the process inside Lance
    lookup.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    with pytest.raises(OSError, match=r"cannot read: its index _indices/.*/page_lookup\.lance is damaged$"):
        VideoIndex(path)


@pytest.mark.parametrize("damaged", ["data/*.lance", "_indices/*/page_data.lance", "_indices/*/*.idx"])
def test_a_file_of_an_index_that_counts_more_buffers_than_it_holds(filled, path, damaged):
    """Lance ends the process where it has no memory for them."""
    filled[0].optimise(approximate=True)
    filled[0].close()
    file = next(path.glob(damaged))
    content = file.read_bytes()
    file.write_bytes(content[:-16] + b"\xff" * 4 + content[-12:])
    with pytest.raises(OSError, match=rf"videos\.lance: cannot read: its file .*/{file.name} is damaged$"):
        VideoIndex(path)


@pytest.mark.parametrize("said", ["Invalid user input: Data file 'x.lance' has 13 field ids", "cannot reshape array"])
def test_what_libraries_say_of_damage_is_an_error_of_the_store(filled, monkeypatch, said):
    """As a ValueError of theirs, which is told from those of an argument."""
    index, text, _ = filled

    def read_codes(*_):
        raise ValueError(said)

    monkeypatch.setattr(store.VideoStore, "read_codes", read_codes)
    with pytest.raises(OSError, match=rf"videos\.lance: cannot read: {said[:20]}"):
        index.search(text, 1)


@pytest.mark.parametrize("damage", [b"collaborative_experts.bank", b"method"])
def test_a_damaged_query_bank(filled, path, damage):
    index, text, _ = filled
    index.calibrate(text)
    index.close()
    (file,) = path.glob("_banks/*.lance/_versions/*.manifest")
    file.write_bytes(file.read_bytes().replace(damage, damage[::-1]))
    with VideoIndex(path) as again, pytest.raises(OSError, match="cannot read: its query bank is damaged"):
        again.search(text)


def test_several_processes_read_while_one_writes(path):
    """Each answer is that of some committed state: the same videos are replaced by others all the time."""
    text, first = some()
    second = some(seed=9)[1]
    answers = []
    for video in (first, second):
        scores = similarity(text, video)
        answers.append(NAMES[np.argsort(-scores, axis=1, kind="stable")[:, :5]].tolist())
    with VideoIndex(path) as index:
        index.add(NAMES, first)
        code = (
            "import json\nindex = VideoIndex(sys.argv[1])\nprint(flush=True)\n"
            "for _ in range(60):\n    print(json.dumps(index.search(text, 5).ids.tolist()), flush=True)\n"
        )
        readers = [python(code, path) for _ in "12"]
        for reader in readers:
            reader.stdout.readline()
        while any(reader.poll() is None for reader in readers):
            index.add(NAMES, second)
            index.add(NAMES, first)
        for reader in readers:
            found = [json.loads(line) for line in reader.stdout]
            assert reader.poll() == 0, reader.stderr.read()
            assert len(found) == 60
            assert all(answer in answers for answer in found)


def test_two_processes_that_write_lose_nothing(path):
    """They add at once, partly the same ids."""
    text, video = some()
    code = (
        "with VideoIndex(sys.argv[1]) as index:\n"
        "    for start in range(0, 40, 4):\n"
        "        rows = slice(start + int(sys.argv[2]), start + int(sys.argv[2]) + 4)\n"
        "        index.add(NAMES[rows], video[rows])\n"
    )
    writers = [python(code, path, start) for start in (0, 18)]
    for writer in writers:
        assert writer.wait() == 0, writer.stderr.read()
    with VideoIndex(path) as index:
        assert len(index) == 58
        check_answers(index, text, video[:58], NAMES[:58], 58)


def test_a_full_disk(path):
    """A limit on file sizes stands for it: a clear error, and what was there before is intact."""
    text, video = some()
    with VideoIndex(path) as index:
        index.add(NAMES, video)
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with VideoIndex(sys.argv[1]) as index:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))\n"
        "    try:\n"
        "        for i in range(20):\n"
        "            index.add([f'{i}-{name}' for name in NAMES], video)\n"
        "    except OSError as error:\n"
        "        print('OSError', error)\n"
        "    print(len(index.search(text, 60, ids=NAMES).ids[0]), len(index.search(text, 60).ids[0]))\n"
    )
    process = python(code, path)
    out = process.stdout.read()
    assert out.startswith(f"OSError {path}: cannot add: "), (out, process.stderr.read())
    assert out.endswith("\n60 60\n"), out  # what is there is found nevertheless
    with VideoIndex(path) as index:
        found = index.search(text, 60, ids=NAMES)
        assert sorted(found.ids[0]) == sorted(NAMES)
        index.add(NAMES, video)
        index.delete([f"{i}-{name}" for i in range(20) for name in NAMES])
        check_answers(index, text, video, NAMES, 60)


CHANGES = """
changes = {
    "add": lambda: index.add(NAMES, video),
    "delete": lambda: index.delete(NAMES[:9]),
    "optimise": lambda: index.optimise(),
    "calibrate": lambda: index.calibrate(text),
    "note_weights": lambda: index.note_weights("w.safetensors"),
}
for name, change in changes.items():
    try:
        change()
    except OSError as error:
        assert f"{sys.argv[1]}: cannot {name}: " in str(error) and "\\n" not in str(error), error
    else:
        raise AssertionError(f"{name} was done")
    check_answers(index, text, video, NAMES, 10)
"""
LIMITS = {
    "a full disk": "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
    # Root may write anywhere; another user may not be able to read what is imported later.
    "a read-only folder": "import filelock, pyarrow.compute\nos.geteuid() or os.setuid(65534)",
}


@pytest.mark.parametrize("limit", LIMITS)
def test_what_cannot_be_written(limit):
    """Each change is one error of one line, and what was there before is found."""
    text, video = some()
    with tempfile.TemporaryDirectory() as folder:  # others than root do not reach tmp_path
        path = Path(folder) / "videos.lance"
        with VideoIndex(path) as index:
            index.add(NAMES, video)
        places = [Path(folder), *Path(folder).rglob("*")]
        for place in places:
            place.chmod(0o555)
        head = f"import os, resource, signal\nindex = VideoIndex(sys.argv[1])\nindex.search(text)\n{LIMITS[limit]}\n"
        process = python(head + CHANGES, path)
        assert process.wait() == 0, process.stderr.read()
        for place in places:
            place.chmod(0o755)
        with VideoIndex(path) as index:
            check_answers(index, text, video, NAMES, 10)
            assert index.weights_path is None


def test_weights_path(small_op, tmp_path):
    """Noted in one commit, kept through additions, and none before the first."""
    experts, ind, _ = random_inputs(SMALL, 3)
    video = small_op.encode_video(experts, ind | {"face": torch.ones(3)})  # something to find each by
    with VideoIndex(tmp_path / "videos.lance") as index:
        assert (index.weights_path, index.model) == (None, None)
        with pytest.raises(ValueError, match="holds no videos yet"):
            index.note_weights("w.safetensors")
        index.add(["a", "b", "c"], video)
        assert (index.weights_path, index.model) == (None, small_op.identity)
        index.note_weights(tmp_path / "w.safetensors")
        versions = len(list((tmp_path / "videos.lance" / "_versions").iterdir()))
        index.note_weights(tmp_path / "sub" / ".." / "w.safetensors")
        assert len(list((tmp_path / "videos.lance" / "_versions").iterdir())) == versions
        index.add(["d", "a"], video[:2])
        index.optimise()
    with VideoIndex(tmp_path / "videos.lance") as index:
        assert index.weights_path == (tmp_path / "w.safetensors").resolve()
        assert len(index) == 4
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "away" / "link.lance").symlink_to(tmp_path / "videos.lance")
    with VideoIndex(tmp_path / "far" / "away" / "link.lance") as index:
        assert index.weights_path == (tmp_path / "w.safetensors").resolve()
        index.delete("a")
    assert [x.name for x in tmp_path.rglob("*.lock")] == [".videos.lance.lock"]
