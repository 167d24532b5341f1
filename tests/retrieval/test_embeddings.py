"""Embeddings: checked when they are made, sliced, concatenated, printed; made by one model or another."""

import json

import numpy as np
import pytest
import torch

from collaborative_experts import (
    CollaborativeExperts,
    ModelIdentity,
    TextEmbeddings,
    VideoEmbeddings,
    concatenate,
    evaluate,
    similarity,
)
from helpers import SMALL, cenet, random_embeddings, random_inputs


def test_the_operator_says_how_many_captions(small_op):
    text = np.random.default_rng(0).standard_normal((2, 3, 7, 24))
    assert small_op.encode_text(text).captions_per_video == 3
    assert small_op.encode_text(text[:, 0]).captions_per_video == 1
    assert len(small_op.encode_text(text)) == 6


class TestConcatenate:
    def test_parts_are_as_the_whole(self):
        text, video = random_embeddings(5, 6)
        assert np.array_equal(
            similarity(concatenate([text[:2], text[2:]]), concatenate([video[:1], video[1:5], video[5:]])),
            similarity(text, video),
        )

    def test_keeps_model_and_captions(self):
        identity = ModelIdentity("{}", "1")
        text = TextEmbeddings({"a": np.ones((4, 1))}, np.ones((4, 1)), captions_per_video=2, model=identity)
        both = concatenate([text, text])
        assert (both.captions_per_video, both.model, len(both)) == (2, identity, 8)

    def test_no_texts_fit_any_number_of_captions(self):
        text, _ = random_embeddings(4, 4)
        pairs = TextEmbeddings(text.embds, text.weights, captions_per_video=2)
        for parts in ([pairs, text[:0]], [text[:0], pairs]):
            both = concatenate(parts)
            assert (len(both), both.captions_per_video) == (4, 2)
        assert concatenate([pairs[:0], text]).captions_per_video == 1
        assert concatenate([pairs[:0], text[:0]]).captions_per_video == 2

    def test_captions_of_numpy(self):
        text = TextEmbeddings({"a": np.ones((4, 1))}, np.ones((4, 1)), captions_per_video=np.int64(2))
        assert type(text.captions_per_video) is int

    def test_torch(self):
        video = VideoEmbeddings({"a": torch.ones(2, 3)}, torch.ones(2, 1, dtype=torch.bool))
        assert concatenate([video, video]).joint().shape == (4, 3)

    def test_single_items(self):
        text, video = random_embeddings(2, 2)
        assert np.array_equal(similarity(text, concatenate([video[0], video[1]])), similarity(text, video))
        assert len(concatenate([text[0], text])) == 3

    def test_what_does_not_fit(self):
        text, video = random_embeddings(5, 6)
        others = random_embeddings(5, 6, experts=2)[1]
        with pytest.raises(ValueError, match="at least one batch"):
            concatenate([])
        with pytest.raises(TypeError, match="got TextEmbeddings, VideoEmbeddings"):
            concatenate([text, video])
        with pytest.raises(TypeError, match=r"concatenate: expected VideoEmbeddings only, .* got int"):
            concatenate(5)
        as_torch = VideoEmbeddings({k: torch.tensor(x) for k, x in video.embds.items()}, torch.tensor(video.available))
        with pytest.raises(TypeError, match="concatenate: expected NumPy arrays only, or tensors only, got both"):
            concatenate([video, as_torch])
        wider = VideoEmbeddings({k: np.ones((1, 7)) for k in video.experts}, video.available[:1])
        with pytest.raises(ValueError, match=r"concatenate: expert 'e0': .* same dimension, got 5 and 7"):
            concatenate([video, wider])
        with pytest.raises(ValueError, match="same experts"):
            concatenate([video, others])
        with pytest.raises(ValueError, match="number of captions"):
            concatenate([text, TextEmbeddings(text.embds, text.weights, captions_per_video=5)])


MASKED = np.ma.MaskedArray([[1.0], [1.0]], [[False], [True]])


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: VideoEmbeddings({"a": MASKED}, [[1], [1]]), r"embds\['a'\]"),
        (lambda: VideoEmbeddings({"a": list(MASKED)}, [[1], [1]]), r"embds\['a'\]"),
        (lambda: VideoEmbeddings({"a": [[1.0], [1.0]]}, MASKED), "available"),
        (lambda: TextEmbeddings({"a": [[1.0], [1.0]]}, MASKED), "weights"),
        (lambda: VideoEmbeddings({"a": [[1.0], [1.0]]}, [[1], [1]])[np.ma.MaskedArray([0, 1], [0, 1])], "rows"),
    ],
)
def test_a_mask_is_not_passed_over(make, where):
    with pytest.raises(TypeError, match=f"{where}: expected an array, got a masked one; fill it, or leave out"):
        make()


def test_arrays_of_arrays_are_passed_as_lists():
    rows = np.empty(2, dtype=object)
    rows[:] = [np.ones(3), np.ones(3)]
    with pytest.raises(TypeError, match=r"embds\['a'\]: expected real numbers, got ndarray; pass list\(x\)"):
        VideoEmbeddings({"a": rows}, [[1], [1]])
    assert VideoEmbeddings({"a": list(rows)}, [[1], [1]]).embds["a"].shape == (2, 3)


class TestIdentity:
    def test_sides_and_formats_of_the_same_weights_agree(self, small_op, small_weights, tmp_path):
        saved = small_op.save(tmp_path / "same.safetensors")
        for same in (
            CollaborativeExperts(weights_path=saved, device="cpu"),
            CollaborativeExperts(SMALL, small_weights, device="cpu", modality="text"),
            CollaborativeExperts(SMALL, small_weights, device="cpu", dtype="int8", modality="video"),
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


def grouped(videos=4, count=3):
    text, _ = random_embeddings(videos * count, 1)
    return TextEmbeddings(text.embds, text.weights, captions_per_video=count)


class TestRows:
    @pytest.mark.parametrize(
        ("rows", "count"),
        [
            (slice(None), 3),
            (slice(3, 9), 3),
            ([6, 7, 8, 0, 1, 2], 3),
            ([5, 3, 4], 3),
            (np.repeat([True, False, True, False], 3), 3),
            (slice(0, 0), 3),
            ([], 3),
            (slice(None, None, -1), 3),
            (slice(None, None, 3), 1),  # one caption of each video
            (slice(1, 4), 1),  # as many as a video has, but of two
            (slice(0, 4), 1),
            ([0, 0, 1], 1),
            ([0, 1, 3, 2, 4, 5], 1),
            (np.arange(12) != 5, 1),
            (5, 1),
            (-1, 1),
        ],
    )
    @pytest.mark.parametrize("as_torch", [False, True])
    def test_captions_per_video_are_kept_for_whole_videos(self, rows, count, as_torch):
        text = grouped()
        expected = text.embds["e1"][np.array(rows, dtype=int) if isinstance(rows, list) else rows]
        if as_torch:
            text = TextEmbeddings({k: torch.tensor(x) for k, x in text.embds.items()}, torch.tensor(text.weights), 3)
        picked = text[rows]
        assert np.array_equal(np.asarray(picked.embds["e1"]), expected)
        assert picked.captions_per_video == count

    def test_the_mean_of_some_videos_is_that_of_all(self):
        text, (_, video) = grouped(), random_embeddings(1, 4)
        means = similarity(text, video, captions="mean")
        assert np.array_equal(similarity(text[3:9], video, captions="mean"), means[1:3])

    def test_any_kind_of_row_numbers(self):
        text, video = random_embeddings(5, 6)
        as_torch = VideoEmbeddings({k: torch.tensor(x) for k, x in video.embds.items()}, torch.tensor(video.available))
        for rows in (
            [4, 1],
            np.array([4, 1], np.uint8),
            np.array([4, 1], ">i8"),
            torch.tensor([4, 1]),
            (4 - np.arange(0, 4, 3)),
        ):
            for side in (video, as_torch):
                assert np.array_equal(np.asarray(side[rows].embds["e0"]), video.embds["e0"][[4, 1]])
        assert similarity(text, video[::-1]).tolist() == similarity(text, video)[:, ::-1].tolist()
        assert len(list(video)) == 6

    @pytest.mark.parametrize(
        ("rows", "error", "message"),
        [
            (6, IndexError, "rows: expected -6 to 5, got 6"),
            ([0, -7], IndexError, "rows: expected -6 to 5, got -7"),
            ([True, False], IndexError, "rows: expected a mask of 6, got 2"),
            ([0.5], TypeError, "rows: expected integers, got float64"),
            ((0, 1), TypeError, "rows: expected a row, a slice, row numbers or a mask"),
            ("a", TypeError, "rows: expected a row, a slice"),
            (None, TypeError, "rows: expected a row, a slice"),
            (True, TypeError, "rows: expected a row, a slice"),
            ([[0, 1]], TypeError, r"rows: expected one axis, got \(1, 2\)"),
        ],
    )
    def test_bad_rows(self, rows, error, message):
        with pytest.raises(error, match=message):
            random_embeddings(1, 6)[1][rows]

    def test_a_single_item_has_no_rows(self):
        text, video = random_embeddings(2, 2)
        with pytest.raises(TypeError, match="the embeddings of a single text have no rows"):
            text[0][0]
        with pytest.raises(TypeError, match="the embeddings of a single video have no rows"):
            len(video[0])


ONES, FLAGS = np.ones((2, 3), dtype=np.float32), np.ones((2, 1), dtype=bool)
CYCLE = []
CYCLE.append(CYCLE)
DEEP = [1.0]
for _ in range(10_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("embds", "matrix", "error", "message"),
    [
        ([ONES], FLAGS, TypeError, "embds: expected a dict, got list"),
        ({}, np.ones((2, 0)), ValueError, "embds: expected a dict of at least one expert"),
        ({1: ONES}, FLAGS, ValueError, r"embds: expected a dict of .* name and embeddings, got \[1\]"),
        ({"a": ONES, "b": ONES[:1]}, [[1, 1]] * 2, ValueError, r"embds\['b'\]: expected \(2, D\) .* got \(1, 3\)"),
        ({"a": ONES[0]}, FLAGS, ValueError, r"embds\['a'\]: expected \(2, D\) as .* has it, got \(3,\)"),
        ({"a": ONES[:, :0]}, FLAGS, ValueError, r"embds\['a'\]: expected \(2, D\) as .* has it, got \(2, 0\)"),
        ({"a": ONES}, FLAGS[0], ValueError, r"embds\['a'\]: expected \(D\) as .* has it, got \(2, 3\)"),
        ({"a": ONES}, np.ones((2, 2)), ValueError, r"expected \([BT], 1\), a column for each expert, .*, got \(2, 2\)"),
        ({"a": ONES}, np.ones((1, 2, 1)), ValueError, r"expected \([BT], 1\), .*, got \(1, 2, 1\)"),
        ({"a": ONES}, 1, ValueError, r"expected \([BT], 1\), .*, got \(\)"),
        ({"a": [[1, 2, 3], [1, 2]]}, FLAGS, ValueError, r"embds\['a'\]: expected numbers in rows of equal length"),
        ({"a": CYCLE}, FLAGS, ValueError, r"embds\['a'\]: expected numbers in rows of equal length"),
        ({"a": DEEP}, FLAGS, ValueError, r"embds\['a'\]: expected numbers in rows of equal length"),
        ({"a": [[10**400]] * 2}, FLAGS, ValueError, r"embds\['a'\]: expected numbers within the range of float64"),
        ({"a": np.full((2, 3), 2**63, np.uint64)}, FLAGS, ValueError, r"embds\['a'\]: expected integers below 2\*\*63"),
        ({"a": [["1"]] * 2}, FLAGS, TypeError, r"embds\['a'\]: expected real numbers, got <U1"),
        ({"a": None}, FLAGS, TypeError, r"embds\['a'\]: expected real numbers, got NoneType"),
        ({"a": {1.0}}, FLAGS, TypeError, r"embds\['a'\]: expected real numbers, got set"),
        ({"a": ONES * 1j}, FLAGS, TypeError, r"embds\['a'\]: expected real numbers, got complex64"),
        ({"a": torch.ones(2, 3) * 1j}, FLAGS, TypeError, r"embds\['a'\]: expected real numbers, got torch.complex64"),
        ({"a": torch.ones(2, 3).to_sparse()}, FLAGS, TypeError, r"embds\['a'\]: expected a dense tensor"),
        ({"a": torch.ones(2, 3, device="meta")}, FLAGS, TypeError, r"embds\['a'\]: expected a dense tensor"),
    ],
)  # fmt: skip
def test_bad_arrays(embds, matrix, error, message):
    """Both sides refuse the same, when they are made."""
    for kind in (VideoEmbeddings, TextEmbeddings):
        with pytest.raises(error, match=message):
            kind(embds, matrix)


def test_bad_attributes():
    with pytest.raises(ValueError, match="available: expected 0 or 1, got 2"):
        VideoEmbeddings({"a": ONES}, [[1], [2]])
    with pytest.raises(ValueError, match=r"available: expected 0 or 1, got nan"):
        VideoEmbeddings({"a": ONES}, [[1], [np.nan]])
    with pytest.raises(TypeError, match="model: expected a ModelIdentity or None, got str"):
        VideoEmbeddings({"a": ONES}, FLAGS, "model")
    with pytest.raises(TypeError, match=r"captions_per_video: expected an integer, got 2\.0"):
        TextEmbeddings({"a": ONES}, FLAGS, 2.0)
    with pytest.raises(ValueError, match="captions_per_video: expected at least 1, got 0"):
        TextEmbeddings({"a": ONES}, FLAGS, 0)
    with pytest.raises(ValueError, match="captions_per_video: expected a divisor of the number of texts, 2, got 3"):
        TextEmbeddings({"a": ONES}, FLAGS, 3)
    with pytest.raises(ValueError, match="captions_per_video: expected a divisor of the number of texts, 1, got 2"):
        TextEmbeddings({"a": ONES[0]}, FLAGS[0], 2)


def test_good_arrays_are_not_copied():
    video = VideoEmbeddings({"a": ONES}, FLAGS)
    assert video.embds["a"] is ONES
    assert video.available is FLAGS
    tensor = torch.ones(2, 3, requires_grad=True)
    assert TextEmbeddings({"a": tensor}, torch.ones(2, 1)).embds["a"].data_ptr() == tensor.data_ptr()


def test_mixed_arrays_become_tensors():
    video = VideoEmbeddings({"a": torch.ones(2, 3), "b": ONES}, np.ones((2, 2)))
    assert all(isinstance(x, torch.Tensor) for x in (*video.embds.values(), video.available))


def test_dimensions_of_experts_may_differ():
    text = TextEmbeddings({"a": np.ones((1, 2)), "b": np.ones((1, 3))}, [[0.5, 0.5]])
    video = VideoEmbeddings({"a": np.ones((1, 2)), "b": np.ones((1, 3))}, [[1, 1]])
    assert similarity(text, video).tolist() == [[2.5]]
    assert video.joint().shape == (1, 5)


@pytest.mark.parametrize("as_type", [np.array, torch.tensor])
def test_joint_vectors_are_zero_where_an_expert_is_missing(as_type):
    """Whatever stands there."""
    video = VideoEmbeddings({"a": as_type([[np.nan], [2.0]]), "b": as_type([[3.0], [np.inf]])}, [[0, 1], [1, 0]])
    assert video.joint().tolist() == [[0, 3], [2, 0]]


def test_prints_shapes_and_not_numbers():
    text, video = random_embeddings(6, 4, experts=2, missing=0)
    assert repr(video) == "<VideoEmbeddings: 4 videos, e0 (5), e1 (5), NumPy float32, 100% available>"
    assert repr(video[0]) == "<VideoEmbeddings: one video, e0 (5), e1 (5), NumPy float32, 100% available>"
    assert repr(video[:0]) == "<VideoEmbeddings: 0 videos, e0 (5), e1 (5), NumPy float32, none available>"
    text = TextEmbeddings({k: torch.tensor(x) for k, x in text.embds.items()}, torch.tensor(text.weights), 3)
    assert repr(text) == "<TextEmbeddings: 6 texts, 3 captions per video, e0 (5), e1 (5), torch.float32 on cpu>"
    identity = ModelIdentity("{" + "x" * 5000 + "}", "a" * 64)
    assert len(repr(identity)) < 120


def test_evaluation_does_not_pair_some_videos_captions_with_all_videos():
    text, (_, video) = grouped(videos=8, count=3), random_embeddings(1, 4)
    with pytest.raises(ValueError, match=r"targets: .*, since 24 texts are not 3 captions for each of 4 videos"):
        evaluate(text, video)
    assert evaluate(text[:12], video).text_to_video.queries == 12
