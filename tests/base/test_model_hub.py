"""Models by name or folder: the cache first, then the hub, which is asked once and only if it answers."""

import http.server
import threading

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants as hub

from collaborative_experts.base import model_hub
from collaborative_experts.base.model_hub import load_model


class Loader:
    """A library that has some models in its cache and some on the hub."""

    def __init__(self, cached=(), published=()):
        self.cached, self.published, self.calls = cached, published, []

    def __call__(self, model, local_files_only=False):
        self.calls.append((model, local_files_only))
        if model in self.cached or (model in self.published and not local_files_only):
            return f"the model {model}"
        raise OSError(f"no {model}\nand a page of advice")


def load(loader, model):
    return load_model(loader, model, "audio", "extract")


def test_what_is_cached_needs_no_hub(monkeypatch):
    monkeypatch.setattr(model_hub, "_answers", lambda url: pytest.fail("looked at the hub"))
    assert load(Loader(cached=["a/b"]), "a/b") == "the model a/b"


def test_a_hub_that_answers_is_asked(monkeypatch):
    monkeypatch.setattr(model_hub, "_answers", lambda url: True)
    loader = Loader(published=["a/b"])
    assert load(loader, "a/b") == "the model a/b"
    assert loader.calls == [("a/b", True), ("a/b", False)]
    with pytest.raises(FileNotFoundError, match=r"and it cannot be downloaded \(no c/d\); download it where"):
        load(loader, "c/d")


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch):
    asked = []
    monkeypatch.setattr(model_hub, "_answers", lambda url: asked.append(url))
    loader = Loader(published=["a/b"])
    with pytest.raises(FileNotFoundError, match=r"^audio: 'a/b' is neither .* cannot be reached; .* name its folder$"):
        load(loader, "a/b")
    assert (asked, loader.calls) == ([hub.ENDPOINT], [("a/b", True)])
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE forbids"):
        load(loader, "a/b")
    assert len(asked) == 1


def test_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(model_hub, "_answers", lambda url: pytest.fail("looked at the hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    folder = str(tmp_path / "here")
    assert load(Loader(cached=[folder]), "~/here") == f"the model {folder}"
    with pytest.raises(ValueError, match=f"audio: {folder}: cannot be loaded: no {folder}$"):
        load(Loader(), folder)
    with pytest.raises(FileNotFoundError, match="audio: there is no folder /no/such"):
        load(Loader(), "/no/such")


def test_any_status_is_an_answer():
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert model_hub._answers(f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert not model_hub._answers("http://127.0.0.1:9")
