"""The index on a Milvus server, a real one of Milvus Lite over gRPC: the same answers as brute force."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from collaborative_experts import ModelIdentity, VideoEmbeddings, VideoIndex, similarity
from collaborative_experts.retrieval import index as index_module
from collaborative_experts.retrieval import milvus
from helpers import check_answers, random_embeddings

NAMES = np.array([f"video {i:03}" for i in range(60)])


def some(texts=5, videos=60, experts=3, seed=0):
    text, video = random_embeddings(texts, videos, experts, 6, 0.3, seed)
    video.available[~video.available.any(1), 0] = True
    return text, video


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server that the tests share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "milvus-lite"] if _has_command() else [sys.executable, "-m", "milvus_lite"]
    folder = tmp_path_factory.mktemp("server")
    process = subprocess.Popen(
        [*command, "server", "--data-dir", folder / "videos.db", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


def _has_command():
    return (Path(sys.executable).parent / "milvus-lite").exists()


@pytest.fixture
def empty(server, request):
    """A collection of the test's own."""
    name = f"c{abs(hash(request.node.name)) % 10**9}"
    with VideoIndex(server, collection=name) as index:
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
    text, video = some(2, 300, 2)
    for x in video.embds.values():
        x[:] = x[:1]
    video.available[:] = True
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


@pytest.mark.parametrize("condition", ["nonsense ===", "no_such == 3"])
def test_a_condition_that_is_not_understood(empty, condition):
    text, video = some()
    empty.add(NAMES, video)
    with pytest.raises(ValueError, match=r"^where: ") as caught:
        empty.search(text, where=condition)
    assert "\n" not in str(caught.value)


def test_no_query_banks_on_a_server(empty):
    text, video = some()
    empty.add(NAMES, video)
    with pytest.raises(NotImplementedError, match=r"\.lance"):
        empty.calibrate(text)


def test_a_collection_of_something_else(server):
    client = milvus.connect(server)
    client.create_collection("notours", dimension=4)
    with pytest.raises(ValueError, match="is not one of VideoIndex's"):
        VideoIndex(server, collection="notours")
    client.close()


def test_batches(empty, monkeypatch):
    monkeypatch.setattr(milvus, "MESSAGE", 4 * 18 * 7)
    monkeypatch.setattr(index_module, "TEXTS", 2)
    text, video = some()
    empty.add(NAMES, video)
    check_answers(empty, text, video, NAMES, 20)
