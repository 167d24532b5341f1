"""The ONNX graph in ONNX Runtime against the operator: equal to 1e-5 over the grid that the operator is held to."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from collaborative_experts import CEConfig, CollaborativeExperts
from collaborative_experts.__main__ import main
from collaborative_experts.hub import export as export_module
from collaborative_experts.hub.onnx_nodes import IR_VERSION, OPSET
from collaborative_experts.model.cenet import initial_state
from collaborative_experts.model.checkpoint import write_weights
from collaborative_experts.model.engine import supports
from helpers import FORMS, MISSING, ORDERS, SMALL, availability, cenet, fills, random_inputs, raw_statistics

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ALL_FORMS = FORMS | {
    "pairwise-relu": {"use_mish": False, "use_bn_reason": False},
    "summed": {"use_ce": "", "mimic_ce_dims": True, "summed_dim": 5},
}
EXPORTABLE = [form for form in ALL_FORMS if supports(replace(SMALL, **ALL_FORMS[form]))]


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_graph(graph, **given):
    """{output: array}; `given` are the inputs, the experts' as a dict."""
    feeds = {f"experts.{name}": x for name, x in given.pop("experts", {}).items()} | given
    return dict(zip([output.name for output in graph.get_outputs()], graph.run(None, feeds), strict=True))


def differences(got, op, experts, available, tokens):
    """The largest difference from the operator, of each side that the graph has."""
    found = {}
    if experts is not None:
        video = op.encode_video(experts, dict(zip(op.config.expert_names, available.T, strict=True)))
        found |= {f"video.{name}": np.abs(got[f"video.{name}"] - x).max() for name, x in video.embds.items()}
    if tokens is not None:
        text = op.encode_text(tokens)
        found |= {f"text.{name}": np.abs(got[f"text.{name}"] - x).max() for name, x in text.embds.items()}
        found["weights"] = np.abs(got["weights"] - text.weights).max()
    assert list(found) == list(got)
    return max(found.values())


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("form", EXPORTABLE)
def test_graph_equals_the_operator(form, order, save_cenet, tmp_path):
    config = replace(SMALL, experts=tuple(SMALL.experts[i] for i in order), **ALL_FORMS[form])
    op = CollaborativeExperts(config, save_cenet(cenet(config)), device="cpu")
    graph = session(op.save_model("onnx", tmp_path / "model.onnx"))
    for videos in (1, 8, 300):
        experts, _, text = random_inputs(config, videos, captions=2)
        tokens = text.reshape(-1, *text.shape[2:])
        for pattern in (*MISSING, "all"):
            available = np.zeros((videos, len(experts)), bool)
            if pattern != "all":
                available = np.stack([*availability(pattern, videos, config.expert_names).values()], 1) == 1
            if pattern != "none":  # captions do not know of the videos: all of them once, then some
                tokens = tokens[:3]
            for fill, value in fills(pattern).items():
                given = {name: x.copy() for name, x in experts.items()}
                for i, x in enumerate(given.values()):
                    x[~available[:, i]] = value
                got = run_graph(graph, experts=given, available=available, tokens=tokens)
                worst = differences(got, op, given, available, tokens)
                assert worst < 1e-5, f"B={videos} missing={pattern} fill={fill}: {worst}"


@pytest.mark.parametrize("side", ["video", "text"])
def test_one_side_and_any_number_of_tokens(side, small_weights, tmp_path):
    op = CollaborativeExperts(SMALL, small_weights, device="cpu", modality=side)
    graph = session(op.save_model("onnx", tmp_path / "model.onnx"))
    rng = np.random.default_rng(0)
    for tokens in (1, 3, 50):
        if side == "text":
            text = rng.standard_normal((4, tokens, SMALL.text.dim), dtype=np.float32)
            assert differences(run_graph(graph, tokens=text), op, None, None, text) < 1e-5
            continue
        experts, _, _ = random_inputs(SMALL, 4)
        experts["ocr"] = rng.standard_normal((4, tokens, 300), dtype=np.float32)
        available = rng.random((4, 4)) < 0.6
        got = run_graph(graph, experts=experts, available=available)
        assert differences(got, op, experts, available, None) < 1e-5


@pytest.mark.parametrize("form", ["pairwise", "moee"])
@pytest.mark.parametrize("logarithm", [False, True], ids=["as they are", "by their logarithm"])
def test_standardisation_is_inside(form, logarithm, tmp_path):
    config = replace(SMALL, standardise=True, **FORMS[form])
    config = replace(config, experts=tuple(replace(x, logarithm=logarithm) for x in config.experts))
    state, rng = cenet(replace(config, standardise=False)).state_dict(), np.random.default_rng(3)
    experts, _, text = random_inputs(SMALL, 8)
    for expert in config.experts:
        mean, std = raw_statistics(expert, rng, logarithm)
        experts[expert.name] = experts[expert.name] * std + mean
        if logarithm:
            experts[expert.name] = np.exp(experts[expert.name])
            experts[expert.name][0] = -1  # smaller than any that counts
        if expert.variable:  # padding
            experts[expert.name][::2, -2:] = 0
        state[f"standardise.{expert.name}.mean"] = torch.tensor(mean)
        state[f"standardise.{expert.name}.std"] = torch.tensor(std)
    op = CollaborativeExperts(weights_path=write_weights(tmp_path / "w.safetensors", state, config), device="cpu")
    graph = session(op.save_model("onnx", tmp_path / "model.onnx"))
    available = rng.random((8, 4)) < 0.7
    for i, x in enumerate(experts.values()):
        x[~available[:, i]] = np.nan
    got = run_graph(graph, experts=experts, available=available, tokens=text[:, 0])
    assert differences(got, op, experts, available, text[:, 0]) < 1e-5


@pytest.mark.parametrize(
    "config",
    [
        {"experts": {"one": 5}, "text": {"dim": 8, "clusters": 2}, "shared_dim": 4, "use_ce": ""},
        {"experts": {"a.b/c": 5, "text": 7}, "text": {"dim": 8, "clusters": 0}, "shared_dim": 4},
        {
            "experts": {"tokens": {"dim": 5, "output_dim": 3}, "b": {"dim": 6, "clusters": 2, "output_dim": 9}},
            "text": {"dim": 8, "clusters": 2, "ghost_clusters": 0},
            "use_ce": "",
        },
    ],
    ids=["one expert", "averaged text", "own dimensions"],
)
@pytest.mark.filterwarnings("ignore:.*seeded initial parameters")
def test_other_shapes_of_models(config, tmp_path):
    config = CEConfig.from_dict(config)
    op = CollaborativeExperts(config, device="cpu")
    graph = session(op.save_model("onnx", tmp_path / "model.onnx"))
    experts, _, _ = random_inputs(config, 3)
    available = np.arange(3 * len(experts)).reshape(3, -1) % 3 != 1
    tokens = np.random.default_rng(0).standard_normal((5, 4 if config.text.clusters else 1, 8), dtype=np.float32)
    got = run_graph(graph, experts=experts, available=available, tokens=tokens)
    assert differences(got, op, experts, available, tokens) < 1e-5


def test_what_the_file_says_of_itself(small_op, tmp_path):
    path = small_op.save_model("onnx", tmp_path / "model.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)] == [("", 18)]
    assert model.ir_version == IR_VERSION == 8
    shapes = {x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in model.graph.input}
    assert shapes == {
        "experts.audio": ["B", "N.audio", 128],
        "experts.face": ["B", 12],
        "experts.motion": ["B", 20],
        "experts.ocr": ["B", "N.ocr", 300],
        "available": ["B", 4],
        "tokens": ["T", "W", 24],
    }
    names = ["audio", "face", "motion", "ocr"]
    expected = [f"video.{name}" for name in names] + [f"text.{name}" for name in names] + ["weights"]
    assert [x.name for x in model.graph.output] == expected
    metadata = {entry.key.removeprefix("collaborative_experts."): entry.value for entry in model.metadata_props}
    assert CEConfig.from_dict(json.loads(metadata["config"])) == SMALL
    assert metadata["weights"] == small_op.identity.weights
    assert json.loads(metadata["experts"]) == names
    assert (metadata["side"], metadata["dtype"]) == ("both", "float32")


@pytest.mark.parametrize("form", ["pairwise", "moee"])
def test_half_precision_halves_the_file(form, save_cenet, tmp_path):
    config = replace(SMALL, **FORMS[form])
    op = CollaborativeExperts(config, save_cenet(cenet(config)), device="cpu")
    whole = op.save_model("onnx", tmp_path / "whole.onnx")
    half = tmp_path / "half.onnx"
    export_module.export_onnx(half, config, op._open_weights(), op.identity, dtype="float16")
    sizes = [
        sum(len(x.raw_data) for x in onnx.load(path).graph.initializer if len(x.dims) > 1) for path in (whole, half)
    ]
    assert sizes[1] * 2 < sizes[0] * 1.01 + 8 * sum(e.clusters * e.dim for e in SMALL.experts)
    experts, _, text = random_inputs(SMALL, 8)
    available = np.ones((8, 4), bool)
    got = run_graph(session(half), experts=experts, available=available, tokens=text[:, 0])
    assert 1e-6 < differences(got, op, experts, available, text[:, 0]) < 5e-3
    weights = {name: x * 1e6 if x.dim() == 2 else x for name, x in op._open_weights().items()}
    with pytest.raises(ValueError, match=r"dtype: expected float32 for weights as large as .*, got float16"):
        export_module.export_onnx(tmp_path / "large.onnx", config, weights, op.identity, dtype="float16")
    assert not (tmp_path / "large.onnx").exists()


def test_large_models_keep_their_tensors_in_a_second_file(small_op, tmp_path, monkeypatch):
    path = small_op.save_model("onnx", tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    monkeypatch.setattr(export_module, "LARGEST_FILE", 10_000)
    for _ in range(2):  # the second one replaces both files
        small_op.save_model("onnx", path)
        first, second = sorted(tmp_path.iterdir())
        assert (first, second.suffix) == (path, ".data")
    locations = {
        entry.value
        for x in onnx.load(path, load_external_data=False).graph.initializer
        for entry in x.external_data
        if entry.key == "location"
    }
    assert locations == {second.name}
    experts, _, text = random_inputs(SMALL, 8)
    available = np.ones((8, 4), bool)
    got = run_graph(session(path), experts=experts, available=available, tokens=text[:, 0])
    assert differences(got, small_op, experts, available, text[:, 0]) < 1e-5
    monkeypatch.undo()
    small_op.save_model("onnx", path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(small_op, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"earlier")

    def fail(_):
        raise onnx.checker.ValidationError("broken")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    monkeypatch.setattr(export_module, "LARGEST_FILE", 0)
    with pytest.raises(onnx.checker.ValidationError):
        small_op.save_model("onnx", path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"earlier"


def test_bad_arguments(small_op, tmp_path):
    with pytest.raises(ValueError, match=r"expected a path that ends in .onnx, got the suffix '.pt'"):
        small_op.save_model("onnx", tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"there is no folder"):
        small_op.save_model("onnx", tmp_path / "absent" / "model.onnx")
    with pytest.raises(ValueError, match=r"dtype: expected one of 'float32', 'float16', got 'bfloat16'"):
        export_module.export_onnx(tmp_path / "x.onnx", SMALL, {}, small_op.identity, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"side: expected one of None, 'video', 'text', got 'audio'"):
        export_module.export_onnx(tmp_path / "x.onnx", SMALL, {}, small_op.identity, side="audio")


@pytest.mark.parametrize("form", [form for form in FORMS if form not in EXPORTABLE])
def test_forms_without_a_graph(form, save_cenet, tmp_path):
    config = replace(SMALL, **FORMS[form])
    op = CollaborativeExperts(config, save_cenet(cenet(config)), device="cpu")
    assert op.supported_formats == []
    with pytest.raises(ValueError, match=r"onnx: expected a model with use_ce 'pairwise' or ''.*got use_ce"):
        op.save_model("onnx", tmp_path / "model.onnx")


@pytest.mark.parametrize("side", ["video", "text", "both"])
def test_command(side, tmp_path, capsys):
    weights = write_weights(tmp_path / "w.safetensors", initial_state(SMALL, seed=5), SMALL)
    path = tmp_path / "model.onnx"
    assert main(["export", str(weights), "--to", str(path), "--side", side, "--dtype", "float16"]) == 0
    assert capsys.readouterr().out == f"{path}: {path.stat().st_size / 1e6:.1f} MB\n"
    op = CollaborativeExperts(weights_path=weights, device="cpu")
    metadata = session(path).get_modelmeta().custom_metadata_map
    assert metadata["collaborative_experts.weights"] == op.identity.weights
    assert metadata["collaborative_experts.config"] == op.identity.config
    assert (metadata["collaborative_experts.side"], metadata["collaborative_experts.dtype"]) == (side, "float16")


def test_command_of_bad_files(tmp_path, capsys):
    assert main(["export", str(tmp_path / "absent.pth"), "--to", str(tmp_path / "m.onnx")]) == 1
    assert "there is no such weights file" in capsys.readouterr().err
