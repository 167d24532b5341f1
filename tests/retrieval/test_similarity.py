"""Scores against their definition in float64, in tiles, from any array type."""

import importlib
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collaborative_experts import TextEmbeddings, VideoEmbeddings, evaluate, explain, similarity, similarity_tiles
from collaborative_experts.retrieval import similarity as module
from helpers import SMALL, cenet, exact_scores, random_embeddings, random_inputs, run_cenet


@settings(max_examples=60, deadline=None)
@given(
    texts=st.integers(0, 7), videos=st.integers(0, 9), experts=st.integers(1, 4), missing=st.sampled_from([0, 0.4, 1])
)
def test_scores_by_definition_in_tiles_of_any_size(texts, videos, experts, missing):
    text, video = random_embeddings(texts, videos, experts, missing=missing)
    exact = exact_scores(text, video)
    before = module.TEXTS, module.VIDEOS
    try:
        for module.TEXTS, module.VIDEOS in (before, (2, 3), (1, 1)):
            scores = similarity(text, video)
            assert scores.shape == exact.shape
            assert np.abs(scores - exact).max(initial=0) < 1e-6
            from_tiles = np.full(exact.shape, np.nan)
            for rows, columns, tile in similarity_tiles(text, video):
                assert isinstance(tile, np.ndarray)
                from_tiles[rows, columns] = tile
            assert np.array_equal(from_tiles, scores)
    finally:
        module.TEXTS, module.VIDEOS = before


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
    return TextEmbeddings(texts, weights.numpy(), captions_per_video=3), VideoEmbeddings(videos, available)


def test_captions_is_checked():
    text, video = random_embeddings(2, 2)
    with pytest.raises(ValueError, match="captions: expected 'each' or 'mean', got 'avg'"):
        similarity(text, video, captions="avg")


FORMS = {
    "lists": lambda x: x.tolist(),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "float64": lambda x: x.astype(np.float64),
    "extended precision": lambda x: x.astype(np.longdouble),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "column-major": np.asfortranarray,
    "every second number": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed twice": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "packed records": lambda x: as_record_field(x),
    "tensors with gradients": lambda x: torch.tensor(x, requires_grad=x.dtype == np.float32),
    "bfloat16": lambda x: torch.tensor(x).bfloat16() if x.dtype == np.float32 else torch.tensor(x),
}
"""Forms in which arrays of float32 and of bool may come."""


def as_record_field(x):
    """The numbers as a field of packed records, whose distance is no multiple of their size."""
    records = np.zeros(x.shape, dtype=[("number", x.dtype), ("flag", "u1")])
    records["number"] = x
    return records["number"]


@pytest.fixture
def _every_warning():
    """PyTorch warns each time, not only the first time in this process."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("_every_warning")
@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_arrays(form):
    """Right scores, figures and explanations, and no warning, however the arrays come."""
    text, video = random_embeddings(6, 3)
    expected = similarity(text, video)
    convert = FORMS[form]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = TextEmbeddings({k: convert(x) for k, x in text.embds.items()}, convert(text.weights))
        videos = VideoEmbeddings({k: convert(x) for k, x in video.embds.items()}, convert(video.available))
        scores = similarity(texts, videos)
        evaluate(texts, videos)
        assert explain(texts, videos, 4, 2).score == pytest.approx(expected[4, 2], abs=2e-2)
        assert texts.joint().shape == (6, 15)
    assert np.abs(np.asarray(scores) - expected).max() < (1e-6 if form != "bfloat16" else 2e-2)


def test_numpy_settings_of_the_caller_do_not_count():
    """Numbers in lists that are too small for float32 are 0."""
    with np.errstate(all="raise"):
        text = TextEmbeddings({"a": [[1.0, 1e-310]]}, weights=[[1.0]])
        video = VideoEmbeddings({"a": [[0.5, 1.0]]}, available=[[1]])
        assert similarity(text, video).tolist() == [[0.5]]


def test_one_number_of_a_packed_record():
    """Aligned, and yet at a distance that PyTorch refuses."""
    number = as_record_field(np.ones((1, 1), dtype=np.float32))
    assert similarity(TextEmbeddings({"a": number}, number), VideoEmbeddings({"a": number}, number)).tolist() == [[1]]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", ">i2", "uint16", "uint32", "uint64"])
def test_integers(dtype):
    ones = np.array([[1, 2], [3, 4]], dtype=dtype)
    flags = np.ones((2, 1), dtype=dtype)
    for convert in (np.asarray, lambda x: torch.tensor(x.astype(x.dtype.newbyteorder("=")))):
        text, video = TextEmbeddings({"a": convert(ones)}, convert(flags)), VideoEmbeddings({"a": ones}, flags)
        assert np.asarray(similarity(text, video)).tolist() == [[5, 11], [11, 25]]


def test_read_only_memory_is_not_written(tmp_path):
    """A mapped file would make a write crash; its content stays and so does the array's flag."""
    text, video = random_embeddings(4, 6)
    np.save(tmp_path / "embeddings.npy", video.embds["e0"])
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    videos = VideoEmbeddings({**video.embds, "e0": mapped}, video.available)
    assert np.array_equal(similarity(text, videos), similarity(text, video))
    assert not mapped.flags.writeable


def test_dimensions_must_agree():
    text, video = random_embeddings(2, 2)
    wider = VideoEmbeddings({**video.embds, "e1": np.ones((2, 6))}, video.available)
    with pytest.raises(ValueError, match=r"similarity: expert 'e1': expected .* same dimension, got 5 and 6"):
        similarity(text, wider)


def test_mean_over_no_texts():
    text, video = random_embeddings(6, 3)
    text = TextEmbeddings(text.embds, text.weights, captions_per_video=2)[:0]
    assert similarity(text, video, captions="mean").shape == (0, 3)
