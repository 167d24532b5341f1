"""weights/fetch.py and its modules in hub/ against an HTTP server on this machine that breaks, lies and redirects.

Of every failure: exit status 1, one line that gives the reason, and a folder that holds what it held before.
"""

import hashlib
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file

from collaborative_experts import CollaborativeExperts
from collaborative_experts.hub import fetch, published
from collaborative_experts.hub.weights_folder import DEFAULT_WEIGHTS
from collaborative_experts.model.checkpoint import read_config
from helpers import SMALL, cenet, largest_difference, random_inputs, run_cenet, towhee_dict

pytest.importorskip("pooch")

MODEL = "/models/tiny"
PTH, CONFIG = f"{MODEL}/trained_model.pth", f"{MODEL}/config.json"


def packed(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


MODEL_BYTES = packed({"epoch": 100, "state_dict": cenet(SMALL).state_dict()})
OTHER_BYTES = packed({"epoch": 100, "state_dict": cenet(SMALL, seed=1).state_dict()})
CONFIG_BYTES = json.dumps(towhee_dict(SMALL)).encode()


class Handler(BaseHTTPRequestHandler):
    """Answers from `server.files`. `server.faults`, one a request for the checkpoint: a status, the address that
    it redirects to, or "drop", which ends the connection half way."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        site = self.server
        site.asked.append(self.path)
        fault = site.faults.pop(0) if site.faults and self.path.endswith(".pth") else None
        body = site.files.get(self.path)
        if isinstance(fault, str) and fault != "drop":
            self.send_response(302)
            self.send_header("Location", fault)
            body = b""
        elif isinstance(fault, int) or body is None:
            self.send_response(fault or 404)
            body = b""
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "drop" else body)


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def site(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    server.files, server.faults, server.asked = {PTH: MODEL_BYTES, CONFIG: CONFIG_BYTES}, [], []
    server.base = f"http://127.0.0.1:{server.server_address[1]}"
    server.url = server.base + MODEL
    return server


@pytest.fixture
def run(site, tmp_path, capsys):
    """run(*arguments) -> exit status, standard output, standard error."""

    def run(*arguments):
        status = fetch.main([*(arguments or ("--url", site.url)), "--to", str(tmp_path)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def failing(run, tmp_path):
    """failing(words, *arguments) runs, and expects the words in one line of error and an untouched folder."""

    def failing(words, *arguments):
        before = contents(tmp_path)
        status, _, stderr = run(*arguments)
        assert status == 1
        assert len(re.findall(r"^error: ", stderr, re.MULTILINE)) == 1
        assert words in stderr.splitlines()[-1]
        assert contents(tmp_path) == before

    return failing


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


WHOLE = ["lock.json", "tiny.safetensors"]


# --- what is fetched ----------------------------------------------------------------------------------


def test_the_fetched_model_gives_cenets_numbers(run, tmp_path):
    assert run()[0] == 0
    assert names(tmp_path) == WHOLE
    target = tmp_path / "tiny.safetensors"
    assert read_config(target).expert_names == SMALL.expert_names
    op = CollaborativeExperts(weights_path=target, device="cpu")
    assert op.pretrained
    experts, ind, text = random_inputs(SMALL, 3)
    ours = op(experts, ind, text)
    theirs = run_cenet(cenet(SMALL), experts, ind, text)
    for side, key in zip(ours, ("text_embds", "vid_embds"), strict=True):
        reshaped = {name: x.reshape(side[name].shape) for name, x in theirs[key].items()}
        assert largest_difference(side, reshaped) < 1e-5


@pytest.mark.parametrize("tail", ["", "/", "/trained_model.pth", "/config.json", "/trained_model.pth?download=1"])
def test_addresses_of_the_same_model(tail, run, site, tmp_path):
    assert run("--url", site.url + tail)[0] == 0
    assert names(tmp_path) == WHOLE


def test_a_complete_file_is_not_fetched_again(run, site, tmp_path):
    run()
    before = contents(tmp_path)
    assert run()[0] == 0
    assert (contents(tmp_path), site.asked.count(PTH)) == (before, 1)
    assert run("--url", site.url, "--force")[0] == 0
    assert (names(tmp_path), site.asked.count(PTH)) == (WHOLE, 2)


def test_a_damaged_file_is_fetched_anew(run, tmp_path):
    run()
    target = tmp_path / "tiny.safetensors"
    expected = {name: x.tolist() for name, x in load_file(target).items()}
    target.write_bytes(target.read_bytes()[:-100])
    assert run()[0] == 0
    assert {name: x.tolist() for name, x in load_file(target).items()} == expected


def test_models_of_the_list(run, site, tmp_path, monkeypatch):
    listed = tmp_path / "models.toml"
    listed.write_text(re.sub('base = ".*"', f'base = "{site.base}/models/"', published.MODELS.read_text()))
    monkeypatch.setattr(published, "MODELS", listed)
    for name in ("msrvtt-train-full-ce", "msvd-train-full-ce"):
        for path, content in (("trained_model.pth", MODEL_BYTES), ("config.json", CONFIG_BYTES)):
            site.files[f"/models/{published.read_models()[name].folder}/{path}"] = content
    assert fetch.main(["--to", str(tmp_path)]) == run("msvd-train-full-ce")[0] == 0
    fetched = ["msrvtt-train-full-ce.safetensors", "msvd-train-full-ce.safetensors"]
    assert names(tmp_path) == ["lock.json", "models.toml", *fetched]
    assert list(json.loads((tmp_path / "lock.json").read_text())) == fetched


def test_names_of_unlisted_models():
    for path, name in {
        "/models/msrvtt-train-full-ce/074e6b24/seed-1/2020-01-07_15-24-30": "msrvtt-train-full-ce-074e6b24-seed-1",
        "/models/my%20model/": "my_model",
        "/models/..hidden": "hidden",
        "/models/...": "model",
        "": "example.org",
    }.items():
        assert published.model_at(f"https://example.org{path}").name == name


# --- broken connections, wrong answers ----------------------------------------------------------------


@pytest.mark.parametrize("fault", ["drop", 500, 503, 429])
def test_a_broken_answer_is_asked_for_again(fault, run, failing, site, tmp_path):
    site.faults = [fault] * (fetch.RETRIES + 1)
    failing("connection" if fault == "drop" else f"the server answers {fault}")
    assert site.asked.count(PTH) == fetch.RETRIES + 1
    site.faults = [fault] * fetch.RETRIES
    assert run()[0] == 0
    assert names(tmp_path) == WHOLE


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_error_of_the_request_is_final(status, failing, site):
    site.faults = [status]
    failing(f"{site.url}/trained_model.pth: the server answers {status}")
    assert site.asked.count(PTH) == 1


def test_no_way_out_of_https(run, failing, site, tmp_path):
    site.faults = ["http://example.org/trained_model.pth"]
    failing("redirects to an address without HTTPS, http://example.org/trained_model.pth")
    assert site.asked.count(PTH) == 1
    site.faults = [PTH]  # a redirect within this machine
    assert run()[0] == 0
    for url in ("http://example.org/x", "file:///etc/passwd", "https:///x", "http://[x/y", "https://me:secret@host/x"):
        with pytest.raises(published.FetchError, match="--url: "):
            published.model_at(url)


def test_no_network(failing, site):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        failing("no connection", "--url", f"http://127.0.0.1:{unused.getsockname()[1]}/models/tiny")


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch executed",)


WRONG_FILES = {
    "garbage": (b"<html>Sign in to the network</html>" * 100, "refused"),
    "empty": (b"", "not a complete PyTorch file"),
    "truncated": (MODEL_BYTES[:-1000], "it is damaged"),
    "no weights": (packed([1, 2]), "expected a state dict"),
    "another model": (packed({"ce.moe_fc.weight": torch.ones(2, 2)}), "not of this config's model"),
    "code": (packed({"state_dict": cenet(SMALL).state_dict(), "config": RunsCode()}), "refused, loading it would call"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_checkpoints(case, failing, run, site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run()
    (tmp_path / "lock.json").unlink()
    site.files[PTH], words = WRONG_FILES[case]
    failing(words, "--url", site.url, "--force")
    assert not (tmp_path / "executed").exists()


WRONG_CONFIGS = {
    "html": (b"<html>Not here</html>", "config.json: it is not JSON"),
    "binary": (b"\xff\xfe\x00", "config.json: it is not JSON"),
    "deep": (b"[" * 100_000, "config.json: it is not JSON"),
    "a list": (b"[]", "expected a dict, got list"),
    "unknown key": (b'{"experts": {"face": 12, "rgb": 3}, "shared": 4}', "unknown key 'shared'"),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_wrong_configs_are_found_before_the_long_download(case, failing, site):
    site.files[CONFIG], words = WRONG_CONFIGS[case]
    failing(words)
    assert PTH not in site.asked


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_conversion_leaves_nothing_behind(error, run, tmp_path, monkeypatch):
    def interrupted(*args):
        raise error

    monkeypatch.setattr(fetch, "write_weights", interrupted)
    status, _, stderr = run()
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert len(stderr.splitlines()) == 1
    assert names(tmp_path) == []


# --- the lock file ------------------------------------------------------------------------------------


def test_the_first_download_is_pinned(failing, run, site, tmp_path):
    (tmp_path / "lock.json").write_text('{"another.safetensors": {"url": "u", "sha256": "0"}}')
    run()
    assert json.loads((tmp_path / "lock.json").read_text()) == {
        "another.safetensors": {"url": "u", "sha256": "0"},
        "tiny.safetensors": {
            "url": site.url,
            "config_sha256": hashlib.sha256(CONFIG_BYTES).hexdigest(),
            "sha256": hashlib.sha256(MODEL_BYTES).hexdigest(),
        },
    }
    site.files[PTH] = OTHER_BYTES
    failing("or delete 'tiny.safetensors' from that file in order to trust it", "--url", site.url, "--force")
    site.files[CONFIG] = CONFIG_BYTES + b" "
    failing("config.json: its config_sha256 is", "--url", site.url, "--force")
    failing(f"pins {site.url}", "--url", f"{site.base}/others/tiny")


def test_two_models_that_come_at_once_are_both_pinned(tmp_path):
    first, second = (fetch.Lock(tmp_path / f"{name}.safetensors") for name in ("first", "second"))
    for lock in (first, second):
        lock.check("url", "u", "source")
        lock.write()
    assert list(json.loads((tmp_path / "lock.json").read_text())) == ["first.safetensors", "second.safetensors"]


@pytest.mark.parametrize("text", ["{", "[]", '{"tiny.safetensors": 3}'])
def test_a_damaged_lock_file(text, failing, tmp_path):
    (tmp_path / "lock.json").write_text(text)
    failing("lock.json: not a lock file")


# --- the list, the script -----------------------------------------------------------------------------


def test_bad_arguments(failing, tmp_path, capsys):
    failing("did you mean 'msvd-train-full-ce'?", "msvd-train-full")
    failing("--list shows the known ones", "zzz")
    assert fetch.main(["--to", str(tmp_path / "no")]) == 1
    assert "there is no such folder" in capsys.readouterr().err


def test_the_list_of_models(run):
    models = published.read_models()
    assert len(models) == len({model.url for model in models.values()}) == 69
    assert f"{next(iter(models))}.safetensors" == DEFAULT_WEIGHTS
    for model in models.values():
        assert model.url.startswith("https://")
        assert model.folder.split("/")[0] == model.name.removeprefix("teachtext-")
        assert ("/teachtext/" in model.url) == model.name.startswith("teachtext-")
    status, printed, stderr = run("--list")
    assert (status, stderr) == (0, "")
    lines = printed.splitlines()
    assert lines[0].split() == ["name", "dataset", "method", "experts", "parameters", "R@1", "R@5", "R@10", "MdR"]
    assert re.fullmatch(r"msrvtt-train-full-ce +MSR-VTT full +CE .* 183.45M +10.0 +29.0 +41.2 +16.0", lines[1])
    assert len({len(line) for line in lines[1:70]}) == 1


def test_the_list_is_filtered(run, failing):
    status, printed, _ = run("--list", "QuerYD ")
    assert status == 0
    assert {line.split()[0] for line in printed.splitlines() if line.startswith("queryd")} == {
        name for name in published.read_models() if name.startswith("queryd-")
    }
    assert "msrvtt" not in printed
    failing("no model of models.toml has 'dogs' in its name, dataset, method or experts", "--list", "dogs")


def test_the_script_in_towhees_cache_where_nothing_is_installed(root, site, tmp_path):
    """The package is the folder above, under any name, and the weights go to the script's own folder."""
    clone = tmp_path / "main"
    clone.mkdir()
    for file in (*root.glob("*.py"), root / "requirements.txt"):
        shutil.copy(file, clone)
    left_out = shutil.ignore_patterns("*.safetensors", "lock.json", "__pycache__")
    for room in ("base", "model", "features", "retrieval", "training", "hub", "apps", "weights"):
        shutil.copytree(root / room, clone / room, ignore=left_out)
    code = (
        "import runpy, sys; sys.meta_path = [x for x in sys.meta_path if 'editable' not in repr(x).lower()]; "
        f"sys.argv = ['fetch.py', '--url', {site.url!r}]; "
        f"runpy.run_path({str(clone / 'weights' / 'fetch.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(clone / "weights") == ["fetch.py", "lock.json", "models.toml", "tiny.safetensors"]


def test_a_missing_dependency_is_one_line(root, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("fetch", root / "weights" / "fetch.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert script.main([]) == 1
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert "pip install 'collaborative_experts[weights]'" in printed
