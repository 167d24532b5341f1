"""The index on a Milvus server, a real one of Milvus Lite over gRPC: the same answers as brute force."""

import numpy as np
import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from collaborative_experts import ModelIdentity, QueryBank, TextEmbeddings, VideoEmbeddings, VideoIndex, similarity
from collaborative_experts.retrieval import index as index_module
from collaborative_experts.retrieval import milvus
from helpers import check_answers, check_best, some

NAMES = np.array([f"video {i:03}" for i in range(60)])


@pytest.fixture
def empty(milvus_server, request):
    """A collection of the test's own."""
    name = f"c{abs(hash(request.node.name)) % 10**9}"
    with VideoIndex(milvus_server, collection=name) as index:
        yield index


def test_as_brute_force(empty):
    text, video = some()
    assert len(empty) == 0
    assert empty.experts == ()
    empty.add(NAMES, video)
    assert len(empty) == 60
    for k in (1, 7, 60, 100):
        check_answers(empty, text, video, NAMES, k)
    other = some(seed=3)[1]
    empty.add(NAMES[:20], other[:20])
    now = {n: np.concatenate([other.embds[n][:20], video.embds[n][20:]]) for n in video.experts}
    available = np.concatenate([other.available[:20], video.available[20:]])
    check_answers(empty, text, VideoEmbeddings(now, available), NAMES, 10)
    empty.delete(NAMES[:20])
    check_answers(empty, text, video[20:], NAMES[20:], 10)
    assert len(empty) == 40
    with VideoIndex(empty.uri, collection=empty._backend.collection) as again:
        check_answers(again, text, video[20:], NAMES[20:], 10)


def test_many_equal_scores(empty):
    text, video = some(2, 300, 2, missing=0)
    for x in video.embds.values():
        x[:] = x[:1]
    video.available[::3, 1] = False
    names = np.array([f"video {i:03}" for i in range(300)])
    order = np.random.default_rng(0).permutation(300)
    empty.add(names[order], video[order])
    for k in (1, 10, 200):
        check_answers(empty, text, video, names, k)


def test_media_conditions_and_single_videos(empty):
    text, video = some()
    empty.add(NAMES, video, uris=[f"{i % 2}.mp4" for i in range(60)], spans=[(i, i + 1) for i in range(60)],
              metadata=[{"take": i} for i in range(60)])  # fmt: skip
    found = empty.search(text, 4)
    numbers = np.vectorize(lambda name: int(name[-3:]))(found.ids)
    assert found.spans[..., 0].tolist() == numbers.tolist()
    assert [[x["take"] for x in row] for row in found.metadata] == numbers.tolist()
    late = empty.search(text, 4, where="start_s >= 40")
    scores = similarity(text, video[40:])
    assert late.ids.tolist() == NAMES[40:][np.argsort(-scores, axis=1, kind="stable")[:, :4]].tolist()
    some_ids = empty.search(text, 3, ids=[*NAMES[:5], "nowhere"])
    assert set(some_ids.ids.flat) <= set(NAMES[:5])
    assert empty.search(text, 3, ids=NAMES[:45], where='uri == "1.mp4" and start_s > 41').ids[0].tolist() == [NAMES[43]]
    assert empty.search_like(NAMES[0], 3).ids.shape == (3,)
    assert NAMES[0] not in empty.search_like(NAMES[0], 59).ids
    assert len(empty.to_arrow()) == 60
    assert str(empty.optimise()).startswith("60 videos")


def test_each_video_is_scanned_once_for_all_patterns(empty):
    """The pattern is the partition key, so that a search of one pattern reads the videos of that pattern."""
    text, video = some()
    empty.add(NAMES, video)
    fields = empty._backend._client.describe_collection(empty._backend.collection)["fields"]
    assert [x["name"] for x in fields if x.get("is_partition_key")] == ["pattern"]
    check_answers(empty, text, video, NAMES, 5)


def test_embeddings_of_another_model(empty):
    _, video = some()
    mine = VideoEmbeddings(video.embds, video.available, model=ModelIdentity("a" * 8, "b" * 8))
    empty.add(NAMES, mine)
    with pytest.raises(ValueError, match="another model"):
        empty.add(NAMES, video)
    with pytest.raises(ValueError, match="expected embeddings of the experts"):
        empty.add(NAMES, some(experts=2)[1])


@pytest.mark.parametrize(
    "condition",
    [
        *("nonsense ===", "no_such == 3", "start_s +", "start_s + 1", "true) or (true", 'uri == "a\\") or (true'),
        *("(" * 140 + "true" + ")" * 140, "(" * 9000 + "true" + ")" * 9000, "uri == '" + "x" * 2**20 + "'"),
        " or ".join(["start_s > 1"] * 99),
    ],
    ids=lambda condition: condition[:20],
)
def test_a_condition_that_is_not_understood(empty, condition):
    text, video = some()
    empty.add(NAMES, video)
    with pytest.raises(ValueError, match=r"^where: ") as caught:
        empty.search(text, where=condition)
    assert "\n" not in str(caught.value)


def corrected(text, video, bank):
    return similarity(text, video).astype(np.float64) - bank.biases(video)


@pytest.mark.parametrize(
    "settings",
    [{}, {"beta": 2.0}, {"method": "nnn", "k": 3}, {"levels": np.linspace(0, 1, 40) ** 2}],
    ids=lambda settings: ", ".join(settings),
)
def test_query_banks(empty, settings):
    """For videos that are added before and after, on any number of requests, and by other clients."""
    text, video = some()
    texts, _ = some(40, seed=1)
    bank = QueryBank(texts, **settings)
    empty.add(NAMES[:30], video[:30])
    empty.calibrate(texts[:9])
    empty._backend._store_bank(bank)  # by a process that was killed before it was in force
    empty.calibrate(texts, **settings)
    empty.add(NAMES[30:], video[30:])
    plain = similarity(text, video).argsort(axis=1)[:, ::-1][:, :10]
    for k in (1, 10, 100):
        found = check_best(empty, text, corrected(text, video, bank), NAMES, k)
    assert found.ids[:, :10].tolist() != NAMES[plain].tolist()
    with VideoIndex(empty.uri, collection=empty._backend.collection) as again:
        check_best(again, text, corrected(text, video, bank), NAMES, 5)
        assert empty.search_like(NAMES[0], 3).scores.max() <= 1  # not corrected
        among = again.search(text, 3, ids=NAMES[:20]).ids
        assert among.tolist() == NAMES[corrected(text, video[:20], bank).argsort(axis=1)[:, ::-1][:, :3]].tolist()
        assert len(banks_of(empty)) == 1
        again.calibrate(None)
    check_answers(empty, text, video, NAMES, 10)
    assert banks_of(empty) == []


def banks_of(index):
    """Names of the collections with query banks."""
    names = index._backend._client.list_collections()
    return [name for name in names if name.startswith(f"{index._backend.collection}_bank")]


@pytest.mark.parametrize("where", [None, "start_s >= 10"])
def test_all_videos_are_read_where_the_server_gives_too_few(empty, monkeypatch, where):
    """The most answers of a query do not decide between more videos that may be as good."""
    monkeypatch.setattr(milvus, "SPARE_HITS", 0)
    monkeypatch.setattr(milvus, "MOST_HITS", 2)
    monkeypatch.setattr(milvus, "READ_AT_ONCE", 7)
    text, video = some()
    texts, _ = some(40, seed=1)
    empty.add(NAMES, video, spans=[(i, i + 1) for i in range(60)])
    first = 0 if where is None else 10
    order = np.argsort(-similarity(text, video[first:]), axis=1, kind="stable")[:, :5]
    assert empty.search(text, 5, where=where).ids.tolist() == NAMES[first:][order].tolist()
    empty.calibrate(texts)
    order = np.argsort(-corrected(text, video[first:], QueryBank(texts)), axis=1, kind="stable")[:, :5]
    assert empty.search(text, 5, where=where).ids.tolist() == NAMES[first:][order].tolist()


def test_what_a_server_does_not_do(empty):
    text, video = some()
    empty.add(NAMES, video)
    with pytest.raises(ValueError, match=r"expected 'qb' or 'nnn'; 'qb-dynamic' needs a \.lance index"):
        empty.calibrate(text, "qb-dynamic")
    with pytest.raises(ValueError, match=r"optimise: http://\S+ searches exactly; .* needs a \.lance index"):
        empty.optimise(approximate=True)
    assert empty.search(text, 3, exact=False).exact


def test_weights_path(empty, tmp_path):
    with pytest.raises(ValueError, match="holds no videos yet"):
        empty.note_weights("w.safetensors")
    assert empty.weights_path is None
    empty.add(NAMES, some()[1])
    assert empty.weights_path is None
    empty.note_weights(tmp_path / "w.safetensors")
    with VideoIndex(empty.uri, collection=empty._backend.collection) as again:
        assert again.weights_path == (tmp_path / "w.safetensors").resolve()
        check_answers(again, some()[0], some()[1], NAMES, 5)


def test_a_collection_of_something_else(milvus_server):
    client = milvus.connect(milvus_server)
    client.create_collection("notours", dimension=4)
    with pytest.raises(ValueError, match="is not one of VideoIndex's"):
        VideoIndex(milvus_server, collection="notours")
    client.close()


def test_batches(empty, monkeypatch):
    monkeypatch.setattr(milvus, "MESSAGE", 4 * 18 * 7)
    monkeypatch.setattr(index_module, "TEXTS", 2)
    text, video = some()
    empty.add(NAMES, video)
    check_answers(empty, text, video, NAMES, 20)


def test_another_collection_in_the_place_of_an_open_one(empty, milvus_server):
    """Its model is held against that of what is asked and added."""

    def parts(weights, dim=4):
        embds, one, model = {"m": np.eye(1, dim)}, np.ones((1, 1)), ModelIdentity("{}", weights)
        return VideoEmbeddings(embds, one, model), TextEmbeddings(embds, one, model=model)

    video, text = parts("a")
    empty.add(["a"], video)
    for dim in (4, 6):
        empty._backend._client.drop_collection(empty._backend.collection)
        other, asked = parts("b", dim)
        with VideoIndex(milvus_server, collection=empty._backend.collection) as writer:
            writer.add(["b"], other)
        for use in (lambda: empty.search(text), lambda: empty.add(["a"], video)):
            with pytest.raises(ValueError, match=r"embedded by another model|expected embeddings of the experts"):
                use()
        assert empty.read(["b"]).embeddings.model == other.model
        assert empty.search(asked).ids.tolist() == [["b"]]
