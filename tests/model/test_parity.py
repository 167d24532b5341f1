"""The operator against CENet in float64: embeddings equal to 1e-6 over the whole grid."""

import warnings
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from collaborative_experts import CollaborativeExperts, similarity
from collaborative_experts.model.checkpoint import write_weights
from helpers import (
    FORMS,
    MISSING,
    ORDERS,
    SMALL,
    availability,
    cenet,
    fills,
    largest_difference,
    random_inputs,
    raw_statistics,
    run_cenet,
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_embeddings_equal_cenet(form, order, save_cenet):
    config = replace(SMALL, experts=tuple(SMALL.experts[i] for i in order), **FORMS[form])
    reference = cenet(config)
    op = CollaborativeExperts(config, save_cenet(reference), device="cpu")
    reference.double()
    for videos, captions, pattern in product((1, 8), (1, 3), MISSING):
        if captions > 1 and pattern != "some":  # a side does not know of the other
            continue
        experts, _, text = random_inputs(config, videos, captions)
        ind = availability(pattern, videos, config.expert_names)
        theirs = run_cenet(reference, experts, ind, text)
        their_text = {name: x.squeeze(1) for name, x in theirs["text_embds"].items()}
        for fill, value in fills(pattern).items():
            given = {name: x.copy() for name, x in experts.items()}
            for name, x in given.items():
                x[ind[name] == 0] = value
            worst = largest_difference(op.encode_video(given, ind).embds, theirs["vid_embds"])
            assert worst < 1e-6, f"video, B={videos} missing={pattern} fill={fill}: {worst}"
        text_embds, vid_embds = op(given, ind, text)
        case = f"B={videos} K={captions} missing={pattern}"
        assert (worst := largest_difference(text_embds, their_text)) < 1e-6, f"text, {case}: {worst}"
        assert (worst := largest_difference(vid_embds, theirs["vid_embds"])) < 1e-6, f"both, {case}: {worst}"


@pytest.mark.parametrize("form", ["pairwise", "moee", "pairwise-star"])
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("logarithm", [False, True], ids=["as they are", "by their logarithm"])
def test_raw_features_through_standardise_as_standardised_ones(form, order, logarithm, save_cenet, tmp_path):
    """What training learned of the features, stored with the weights, does the user's standardising for them."""
    config = replace(SMALL, experts=tuple(SMALL.experts[i] for i in order), **FORMS[form])
    reference = cenet(config)
    plain = CollaborativeExperts(config, save_cenet(reference), device="cpu")
    experts, _, _ = random_inputs(config, videos=8)
    ind = availability("some", 8, config.expert_names)
    rng = np.random.default_rng(3)
    state, raw = reference.state_dict(), {}
    for expert in config.experts:
        mean, std = raw_statistics(expert, rng, logarithm)
        raw[expert.name] = experts[expert.name] * std + mean
        if logarithm:
            raw[expert.name] = np.exp(raw[expert.name])
        if expert.variable:  # padding
            raw[expert.name][::2, -2:] = experts[expert.name][::2, -2:] = 0
        raw[expert.name][ind[expert.name] == 0] = np.nan
        state[f"standardise.{expert.name}.mean"], state[f"standardise.{expert.name}.std"] = map(
            torch.tensor, (mean, std)
        )
    raw_config = replace(config, standardise=True)
    raw_config = replace(raw_config, experts=tuple(replace(x, logarithm=logarithm) for x in config.experts))
    path = write_weights(tmp_path / "w.safetensors", state, raw_config)
    op = CollaborativeExperts(weights_path=path, device="cpu", modality="video")
    assert largest_difference(op(raw, ind), plain.encode_video(experts, ind).embds) < 1e-5
    with pytest.raises(ValueError, match=r"unexpected: standardise\."):
        CollaborativeExperts(config, path, device="cpu")


@pytest.mark.parametrize("form", FORMS)
def test_scores_equal_cenet(form, save_cenet):
    config = replace(SMALL, **FORMS[form])
    reference = cenet(config)
    op = CollaborativeExperts(config, save_cenet(reference), device="cpu")
    experts, _, text = random_inputs(config, 8, 3)
    ind = availability("some", 8, config.expert_names)
    theirs = run_cenet(reference, experts, ind, text)["cross_view_conf_matrix"]
    ours = similarity(op.encode_text(text), op.encode_video(experts, ind))
    assert ours.shape == (24, 8)
    assert np.abs(ours - theirs.numpy()).max() < 1e-6


def test_scores_of_single_items(small_op):
    experts, _, text = random_inputs(SMALL, 3)
    texts, videos = small_op.encode_text(text), small_op.encode_video(experts)
    scores = similarity(texts, videos)
    one_text = small_op.encode_text(text[1, 0])
    one_video = small_op.encode_video({name: x[2] for name, x in experts.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for got, wanted in (
            (similarity(one_text, videos), scores[1]),
            (similarity(texts, one_video), scores[:, 2]),
            (similarity(one_text, one_video), scores[1, 2]),
        ):
            assert got.shape == wanted.shape
            assert np.abs(got - wanted).max() < 1e-6
    for wrong in ((videos, texts), (texts.joint(), videos.joint())):
        with pytest.raises(TypeError, match="similarity: expected TextEmbeddings and VideoEmbeddings"):
            similarity(*wrong)


def test_variable_experts_of_any_name(save_cenet):
    """A name is only a name: renamed experts give the numbers of CENet's ocr and audio."""
    reference = cenet(SMALL)
    new = {"audio": "sound.vggish.0", "face": "keys", "motion": "text", "ocr": "training"}
    config = replace(SMALL, experts=tuple(replace(expert, name=new[expert.name]) for expert in SMALL.experts))
    state = {
        name.replace("pooling.audio.", f"pooling.{new['audio']}.").replace("pooling.ocr.", f"pooling.{new['ocr']}."): x
        for name, x in reference.state_dict().items()
    }
    path = save_cenet(reference, "renamed.pth")
    torch.save(state, path)
    experts, ind, text = random_inputs(SMALL, 5)
    theirs = run_cenet(reference, experts, ind, text)["vid_embds"]
    op = CollaborativeExperts(config, path, device="cpu", modality="video")
    ours = op({new[name]: x for name, x in experts.items()})
    assert largest_difference(ours, {new[name]: x for name, x in theirs.items()}) < 1e-6


def test_more_than_ten_experts_and_one():
    for count in (1, 12):
        config = {"experts": {f"e{i}": 3 + i for i in range(count)}, "text": {"dim": 8, "clusters": 2}, "shared_dim": 4}
        config["use_ce"] = "" if count == 1 else "pairwise"
        op = CollaborativeExperts(config, device="cpu")
        with pytest.warns(UserWarning, match="initial parameters"):
            text = op.encode_text(np.ones((3, 5, 8)))
        video = op.encode_video({f"e{i}": np.ones((2, 3 + i)) for i in range(count)})
        assert similarity(text, video).shape == (3, 2)
        assert np.allclose(text.weights.sum(1), 1)


@pytest.mark.parametrize("form", FORMS)
def test_video_without_any_expert(form, save_cenet):
    """Finite embeddings, score 0 to every text, and the other rows as if it were not there."""
    config = replace(SMALL, **FORMS[form])
    op = CollaborativeExperts(config, save_cenet(cenet(config)), device="cpu")
    experts, ind, text = random_inputs(config, 4)
    alone = op.encode_video(experts, ind)
    for flags in ind.values():
        flags[2] = 0
    video = op.encode_video(experts, ind)
    others = [0, 1, 3]
    for name, embd in video.embds.items():
        assert np.isfinite(embd).all()
        assert np.abs(embd[others] - alone.embds[name][others]).max() < 1e-6
    scores = similarity(op.encode_text(text), video)
    assert np.isfinite(scores).all()
    assert (scores[:, 2] == 0).all()
    assert (scores[:, others] != 0).all()
    assert (video.joint()[2] == 0).all()
