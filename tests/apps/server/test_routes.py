"""What the routes answer, held against the index and `explain` themselves."""

import json
import shutil
import threading
import time
from urllib.parse import quote

import numpy as np
import pytest

pytest.importorskip("fastapi")

from collaborative_experts import VideoEmbeddings, VideoIndex, explain

IDS = [f"clip/{i:02}" for i in range(40)]

SENTENCES = ["a dog runs", "two cats", "a man speaks"]


def post(client, path, expected=200, **content):
    response = client.post(path, json=content)
    assert response.status_code == expected, response.text
    return response.json()


def test_search_gives_what_the_index_gives(client, index, operator):
    found = index.search(operator.encode_sentences(SENTENCES), 7).to_dict()
    answer = post(client, "/search", sentences=SENTENCES, k=7)
    assert [[x["id"] for x in one] for one in answer["results"]] == [[x["id"] for x in one] for one in found]
    for one, expected in zip(answer["results"], found, strict=True):
        for x, y in zip(one, expected, strict=True):
            assert set(x) == {"id", "score", "uri", "start_s", "end_s", "metadata", "shares", "media"}
            assert x["score"] == pytest.approx(y["score"], abs=1e-6)
            assert x["shares"] == pytest.approx(y["shares"], abs=1e-6)
            assert [x[name] for name in ("uri", "metadata", "start_s")] == [
                y.get(name) for name in ("uri", "metadata", "start_s")
            ]
    assert answer["experts"] == ["motion", "audio", "ocr"]
    assert (answer["videos"], answer["exact"]) == (40, True)
    assert answer["took_ms"] > 0


def test_pages_follow_each_other(client):
    whole = post(client, "/search", sentences=["a dog"], k=10)["results"][0]
    second = post(client, "/search", sentences=["a dog"], k=5, offset=5)["results"][0]
    assert second == whole[5:]
    assert post(client, "/search", sentences=["a dog"], k=5, offset=100)["results"] == [[]]


def test_where_and_like(client, index):
    found = index.search_like(["clip/03", "clip/01"], 4, where="start_s >= 10")
    answer = post(client, "/search", like=["clip/03", "clip/01"], k=4, where="start_s >= 10")
    assert [[x["id"] for x in one] for one in answer["results"]] == found.ids.tolist()
    assert all(x["start_s"] >= 10 for one in answer["results"] for x in one)


def test_expert_weights_change_the_scores_as_they_say(client, index, operator):
    answer = post(client, "/search", sentences=["a dog"], k=3, expert_weights={"motion": 0, "ocr": 2.5})
    text, best = operator.encode_sentences(["a dog"]), answer["results"][0][0]
    stored = index.read([best["id"]])
    weights = text.weights[0] * [0, 1, 2.5]
    cosines = np.array([text.embds[x][0] @ stored.embeddings.embds[x][0] for x in ("motion", "audio", "ocr")])
    used = weights * stored.embeddings.available[0]
    assert best["score"] == pytest.approx(float(used @ cosines / used.sum()), abs=1e-5)
    assert best["shares"]["motion"] == 0
    even = post(client, "/search", sentences=["a dog"], k=3, expert_weights={"motion": 3, "audio": 3, "ocr": 3})
    plain = post(client, "/search", sentences=["a dog"], k=3)
    assert [x["score"] for x in even["results"][0]] == pytest.approx([x["score"] for x in plain["results"][0]])


def test_embed_text(client, operator):
    answer = post(client, "/embed_text", sentences=SENTENCES)
    expected = operator.encode_sentences(SENTENCES)
    np.testing.assert_allclose(answer["weights"], expected.weights, rtol=1e-6)
    for name, rows in answer["embeddings"].items():
        np.testing.assert_allclose(rows, expected.embds[name], rtol=1e-6)


def test_explain_gives_the_score_of_the_search(client, index, operator):
    best = post(client, "/search", sentences=["two cats"], k=1)["results"][0][0]
    answer = post(client, "/explain", sentence="two cats", id=best["id"])
    why = explain(operator.encode_sentences(["two cats"]), index.read(best["id"]).embeddings)
    assert answer["score"] == pytest.approx(best["score"], abs=1e-5) == pytest.approx(why.score)
    assert [x["cosine"] for x in answer["experts"]] == pytest.approx(why.cosines.tolist())
    assert {x["expert"]: x["share"] for x in answer["experts"]} == pytest.approx(best["shares"], abs=1e-5)
    weighted = post(client, "/explain", sentence="two cats", id=best["id"], expert_weights={"motion": 0})
    assert weighted["experts"][0]["weight"] == 0


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_video(client, index, method):
    answer = client.request(method, "/videos/clip/05").json()
    available = index.read("clip/05").embeddings.available[0].tolist()
    assert answer == {
        "id": "clip/05",
        "uri": "05.mp4",
        "start_s": 5.0,
        "end_s": 7.5,
        "metadata": {"year": 1995},
        "experts": dict(zip(["motion", "audio", "ocr"], available, strict=True)),
        "media": False,
    }
    last = client.request(method, "/videos/clip/39").json()
    assert (last["start_s"], last["end_s"], last["metadata"]) == (None, None, None)


def test_an_unknown_video_is_404(client):
    for path in ("/videos/none", "/media/none", "/thumbnail/none", "/nothing/here"):
        assert client.get(path).status_code == 404, path
    assert "no video 'none'" in post(client, "/explain", 404, sentence="a dog", id="none")["detail"]


@pytest.mark.parametrize("name", ["a/b//c", "/a", "a/../b", "日本 é", "?x=1&y", "#", "a\tb", "-", "x" * 512])
def test_ids_of_every_form(client, index, name):
    index.add([name], index.read(["clip/00"]).embeddings)
    address = quote(name, safe="")
    assert client.get(f"/videos/{address}").json()["id"] == name
    assert client.post(f"/videos/{address}").json()["id"] == name
    assert post(client, "/explain", sentence="a dog", id=name)["id"] == name
    assert len(post(client, "/search", like=[name], k=3)["results"][0]) == 3
    for room in ("media", "thumbnail"):
        assert "no media file" in client.get(f"/{room}/{address}").json()["detail"]


@pytest.mark.parametrize("name", ["", "x" * 513, "x" * 10_000, "é" * 300])
def test_what_can_be_no_id(client, name):
    for room in ("videos", "media", "thumbnail"):
        assert client.get(f"/{room}/{quote(name, safe='')}").status_code == 422
    for path, content in (("/explain", {"sentence": "a", "id": name}), ("/search", {"like": [name]})):
        assert post(client, path, 422, **content)["detail"]


def test_a_store_that_is_replaced_while_requests_run(client, index, tmp_path):
    """Each request is answered from one of the stores, or told to come again."""
    with VideoIndex(tmp_path / "next.lance") as other:
        other.add(["new"], index.read(["clip/00"]).embeddings)
    statuses, ids, stop = [], set(), threading.Event()

    def ask():
        while not stop.is_set():
            response = client.post("/search", json={"sentences": ["a dog"], "k": 1})
            statuses.append(response.status_code)
            ids.update(x["id"] for x in response.json().get("results", [[]])[0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    (tmp_path / "videos.lance").rename(tmp_path / "old.lance")
    (tmp_path / "next.lance").rename(tmp_path / "videos.lance")
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 0
    assert [x["id"] for x in post(client, "/search", sentences=["a dog"])["results"][0]] == ["new"]
    assert ids <= {*(f"clip/{i:02}" for i in range(40)), "new"}


def test_a_store_of_another_model_takes_its_place(client, index, tmp_path, caplog):
    shutil.rmtree(tmp_path / "videos.lance")
    assert post(client, "/search", 503, sentences=["a dog"])["detail"].startswith("the index cannot be read")
    assert f"{tmp_path}/videos.lance: cannot read" in caplog.text
    with VideoIndex(tmp_path / "videos.lance") as other:
        other.add(["new"], VideoEmbeddings({"face": np.eye(1, 8)}, [[1]]))
    for path, content in (("/search", {"sentences": ["a dog"]}), ("/explain", {"sentence": "a dog", "id": "new"})):
        assert "another model now" in post(client, path, 503, **content)["detail"]
    assert client.get("/health").json()["experts"] == ["face"]


def test_what_is_added_is_found(client, index, tmp_path):
    before = post(client, "/search", sentences=["a dog"], k=1)
    with VideoIndex(tmp_path / "videos.lance") as other:
        stored = other.read(["clip/00"])
        other.delete([before["results"][0][0]["id"]])
        other.add(["new"], stored.embeddings, metadata=[{"text": "<script>alert(1)</script>"}])
    answer = post(client, "/search", sentences=["a dog"], k=40)
    assert before["results"][0][0]["id"] not in [x["id"] for x in answer["results"][0]]
    assert "new" in [x["id"] for x in answer["results"][0]]
    assert client.get("/videos/new").json()["metadata"] == {"text": "<script>alert(1)</script>"}
    assert client.get("/health").json() == {
        "status": "ok", "videos": 40, "experts": ["motion", "audio", "ocr"], "sentences": True,
    }  # fmt: skip


def test_an_empty_index_answers_nothing(tmp_path, operator, open_client):
    from collaborative_experts.apps.server.service import SearchService

    with VideoIndex(tmp_path / "empty.lance") as index:
        client = open_client(SearchService(index, operator))
        assert post(client, "/search", sentences=["a dog", "a cat"])["results"] == [[], []]
        assert post(client, "/search", like=["x"])["results"] == [[]]
        assert client.get("/videos/x").status_code == 404
        assert client.get("/health").json()["videos"] == 0


def test_without_a_model_like_is_answered(index, open_client):
    from collaborative_experts.apps.server.service import SearchService

    client = open_client(SearchService(index))
    assert len(post(client, "/search", like=["clip/00"], k=3)["results"][0]) == 3
    assert "without a model" in post(client, "/search", 422, sentences=["a dog"])["detail"]
    assert client.get("/health").json()["sentences"] is False


def test_an_index_on_a_milvus_server(index, operator, milvus_server, open_client):
    """It answers alike, by Milvus' own conditions, and says that filters are for Lance."""
    from collaborative_experts.apps.server.service import SearchService

    stored = index.read(IDS)
    with VideoIndex(milvus_server, collection="served") as other:
        other.add(stored.ids, stored.embeddings, spans=stored.spans, metadata=stored.metadata)
        client = open_client(SearchService(other, operator))
        found = index.search(operator.encode_sentences(SENTENCES), 5, where="start_s >= 10")
        answer = post(client, "/search", sentences=SENTENCES, k=5, where="start_s >= 10")
        assert [[x["id"] for x in one] for one in answer["results"]] == found.ids.tolist()
        assert len(post(client, "/search", sentences=["a"], where='metadata["year"] == 1993')["results"][0]) == 1
        reason = post(client, "/search", 422, sentences=["a"], filters={"id_contains": "3"})["detail"]
        assert reason == "filters: the index is on a Milvus server, where they cannot be said; ask with where"
        assert "where: " in post(client, "/search", 422, sentences=["a"], where="start_s >")["detail"]


def test_metrics_and_schema(client):
    post(client, "/search", sentences=["a dog"])
    client.get("/videos/clip/01")
    client.get("/nothing")
    text = client.get("/metrics").text
    assert 'collaborative_experts_requests_total{route="/search",status="200"} 1.0' in text
    assert 'collaborative_experts_requests_total{route="/videos/{video_id:path}",status="200"} 1.0' in text
    assert 'route="other",status="404"' in text
    assert "collaborative_experts_videos 40.0" in text
    routes = client.get("/openapi.json").json()["paths"]
    assert {"/search", "/embed_text", "/explain", "/health", "/videos/{video_id}", "/media/{video_id}"} <= set(routes)
    assert "2000" in json.dumps(routes | client.get("/openapi.json").json()["components"])
    for page in ("/docs", "/redoc"):  # they would load scripts from elsewhere
        assert client.get(page).status_code == 404
