"""The operator itself: constructor, devices, weights folder, both sides, threads, Towhee's conventions."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from towhee import AutoConfig, DataCollection, ops, pipe
from towhee.operator import NNOperator, SharedType
from towhee.runtime.runtime_conf import set_runtime_config

import collaborative_experts as package
from collaborative_experts import CollaborativeExperts, similarity
from collaborative_experts.hub.device import resolve_device
from collaborative_experts.hub.weights_folder import DEFAULT_WEIGHTS, find_weights
from collaborative_experts.model.cenet import initial_state
from helpers import SMALL, cenet, largest_difference, random_inputs

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


# --- constructor --------------------------------------------------------------------------------------


def test_arguments_in_the_hubs_order(small_weights):
    op = package.collaborative_experts(SMALL.to_dict(), small_weights, "cpu")
    assert (op.config, op.weights_path, op.device.type) == (SMALL, small_weights, "cpu")
    assert (op.modality, op.output, op.dtype) == (None, "experts", "float32")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modality": "audio"}, "modality: expected one of None, 'video', 'text', got 'audio'"),
        ({"output": "dict"}, "output: expected one of 'experts', 'vector', 'embeddings', got 'dict'"),
        ({"dtype": "float8"}, "dtype: expected one of 'float32', 'bfloat16', 'float16', 'int8', got 'float8'"),
        ({"dtype": "float16", "device": "cpu"}, "dtype: 'float16' is not for cpu; use 'float32' or 'bfloat16'"),
        ({"device": "gpu"}, "device: expected 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        ({"device": "meta"}, "device: expected 'cpu', 'cuda' or 'cuda:N', got 'meta'"),
        ({"device": np.array(["cpu"] * 2)}, "device: expected 'cpu', 'cuda' or 'cuda:N', got array"),
        ({"modality": np.array(["video", "text"])}, "modality: expected one of None, 'video', 'text', got ndarray"),
        ({"output": np.array(["vector"] * 2)}, "output: expected one of .*, got ndarray"),
        ({"dtype": np.array(["int8"] * 2)}, "dtype: expected one of .*, got ndarray"),
        ({"weights_path": 5}, "weights_path: expected the path of a file, or None, got int"),
        ({"weights_path": b"a.pth"}, "weights_path: expected the path of a file, or None, got bytes"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        CollaborativeExperts(SMALL, **arguments)


def test_a_file_that_does_not_fit_leaves_no_operator(small_weights):
    with pytest.raises(ValueError, match="these weights are not of this config's model"):
        CollaborativeExperts({"experts": {"a": 3, "b": 4}}, small_weights)


# --- devices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "device", "placement", "expected"),
    [
        (0, None, -1, "cpu"),
        (2, None, -1, "cuda"),
        (2, None, 1, "cuda:1"),
        (2, "cpu", 1, "cpu"),
        (2, "cuda:1", 0, "cuda:1"),
        (2, torch.device("cuda", 1), -1, "cuda:1"),
        (0, "cuda", -1, "'cuda' asked for, but PyTorch finds 0 CUDA"),
        (2, "cuda:2", -1, "'cuda:2' asked for, but PyTorch finds 2 CUDA"),
        (0, None, 0, "'cuda:0' asked for, but PyTorch finds 0 CUDA"),
        (0, 1, -1, "device: expected 'cpu', 'cuda' or 'cuda:N', got 1"),
    ],
)
def test_device_resolution(gpus, device, placement, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if " " in expected:
        with pytest.raises((ValueError, TypeError), match=expected):
            resolve_device(device, placement)
    else:
        assert str(resolve_device(device, placement)) == expected


def test_a_pipelines_placement_is_honoured(small_weights, monkeypatch):
    """AutoConfig.LocalGPUConfig reaches the operator; without that GPU it is an error, not a silent CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    node = SimpleNamespace(device=1, acc_info=None)  # what a pipeline makes of LocalGPUConfig(device=1)
    assert AutoConfig.LocalGPUConfig(device=1).config["device"] == node.device
    with set_runtime_config(node), pytest.raises(ValueError, match="'cuda:1' asked for"):
        CollaborativeExperts(SMALL, small_weights)


@needs_cuda
def test_cuda_gives_the_same_numbers(small_op, small_weights):
    op = CollaborativeExperts(SMALL, small_weights, device="cuda")
    experts, ind, text = random_inputs(SMALL, 4)
    ind["face"][1] = 0
    expected, got = small_op(experts, ind, text), op(experts, ind, text)
    assert largest_difference(got[0], expected[0]) < 1e-5
    assert largest_difference(got[1], expected[1]) < 1e-5
    text_embds, _ = op({k: torch.tensor(x) for k, x in experts.items()}, ind, torch.tensor(text, device="cuda"))
    assert text_embds["face"].device.type == "cuda"


@pytest.mark.filterwarnings("ignore:.*seeded initial parameters")
def test_the_callers_defaults_change_nothing(other_defaults, small_weights):
    """Neither the initial parameters nor those of a file; standardised features and lists, too."""

    def embed(config, weights=None):
        op = CollaborativeExperts(config, weights, device="cpu")
        experts, _, text = random_inputs(config, 3)
        experts["face"][1] = np.nan
        lists = op({name: list(x) for name, x in experts.items()}, None, list(text))
        return op.identity, *op(experts, None, text), *lists, op.encode_video({"face": experts["face"]}).embds

    models = ((SMALL, small_weights), (SMALL,), (replace(SMALL, standardise=True, use_ce="pairwise-star"),))
    for model in models:
        identity, *expected = embed(*model)
        with other_defaults():
            other, *got = embed(*model)
        assert other == identity
        assert [largest_difference(*pair) for pair in zip(got, expected, strict=True)] == [0] * 5


# --- weights ------------------------------------------------------------------------------------------


def test_initial_parameters_are_the_same_everywhere():
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    op, other, text_op, video_op = (
        CollaborativeExperts(SMALL, device="cpu", modality=m) for m in (None, None, "text", "video")
    )
    assert (torch.random.get_rng_state() == before).all()
    assert not op.pretrained
    experts, ind, text = random_inputs(SMALL, 3)
    expected = op(experts, ind, text)
    for text_embds, vid_embds in (other(experts, ind, text), (text_op(text), video_op(experts, ind))):
        assert largest_difference(text_embds, expected[0]) == largest_difference(vid_embds, expected[1]) == 0


@pytest.mark.parametrize(("config", "remedy"), [(SMALL, "train it, or pass weights_path"), (None, "fetch.py")])
def test_untrained_embeddings_are_warned_of_once(config, remedy, monkeypatch, tmp_path):
    """Not where an operator is made, which may be in order to train it; the fetch is of use for its model only."""
    monkeypatch.setattr(find_weights, "__defaults__", (tmp_path,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op = CollaborativeExperts(config, device="cpu", modality="text")
    text = np.ones((2, 5, op.config.text.dim), np.float32)

    def embed_twice():
        op(text)
        op.encode_text(text)

    with pytest.warns(UserWarning, match=f"seeded initial parameters.*{remedy}") as caught:
        embed_twice()
    assert len(caught) == 1


def test_initial_parameters_do_not_depend_on_threads():
    expected = initial_state(SMALL)
    with ThreadPoolExecutor(4) as pool:
        for state in pool.map(lambda _: initial_state(SMALL), range(16)):
            assert all(torch.equal(state[name], x) for name, x in expected.items())


def test_initial_parameters_have_cenets_distribution():
    state, reference = initial_state(SMALL), cenet(SMALL).state_dict()
    assert {name: x.shape for name, x in state.items()} == {name: x.shape for name, x in reference.items()}
    weight = state["ce.video_dim_reduce.3.fc.weight"]
    assert weight.abs().max() <= 900**-0.5
    assert abs(weight.std() / reference["ce.video_dim_reduce.3.fc.weight"].std() - 1) < 0.02
    assert abs(state["pooling.ocr.clusters"].std() * 300**0.5 - 1) < 0.1


def test_the_weights_folder(small_op, tmp_path):
    assert find_weights(None, tmp_path) is None
    assert find_weights(SMALL, tmp_path / "absent") is None
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.warns(UserWarning, match=r"passed over: .*junk.safetensors: not a complete safetensors file"):
        assert find_weights(SMALL, tmp_path) is None
    (tmp_path / "junk.safetensors").unlink()
    own = small_op.save(tmp_path / "own.safetensors")
    assert find_weights(None, tmp_path) == own
    assert find_weights(SMALL, tmp_path) == own
    assert find_weights(package.MSRVTT, tmp_path) is None
    small_op.save(tmp_path / "second.safetensors")
    with pytest.raises(ValueError, match=r"several files that fit \(own.safetensors, second.safetensors\); name one"):
        find_weights(SMALL, tmp_path)
    small_op.save(tmp_path / DEFAULT_WEIGHTS)
    assert find_weights(None, tmp_path).name == DEFAULT_WEIGHTS


# --- sides and outputs --------------------------------------------------------------------------------


def test_one_side_alone(small_op, small_weights):
    experts, ind, text = random_inputs(SMALL, 4, captions=3)
    text_embds, vid_embds = small_op(experts, ind, text)
    video = CollaborativeExperts(SMALL, small_weights, device="cpu", modality="video")
    captions = CollaborativeExperts(SMALL, small_weights, device="cpu", modality="text")
    assert largest_difference(video(experts, ind), vid_embds) < 1e-6
    assert largest_difference(video(experts=experts), vid_embds) < 1e-6
    assert largest_difference(captions(text), text_embds) < 1e-6


def test_each_side_holds_its_own_weights_only():
    both, video, text = (set(initial_state(SMALL, side)) for side in (None, "video", "text"))
    assert video | text == both
    assert not video & text


def test_vector_output_is_the_joint_embedding(small_weights):
    op = CollaborativeExperts(SMALL, small_weights, device="cpu", output="vector")
    experts, ind, text = random_inputs(SMALL, 4, captions=2)
    ind["face"] = np.array([1, 0, 1, 0])
    text_vector, video_vector = op(experts, ind, text)
    assert text_vector.shape == (4, 2, 64)
    assert video_vector.shape == (4, 64)
    texts, videos = op.encode_text(text), op.encode_video(experts, ind)
    total = texts.weights @ videos.available.T
    assert np.abs(text_vector.reshape(8, 64) @ video_vector.T - similarity(texts, videos) * total).max() < 1e-6
    one = op({k: x[0] for k, x in experts.items()}, None, text[0, 0])
    assert [x.shape for x in one] == [(64,), (64,)]


def test_eight_threads_on_one_instance(small_op):
    batches = [random_inputs(SMALL, 1 + seed % 5, seed=seed) for seed in range(64)]
    expected = [small_op(*batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda batch: small_op(*batch), batches))
    for ours, wanted in zip(got, expected, strict=True):
        assert largest_difference(ours[0], wanted[0]) == largest_difference(ours[1], wanted[1]) == 0


# --- sentences ----------------------------------------------------------------------------------------


class Counted:
    """An encoder of the user's own: each word is its length; `form` is what it makes of its arrays."""

    name, dim = "counted", SMALL.text.dim

    def __init__(self, form=list):
        self.form = form

    def __call__(self, sentences):
        lengths = [[len(word) for word in sentence.split()] for sentence in sentences]
        return self.form([np.repeat(np.float32(x)[:, None], self.dim, axis=1) for x in lengths])


@pytest.mark.parametrize(
    "form",
    [
        lambda arrays: [torch.from_numpy(x).bfloat16().requires_grad_() for x in arrays],
        lambda arrays: torch.from_numpy(np.stack(arrays)),
        lambda arrays: (x.tolist() for x in arrays),
    ],
)
def test_an_encoder_of_ones_own(form, small_op):
    sentences = ["a dog runs", "two cats sleep"]
    expected = small_op.encode_sentences(sentences, Counted())
    assert largest_difference(small_op.encode_sentences(sentences, Counted(form)).embds, expected.embds) == 0
    one = small_op.encode_sentences(sentences[1], Counted(form))
    assert largest_difference(one.embds, expected[1].embds) < 1e-6


def test_equal_sentences_have_equal_embeddings(small_op):
    """They are ties, which a figure is the mean over; what an encoder gives depends on the batch in the last digits."""

    def by_place(arrays):
        return [x * np.float32(1 + 1e-4 * place) for place, x in enumerate(arrays)]

    order = [0, 1, 2, 1, 0, 2, 2]
    sentences = [("a dog runs", "two cats sleep", "nothing")[k] for k in order]
    found = small_op.encode_sentences(sentences, Counted(by_place))
    expected = small_op.encode_sentences(sentences[:3], Counted(by_place))
    assert largest_difference(found.embds, expected[order].embds) == 0
    np.testing.assert_array_equal(found.weights, expected.weights[order])


@pytest.mark.parametrize("sentences", [None, 5, b"a dog", [b"a dog"], ["a dog", None], np.array("a dog")])
def test_what_is_no_sentence(sentences, small_op):
    with pytest.raises(TypeError, match="sentences: expected text or a list of texts, got"):
        small_op.encode_sentences(sentences, Counted())


def test_errors_of_the_callers_sentences_are_the_callers(small_op):
    with pytest.raises(TypeError, match="unsupported operand"):
        small_op.encode_sentences(("a dog" + str(row + None) for row in range(2)), Counted())


def test_a_function_is_no_encoder(small_op):
    with pytest.raises(TypeError, match="encoder: expected a callable with `name` and `dim`, got function"):
        small_op.encode_sentences(["a dog"], lambda sentences: [np.ones((1, SMALL.text.dim))] * len(sentences))


def test_an_encoder_that_loses_sentences_is_refused(small_op):
    with pytest.raises(ValueError, match="encoder counted: expected 2 arrays, got 1"):
        small_op.encode_sentences(["a dog", "two cats"], Counted(lambda arrays: arrays[1:]))


# --- Towhee -------------------------------------------------------------------------------------------


def test_conventions(small_op):
    assert isinstance(small_op, NNOperator)
    assert small_op.shared_type == SharedType.Shareable
    assert CollaborativeExperts.supported_model_names() == ["msrvtt-train-full-ce"]
    assert CollaborativeExperts.supported_model_names(format="onnx") == ["msrvtt-train-full-ce"]
    assert small_op.supported_formats == ["onnx"]
    assert package.collaborative_experts.__module__ == "collaborative_experts"


def test_registry_and_pipelines_of_one_side(small_weights):
    """After `import collaborative_experts` the name resolves without the hub's cache."""
    experts, ind, text = random_inputs(SMALL, 3, captions=2)
    settings = {"config": SMALL.to_dict(), "weights_path": str(small_weights), "device": "cpu"}
    both = (
        pipe.input("experts", "ind", "text")
        .map(
            ("experts", "ind", "text"),
            ("text_embds", "vid_embds"),
            ops.video_text_embedding.collaborative_experts(**settings),
        )
        .output("text_embds", "vid_embds")
    )
    text_embds, vid_embds = both(experts, ind, text).get()
    video = (
        pipe.input("experts", "ind")
        .map(("experts", "ind"), "vec", ops.video_text_embedding.collaborative_experts(**settings, modality="video"))
        .output("vec")
    )
    captions = (
        pipe.input("text")
        .map("text", "vec", ops.video_text_embedding.collaborative_experts(**settings, modality="text"))
        .output("vec")
    )
    assert largest_difference(video(experts, ind).get()[0], vid_embds) < 1e-6
    assert largest_difference(captions(text).get()[0], text_embds) < 1e-6
    for side, inputs, shape in (("video", (experts,), (3, 64)), ("text", (text,), (3, 2, 64))):
        op = ops.video_text_embedding.collaborative_experts(**settings, modality=side, output="vector")
        vectors = pipe.input("x").map("x", "vec", op).output("vec")
        assert vectors(*inputs).get()[0].shape == shape
    DataCollection(both(experts, ind, text)).show()
