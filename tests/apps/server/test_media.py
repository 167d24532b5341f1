"""Films: only those that the index names, only below the folder, in ranges."""

import numpy as np
import pytest

pytest.importorskip("fastapi")

from collaborative_experts import VideoEmbeddings, VideoIndex
from collaborative_experts.apps.server.service import SearchService

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def films(tmp_path, index):
    """A folder of films and things around it; the index names some of both."""
    folder = tmp_path / "films"
    (folder / "deep").mkdir()
    for name in ("05.mp4", "deep/é #?%.webm", "unnamed.mp4", "page.html", "picture.svg", "picture.png", "sound.flac"):
        (folder / name).write_bytes(CONTENT)
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    (folder / "link.mp4").symlink_to(secret)
    (folder / "inner.mp4").symlink_to(folder / "05.mp4")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    uris = {
        "absolute": str(folder / "05.mp4"),
        "address": (folder / "deep" / "é #?%.webm").as_uri(),
        "inner": "inner.mp4",
        "picture": "picture.png",
        "sound": "sound.flac",
        "outside": str(secret),
        "upwards": "../secret.mp4",
        "upwards address": f"file://{folder}/../secret.mp4",
        "link": "link.mp4",
        "loop": "loop.mp4",
        "html": "page.html",
        "svg": "picture.svg",
        "folder": "deep",
        "gone": "gone.mp4",
        "web": "https://example.org/05.mp4",
        "long": "x" * 5000 + ".mp4",
        "null": "05.mp4\0",
        "null address": f"file://{folder}/05.mp4%00",
        "damaged address": "file://[bad/05.mp4",
        "nothing": None,
    }
    ones = np.ones((len(uris), 1), np.float32)
    embds = {"motion": np.repeat(np.eye(1, 8, dtype=np.float32), len(uris), 0)}
    embds |= {"audio": np.zeros((len(uris), 6), np.float32), "ocr": np.zeros((len(uris), 4), np.float32)}
    index.add(list(uris), VideoEmbeddings(embds, np.hstack([ones, 0 * ones, 0 * ones]) > 0), uris=list(uris.values()))
    return folder


@pytest.mark.parametrize(
    ("video", "kind"),
    [
        ("clip/05", "video/mp4"), ("absolute", "video/mp4"), ("address", "video/webm"), ("inner", "video/mp4"),
        ("picture", "image/png"), ("sound", "audio/"),
    ],
)  # fmt: skip
def test_what_the_index_names_is_served(client, films, video, kind):
    response = client.get(f"/media/{video}")
    assert response.status_code == 200
    assert response.content == CONTENT
    assert response.headers["content-type"].startswith(kind)
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert client.get(f"/videos/{video}").json()["media"] is True
    head = client.head(f"/media/{video}")
    assert (head.headers["content-length"], head.content) == (str(len(CONTENT)), b"")


@pytest.mark.parametrize(
    "video",
    ["outside", "upwards", "upwards address", "link", "loop", "html", "svg", "folder", "gone", "web", "long", "null",
     "null address", "damaged address",
     "nothing", "clip/06", "05.mp4", "unnamed.mp4", "../secret.mp4", "%2e%2e/secret.mp4", "..%2fsecret.mp4",
     "/etc/passwd", "file:///etc/passwd", "", "\\..\\secret.mp4", "clip/05/../../secret.mp4", "clip/05%00"],
)  # fmt: skip
def test_nothing_else_is(client, films, video):
    response = client.get(f"/media/{video}")
    assert response.status_code in (404, 422), response.text
    assert b"secret" not in response.content.replace(b"secret.mp4", b"")
    assert client.get(f"/thumbnail/{video}").status_code in (404, 422)


@pytest.mark.parametrize(
    ("asked", "expected", "place"),
    [
        ("bytes=0-9", CONTENT[:10], "bytes 0-9/10240"),
        ("bytes=1000-", CONTENT[1000:], "bytes 1000-10239/10240"),
        ("bytes=-5", CONTENT[-5:], "bytes 10235-10239/10240"),
        ("bytes=0-999999", CONTENT, "bytes 0-10239/10240"),
    ],
)
def test_ranges(client, films, asked, expected, place):
    response = client.get("/media/clip/05", headers={"Range": asked})
    assert response.status_code == 206
    assert response.content == expected
    assert response.headers["content-range"] == place


@pytest.mark.parametrize(("asked", "status"), [("bytes=20000-", 416), ("bytes=9-3", 400), ("pages=1-2", 400)])
def test_ranges_that_are_none(client, films, asked, status):
    assert client.get("/media/clip/05", headers={"Range": asked}).status_code == status


def test_many_ranges_are_no_flood(client, films):
    asked = "bytes=" + ",".join(["0-"] * 1000)
    response = client.get("/media/clip/05", headers={"Range": asked})
    assert len(response.content) <= 2 * len(CONTENT)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_film_that_goes_after_it_was_found_is_404(client, films, monkeypatch, method):
    real = SearchService.media_of

    def media_of(self, video_id):
        found = real(self, video_id)
        found[0].unlink()
        return found

    monkeypatch.setattr(SearchService, "media_of", media_of)
    response = client.request(method, "/media/clip/05")
    assert response.status_code == 404
    assert method == "HEAD" or response.json() == {"detail": "the media file of 'clip/05' cannot be read"}


def test_without_a_folder_nothing_is_played(index, operator, films, open_client):
    client = open_client(SearchService(index, operator))
    assert client.get("/media/clip/05").status_code == 404
    assert client.get("/videos/clip/05").json()["media"] is False


def test_the_folder_may_be_a_link(tmp_path, index, operator, films, open_client):
    (tmp_path / "other").symlink_to(films)
    client = open_client(SearchService(index, operator, tmp_path / "other"))
    assert client.get("/media/clip/05").content == CONTENT


def test_a_film_is_found_after_it_was_added(client, films, tmp_path):
    (films / "new.mp4").write_bytes(b"new")
    assert client.get("/media/new").status_code == 404
    with VideoIndex(tmp_path / "videos.lance") as other:
        other.add(["new"], other.read(["clip/00"]).embeddings, uris=["new.mp4"])
    assert client.get("/media/new").content == b"new"
