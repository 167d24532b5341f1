"""Embeddings without a trained model: ConSE, the experts' scale, fitted weights, and what a store remembers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from collaborative_experts.retrieval.embeddings import ModelIdentity
from collaborative_experts.retrieval.similarity import similarity
from collaborative_experts.retrieval.zero_shot import (
    ZeroShot,
    ZeroShotExpert,
    combine_labels,
    prepare_zero_shot,
    with_fitted_weights,
)

ENCODER = {"name": "letters", "model": "letters", "dim": 6, "probe": []}


def rows(seed, count, dim=6):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def two_experts():
    """Of which "wide" gives cosines that differ much, and "narrow" ones that differ little."""
    experts = {
        "wide": ZeroShotExpert("labels", "sentences", {"class": "a:A"}),
        "narrow": ZeroShotExpert("tower", "model", {"class": "b:B"}),
    }
    bank = {"sentences": rows(0, 50), "model": rows(1, 50) + 2}
    narrow = 0.05 * rows(3, 40)
    narrow[:, :3] += 1
    vectors = {"wide": rows(2, 40), "narrow": narrow}
    vectors["narrow"][7] = np.nan
    return experts, bank, vectors


def prepared():
    experts, bank, vectors = two_experts()
    return prepare_zero_shot(experts, ENCODER, bank, vectors), bank, vectors


def test_conse_is_the_weighted_mean_of_the_ten_best_labels():
    embeddings = {f"class{i}": np.eye(12)[i] for i in range(12)}
    scores = [0.3, 0.2, 0.1, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01, 0.005]
    labels = list(embeddings)
    found = combine_labels([labels, None, labels[:1]], [scores, None, [0.25]], embeddings, 12)
    expected = np.array([*scores[:10], 0, 0]) / sum(scores[:10])
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[2], np.eye(12)[0])
    assert combine_labels([None], [None], {}, 12).shape == (1, 12)


def test_scores_of_all_experts_have_one_spread():
    zero_shot, bank, vectors = prepared()
    text, video = zero_shot.embed_texts(bank), zero_shot.embed_videos(vectors)
    assert not video.available[7, 1]
    assert video.available.sum() == 79
    spreads = {}
    for m, name in enumerate(video.experts):
        spreads[name] = (text.embds[name] @ video.embds[name][video.available[:, m]].T).std()
        np.testing.assert_allclose(np.linalg.norm(video.embds[name][video.available[:, m]], axis=1), 1, rtol=1e-5)
    assert spreads["wide"] == pytest.approx(spreads["narrow"], rel=1e-2)
    assert zero_shot.experts["wide"].spread != pytest.approx(zero_shot.experts["narrow"].spread, rel=1e-2)
    np.testing.assert_allclose(text.weights, 0.5)


def test_an_expert_that_no_video_has_yet_gets_the_scale_of_the_others():
    experts, bank, vectors = two_experts()
    names = list(experts)
    found = prepare_zero_shot(experts, ENCODER, bank, vectors | {names[1]: np.full_like(vectors[names[1]], np.nan)})
    assert found.experts[names[1]].spread == found.experts[names[0]].spread < 1
    assert not np.any(found.experts[names[1]].centre)


def test_a_video_is_not_found_because_of_its_experts():
    """Sentences of the bank lie nearer to all videos of one expert, and videos without it rank no lower for that."""
    zero_shot, bank, vectors = prepared()
    vectors = {"wide": vectors["wide"], "narrow": np.where(np.arange(40)[:, None] < 20, vectors["narrow"], np.nan)}
    scores = similarity(zero_shot.embed_texts(bank), zero_shot.embed_videos(vectors))
    spread = scores.std()
    assert abs(scores[:, :20].mean() - scores[:, 20:].mean()) < 0.3 * spread
    assert np.abs(scores[:, :20].mean(1) - scores[:, 20:].mean(1)).mean() < spread


def test_few_videos_keep_their_embeddings():
    expert = {"words": ZeroShotExpert("words", "sentences", {})}
    for count in (1, 3):
        vectors = {"words": np.ones((count, 6))}
        zero_shot = prepare_zero_shot(expert, ENCODER, {"sentences": rows(0, 9)}, vectors)
        video = zero_shot.embed_videos(vectors)
        assert video.available.all()
        np.testing.assert_allclose(video.embds["words"], 6**-0.5, rtol=1e-3)


def test_what_all_sentences_share_ranks_no_video():
    """The bank's mean points to the first axis, and a video there is no better for it."""
    expert = {"words": ZeroShotExpert("words", "sentences", {})}
    shared = np.array([5.0, 0, 0])
    bank = {"sentences": shared + np.array([[0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])}
    vectors = {"words": np.array([[1.0, 0, 0], [0, 1.0, 0], [0.9, 0, 0.4]])}
    zero_shot = prepare_zero_shot(expert, ENCODER, bank, vectors)
    scores = similarity(zero_shot.embed_texts({"sentences": np.array([[5.0, 1, 0]])}), zero_shot.embed_videos(vectors))
    assert scores[0].argmax() == 1
    assert scores[0, 1] > scores[0, 0] + 0.5


def test_a_store_remembers_all_of_it():
    zero_shot, bank, _ = prepared()
    identity = zero_shot.identity
    again = ZeroShot.from_identity(ModelIdentity(**json.loads(json.dumps(vars(identity)))))
    assert again is not None
    assert again.identity == identity
    assert list(again.experts) == ["wide", "narrow"]
    np.testing.assert_array_equal(again.embed_texts(bank).embds["wide"], zero_shot.embed_texts(bank).embds["wide"])
    assert "zero_shot" in identity.config
    assert identity.weights.startswith("zero-shot-")
    assert ZeroShot.from_identity(None) is None
    assert ZeroShot.from_identity(ModelIdentity('{"experts": {}}', "abc")) is None


def test_another_scale_is_another_model():
    zero_shot, bank, vectors = prepared()
    other = prepare_zero_shot(zero_shot.experts, ENCODER, bank, vectors | {"wide": vectors["wide"] + 1})
    with pytest.raises(ValueError, match="one model"):
        similarity(zero_shot.embed_texts(bank), other.embed_videos(vectors))


def test_weights_are_fitted_to_the_expert_that_tells_videos_apart():
    experts, bank, vectors = two_experts()
    zero_shot = prepare_zero_shot(experts, ENCODER, bank, vectors)
    video = zero_shot.embed_videos(vectors)
    targets = np.arange(40).repeat(2)
    sentences = {"sentences": vectors["wide"][targets] + 0.3 * rows(5, 80), "model": rows(6, 80)}
    fitted = with_fitted_weights(zero_shot, zero_shot.embed_texts(sentences), video, targets)
    assert fitted.experts["wide"].weight > 0.9
    assert sum(x.weight for x in fitted.experts.values()) == pytest.approx(1, abs=1e-4)
    assert fitted.identity != zero_shot.identity
    video.embds["narrow"][7] = np.nan  # which it lacks
    again = with_fitted_weights(zero_shot, zero_shot.embed_texts(sentences), video, targets)
    assert again.identity == fitted.identity
    before, after = (
        (similarity(x.embed_texts(sentences), x.embed_videos(vectors)).argmax(1) == targets).mean()
        for x in (zero_shot, fitted)
    )
    assert after > before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_weights_are_fitted_whatever_mode_the_caller_is_in(mode):
    experts, bank, vectors = two_experts()
    zero_shot = prepare_zero_shot(experts, ENCODER, bank, vectors)
    sentences = {"sentences": rows(5, 40), "model": rows(6, 40)}
    text, video, targets = zero_shot.embed_texts(sentences), zero_shot.embed_videos(vectors), np.arange(40)
    expected = with_fitted_weights(zero_shot, text, video, targets)
    with mode():
        text, video = (
            replace(x, embds={name: torch.tensor(embd) for name, embd in x.embds.items()}, **{key: torch.tensor(value)})
            for x, key, value in ((text, "weights", text.weights), (video, "available", video.available))
        )
        assert with_fitted_weights(zero_shot, text, video, targets) == expected
    assert with_fitted_weights(zero_shot, text, video, targets) == expected  # of what was made in it


def test_weights_are_fitted_whatever_the_callers_defaults(other_defaults):
    experts, bank, vectors = two_experts()
    zero_shot = prepare_zero_shot(experts, ENCODER, bank, vectors)
    text = zero_shot.embed_texts({"sentences": rows(5, 40), "model": rows(6, 40)})
    expected = with_fitted_weights(zero_shot, text, zero_shot.embed_videos(vectors), np.arange(40))
    with other_defaults():
        assert with_fitted_weights(zero_shot, text, zero_shot.embed_videos(vectors), np.arange(40)) == expected


def test_weights_are_not_fitted_to_videos_that_are_not_there():
    experts, bank, vectors = two_experts()
    zero_shot = prepare_zero_shot(experts, ENCODER, bank, vectors)
    text = zero_shot.embed_texts({"sentences": rows(5, 40), "model": rows(6, 40)})
    with pytest.raises(ValueError, match="targets, row 39: expected 0 to 39, got 40"):
        with_fitted_weights(zero_shot, text, zero_shot.embed_videos(vectors), [*range(39), 40])


def test_the_weight_of_one_expert_is_one_whatever_the_captions():
    experts = {"only": ZeroShotExpert("labels", "sentences", {"class": "a:A"})}
    bank, vectors = {"sentences": rows(0, 50)}, {"only": rows(2, 1)}
    zero_shot = prepare_zero_shot(experts, ENCODER, bank, vectors)
    text = zero_shot.embed_texts({"sentences": rows(3, 1)})
    fitted = with_fitted_weights(zero_shot, text, zero_shot.embed_videos(vectors), [0])
    assert fitted.experts["only"].weight == 1
