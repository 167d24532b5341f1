"""The command as a process: it stops gracefully, and is there again after a kill."""

import re
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import httpx

from collaborative_experts import ModelIdentity, TextEmbeddings
from collaborative_experts.__main__ import main
from warm_process import Process

JSON = {"Content-Type": "application/json"}

PROGRAM = """
import sys, time
import numpy as np
from collaborative_experts import TextEmbeddings
from collaborative_experts.__main__ import main
from collaborative_experts.apps import serve

class Slow:
    def encode_sentences(self, sentences):
        time.sleep(float(sys.argv[1]))
        embds = {"motion": np.eye(1, 8), "audio": np.eye(1, 6), "ocr": np.eye(1, 4)}
        embds = {name: np.repeat(x.astype(np.float32), len(sentences), 0) for name, x in embds.items()}
        return TextEmbeddings(embds, np.full((len(sentences), 3), 1 / 3, np.float32))

serve.sentence_operator = lambda *_: Slow()
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def start(index, tmp_path):
    """start(seconds of a sentence, options...) -> (process, address), once the service answers."""
    index.close()
    processes = []

    def run(seconds, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        process = Process(PROGRAM, seconds, "serve", tmp_path / "videos.lance", "--port", port, *options)
        processes.append(process)
        address = f"http://127.0.0.1:{port}"
        for _ in range(2400):
            try:
                httpx.get(f"{address}/health", timeout=5)
                return process, address
            except httpx.TransportError:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
        raise TimeoutError(address)

    yield run
    for process in processes:
        process.kill()
        process.wait()


def test_running_answers_finish_on_sigterm(start):
    process, address = start(1.5)
    answers = []

    def ask():
        answers.append(httpx.post(f"{address}/search", json={"sentences": ["a dog"]}, timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    thread.join(60)
    assert process.wait(60) == 0
    assert answers[0].status_code == 200
    assert len(answers[0].json()["results"][0]) == 10
    assert "Traceback" not in process.stderr.read()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{address}/health")


def test_it_answers_again_after_a_kill(start):
    for _ in range(2):
        process, address = start(0.0)
        assert len(httpx.post(f"{address}/search", json={"sentences": ["a"], "k": 3}).json()["results"][0]) == 3
        process.kill()
        process.wait()


def test_it_listens_on_this_machine_alone(start):
    process, address = start(0.0)
    port = int(address.rpartition(":")[2])
    found = []
    table = Path(f"/proc/{process.pid}/net/tcp")  # Linux
    for line in table.read_text().splitlines()[1:] if table.exists() else []:
        local, state = line.split()[1], line.split()[3]
        if state == "0A" and int(local.partition(":")[2], 16) == port:
            found.append(local.partition(":")[0])
    assert found in ([], ["0100007F"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "expected --token-file FILE"),
        (["--token-file", "none"], "there is no file none"),
        (["--media", "none"], "there is no folder none"),
        (["--weights", "none.safetensors"], "none.safetensors"),
        (["--cors", "*"], "--cors"),
        (["--cors", "example.org"], "--cors"),
        (["--queue", "0"], "--queue"),
        (["--port", "70000"], "--port"),
    ],
)
def test_errors_at_start_are_one_line(options, message, index, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "videos.lance", *options]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error
    assert not (tmp_path / "none").exists()


def test_a_store_that_is_not_there(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "none.lance")]) == 1
    assert "there is no such index" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused_at_start(index, tmp_path, capsys, monkeypatch):
    class Other:
        def encode_sentences(self, sentences):
            embds = {"motion": np.eye(1, 8), "audio": np.eye(1, 6), "ocr": np.eye(1, 4)}
            return TextEmbeddings(embds, np.full((1, 3), 1 / 3), model=ModelIdentity("{}", "f" * 64))

    monkeypatch.setattr("collaborative_experts.apps.serve.sentence_operator", lambda *_: Other())
    assert main(["serve", str(tmp_path / "videos.lance"), "--port", "0"]) == 1
    assert "embedded by another model" in capsys.readouterr().err


def test_a_port_that_is_taken(index, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", str(tmp_path / "videos.lance"), "--port", str(taken.getsockname()[1])]) == 1
    error = capsys.readouterr().err
    assert "in use" in error
    assert "Traceback" not in error


def test_the_page_of_the_docs(start, root, tmp_path, monkeypatch, capsys):
    """Its requests by curl are answered, and its blocks in Python run."""
    _, address = start(0.0)
    page = (root / "docs" / "serve.md").read_text(encoding="utf-8")
    asked = re.findall(r"^curl http://127.0.0.1:8000(/\S+)(?: --json '(.*)')?$", page, flags=re.MULTILINE)
    assert len(asked) == 5
    for path, body in asked:
        response = httpx.request("POST" if body else "GET", address + path, content=body or None, headers=JSON)
        assert response.status_code == 200, (path, response.text)
    client, program = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(client.replace("http://127.0.0.1:8000", address), "docs/serve.md", "exec"), {})
    assert "clip/" in capsys.readouterr().out
    exec(compile(program, "docs/serve.md", "exec"), {})
