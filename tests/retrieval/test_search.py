"""Searches beyond a batch of texts: conditions, media, similar videos, sentences, one at a time, approximate."""

import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("lance")

from collaborative_experts import SearchResult, VideoEmbeddings, VideoIndex, similarity
from helpers import random_embeddings, some

NAMES = np.array([f"video {i:03}" for i in range(60)])
URIS = [None if i % 7 == 0 else f"films/{i % 3}.mp4" for i in range(60)]
SPANS = [None if i % 5 == 0 else (i / 2, i / 2 + 3.25) for i in range(60)]
METADATA = [
    None if i % 6 == 0 else {"camera": "left" if i % 2 else "right", "take": i, "quote": "it's"} for i in range(60)
]


@pytest.fixture
def filled(tmp_path):
    text, video = some()
    with VideoIndex(tmp_path / "videos.lance") as index:
        index.add(NAMES, video, uris=URIS, spans=SPANS, metadata=METADATA)
        yield index, text, video


def best(text, video, rows, k):
    """Ids of the k best of some rows by brute force."""
    scores = similarity(text, video)[:, rows]
    return NAMES[rows][np.argsort(-scores, axis=1, kind="stable")[:, :k]].tolist()


def test_media_come_back_with_the_answers(filled):
    index, text, _ = filled
    found = index.search(text, 60)
    for t in range(5):
        for rank, name in enumerate(found.ids[t]):
            i = NAMES.tolist().index(name)
            assert found.uris[t, rank] == URIS[i]
            assert found.metadata[t, rank] == METADATA[i]
            expected = (np.nan, np.nan) if SPANS[i] is None else SPANS[i]
            assert np.array_equal(found.spans[t, rank], expected, equal_nan=True)


CONDITIONS = {
    "end_s - start_s > 3": lambda i: SPANS[i] is not None,
    "start_s >= 10": lambda i: SPANS[i] is not None and SPANS[i][0] >= 10,
    "uri = 'films/1.mp4'": lambda i: URIS[i] == "films/1.mp4",
    "uri IS NULL": lambda i: URIS[i] is None,
    "id LIKE 'video 01%'": lambda i: 10 <= i < 20,
    "json_get_string(metadata, 'camera') = 'left'": lambda i: METADATA[i] is not None and i % 2 == 1,
    "json_get_int(metadata, 'take') < 9 OR uri IS NULL": lambda i: (i % 6 and i < 9) or URIS[i] is None,
    "id = 'nothing'": lambda _: False,
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_where(filled, condition):
    index, text, video = filled
    rows = np.array([i for i in range(60) if CONDITIONS[condition](i)], dtype=int)
    assert index.search(text, 7, where=condition).ids.tolist() == best(text, video, rows, 7)
    some_rows = rows[rows < 30]
    found = index.search(text, 7, ids=NAMES[:30], where=condition)
    assert found.ids.tolist() == best(text, video, some_rows, 7)


def test_where_among_more_videos_than_are_scored_at_once(filled, monkeypatch):
    from collaborative_experts.retrieval import embedded

    monkeypatch.setattr(embedded, "FEW_VIDEOS", 3)
    index, text, video = filled
    assert index.search(text, 7, where="id >= 'video 020'").ids.tolist() == best(text, video, np.arange(20, 60), 7)


CHAIN = "+".join(["1"] * 5000) + " = 5000"
HOSTILE = {
    "deep brackets": ("(" * 40_000 + "true" + ")" * 40_000, ValueError, "at most 300 names"),
    "some brackets": ("(" * 100 + "true" + ")" * 100, ValueError, "recursion limit exceeded"),
    "a long chain": (CHAIN, ValueError, "at most 300 names"),
    "a chain of casts": ("start_s" + "::double" * 5000 + " = 1", ValueError, "at most 300 names"),
    "a chain in a list": (f"start_s IN (1, 2, {CHAIN})", ValueError, "at most 300 names"),
    "a chain behind an escaped quote": (rf"id = E'\' OR {CHAIN} OR id = '", ValueError, "expected a space before"),
    "a chain behind a comment": (f"true /* ' */ OR {CHAIN} OR id = ''", ValueError, "expected comparisons"),
    "a chain behind dollars": (f"id = $$'$$ OR {CHAIN} OR id = ''", ValueError, "expected comparisons"),
    "a megabyte": ("id = '" + "x" * 2**20 + "'", ValueError, "at most 100,000 characters"),
    "broken SQL": ("id =", ValueError, "Expected: an expression"),
    "words": ("some words here", ValueError, "Expected: "),
    "a quote that is not closed": ("id = 'a", ValueError, "expected comparisons"),
    "brackets that let all pass": ("id = 'a') OR (true", ValueError, "brackets in pairs"),
    "an unknown column": ("no_such = 1", ValueError, "^where: No field named no_such$"),
    "a long unknown column": ("x" * 90_000, ValueError, "No field named xxx"),
    "a number": ("start_s + 1", ValueError, "does not return a boolean"),
    "a text": ("id", ValueError, "does not return a boolean"),
    "a word as a number": (
        "json_get_int(metadata, 'camera') = 1",
        ValueError,
        "fails on a video: .* convert to integer",
    ),
    "nothing to divide by": ("1 / (length(id) - 9) = 1", ValueError, "fails on a video: .*Divide by zero"),
    "bytes": (b"id = 'a'", TypeError, "expected a condition as text"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_condition_that_cannot_be_asked(filled, case):
    """Some of these overflow the stack of Lance, which ends the process, where they get as far."""
    index, text, _ = filled
    where, error, message = HOSTILE[case]
    for exact in (True, False) if case == "a long chain" else (True,):
        with pytest.raises(error, match=message) as caught:
            index.search(text, 3, where=where, exact=exact)
    assert str(caught.value).startswith("where: ")
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert ".rs" not in str(caught.value)
    with pytest.raises(error, match=message):
        index.search_like(NAMES[0], where=where)


def test_the_longest_conditions_are_answered(filled):
    index, text, video = filled
    some_names = ", ".join(repr(str(name)) for name in [*NAMES[:30], *map(str, range(5000))])
    rows = np.arange(30)
    for where in (f"id IN ({some_names})", " OR ".join(f"id = '{name}'" for name in [*NAMES[:30], *range(45)])):
        assert index.search(text, 5, where=where).ids.tolist() == best(text, video, rows, 5)
    for where in ("+".join(["1"] * 149) + " = 1", "start_s" + "::double" * 148 + " < 0", "true" + " IS NULL" * 149):
        assert index.search(text, 5, where=where).ids.shape == (5, 0)


def mean_cosines(a, b):
    """Mean over the experts that both have of the inner products, pair by pair."""
    scores = np.zeros((len(a), len(b)))
    for i in range(len(a)):
        for j in range(len(b)):
            both = [m for m in range(3) if a.available[i, m] and b.available[j, m]]
            cosines = [a.embds[a.experts[m]][i] @ b.embds[b.experts[m]][j] for m in both]
            scores[i, j] = np.mean(cosines) if both else 0
    return scores


def test_similar_videos(filled):
    index, _, video = filled
    scores = mean_cosines(video, video)
    found = index.search_like(NAMES[:4], 8)
    assert found.ids.shape == (4, 8)
    for row in range(4):
        others = np.delete(np.arange(60), row)
        order = others[np.lexsort((NAMES[others], -scores[row, others].round(6)))][:8]
        assert np.abs(found.scores[row] - np.sort(scores[row, others])[::-1][:8]).max() < 1e-6
        assert found.ids[row].tolist() == NAMES[order].tolist()
    nothing = index.search_like(NAMES[:2], 8, where="start_s < -1")
    assert (nothing.ids.shape, nothing.shares.shape[:2]) == ((2, 0), (2, 0))
    assert index.search_like("video 002", 8, where="start_s < -1").ids.shape == (0,)
    one = index.search_like("video 002", 8)
    assert one.ids.tolist() == found.ids[2].tolist()


def test_similar_to_embeddings_of_other_videos(filled):
    index, _, video = filled
    _, others = some(seed=7)
    scores = mean_cosines(others[:3], video)
    found = index.search_like(others[:3], 60)
    assert np.abs(found.scores - -np.sort(-scores, axis=1)).max() < 1e-6
    single = VideoEmbeddings({n: x[1] for n, x in others.embds.items()}, others.available[1])
    assert index.search_like(single, 5).ids.tolist() == found.ids[1, :5].tolist()
    some_of_them = index.search_like(others[:3], 5, where="start_s < 10").ids
    assert {int(name[-3:]) for name in some_of_them.flat} <= {i for i in range(20) if SPANS[i]}


def test_similar_to_what_is_not_there(filled):
    index, _, _ = filled
    with pytest.raises(ValueError, match="holds no video 'video 999'"):
        index.search_like(["video 001", "video 999"])
    nan = VideoEmbeddings({name: np.full((1, 6), np.nan) for name in index.experts}, [[1, 0, 0]])
    with pytest.raises(ValueError, match="search_like: expected finite embeddings and weights, got NaN or Inf"):
        index.search_like(nan)


class Sentences:
    """An operator that answers each of five sentences with its own embedding."""

    def __init__(self, text):
        self.text = text

    def encode_sentences(self, sentences):
        return self.text[np.array([int(sentence) for sentence in sentences])]


def test_sentences(filled):
    index, text, _ = filled
    with VideoIndex(index.uri, operator=Sentences(text)) as asked:
        assert asked.search(["3", "1"], 4).ids.tolist() == index.search(text, 4).ids[[3, 1]].tolist()
        assert asked.search("2", 4).ids.tolist() == index.search(text[2], 4).ids.tolist()
        assert asked.search([], 4).ids.shape[0] == 0
    with pytest.raises(ValueError, match="open the index with operator="):
        index.search("a dog")


@pytest.mark.parametrize("ids", ["one", ["one"], np.array(["one"]), 7, [7]])
def test_a_single_video_is_added_as_it_is(tmp_path, ids):
    text, video = some()
    single = VideoEmbeddings({n: x[3] for n, x in video.embds.items()}, video.available[3])
    with VideoIndex(tmp_path / "videos.lance") as index:
        index.add(ids, single, uris="a.mp4", spans=(1, 2), metadata={"a": 1})
        found = index.search(text[0])
        assert found.ids.tolist() == [str(np.ravel(ids)[0])]
        assert (found.uris[0], found.spans[0].tolist(), found.metadata[0]) == ("a.mp4", [1.0, 2.0], {"a": 1})
        index.add(["two"], single, uris=["b.mp4"], spans=[(1, 2)], metadata=[None])
        assert len(index) == 2


def test_columns_of_tables(tmp_path):
    arrow, pandas = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    _, video = some()
    frame = pandas.DataFrame({"start": [0.0, np.nan], "end": [1.5, np.nan]})
    with VideoIndex(tmp_path / "videos.lance") as index:
        index.add(arrow.array(["a", "b"]), video[:2], uris=pandas.Series(["a.mp4", None]), spans=frame)
        found = index.read(arrow.chunked_array([["b"], ["a"]]))
    assert found.ids == ["b", "a"]
    np.testing.assert_array_equal(found.spans, [[np.nan, np.nan], [0, 1.5]])


def test_k_of_numpy_does_not_overflow(filled):
    index = filled[0]
    assert index.search_like(NAMES[:2], np.uint8(255)).ids.tolist() == index.search_like(NAMES[:2], 255).ids.tolist()


def test_masked_spans_are_refused(tmp_path):
    _, video = random_embeddings(2, 2)
    spans = np.ma.MaskedArray([[0.0, 1.0], [1.0, 2.0]], [[False, False], [True, True]])
    with VideoIndex(tmp_path / "i.lance") as index:
        for some in (slice(2), 1):
            with pytest.raises(TypeError, match="add: spans: expected an array, got a masked one; fill it with NaN"):
                index.add(["a", "b"][some], video[some], spans=spans[some])
        assert len(index) == 0


EXTRAS = [
    ({"uris": ["a"]}, ValueError, "uris: expected one for each of 60 videos, got 1"),
    ({"uris": [3] * 60}, TypeError, "uris, row 0: expected text or None"),
    ({"spans": [(2, 1)] * 60}, ValueError, "0 <= start <= end"),
    ({"spans": [(-1, 1)] * 60}, ValueError, "0 <= start <= end"),
    ({"spans": [3.0] * 60}, ValueError, "in seconds"),
    ({"spans": [(0, float("inf"))] * 60}, ValueError, "0 <= start <= end"),
    ({"metadata": ["text"] * 60}, TypeError, "metadata, row 0: expected a dict"),
    ({"metadata": [{"a": {1, 2}}] * 60}, ValueError, "what JSON can hold"),
    ({"metadata": [{"a": float("nan")}] * 60}, ValueError, "what JSON can hold"),
    ({"metadata": [{"a": "\ud83d"}] * 60}, ValueError, "metadata, row 0: expected what JSON can hold: .*surrogates"),
    ({"metadata": [None, {"a": [2**64]}] * 30}, ValueError, "row 1: .* 18446744073709551616 has more than 64 bits"),
    ({"metadata": [{"a": -(2**63) - 1}] * 60}, ValueError, "more than 64 bits; write it as text"),
    ({"uris": ["caf\udce9.mp4"] * 60}, ValueError, r"uris, row 0: expected Unicode, as Path.as_uri\(\) gives it, got"),
]


@pytest.mark.parametrize(("extras", "error", "message"), EXTRAS)
def test_extras_that_are_refused(filled, extras, error, message):
    index, text, video = filled
    before = index.search(text)
    with pytest.raises(error, match=message):
        index.add(NAMES, video, **extras)
    assert index.search(text).ids.tolist() == before.ids.tolist()


def test_everything_as_a_table(filled):
    index, _, video = filled
    table = index.to_arrow()
    order = np.argsort(table["id"].to_pylist())
    assert [table["id"].to_pylist()[i] for i in order] == NAMES.tolist()
    joint = np.stack(table["vector"].to_pylist())[order]
    assert np.abs(joint - video.joint()).max() < 1e-7
    assert [table["uri"].to_pylist()[i] for i in order] == URIS


def test_optimise_says_what_it_did(filled):
    index, text, video = filled
    for _ in range(3):
        index.add(NAMES[:5], video[:5])
    before = index.search(text)
    report = index.optimise()
    assert report.rows == 60
    assert report.files[0] > report.files[1] == 1
    assert str(report).startswith("60 videos: 2 -> 1 files, ")
    assert index.search(text).ids.tolist() == before.ids.tolist()


def test_nothing_is_there_to_optimise(tmp_path):
    """Before the first video, and after the last one was deleted."""
    text, video = random_embeddings(1, 2, missing=0)
    with VideoIndex(tmp_path / "videos.lance") as index:
        for use in (index.optimise, index.to_arrow):
            with pytest.raises(ValueError, match="holds no videos yet; add some first"):
                use()
        index.add(["a", "b"], video)
        index.delete(["a", "b"])
        index.optimise(approximate=True)
        assert index.search(text, exact=False).ids.shape == (1, 0)
        index.add(["c", "d"], video)
        assert sorted(index.search(text, exact=False).ids[0]) == ["c", "d"]


def test_in_a_towhee_pipeline_as_it_is(filled):
    from towhee import pipe

    index, text, _ = filled
    p = pipe.input("text").map("text", "found", index.search).output("found")
    assert p(text).get()[0].ids.tolist() == index.search(text).ids.tolist()
    assert copy.deepcopy(index) is index


# --- approximate search ----------------------------------------------------------------------------------


def test_approximate_search(tmp_path):
    """Of clustered videos most of the best are found, their scores are exact, and the result says what it is."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((20, 2, 8))[rng.integers(0, 20, 3000)]
    joint = centre + 0.5 * rng.standard_normal(centre.shape)
    joint = (joint / np.linalg.norm(joint, axis=2, keepdims=True)).astype(np.float32)
    video = VideoEmbeddings({"a": joint[:, 0], "b": joint[:, 1]}, np.ones((3000, 2), dtype=bool))
    text, _ = random_embeddings(8, 2, 2, 8, 0, 0)
    text = type(text)(dict(zip("ab", text.embds.values(), strict=True)), text.weights)
    names = np.array([f"{i:04}" for i in range(3000)])
    scores = similarity(text, video)
    with VideoIndex(tmp_path / "videos.lance") as index:
        index.add(names[:2990], video[:2990])
        with pytest.raises(ValueError, match=r"optimise\(approximate=True\)"):
            index.search(text, exact=False)
        index.optimise(approximate=True)
        index.add(names[2990:], video[2990:])
        exact, found = index.search(text, 10), index.search(text, 10, exact=False)
        assert exact.exact
        assert not found.exact
        assert "approximate" in str(found)
        assert np.mean([np.isin(a, b).mean() for a, b in zip(exact.ids, found.ids, strict=True)]) > 0.7
        rows = found.ids.astype(int)
        assert np.abs(np.take_along_axis(scores, rows, axis=1) - found.scores).max() < 1e-6
        late = index.search(text, 10, where="id >= '2990'", exact=False)
        assert sorted(late.ids[0]) == names[2990:].tolist()
        assert index.search(text, 3, ids=names[:100], exact=False).exact
        index.optimise()
        assert not index.search(text, 10, exact=False).exact


# --- results ----------------------------------------------------------------------------------------------


def test_a_result_as_dicts(filled):
    index, text, _ = filled
    found = index.search(text, 4)
    answers = found.to_dict()
    assert [len(part) for part in answers] == [4] * 5
    first = answers[2][0]
    assert first["rank"] == 1
    assert first["id"] == found.ids[2, 0]
    assert first["score"] == pytest.approx(found.scores[2, 0])
    assert sum(first["shares"].values()) == pytest.approx(first["score"], abs=1e-6)
    i = NAMES.tolist().index(first["id"])
    assert first.get("uri") == URIS[i]
    assert first.get("metadata") == METADATA[i]
    assert (first.get("start_s"), first.get("end_s")) == (SPANS[i] or (None, None))
    assert found[2].to_dict() == answers[2]


def test_a_result_as_a_data_frame(filled):
    pytest.importorskip("pandas")
    index, text, _ = filled
    frame = index.search(text, 4).to_pandas()
    assert len(frame) == 20
    assert {"text", "rank", "id", "score", "share.e0", "uri", "start_s"} <= set(frame.columns)
    assert frame.query("text == 3")["id"].tolist() == index.search(text[3], 4).ids.tolist()
    nothing = index.search(text, where="id = 'none'").to_pandas()
    assert nothing["id"].tolist() == nothing["share.e0"].tolist() == []


def test_a_result_prints_as_a_table(filled):
    index, text, _ = filled
    lines = str(index.search(text[0], 12)).splitlines()
    assert lines[0].split()[:3] == ["rank", "video", "score"]
    assert len(lines) == 12
    assert lines[-1] == "... 2 more"
    assert str(index.search(text, 2)).count("rank") == 5
    assert str(index.search(text[:0], 2)) == "no texts"


def test_a_result_in_a_notebook_shows_pictures(tmp_path):
    pytest.importorskip("av")
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (320, 200), "red").save(tmp_path / "red.png")
    (tmp_path / "no picture.png").write_text("nothing")
    text, video = some()
    uris = [str(tmp_path / "red.png"), str(tmp_path / "no picture.png"), "s3://bucket/a.mp4"]
    with VideoIndex(tmp_path / "videos.lance") as index:
        index.add(["<b>red</b>", "broken", "far"], video[:3], uris=uris)
        page = index.search(text[:1], 3)._repr_html_()
    assert page.count("<img") == 1
    assert "&lt;b&gt;red" in page
    assert "<b>red" not in page


def test_results_of_one_text_have_no_texts(filled):
    index, text, _ = filled
    with pytest.raises(TypeError, match="single text"):
        index.search(text[0])[0]
    found = pickle.loads(pickle.dumps(index.search(text, 2)))
    assert isinstance(found, SearchResult)
