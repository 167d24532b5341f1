"""weights/fetch.py against a real HTTP server on this machine that breaks, lies and changes its mind.

Of every failure: exit status 1, one line that says why, and a folder that holds what it held before.
"""

import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zlib import crc32

import pytest
import requests
import torch
from safetensors.torch import load_file

from collaborative_experts import CollaborativeExperts
from collaborative_experts.hub.weights_folder import DEFAULT_WEIGHTS, find_weights
from collaborative_experts.model.checkpoint import read_config
from helpers import SMALL, cenet, largest_difference, random_inputs, run_cenet, towhee_dict

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "weights" / "fetch.py"
MODEL = "/models/tiny"
PTH, CONFIG = f"{MODEL}/trained_model.pth", f"{MODEL}/config.json"
QUICK = {"wait": 0.001, "longest_wait": 0.02, "timeout": (2, 5)}

spec = importlib.util.spec_from_file_location("fetch", SCRIPT)
fetch = sys.modules["fetch"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch)


def packed(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


MODEL_BYTES = packed({"epoch": 100, "state_dict": cenet(SMALL).state_dict()})
OTHER_BYTES = packed({"epoch": 100, "state_dict": cenet(SMALL, seed=1).state_dict()})
CONFIG_BYTES = json.dumps(towhee_dict(SMALL)).encode()
HALF = 5 * fetch.CHUNK
assert HALF < len(MODEL_BYTES) < 3 * HALF


class Site:
    """What the server has, how it misbehaves, and what it was asked.

    `faults` are used up by the requests for the checkpoint, one each; `always` is what follows them. A fault is
    a status, or a dict: drop_after (bytes of the body), claim (added to Content-Length), extra (bytes after the
    body), change (new content, put in place before the answer).
    """

    def __init__(self):
        self.files = {PTH: MODEL_BYTES, CONFIG: CONFIG_BYTES}
        self.faults, self.always = [], {}
        self.ranges, self.validator, self.length_known = True, "ETag", True
        self.headers = {}  # of answers that are an error
        self.asked, self.sent = [], 0

    def version(self, path):
        """A validator that changes with the content."""
        number = crc32(self.files[path])
        return {
            "ETag": {"ETag": f'"{number}"'},
            "weak": {"ETag": f'W/"{number}"'},
            "Last-Modified": {"Last-Modified": f"Wed, 01 Jan 2020 00:00:{number % 60:02d} GMT"},
            None: {},
        }[self.validator]

    def ranges_asked(self):
        return [headers.get("Range") for path, headers in self.asked if path == PTH]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        site = self.server.site
        path = self.path.partition("?")[0]
        site.asked.append((path, dict(self.headers)))
        fault = {}
        if path.endswith(".pth"):
            fault = site.faults.pop(0) if site.faults else site.always
        if isinstance(fault, int) or path not in site.files:
            return self.refuse(fault or 404)
        site.files[path] = fault.get("change", site.files[path])
        content, version, start = site.files[path], site.version(path), 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and site.ranges and self.headers.get("If-Range") in version.values():
            start = int(asked[1])
        if start >= len(content):
            return self.refuse(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in version.items():
            self.send_header(name, value)
        body = content[start:]
        if site.length_known or not path.endswith(".pth"):
            self.send_header("Content-Length", str(len(body) + fault.get("claim", 0)))
        self.end_headers()
        body = (body + b"\0" * fault.get("extra", 0))[: fault.get("drop_after")]
        site.sent += len(body) * path.endswith(".pth")
        self.close_connection = bool(fault) or not site.length_known
        self.wfile.write(body)
        return None

    def refuse(self, status):
        self.send_response(status)
        for name, value in {"Content-Length": "0", **self.server.site.headers}.items():
            self.send_header(name, value)
        self.end_headers()


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # the client may leave
            super().handle_error(request, client_address)


@pytest.fixture(scope="module")
def server():
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def site(server):
    server.site = Site()
    server.site.base = f"http://127.0.0.1:{server.server_address[1]}"
    server.site.url = server.site.base + MODEL
    return server.site


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def run(site, tmp_path, capsys):
    """run(*arguments) -> exit status, what was printed, and what was said on stderr."""

    def run(*arguments, patience=None):
        arguments = arguments or ("--url", site.url)
        status = fetch.main([*arguments, "--to", str(tmp_path)], patience or fetch.Patience(**QUICK))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def failing(run, tmp_path):
    """failing(words) runs, expects the words in the one line of the error, and an untouched folder."""

    def failing(words, *arguments, keeps=(), patience=None):
        before = contents(tmp_path)
        status, _, said = run(*arguments, patience=patience)
        assert status == 1
        assert "Traceback" not in said
        errors = [line for line in said.splitlines() if "error:" in line]
        assert len(errors) == 1
        assert words in errors[0]
        after = contents(tmp_path)
        assert {name: x for name, x in after.items() if name.split("/")[0] not in keeps} == before
        for name in keeps:
            assert (tmp_path / name).exists()
        return said

    return failing


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors(path):
    """The same for files of the same tensors; their headers may be in any order."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


PART = ".tiny.pth.part"
WHOLE = ["lock.json", "tiny.safetensors"]


# --- what is fetched ----------------------------------------------------------------------------------


def test_the_fetched_model_gives_cenets_numbers(run, site, tmp_path):
    status, said, _ = run()
    assert status == 0
    assert names(tmp_path) == WHOLE
    assert "SHA-256 " in said
    target = tmp_path / "tiny.safetensors"
    assert read_config(target).expert_names == SMALL.expert_names
    op = CollaborativeExperts(weights_path=target, device="cpu")
    assert op.pretrained
    experts, ind, text = random_inputs(SMALL, 3)
    ours = op(experts, ind, text)
    theirs = run_cenet(cenet(SMALL), experts, ind, text)
    for side, key in zip(ours, ("text_embds", "vid_embds"), strict=True):
        theirs[key] = {name: x.reshape(side[name].shape) for name, x in theirs[key].items()}
        assert largest_difference(side, theirs[key]) < 1e-5
    assert largest_difference(ours[1], CollaborativeExperts(SMALL, saved(tmp_path, MODEL_BYTES), device="cpu")(
        experts, ind, text)[1]) == 0  # fmt: skip


def saved(folder, content):
    path = folder / "plain.pth"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "tail", ["", "/", "/trained_model.pth", "/config.json", "/trained_model.pth?download=1", "#top"]
)
def test_addresses_of_the_same_model(tail, run, site, tmp_path):
    assert run("--url", site.url + tail)[0] == 0
    assert names(tmp_path) == WHOLE


def test_what_is_there_is_not_fetched_again(run, site, tmp_path):
    run()
    before, requests_before = contents(tmp_path), len(site.asked)
    status, said, _ = run()
    assert (status, len(site.asked)) == (0, requests_before)
    assert "already here and complete" in said
    assert contents(tmp_path) == before
    assert run("--url", site.url, "--force")[0] == 0
    assert names(tmp_path) == WHOLE
    assert site.ranges_asked() == [None, None]


def test_a_damaged_file_is_fetched_anew(run, tmp_path):
    run()
    target = tmp_path / "tiny.safetensors"
    original = target.with_name("original.safetensors")
    shutil.copy(target, original)
    target.write_bytes(original.read_bytes()[:-100])
    status, _, said = run()
    assert status == 0
    assert "fetching it anew" in said
    assert tensors(target) == tensors(original)


@pytest.fixture
def mirror(site, tmp_path_factory, monkeypatch):
    """The site serves every model of the list, and the list says so."""
    models = tmp_path_factory.mktemp("list") / "models.toml"
    text = fetch.MODELS.read_text()
    models.write_text(re.sub('base = ".*"', f'base = "{site.base}/models/"', text))
    for model in fetch.read_models().values():
        site.files[f"/models/{model.folder}/trained_model.pth"] = MODEL_BYTES
        site.files[f"/models/{model.folder}/config.json"] = CONFIG_BYTES
    monkeypatch.setattr(fetch, "MODELS", models)


@pytest.mark.usefixtures("mirror")
def test_models_of_the_list(run, site, tmp_path):
    assert fetch.main(["--to", str(tmp_path)]) == 0
    assert run("msvd-train-full-ce")[0] == 0
    by_address = f"{site.base}/models/{fetch.read_models()['lsmdc-train-full-ce'].folder}/trained_model.pth"
    assert run("--url", by_address)[0] == 0
    fetched = ["lsmdc-train-full-ce", "msrvtt-train-full-ce", "msvd-train-full-ce"]
    assert names(tmp_path) == ["lock.json", *(f"{name}.safetensors" for name in fetched)]
    assert list(json.loads((tmp_path / "lock.json").read_text())) == [
        f"{name}.safetensors" for name in ("msrvtt-train-full-ce", "msvd-train-full-ce", "lsmdc-train-full-ce")
    ]


def test_names_of_unlisted_models():
    models = fetch.read_models()
    base = "https://example.org/models"
    for path, name in {
        "msrvtt-train-full-ce/074e6b24/seed-1/2020-01-07_15-24-30": "msrvtt-train-full-ce-074e6b24-seed-1",
        "my%20model/": "my_model",
        "..hidden": "hidden",
        "...": "model",
    }.items():
        assert fetch.model_at(f"{base}/{path}", models).name == name
    assert fetch.model_at("https://example.org", models).name == "example.org"


# --- broken downloads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_a_dropped_connection_is_resumed(validator, run, site, tmp_path):
    site.validator, site.faults = validator, [{"drop_after": HALF}]
    status, _, said = run()
    assert status == 0
    assert "trying again" in said
    assert site.ranges_asked() == [None, f"bytes={HALF}-"]
    assert site.asked[-1][1]["If-Range"] in site.version(PTH).values()
    assert site.sent == len(MODEL_BYTES)
    assert names(tmp_path) == WHOLE


@pytest.mark.parametrize("validator", [None, "weak"])
def test_what_cannot_be_told_from_a_changed_file_is_not_resumed(validator, run, failing, site, tmp_path):
    site.validator, site.faults = validator, [{"drop_after": HALF}]
    assert run()[0] == 0
    assert site.ranges_asked() == [None, None]
    assert site.sent == HALF + len(MODEL_BYTES)
    site.always = {"drop_after": HALF}
    failing("gave up after 5 tries", "--url", site.url, "--force")


def test_a_server_that_ignores_ranges(run, site, tmp_path):
    site.ranges, site.faults = False, [{"drop_after": HALF}]
    status, _, said = run()
    assert status == 0
    assert "cannot resume; starting anew" in said
    assert site.sent == HALF + len(MODEL_BYTES)
    assert names(tmp_path) == WHOLE


def test_a_connection_that_always_breaks_is_resumed_by_the_next_run(failing, run, site, tmp_path):
    site.faults, site.always = [{"drop_after": HALF}], {"drop_after": 0}
    said = failing("gave up after 5 tries", keeps=[PART])
    assert PTH in said
    assert names(tmp_path) == [PART]
    site.always = {}
    assert run()[0] == 0
    assert site.ranges_asked()[-1] == f"bytes={HALF}-"
    assert site.sent == len(MODEL_BYTES)
    assert names(tmp_path) == WHOLE


def test_tries_are_counted_anew_while_the_download_gets_on(run, site):
    state = cenet(SMALL).state_dict()
    site.files[PTH] = packed({"state_dict": state, "optimizer": torch.zeros(2 * 2**20)})
    site.always = {"drop_after": fetch.GETS_ON}
    assert run()[0] == 0
    assert len(site.ranges_asked()) > fetch.Patience().tries
    assert site.sent == len(site.files[PTH])


def test_a_file_that_changes_between_two_tries(run, site, tmp_path):
    site.faults = [{"drop_after": HALF}, {"change": OTHER_BYTES}]
    status, _, said = run()
    assert status == 0
    assert "the file changed" in said
    assert site.sent == HALF + len(OTHER_BYTES)
    (tmp_path / "other").mkdir()
    assert fetch.main(["--url", site.url, "--to", str(tmp_path / "other")]) == 0
    assert tensors(tmp_path / "tiny.safetensors") == tensors(tmp_path / "other" / "tiny.safetensors")


def test_a_range_of_another_file_is_not_appended(run, site, tmp_path, monkeypatch):
    """A server that honours Range but not If-Range."""
    site.faults = [{"drop_after": HALF}]
    answers = []
    real = Site.version

    def version(self, path):
        answers.append(path)
        changed = answers.count(PTH) == 2
        return real(self, path) | ({"ETag": self.asked[-1][1]["If-Range"], "etag": '"x"'} if changed else {})

    monkeypatch.setattr(Site, "version", version)
    status, _, said = run()
    assert status == 0
    assert "answer 206 does not resume the download" in said
    assert site.ranges_asked() == [None, f"bytes={HALF}-", None]
    assert names(tmp_path) == WHOLE


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(status, run, site, tmp_path):
    site.faults = [status, status]
    code, _, said = run()
    assert code == 0
    assert said.count(f"the server answers {status}") == 2
    assert names(tmp_path) == WHOLE


def test_waits_double_and_follow_retry_after_within_limits(run, site, monkeypatch):
    waits = []
    monkeypatch.setattr(fetch.time, "sleep", waits.append)
    site.faults = [503, 503, 503]
    assert run(patience=fetch.Patience(wait=1))[0] == 0
    assert waits == [1, 2, 4]
    waits.clear()
    for retry_after, expected in {"7": 7, "99999": 60, "soon": 1, "-3": 1, "0": 1}.items():
        site.faults, site.headers = [503], {"Retry-After": retry_after}
        run("--url", site.url, "--force", patience=fetch.Patience(wait=1))
        assert waits.pop() == expected


def test_a_server_that_stays_busy(failing, site):
    site.always = 503
    failing("the server answers 503 Service Unavailable; gave up after 5 tries")
    assert len(site.ranges_asked()) == 5


# --- wrong answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404, 410, 304])
def test_an_error_status_is_final(status, failing, site):
    site.always = status
    failing(f"{site.url}/trained_model.pth: the server answers {status}")
    assert len(site.ranges_asked()) == 1


def test_nothing_at_that_address(failing, site):
    failing(f"{site.base}/nothing/config.json: the server answers 404 Not Found", "--url", f"{site.base}/nothing")


def test_less_than_announced(failing, site):
    site.always = {"claim": 100}
    failing("gave up after 5 tries", keeps=[PART])


def test_a_part_as_long_as_the_file_of_which_more_was_announced(run, site, tmp_path):
    """Nothing is left to send (416), so the length was a lie."""
    version = fetch.Version(f"{site.url}/trained_model.pth", len(MODEL_BYTES) + 100, site.version(PTH)["ETag"])
    fetch.Part(tmp_path / PART).begin(version)
    (tmp_path / PART / "trained_model.pth").write_bytes(MODEL_BYTES)
    status, _, said = run()
    assert status == 0
    assert "answer 416 does not resume" in said
    assert names(tmp_path) == WHOLE


def test_more_than_announced_is_cut_off_and_refused(failing, site):
    site.always = {"claim": -100}
    failing("not a complete PyTorch file")


def test_a_range_longer_than_the_file(failing, site):
    site.faults = [{"drop_after": HALF}, {"claim": 50, "extra": 50}]
    failing(f"more bytes came than the {len(MODEL_BYTES)} announced")


def test_no_length(failing, site):
    site.length_known = False
    failing("does not say how long the file is")


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch executed",)


WRONG_FILES = {
    "garbage": (b"<html>Sign in to the network</html>" * 100, "refused"),
    "empty": (b"", ""),
    "truncated": (MODEL_BYTES[:-1000], "not a complete PyTorch file"),
    "no weights": (packed([1, 2]), "expected a state dict"),
    "another model": (packed({"ce.moe_fc.weight": torch.ones(2, 2)}), "not of this config's model"),
    "code": (packed({"state_dict": cenet(SMALL).state_dict(), "config": RunsCode()}), "refused, loading it would call"),
}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_checkpoints(case, there, failing, run, site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if there:
        run()
        (tmp_path / "lock.json").unlink()
    content, words = WRONG_FILES[case]
    site.files[PTH] = content
    failing(words, "--url", site.url, "--force")
    assert not (tmp_path / "executed").exists()


WRONG_CONFIGS = {
    "html": (b"<html>Not here</html>", "config.json: not a JSON file"),
    "binary": (b"\xff\xfe\x00", "config.json: not a JSON file"),
    "deep": (b"[" * 100_000, "config.json: not a JSON file"),
    "a list": (b"[]", "expected a dict, got list"),
    "unknown key": (b'{"experts": {"face": 12, "rgb": 3}, "shared": 4}', "unknown key 'shared'"),
    "huge": (b" " * (fetch.CONFIG_LIMIT + 1), "more than 1.0 MB, no config.json"),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_wrong_configs_are_found_before_the_long_download(case, failing, site):
    site.files[CONFIG], words = WRONG_CONFIGS[case]
    failing(words)
    assert site.ranges_asked() == []


def test_what_the_downloaded_file_cannot_be_written_as(failing, run, site, tmp_path, monkeypatch):
    """The disk fills up during the conversion: the download stays, and is not done again."""

    def full(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("collaborative_experts.model.checkpoint.write_weights", full)
        failing("tiny.safetensors: cannot be written: No space left on device", keeps=[PART])
    assert run()[0] == 0
    assert site.ranges_asked() == [None]
    assert names(tmp_path) == WHOLE


# --- the lock file ------------------------------------------------------------------------------------


def test_the_first_download_is_pinned(run, site, tmp_path):
    import hashlib

    _, said, _ = run("--url", f"{site.url}?token=secret")
    digest = hashlib.sha256(MODEL_BYTES).hexdigest()
    assert f"SHA-256 {digest} (to be pinned in lock.json)" in said
    assert "secret" not in said
    assert json.loads((tmp_path / "lock.json").read_text()) == {
        "tiny.safetensors": {
            "url": site.url,
            "bytes": len(MODEL_BYTES),
            "sha256": digest,
            "config_sha256": hashlib.sha256(CONFIG_BYTES).hexdigest(),
        }
    }
    (tmp_path / "tiny.safetensors").unlink()
    assert f"SHA-256 {digest} (as pinned in lock.json)" in run()[1]


def test_a_file_that_is_not_the_pinned_one(failing, run, site):
    run()
    assert len(OTHER_BYTES) == len(MODEL_BYTES)
    site.files[PTH] = OTHER_BYTES
    failing("to trust it, delete 'tiny.safetensors' from that lock file", "--url", site.url, "--force")
    site.files[PTH], sent = MODEL_BYTES + b"\0", site.sent
    failing("its length is", "--url", site.url, "--force")
    assert site.sent - sent <= 2**20  # what fits into buffers, while nobody reads it
    site.files[PTH], site.files[CONFIG] = MODEL_BYTES, CONFIG_BYTES + b" "
    failing("config.json: its SHA-256 is", "--url", site.url, "--force")


def test_other_entries_of_the_lock_file_stay(run, site, tmp_path):
    (tmp_path / "lock.json").write_text('{"another.safetensors": {"url": "u", "sha256": "0"}}')
    run()
    assert list(json.loads((tmp_path / "lock.json").read_text())) == ["another.safetensors", "tiny.safetensors"]


@pytest.mark.parametrize("text", ["{", "[]", '{"tiny.safetensors": 3}'])
def test_a_damaged_lock_file(text, failing, tmp_path):
    (tmp_path / "lock.json").write_text(text)
    failing("lock.json: not a lock file")


def test_two_models_of_one_name(failing, run, site):
    site.files["/others/tiny/trained_model.pth"], site.files["/others/tiny/config.json"] = OTHER_BYTES, CONFIG_BYTES
    run()
    failing(f"is there already, from {site.url}", "--url", f"{site.base}/others/tiny")
    failing("it is not the file that was first fetched", "--url", f"{site.base}/others/tiny", "--force")


# --- this machine -------------------------------------------------------------------------------------


def test_a_full_disk(failing, site, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(10**9, 10**9, len(MODEL_BYTES) + 1000))
    failing("not enough space")
    assert site.ranges_asked() == [None]


def test_no_network(failing):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        said = failing("cannot connect", "--url", f"http://127.0.0.1:{unused.getsockname()[1]}/models/tiny")
    assert len(said.splitlines()) == 1


def test_a_stopped_run_leaves_what_the_next_one_resumes(run, site, tmp_path, monkeypatch):
    class Stopped(fetch.tqdm):
        def update(self, n):
            if self.n >= HALF:
                raise KeyboardInterrupt
            super().update(n)

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "CHUNK", 1000)
        patch.setattr(fetch, "tqdm", lambda **options: Stopped(**(options | {"disable": False, "file": io.StringIO()})))
        status, _, said = run()
    assert status == 130
    assert "the same command resumes" in said
    assert names(tmp_path) == [PART]
    assert find_weights(None, tmp_path) is None
    assert run()[0] == 0
    start = int(re.fullmatch(r"bytes=(\d+)-", site.ranges_asked()[-1])[1])
    assert HALF <= start < len(MODEL_BYTES)
    assert names(tmp_path) == WHOLE


PARTS = {
    "damaged": "{",
    "incomplete": '{"url": "u"}',
    "wrong type": '{"url": "u", "length": "9", "validator": ""}',
    "elsewhere": '{"url": "u", "length": 9999999, "validator": ""}',
    "too short": '{"url": "u", "length": 9, "validator": ""}',
}


@pytest.mark.parametrize("text", PARTS.values(), ids=PARTS)
def test_a_part_of_unknown_origin_is_not_resumed(text, run, site, tmp_path):
    (tmp_path / PART).mkdir()
    (tmp_path / PART / "version.json").write_text(text)
    (tmp_path / PART / "trained_model.pth").write_bytes(b"x" * 1000)
    assert run()[0] == 0
    assert site.ranges_asked() == [None]
    assert names(tmp_path) == WHOLE


@pytest.mark.skipif(fetch.fcntl is None, reason="this system has no flock")
def test_two_runs_in_one_folder(failing, tmp_path):
    with fetch.alone_in(tmp_path):
        failing("another fetch.py is at work in this folder")


BAD_ARGUMENTS = {
    "misspelt": (["msvd-train-full"], "did you mean 'msvd-train-full-ce'?"),
    "unknown": (["zzz"], "--list shows the known ones"),
    "file": (["--url", "file:///etc/passwd"], "expected an address that starts with https://"),
    "no host": (["--url", "https:///x"], "expected an address that starts with https://"),
    "bracket": (["--url", "http://[x/y"], "is no address"),
    "port": (["--url", "http://127.0.0.1:99999/x"], "http://127.0.0.1:99999/x"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case, failing):
    arguments, words = BAD_ARGUMENTS[case]
    failing(words, *arguments)


def test_no_such_folder(site, tmp_path, capsys):
    assert fetch.main(["--url", site.url, "--to", str(tmp_path / "no")]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    assert site.asked == []


def test_name_and_url_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as left:
        fetch.main(["msvd-train-full-ce", "--url", "https://example.org"])
    assert left.value.code == 2


def test_no_way_out_of_https():
    answer = requests.Response()
    answer.status_code, answer.url = 200, "http://example.org/trained_model.pth"
    with pytest.raises(fetch.FetchError, match="redirects to an address without HTTPS"):
        fetch.check_answer(answer, "https://example.org/trained_model.pth")
    answer.url, answer.history = "https://example.org/a", [answer]
    fetch.check_answer(answer, "https://example.org/trained_model.pth")


# --- the list, the script -----------------------------------------------------------------------------


def test_the_list_of_models(run):
    models = fetch.read_models()
    assert len(models) == 69
    assert len({model.url for model in models.values()}) == 69
    default = next(iter(models.values()))
    assert f"{default.name}.safetensors" == DEFAULT_WEIGHTS
    for model in models.values():
        assert model.url.startswith("https://")
        assert model.folder.split("/")[0] == model.name.removeprefix("teachtext-")
        assert ("/teachtext/" in model.url) == model.name.startswith("teachtext-")
        assert set(model.t2v) == {"r1", "r5", "r10", "mdr"}
    status, printed, said = run("--list")
    assert (status, said) == (0, "")
    lines = printed.splitlines()
    assert lines[0].split() == ["name", "dataset", "method", "experts", "parameters", "R@1", "R@5", "R@10", "MdR"]
    assert re.fullmatch(r"msrvtt-train-full-ce +MSR-VTT full +CE .* 183.45M +10.0 +29.0 +41.2 +16.0", lines[1])
    assert len({len(line) for line in lines[1:70]}) == 1


def test_the_list_is_filtered(run):
    status, printed, _ = run("--list", "QuerYD ")
    assert status == 0
    assert {line.split()[0] for line in printed.splitlines() if line.startswith("queryd")} == {
        name for name in fetch.read_models() if name.startswith("queryd-")
    }
    assert "msrvtt" not in printed
    status, _, said = run("--list", "dogs")
    assert status == 1
    assert "no model of models.toml has 'dogs' in its name, dataset, method or experts" in said


def test_the_list_needs_neither_towhee_nor_torch():
    code = (
        "import runpy, sys; sys.modules['towhee'] = sys.modules['torch'] = None; "
        f"sys.argv = ['fetch.py', '--list']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "activity-net-train-full-ce" in done.stdout


def test_the_script(site, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--url", site.url, "--to", tmp_path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path) == WHOLE


def test_in_towhees_cache_where_nothing_is_installed(site, tmp_path):
    """The package is the folder above, under any name, and the weights go to the script's own folder."""
    clone = tmp_path / "main"
    (clone / "weights").mkdir(parents=True)
    for file in (*ROOT.glob("*.py"), ROOT / "requirements.txt"):
        shutil.copy(file, clone)
    for room in ("base", "model", "features", "retrieval", "training", "hub", "apps"):
        shutil.copytree(ROOT / room, clone / room)
    for name in ("fetch.py", "models.toml"):
        shutil.copy(SCRIPT.with_name(name), clone / "weights")
    code = (
        "import runpy, sys; sys.meta_path = [x for x in sys.meta_path if 'editable' not in repr(x).lower()]; "
        f"sys.argv = ['fetch.py', '--url', {site.url!r}]; "
        f"runpy.run_path({str(clone / 'weights' / 'fetch.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"lock.json", "tiny.safetensors"} <= set(names(clone / "weights"))


def test_a_missing_dependency_is_one_line():
    code = (
        "import runpy, sys; sys.modules['requests'] = None; sys.argv = ['fetch.py']; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "pip install -r requirements.txt" in done.stderr
