"""A small service of real clips, and a browser that looks at its page."""

import shutil
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from collaborative_experts import CollaborativeExperts, VideoIndex
from helpers import tone, write_media

EXPERTS = ("motion", "sound", "words")
CONFIG = {
    "experts": {"motion": 12, "sound": 8, "words": {"dim": 5, "clusters": 1, "max_tokens": 3}},
    "text": {"dim": 6, "clusters": 1},
    "use_ce": "",
    "shared_dim": 8,
}
COUNT = 40
HOSTILE = '<script>window.hacked = 1</script>/"it\'s" & 100% #?'
"""An id, and a caption: shown as they are, never run."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


class Letters:
    """Embeds sentences by numbers of their letters."""

    def __init__(self):
        self.op = CollaborativeExperts(CONFIG, device="cpu")

    def encode_sentences(self, sentences):
        return self.op.encode_text([np.array([self._numbers(word) for word in x.split()]) for x in sentences])

    def _numbers(self, word):
        return np.float32([sum(map(ord, word)) % (7 + i) - 3 for i in range(6)])


def make_clips(folder):
    """One film of 12 s, whose picture changes each second, with sound; and a file that is none."""
    frames = np.zeros((120, 90, 160, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, :80] = (20 * (i // 10), 120, 255 - 20 * (i // 10))
        frame[20:70, i : i + 30] = 230
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(range(256)) * 40)
    return write_media(folder / "film.mp4", frames, sound=tone(12))


def make_store(folder, operator):
    """`folder/videos.lance`: 40 clips, the film's seconds among them, some with none or a broken one, some hostile."""
    rng = np.random.default_rng(0)
    words = rng.standard_normal((COUNT, 3, 5))
    features = {"motion": rng.standard_normal((COUNT, 12)), "sound": rng.standard_normal((COUNT, 8)), "words": words}
    available = {"motion": np.ones(COUNT), "sound": np.arange(COUNT) % 3 > 0, "words": np.arange(COUNT) % 2}
    video = operator.op.encode_video(features, {name: np.float32(x) for name, x in available.items()})
    ids = [f"clip{i:02}" for i in range(COUNT)]
    ids[7] = HOSTILE
    uris = ["film.mp4"] * COUNT
    uris[3], uris[5] = "gone.mp4", "broken.mp4"
    spans = [(i % 10 + 0.5, i % 10 + 0.5 + 1 + i % 2) for i in range(COUNT)]
    metadata = [{"text": {"ocr": f"STATION {i}", "speech": "the train leaves"}, "camera": "left"} for i in range(COUNT)]
    metadata[7] = {"caption": HOSTILE, "text": {"ocr": HOSTILE}, "labels": {"motion": [HOSTILE]}, HOSTILE: [HOSTILE]}
    metadata[7]["Id"] = 7
    metadata[11] = {"text": "a text of the user's own", "labels": 3}
    index = VideoIndex(folder / "videos.lance", operator=operator)
    index.add(ids, video, uris=uris, spans=spans, metadata=metadata)
    return index


@contextmanager
def serving(app, port=0):
    """Runs an app in a thread; gives the server, and its address."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


@contextmanager
def browsing():
    """A headless Chromium; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the page is looked at by playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"the page is looked at by a browser: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()
