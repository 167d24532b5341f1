"""A service over a small index, whose operator embeds a sentence by the letters in it."""

import zlib

import numpy as np
import pytest

from collaborative_experts import TextEmbeddings, VideoEmbeddings, VideoIndex

EXPERTS = {"motion": 8, "audio": 6, "ocr": 4}


def unit(rng, rows, dim):
    x = rng.standard_normal((rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class Letters:
    """An operator: the embedding of a sentence depends on the sentence alone. It notes how many came together."""

    def __init__(self):
        self.calls = []

    def encode_sentences(self, sentences):
        self.calls.append(len(sentences))
        rngs = [np.random.default_rng(zlib.crc32(text.encode())) for text in sentences]
        weights = np.stack([rng.dirichlet(np.ones(len(EXPERTS))) for rng in rngs]).astype(np.float32)
        embds = {name: np.concatenate([unit(rng, 1, dim) for rng in rngs]) for name, dim in EXPERTS.items()}
        return TextEmbeddings(embds, weights)


def videos(count, seed=0):
    rng = np.random.default_rng(seed)
    available = rng.random((count, len(EXPERTS))) < 0.7
    available[:, 0] = True
    return VideoEmbeddings({name: unit(rng, count, dim) for name, dim in EXPERTS.items()}, available)


IDS = [f"clip/{i:02}" for i in range(40)]


@pytest.fixture
def index(tmp_path):
    pytest.importorskip("lance")
    folder = tmp_path / "films"
    folder.mkdir()
    with VideoIndex(tmp_path / "videos.lance") as index:
        index.add(
            IDS,
            videos(len(IDS)),
            uris=[f"{i:02}.mp4" for i in range(40)],
            spans=[(float(i), i + 2.5) for i in range(39)] + [None],
            metadata=[{"year": 1990 + i} for i in range(39)] + [None],
        )
        yield index


@pytest.fixture
def operator():
    return Letters()


@pytest.fixture
def service(index, operator, tmp_path):
    from collaborative_experts.apps.server.service import SearchService

    return SearchService(index, operator, tmp_path / "films")


@pytest.fixture
def open_client():
    """A client of a service: open_client(service, token=..., ...)."""
    for module in ("prometheus_client", "httpx"):
        pytest.importorskip(module)
    from fastapi.testclient import TestClient

    from collaborative_experts.apps.server.routes import Settings, make_app

    opened = []

    def start(service, **settings):
        app = make_app(service, Settings(**settings))
        client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        opened.append(client.__enter__())
        return opened[-1]

    yield start
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(service, open_client):
    return open_client(service)
