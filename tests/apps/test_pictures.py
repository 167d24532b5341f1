"""Pictures of clips in their folder, and the filters of the page as conditions of a store."""

import asyncio
import os
import threading

import numpy as np
import pytest

pytest.importorskip("lance")
pytest.importorskip("av")

from collaborative_experts import VideoEmbeddings, VideoIndex
from collaborative_experts.apps.server import thumbnails
from collaborative_experts.apps.server.filters import condition
from collaborative_experts.apps.server.thumbnails import delete_oldest, read_thumbnail
from pages import COUNT, EXPERTS, HOSTILE, Letters, make_clips, make_store


def test_a_picture_is_made_once(tmp_path, monkeypatch):
    film = make_clips(tmp_path)
    first = read_thumbnail(film, 2.0, 3.0, tmp_path / "pictures")
    assert first.startswith(b"\xff\xd8")
    [kept] = (tmp_path / "pictures").iterdir()
    assert kept.read_bytes() == first
    monkeypatch.setattr(thumbnails, "make_still", None)  # is not called again
    assert read_thumbnail(film, 2.0, 3.0, tmp_path / "pictures") == first
    monkeypatch.undo()
    assert read_thumbnail(film, 9.0, 10.0, tmp_path / "pictures") != first
    os.utime(film, (1, 1))
    read_thumbnail(film, 2.0, 3.0, tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_what_has_no_picture_is_not_tried_again(tmp_path, monkeypatch):
    film = make_clips(tmp_path)
    film.write_bytes(film.read_bytes()[:5000])  # a copy that was cut off
    for broken in (film, tmp_path / "broken.mp4"):
        assert read_thumbnail(broken, 2.0, 3.0, tmp_path / "pictures") is None
    (tmp_path / "no.mp4").write_text("nothing")
    assert read_thumbnail(tmp_path / "no.mp4", None, None, tmp_path / "pictures") is None
    monkeypatch.setattr(thumbnails, "make_still", None)
    assert read_thumbnail(tmp_path / "no.mp4", None, None, tmp_path / "pictures") is None
    assert read_thumbnail(tmp_path / "not there.mp4", None, None, tmp_path / "pictures") is None


def test_where_nothing_can_be_kept_there_are_pictures_all_the_same(tmp_path):
    film = make_clips(tmp_path)
    (tmp_path / "a file").write_text("")
    assert read_thumbnail(film, 2.0, 3.0, tmp_path / "a file" / "pictures")
    assert read_thumbnail(film, 2.0, 3.0, tmp_path / "no folder" / "pictures")


def test_the_oldest_pictures_go(tmp_path):
    for i in range(10):
        path = tmp_path / f"{i}.jpg"
        path.write_bytes(bytes(100))
        os.utime(path, (100 - i, 100 - i))
    delete_oldest(tmp_path, 1000)
    assert len(list(tmp_path.iterdir())) == 10
    delete_oldest(tmp_path, 500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with make_store(tmp_path_factory.mktemp("store"), Letters()) as index:
        yield index


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, range(COUNT)),
        ({"experts": ["sound", "words"]}, [i for i in range(COUNT) if i % 3 and i % 2]),
        ({"shortest_s": 1.5}, range(1, COUNT, 2)),
        ({"longest_s": 1.0, "experts": ["motion"]}, range(0, COUNT, 2)),
        ({"id_contains": "CLIP1"}, range(10, 20)),
        ({"id_contains": "it's"}, [7]),
        ({"id_contains": "100% #?"}, [7]),
        ({"id_contains": "' OR 1=1 --"}, []),
        ({"id_contains": "clip_1"}, []),
        ({"where": "id < 'clip05' OR id > 'clip35'", "experts": ["words"]}, [1, 3, 7, 37, 39]),
    ],
)
def test_filters_are_conditions_of_the_store(index, filters, expected):
    ids = np.array([HOSTILE if i == 7 else f"clip{i:02}" for i in range(COUNT)])
    found = index.search(["a train"], COUNT, where=condition(EXPERTS, **filters))[0]
    assert sorted(found.ids) == sorted(ids[list(expected)])


def test_a_filter_of_an_unknown_expert_is_refused():
    with pytest.raises(ValueError, match="expected some of motion, sound, words, got 'smell'"):
        condition(EXPERTS, ["smell"])


def test_pictures_that_take_long_hold_up_nothing_else(tmp_path, monkeypatch):
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("prometheus_client")
    from collaborative_experts.apps.server.routes import Settings, make_app
    from collaborative_experts.apps.server.service import SearchService

    count, gate = 100, threading.Event()
    (tmp_path / "film.mp4").touch()
    monkeypatch.setattr(thumbnails, "make_still", lambda *_: gate.wait(60) and b"jpeg")
    index = VideoIndex(tmp_path / "videos.lance")
    video = VideoEmbeddings({"x": np.ones((count, 1))}, np.ones((count, 1)))
    spans = [(float(i), i + 1.0) for i in range(count)]
    index.add([f"v{i}" for i in range(count)], video, uris=["film.mp4"] * count, spans=spans)
    app = make_app(SearchService(index, media=tmp_path), Settings(thumbnails=tmp_path / "pictures"))

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            waiting = [asyncio.create_task(client.get(f"/thumbnail/v{i}")) for i in range(count)]
            await asyncio.sleep(0.5)
            try:
                health = await asyncio.wait_for(client.get("/health"), 20)
            finally:
                gate.set()
            assert health.status_code == 200
            assert [x.content for x in await asyncio.gather(*waiting)] == [b"jpeg"] * count

    asyncio.run(ask())
