"""Towhee's own way to a Triton server: a model repository is built, and run here with Towhee's stand-in for Triton.

The stand-in (`towhee.serve.triton.bls.mock`) takes the place of the server between the pipeline's step and the graph;
ONNX Runtime computes the graph. What Towhee puts around them, the pickled pipeline and JSON, is Towhee's.
"""

import importlib.util
import re
from dataclasses import replace

import numpy as np
import pytest
import towhee
from towhee import AutoConfig, ops, pipe

from collaborative_experts import CollaborativeExperts
from helpers import FORMS, SMALL, cenet, largest_difference, random_inputs

pytest.importorskip("dill")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

STEP = "video-text-embedding.collaborative-experts-0"
"""The name that Towhee gives the model of the operator's step."""

SIDES = {
    None: (("experts", "ind", "text"), ("text_embds", "vid_embds")),
    "video": (("experts", "ind"), ("embds",)),
    "text": (("text",), ("embds",)),
}


def make_pipeline(side, settings, server=None):
    taken, given = SIDES[side]
    op = ops.video_text_embedding.collaborative_experts(**settings, device="cpu", modality=side)
    return pipe.input(*taken).map(taken, given, op, config=server).output(*given)


class Graph:
    """A model of the repository as the server runs it: arrays in the graph's order, as Towhee's client sends them."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.calls = 0

    def __call__(self, *arrays):
        self.calls += 1
        found = self.session.run(None, dict(zip([x.name for x in self.session.get_inputs()], arrays, strict=True)))
        return found if len(found) > 1 else found[0]  # as the stand-in wants it


def serve(repository, *inputs):
    """What the server's pipeline model makes of a request."""
    from towhee.serve.triton.bls.python_backend_wrapper import pb_utils
    from towhee.utils.serializer import from_triton_data, to_triton_data

    path = repository / "pipeline" / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("triton_pipeline_model", path)
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({})
    data = to_triton_data(inputs[0] if len(inputs) == 1 else inputs)
    request = pb_utils.InferenceRequest(
        [pb_utils.Tensor("INPUT0", np.array([[data]], object))], ["OUTPUT0"], "pipeline"
    )
    (response,) = model.execute([request])
    assert not response.has_error()
    answer = pb_utils.get_output_tensor_by_name(response, "OUTPUT0").as_numpy()[0]
    return from_triton_data(answer)[0][0]  # the first request's first row


@pytest.fixture
def register(monkeypatch):
    """register(repository) -> {model: Graph} of its ONNX models, known to Towhee's stand-in."""
    from towhee.serve.triton.bls.mock.mock_pb_util import _MockInferenceRequest

    monkeypatch.setattr(_MockInferenceRequest, "model_dict", {})

    def of(repository):
        graphs = {path.parent.parent.name: Graph(path) for path in repository.glob("*/1/model.onnx")}
        for name, graph in graphs.items():
            _MockInferenceRequest.set_model(name, graph)
        return graphs

    return of


def inputs_of(side):
    experts, ind, text = random_inputs(SMALL, 5, captions=3)
    ind["face"][1] = ind["ocr"][1:3] = 0
    experts["face"][1] = np.nan
    named = {"experts": experts, "ind": ind, "text": text}
    return [named[name] for name in SIDES[side][0]]


@pytest.mark.parametrize("output", ["experts", "vector"])
@pytest.mark.parametrize("side", SIDES)
def test_the_served_pipeline_equals_the_pipeline(side, output, small_weights, tmp_path, register):
    settings = {"config": SMALL.to_dict(), "weights_path": str(small_weights), "output": output}
    pipeline = make_pipeline(side, settings)
    assert towhee.build_pipeline_model(pipeline, str(tmp_path), format_priority=["onnx"], parallelism=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline", STEP]
    graphs = register(tmp_path)
    assert list(graphs) == [STEP]
    inputs = inputs_of(side)
    expected, got = pipeline(*inputs).get(), serve(tmp_path, *inputs)
    assert graphs[STEP].calls == 1
    for ours, theirs in zip(got, expected, strict=True):
        ours, theirs = ({"joint": x} if output == "vector" else x for x in (ours, theirs))
        assert largest_difference(ours, theirs) < 1e-5


@pytest.mark.filterwarnings("ignore:.*seeded initial parameters")
def test_a_graph_with_one_output(tmp_path, register):
    """Towhee's client of Triton then gives the tensor itself, not a list."""
    config = {"experts": {"motion": 20}, "text": {"dim": 8, "clusters": 2}, "shared_dim": 4, "use_ce": ""}
    weights = CollaborativeExperts(config, device="cpu").save(tmp_path / "one.safetensors")
    pipeline = make_pipeline("video", {"weights_path": str(weights)})
    assert towhee.build_pipeline_model(pipeline, str(tmp_path / "models"), format_priority=["onnx"])
    assert register(tmp_path / "models")
    experts, ind = {"motion": np.ones((3, 20), np.float32)}, {"motion": np.array([1, 0, 1])}
    (expected,), (got,) = pipeline(experts, ind).get(), serve(tmp_path / "models", experts, ind)
    assert largest_difference(got, expected) < 1e-5


def test_a_server_that_has_the_graph_loads_no_weights(small_weights, tmp_path, register):
    from towhee.runtime.node_config import AcceleratorConf, NodeConfig
    from towhee.runtime.runtime_conf import set_runtime_config
    from towhee.serve.triton.triton_client import TritonClient

    params = {"model_name": STEP, "inputs": ["tokens"], "outputs": ["a", "weights"]}
    node = NodeConfig(name="step", acc_info=AcceleratorConf(type="triton", params=params))
    with set_runtime_config(node):
        op = CollaborativeExperts(SMALL, small_weights, device="cpu", modality="text")
    assert isinstance(op.model, TritonClient)


@pytest.mark.parametrize(
    ("server", "lines"),
    [
        (None, []),
        (AutoConfig.TritonCPUConfig(max_batch_size=1024), ["max_batch_size: 1024", "kind: KIND_CPU"]),
        (AutoConfig.TritonGPUConfig(device_ids=[1], max_batch_size=64), ["max_batch_size: 64", "gpus: [1]"]),
    ],
)
def test_config_fits_the_graph(server, lines, small_weights, tmp_path):
    """The config leaves inputs and outputs to Triton, which reads them off the graph; what it says is so."""
    pipeline = make_pipeline("video", {"config": SMALL.to_dict(), "weights_path": str(small_weights)}, server)
    assert towhee.build_pipeline_model(pipeline, str(tmp_path), format_priority=["onnx"])
    text = (tmp_path / STEP / "config.pbtxt").read_text()
    assert re.search(r'^name: "(.*)"$', text, re.MULTILINE)[1] == STEP
    assert re.search(r'^backend: "(.*)"$', text, re.MULTILINE)[1] == "onnxruntime"
    assert not re.search(r"^(input|output) \[", text, re.MULTILINE)
    for line in lines:
        assert line in text
    graph = onnx.load(tmp_path / STEP / "1" / "model.onnx").graph
    # Triton makes one batch of several requests only where the first axis of everything is free, and the same.
    first = {x.type.tensor_type.shape.dim[0].dim_param for x in (*graph.input, *graph.output)}
    assert first == {"B"}


@pytest.mark.parametrize(
    ("form", "priority"), [("pairwise", []), ("pairwise", ["pytorch", "safetensors"]), ("triplet", ["onnx"])]
)
def test_without_a_graph_the_pipeline_runs_in_the_python_backend(form, priority, save_cenet, tmp_path, register):
    """No folder of a model that is not there: Triton does not start with one."""
    config = replace(SMALL, **FORMS[form])
    pipeline = make_pipeline(None, {"config": config.to_dict(), "weights_path": str(save_cenet(cenet(config)))})
    assert towhee.build_pipeline_model(pipeline, str(tmp_path), format_priority=priority)
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
    assert register(tmp_path) == {}
    inputs = inputs_of(None)
    for ours, theirs in zip(serve(tmp_path, *inputs), pipeline(*inputs).get(), strict=True):
        assert largest_difference(ours, theirs) < 1e-6
