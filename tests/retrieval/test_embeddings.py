"""Scores against their definition in float64, in tiles, from any array type; explanations; what is refused."""

import importlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collaborative_experts import (
    CollaborativeExperts,
    ModelIdentity,
    TextEmbeddings,
    VideoEmbeddings,
    concatenate,
    explain,
    similarity,
    similarity_tiles,
)
from collaborative_experts.retrieval import embeddings
from helpers import SMALL, cenet, random_embeddings, random_inputs, run_cenet


def exact_scores(text, video):
    """The definition, in float64, pair by pair."""
    scores = np.zeros((len(text), len(video)))
    for t in range(len(text)):
        for v in range(len(video)):
            there = [name for m, name in enumerate(video.experts) if video.available[v, m]]
            weights = {name: float(text.weights[t, video.experts.index(name)]) for name in there}
            cosine = {name: text.embds[name][t].astype(float) @ video.embds[name][v].astype(float) for name in there}
            if there:
                scores[t, v] = sum(weights[n] * cosine[n] for n in there) / sum(weights.values())
    return scores


@settings(max_examples=60, deadline=None)
@given(
    texts=st.integers(0, 7), videos=st.integers(0, 9), experts=st.integers(1, 4), missing=st.sampled_from([0, 0.4, 1])
)
def test_scores_by_definition_in_tiles_of_any_size(texts, videos, experts, missing):
    text, video = random_embeddings(texts, videos, experts, missing=missing)
    exact = exact_scores(text, video)
    before = embeddings.TEXTS, embeddings.VIDEOS
    try:
        for embeddings.TEXTS, embeddings.VIDEOS in (before, (2, 3), (1, 1)):
            scores = similarity(text, video)
            assert scores.shape == exact.shape
            assert np.abs(scores - exact).max(initial=0) < 1e-6
            found = np.full(exact.shape, np.nan)
            for rows, columns, tile in similarity_tiles(text, video):
                assert isinstance(tile, np.ndarray)
                found[rows, columns] = tile
            assert np.array_equal(found, scores)
    finally:
        embeddings.TEXTS, embeddings.VIDEOS = before


def test_torch_numpy_and_read_only_agree():
    text, video = random_embeddings(4, 6)
    expected = similarity(text, video)
    as_torch = similarity(
        TextEmbeddings({k: torch.tensor(x) for k, x in text.embds.items()}, torch.tensor(text.weights)),
        VideoEmbeddings({k: torch.tensor(x) for k, x in video.embds.items()}, torch.tensor(video.available)),
    )
    assert isinstance(as_torch, torch.Tensor)
    assert np.array_equal(as_torch.numpy(), expected)
    for x in (*text.embds.values(), text.weights, *video.embds.values(), video.available):
        x.flags.writeable = False
    assert np.array_equal(similarity(text, video), expected)


def test_nan_where_missing_does_not_matter():
    text, video = random_embeddings(4, 6)
    expected = similarity(text, video)
    for m, name in enumerate(video.experts):
        video.embds[name][~video.available[:, m]] = np.nan
    assert np.array_equal(similarity(text, video), expected)


def test_several_captions_as_cenets_avg():
    """CENet's `merge_caption_similiarities="avg"` gives one row a video; ours is the same from K captions."""
    model = cenet(SMALL)
    experts, ind, text = random_inputs(SMALL, videos=6, captions=3)
    ind["face"] = np.array([1, 0, 1, 1, 0, 1])
    theirs = importlib.import_module(type(model).__module__).sharded_cross_view_inner_product
    exact = run_cenet(model, experts, ind, text)
    op_text, op_video = as_embeddings(exact, ind, model, text)
    expected = theirs(
        {k: x.float() for k, x in exact["vid_embds"].items()},
        {k: x.float().reshape(6, 3, -1) for k, x in exact["text_embds"].items()},
        torch.tensor(op_text.weights),
        list(SMALL.expert_names),
        l2renorm=False,
        ind={k: torch.tensor(x).float() for k, x in ind.items()},
        keep_missing_modalities=False,
        merge_caption_similiarities="avg",
    )
    scores = similarity(op_text, op_video, captions="mean")
    assert scores.shape == (6, 6)
    assert np.abs(scores - expected.numpy()).max() < 1e-6
    assert np.abs(similarity(op_text, op_video).reshape(6, 3, 6).mean(1) - scores).max() < 1e-6


def as_embeddings(exact, ind, model, text):
    tokens = torch.as_tensor(text).flatten(0, 1)
    with torch.no_grad():
        weights = model.ce.moe_fc(model.text_pooling(tokens)).softmax(1)
    texts = {k: x.float().flatten(0, -2).numpy() for k, x in exact["text_embds"].items()}
    videos = {k: x.float().numpy() for k, x in exact["vid_embds"].items()}
    available = np.stack([ind[name] == 1 for name in SMALL.expert_names], axis=1)
    return TextEmbeddings(texts, weights.numpy(), captions=3), VideoEmbeddings(videos, available)


def test_the_operator_says_how_many_captions(small_op):
    text = np.random.default_rng(0).standard_normal((2, 3, 7, 24))
    assert small_op.encode_text(text).captions == 3
    assert small_op.encode_text(text[:, 0]).captions == 1
    assert len(small_op.encode_text(text)) == 6


class TestExplain:
    def test_shares_sum_to_the_score(self):
        text, video = random_embeddings(3, 8)
        scores = similarity(text, video)
        for i in range(3):
            for j in range(8):
                found = explain(text, video, i, j)
                assert abs(found.score - scores[i, j]) < 1e-6
                assert abs(found.shares.sum() - found.score) < 1e-6
                assert (found.shares[~found.available] == 0).all()
                assert np.array_equal(found.available, video.available[j])
                assert np.array_equal(found.weights, text.weights[i])

    def test_single_items_need_no_index(self):
        text, video = random_embeddings(3, 8)
        assert explain(text[1], video[2]).score == explain(text, video, 1, 2).score

    def test_a_video_without_experts_scores_0(self):
        text, video = random_embeddings(1, 1, missing=1)
        assert explain(text, video).score == 0

    def test_prints_a_table(self):
        text, video = random_embeddings(1, 1, missing=0)
        video.available[0, 1] = False
        lines = str(explain(text, video)).splitlines()
        assert [line.split()[0] for line in lines] == ["expert", "e0", "e1", "e2", "score"]
        assert lines[2].endswith("missing")
        assert float(lines[-1].split()[1]) == pytest.approx(explain(text, video).score, abs=1e-3)

    def test_plots(self, tmp_path):
        matplotlib = pytest.importorskip("matplotlib")
        matplotlib.use("agg")
        text, video = random_embeddings(1, 1)
        found = explain(text, video)
        ax = found.plot()
        assert [bar.get_width() for bar in ax.patches] == pytest.approx(found.shares.tolist())
        ax.figure.savefig(tmp_path / "plot.png")
        assert found.plot(ax) is ax

    def test_there_must_be_such_an_item(self):
        text, video = random_embeddings(3, 8)
        with pytest.raises(IndexError, match="i: expected an index below 3, got 3"):
            explain(text, video, 3, 0)
        with pytest.raises(IndexError, match="j: expected an index below 8, got -9"):
            explain(text, video, 0, -9)


class TestConcatenate:
    def test_parts_are_as_the_whole(self):
        text, video = random_embeddings(5, 6)
        assert np.array_equal(
            similarity(concatenate([text[:2], text[2:]]), concatenate([video[:1], video[1:5], video[5:]])),
            similarity(text, video),
        )

    def test_keeps_model_and_captions(self):
        identity = ModelIdentity("{}", "1")
        text = TextEmbeddings({"a": np.ones((4, 1))}, np.ones((4, 1)), captions=2, model=identity)
        both = concatenate([text, text])
        assert (both.captions, both.model, len(both)) == (2, identity, 8)

    def test_torch(self):
        video = VideoEmbeddings({"a": torch.ones(2, 3)}, torch.ones(2, 1, dtype=torch.bool))
        assert concatenate([video, video]).joint().shape == (4, 3)

    def test_what_does_not_fit(self):
        text, video = random_embeddings(5, 6)
        others = random_embeddings(5, 6, experts=2)[1]
        with pytest.raises(ValueError, match="at least one batch"):
            concatenate([])
        with pytest.raises(TypeError, match="got TextEmbeddings, VideoEmbeddings"):
            concatenate([text, video])
        with pytest.raises(ValueError, match="same experts"):
            concatenate([video, others])
        with pytest.raises(ValueError, match="number of captions"):
            concatenate([text, TextEmbeddings(text.embds, text.weights, captions=5)])


class TestIdentity:
    def test_sides_and_formats_of_the_same_weights_agree(self, small_op, small_weights, tmp_path):
        saved = small_op.save(tmp_path / "same.safetensors")
        for same in (
            CollaborativeExperts(weights_path=saved, device="cpu"),
            CollaborativeExperts(SMALL, small_weights, device="cpu", modality="text"),
            CollaborativeExperts(SMALL, small_weights, device="cpu", dtype="bfloat16", modality="video"),
        ):
            assert same.identity == small_op.identity
        assert json.loads(small_op.identity.config) == json.loads(json.dumps(SMALL.to_dict()))

    def test_other_weights_are_not_compared(self, small_op, save_cenet):
        other = CollaborativeExperts(SMALL, save_cenet(cenet(SMALL, seed=1), "other.pth"), device="cpu")
        experts, ind, text = random_inputs(SMALL, videos=2)
        video = other.encode_video(experts, ind)
        with pytest.raises(ValueError, match=r"similarity: expected embeddings of one model, .* different weights"):
            similarity(small_op.encode_text(text), video)
        assert similarity(other.encode_text(text), video).shape == (2, 2)

    def test_other_configs_neither(self):
        text, video = random_embeddings(1, 1)
        text = TextEmbeddings(text.embds, text.weights, model=ModelIdentity("a", "1"))
        with pytest.raises(ValueError, match="different config"):
            similarity(text, VideoEmbeddings(video.embds, video.available, ModelIdentity("b", "1")))


def test_captions_is_checked():
    text, video = random_embeddings(2, 2)
    with pytest.raises(ValueError, match="captions: expected 'each' or 'mean', got 'avg'"):
        similarity(text, video, captions="avg")
