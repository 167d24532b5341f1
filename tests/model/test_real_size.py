"""The default model, of 183 M parameters: built once for all tests of it."""

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from towhee.models.collaborative_experts import create_model

from collaborative_experts import MSRVTT, CollaborativeExperts, similarity
from helpers import availability, cosines, largest_difference, random_inputs, run_cenet

HALF = {"bfloat16": 0.9995, "int8": 0.999}


@pytest.fixture(scope="module")
def op():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CollaborativeExperts(device="cpu")


@pytest.fixture(scope="module")
def saved(op, tmp_path_factory):
    path = op.save(tmp_path_factory.mktemp("default") / "default.safetensors")
    yield path
    path.unlink()  # 0.7 GB


def test_equals_cenet(op, saved, monkeypatch):
    """With CENet's own constructor, which need not draw weights as the operator's saved ones replace them."""
    with monkeypatch.context() as patch:
        for name in ("uniform_", "kaiming_uniform_"):
            patch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
        reference = create_model(device="cpu").eval()
    assert sum(p.numel() for p in reference.parameters()) == 183_448_607
    reference.load_state_dict(load_file(saved), assign=True)
    experts, _, text = random_inputs(MSRVTT, 4)
    ind = availability("some", 4, MSRVTT.expert_names)
    theirs = run_cenet(reference.double(), experts, ind, text)
    text_embds, vid_embds = op(experts, ind, text)
    assert largest_difference(text_embds, {name: x.squeeze(1) for name, x in theirs["text_embds"].items()}) < 1e-6
    assert largest_difference(vid_embds, theirs["vid_embds"]) < 1e-6


def test_reloaded(op, saved):
    video = CollaborativeExperts(weights_path=saved, device="cpu", modality="video")
    experts, ind, _ = random_inputs(MSRVTT, 2)
    assert video.config == MSRVTT
    assert largest_difference(video(experts, ind), op.encode_video(experts, ind).embds) == 0


@pytest.mark.parametrize("dtype", HALF)
def test_short_number_formats(dtype, op, saved):
    """Cosine of every embedding to float32's, and the scores of the videos for every text."""
    if dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    short = CollaborativeExperts(weights_path=saved, device="cpu", dtype=dtype)
    experts, ind, text = random_inputs(op.config, 6)  # int8 is slow on processors without VNNI
    ind["face"][::3] = ind["ocr"][1::2] = 0
    video, exact_video = short.encode_video(experts, ind), op.encode_video(experts, ind)
    captions, exact_captions = short.encode_text(text), op.encode_text(text)
    assert cosines(video.embds, exact_video.embds).min() > HALF[dtype]
    assert cosines(captions.embds, exact_captions.embds).min() > HALF[dtype]
    assert all(x.dtype == np.float32 for x in (*video.embds.values(), captions.weights))
    assert np.abs(similarity(captions, video) - similarity(exact_captions, exact_video)).max() < 5e-3
