"""Too much, or something else than asked for: the reason in a line, and never a traceback."""

import threading
import time

import pytest

pytest.importorskip("fastapi")

from collaborative_experts.apps.server.limits import LARGEST_BODY
from collaborative_experts.apps.server.service import SearchService

BAD = [
    ({}, "expected sentences, or like"),
    ({"sentences": ["a"], "like": ["clip/01"]}, "expected sentences, or like"),
    ({"sentences": []}, "sentences: "),
    ({"sentences": "a dog"}, "sentences: "),
    ({"sentences": [""]}, "sentences.0: "),
    ({"sentences": [" \n"]}, "sentences.0: "),
    ({"sentences": [3]}, "sentences.0: "),
    ({"sentences": ["x" * 2001]}, "sentences.0: String should have at most 2000 characters"),
    ({"sentences": ["x"] * 65}, "sentences: List should have at most 64 items"),
    ({"like": ["clip/01"] * 65}, "like: "),
    ({"like": ["clip/01", "clip/01"]}, "each id once"),
    ({"like": ["none"]}, "holds no video 'none'"),
    ({"like": ["é" * 300]}, "expected 1 to 512 bytes"),
    ({"sentences": ["a"], "k": 0}, "k: "),
    ({"sentences": ["a"], "k": 1001}, "k: Input should be less than or equal to 1000"),
    ({"sentences": ["a"], "k": 2.5}, "k: "),
    ({"sentences": ["a"], "k": 600, "offset": 600}, "offset + k: expected at most 1000, got 1200"),
    ({"sentences": ["a"], "offset": -1}, "offset: "),
    ({"sentences": ["a"], "where": "nonsense ="}, "where: "),
    ({"sentences": ["a"], "where": "nothing = 3"}, "where: "),
    ({"sentences": ["a"], "where": "x" * 2001}, "where: "),
    ({"sentences": ["a"], "where": "json_get_bool(metadata, 'year')"}, "where: fails on a video: "),
    ({"sentences": ["a"], "where": "(" * 900 + "1=1" + ")" * 900}, "where: "),
    ({"sentences": ["a"], "where": "NOT " * 490 + "true"}, "where: "),
    ({"sentences": ["a"], "expert_weights": {"face": 1}}, "expected some of motion, audio, ocr, got 'face'"),
    ({"sentences": ["a"], "expert_weights": {"motion": -1}}, "expert_weights.motion: "),
    ({"sentences": ["a"], "expert_weights": {"motion": 0, "audio": 0, "ocr": 0}}, "expected a factor above 0"),
    ({"like": ["clip/01"], "expert_weights": {"motion": 1}}, "only with sentences"),
    ({"sentences": ["a"], "depth": 3}, "depth: "),
]


@pytest.mark.parametrize(("content", "reason"), BAD)
def test_a_bad_search_is_422(client, content, reason):
    response = client.post("/search", json=content)
    assert response.status_code == 422, response.text
    assert reason in response.json()["detail"]
    assert "Traceback" not in response.text
    assert len(response.text) < 1000
    assert client.post("/search", json={"sentences": ["a dog"]}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"sentences": ["\\ud800"]}', b"[" * 100_000,
        b'{"sentences": ["a"], "k": NaN}', b'{"sentences": ["a"], "expert_weights": {"motion": Infinity}}',
        b'{"sentences": ["a"], "k": 1' + b"0" * 5000 + b"}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/search", "/embed_text", "/explain"])
def test_bodies_that_are_no_request(client, path, body):
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert isinstance(response.json()["detail"], str)
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    "kind", ["text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
)
def test_a_form_of_another_page_is_no_request(client, operator, kind):
    """The kinds that a page elsewhere may send without asking first; a blob of its own may have none."""
    headers = {"Origin": "https://evil.example", **({"Content-Type": kind} if kind else {})}
    operator.calls.clear()
    response = client.post("/search", content=b'{"sentences": ["a"]}', headers=headers)
    assert response.status_code == 422
    assert "access-control-allow-origin" not in response.headers
    assert operator.calls == []


def test_a_large_body_is_413(client):
    whole = client.post("/search", content=b" " * (LARGEST_BODY + 1))
    assert whole.status_code == 413
    assert "1,000,000 bytes" in whole.json()["detail"]
    in_parts = client.post("/search", content=(b" " * 100_000 for _ in range(11)))
    assert in_parts.status_code == 413


def test_the_largest_requests_are_answered(client):
    content = {"sentences": ["é" * 1999 + chr(97 + i % 26) for i in range(64)], "k": 1000}
    response = client.post("/search", json=content)
    assert response.status_code == 200
    assert [len(one) for one in response.json()["results"]] == [40] * 64


class Slow:
    """An operator that waits until it is told to go on."""

    def __init__(self, operator):
        self._operator, self.go_on, self.began = operator, threading.Event(), threading.Event()

    def encode_sentences(self, sentences):
        self.began.set()
        assert self.go_on.wait(30)
        return self._operator.encode_sentences(sentences)


def test_a_full_queue_is_503_and_the_others_are_answered(index, operator, open_client):
    slow = Slow(operator)
    client = open_client(SearchService(index, slow), waiting=2, window_s=0.0)
    statuses = []

    def ask():
        statuses.append(client.post("/search", json={"sentences": ["a dog"]}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    threads[0].start()
    assert slow.began.wait(30)
    for thread in threads[1:]:
        thread.start()
    while "waiting_requests 2.0" not in client.get("/metrics").text:
        time.sleep(0.01)
    refused = client.post("/search", json={"sentences": ["a dog"]})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "2 requests wait already" in refused.json()["detail"]
    slow.go_on.set()
    for thread in threads:
        thread.join(30)
    assert statuses == [200, 200, 200]


def test_an_error_of_the_service_says_nothing_of_its_insides(index, open_client, caplog):
    class Broken:
        def encode_sentences(self, sentences):
            raise RuntimeError("secret of /home/someone")

    client = open_client(SearchService(index, Broken()))
    response = client.post("/search", json={"sentences": ["a dog"]})
    assert response.status_code == 500
    assert response.json() == {"detail": "an error of the service; its log says more"}
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "secret of /home/someone" in caplog.text
