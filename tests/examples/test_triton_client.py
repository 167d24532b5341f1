"""examples/triton_client.py and docker/build_models.py: the real client against a stand-in for the server.

The stand-in answers Triton's HTTP protocol, with binary tensors or tensors in system shared memory, and computes the
repository's graphs in ONNX Runtime.
"""

import importlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest

from collaborative_experts import CollaborativeExperts, TextEmbeddings, VideoEmbeddings, similarity
from collaborative_experts.model.cenet import initial_state
from collaborative_experts.model.checkpoint import write_weights
from helpers import SMALL, random_inputs

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"tensor(float)": ("FP32", np.float32), "tensor(bool)": ("BOOL", np.bool_)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("w") / "w.safetensors", initial_state(SMALL, seed=4), SMALL)


@pytest.fixture(scope="module")
def repository(weights, tmp_path_factory):
    for module in ("dill", "onnx"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docker"))
        importlib.import_module("build_models").build_models(weights, folder)
    return folder


@pytest.fixture(scope="module")
def requests():
    """(bytes of a request, registered regions) of all requests."""
    return []


@pytest.fixture(scope="module")
def url(repository, requests):
    onnxruntime = pytest.importorskip("onnxruntime")
    sessions = {path.parent.parent.name: onnxruntime.InferenceSession(path) for path in repository.glob("*/1/*.onnx")}

    regions = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.reply(json.dumps(metadata(sessions[self.path.split("/")[3]])).encode())

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if region := re.fullmatch(r"v2/systemsharedmemory/region/(\w+)/(un)?register", self.path.strip("/")):
                if region[2]:
                    del regions[region[1]]
                else:
                    regions[region[1]] = json.loads(body)
                self.reply(b"")
            else:
                requests.append((len(body), dict(regions)))
                length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
                self.reply(*infer(sessions[self.path.split("/")[3]], body, length, regions))

        def reply(self, head, data=b""):
            self.send_response(200)
            self.send_header("Content-Length", str(len(head) + len(data)))
            if data:
                self.send_header("Inference-Header-Content-Length", str(len(head)))
            self.end_headers()
            self.wfile.write(head + data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def metadata(session):
    def tensors(entries):
        return [
            {"name": x.name, "datatype": TYPES[x.type][0], "shape": [n if isinstance(n, int) else -1 for n in x.shape]}
            for x in entries
        ]

    return {"inputs": tensors(session.get_inputs()), "outputs": tensors(session.get_outputs())}


def infer(session, body, length, regions):
    """The head and the binary tensors of the answer to a request, whose head is `length` bytes long."""
    request, at, feeds = json.loads(body[:length]), length, {}
    kinds = dict(TYPES.values())
    for tensor in request["inputs"]:
        where = tensor["parameters"]
        if "shared_memory_region" in where:
            data = read_region(regions[where["shared_memory_region"]], where)
        else:
            data = body[at : at + where["binary_data_size"]]
            at += len(data)
        feeds[tensor["name"]] = np.frombuffer(data, kinds[tensor["datatype"]]).reshape(tensor["shape"])
    assert at == len(body)
    names = [output["name"] for output in request["outputs"]]
    arrays = session.run(names, feeds)
    outputs = [
        {"name": name, "datatype": "FP32", "shape": x.shape, "parameters": {"binary_data_size": x.nbytes}}
        for name, x in zip(names, arrays, strict=True)
    ]
    return json.dumps({"outputs": outputs}).encode(), b"".join(x.tobytes() for x in arrays)


def read_region(region, where):
    """The bytes of a tensor in a registered region, as the server finds them."""
    start = region["offset"] + where.get("shared_memory_offset", 0)
    end = start + where["shared_memory_byte_size"]
    assert end <= region["byte_size"]
    memory = SharedMemory(region["key"])
    try:
        return bytes(memory.buf[start:end])
    finally:
        memory.close()


@pytest.fixture
def example(monkeypatch):
    pytest.importorskip("tritonclient")
    pytest.importorskip("tritonclient.http", exc_type=RuntimeError)  # it is there, but without its HTTP client
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("triton_client")


def test_repository(repository):
    steps = [f"video-text-embedding.collaborative-experts-{step}" for step in (0, 1)]
    assert sorted(path.name for path in repository.iterdir()) == ["pipeline", *steps]
    for step in steps:
        assert "max_batch_size: 1024" in (repository / step / "config.pbtxt").read_text()


def check_embeddings(example, client, weights, memory=None):
    """Videos and texts from the server give the operator's scores. Returns the bytes of the features."""
    op = CollaborativeExperts(weights_path=weights, device="cpu")
    experts, _, text = random_inputs(SMALL, 5)
    available = np.arange(20).reshape(5, 4) % 3 != 0
    texts = TextEmbeddings(*example.embed_texts(client, text[:, 0]))
    got = VideoEmbeddings(example.embed_videos(client, experts, available, memory), available)
    expected = similarity(
        op.encode_text(text[:, 0]), op.encode_video(experts, dict(zip(experts, available.T, strict=True)))
    )
    assert np.abs(similarity(texts, got) - expected).max() < 1e-5
    return sum(x.nbytes for x in experts.values())


def test_embeddings_from_the_server_equal_the_operators(example, url, requests, weights):
    features = check_embeddings(example, example.triton.InferenceServerClient(url), weights)
    assert features < requests[-1][0] < features + 2000  # their bytes, not JSON
    assert not requests[-1][1]


def test_features_in_shared_memory(example, url, requests, weights):
    client = example.triton.InferenceServerClient(url)
    memory = example.SharedMemory(client, 100_000)
    for _ in range(2):
        features = check_embeddings(example, client, weights, memory)
        assert requests[-1][0] < 2000 < features  # where the features are, not the features
    ((name, region),) = requests[-1][1].items()
    memory.close()
    with pytest.raises(FileNotFoundError):
        SharedMemory(region["key"])
    check_embeddings(example, client, weights)
    assert name not in requests[-1][1]  # the server has let go of it


def test_the_script_prints_scores(example, url, capsys):
    example.main(["--url", url])
    rows = [[float(x) for x in line.split()] for line in capsys.readouterr().out.splitlines()]
    assert np.shape(rows) == (3, 8)
    assert np.abs(rows).max() <= 1
