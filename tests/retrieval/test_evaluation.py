"""Figures against a slow oracle that lists every order of tied candidates."""

import itertools
import json
import statistics
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collaborative_experts import evaluate, evaluate_scores, similarity
from collaborative_experts.retrieval import evaluation
from collaborative_experts.retrieval.evaluation import Evaluation
from helpers import random_embeddings


def ranks_of_all_orders(candidates):
    """The rank of the first right answer in every order of equal scores; candidates are (score, right)."""
    better = [(score, right) for score, right in candidates]
    top = max(score for score, right in better if right)
    above = sum(score > top for score, _ in better)
    tied = [right for score, right in better if score == top]
    return [above + order.index(True) + 1 for order in itertools.permutations(tied)]


def oracle(queries):
    """Figures of one direction from the candidates of each query."""
    orders = [ranks_of_all_orders(candidates) for candidates in queries]
    recalls = [
        100 * statistics.fmean(sum(rank <= k for rank in ranks) / len(ranks) for ranks in orders)
        for k in (1, 5, 10, 50)
    ]
    means = [statistics.fmean(ranks) for ranks in orders]
    geometric = (recalls[0] * recalls[1] * recalls[2]) ** (1 / 3)
    return [*recalls, statistics.median(means), statistics.fmean(means), geometric, len(orders)]


def figures(metrics):
    """The figures in the order of `oracle`."""
    return [
        metrics.r1, metrics.r5, metrics.r10, metrics.r50, metrics.median_rank, metrics.mean_rank,
        metrics.geometric_mean, metrics.queries,
    ]  # fmt: skip


def check(scores, targets, mask):
    texts, videos = scores.shape
    t2v = [[(scores[t, v], v == targets[t]) for v in range(videos)] for t in range(texts) if mask[t]]
    v2t = [
        [(scores[t, v], targets[t] == v) for t in range(texts) if mask[t]]
        for v in range(videos)
        if any(targets[t] == v and mask[t] for t in range(texts))
    ]
    result = evaluate_scores(scores, targets, mask)
    assert figures(result.text_to_video) == pytest.approx(oracle(t2v), abs=1e-9)
    assert figures(result.video_to_text) == pytest.approx(oracle(v2t), abs=1e-9)


@st.composite
def problems(draw):
    """Few distinct scores, so that most are tied; any captions a video, none included; any mask."""
    texts, videos = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    levels = draw(st.integers(1, 4))
    scores = draw(st.lists(st.integers(0, levels - 1), min_size=texts * videos, max_size=texts * videos))
    targets = draw(st.lists(st.integers(0, videos - 1), min_size=texts, max_size=texts))
    mask = draw(st.lists(st.booleans(), min_size=texts, max_size=texts).filter(any))
    return np.array(scores, dtype=draw(st.sampled_from([np.float32, np.int64]))).reshape(texts, videos), targets, mask


@settings(max_examples=150, deadline=None)
@given(problems())
def test_against_the_oracle(problem):
    check(*problem)


def test_large_ranks_without_ties():
    """Past R@50, where listing all orders is still possible because there are no ties."""
    rng = np.random.default_rng(0)
    scores = rng.permutation(200 * 100).reshape(200, 100).astype(np.float64)
    check(scores, rng.integers(0, 100, 200), rng.random(200) < 0.8)


def test_a_constant_matrix_is_at_chance():
    result = evaluate_scores(np.zeros((300, 100)))
    assert figures(result.text_to_video)[:6] == pytest.approx([1, 5, 10, 50, 50.5, 50.5])
    # The first of 3 right answers among 300 in random order.
    assert result.video_to_text.mean_rank == pytest.approx(1 + 297 / 4)
    missed = np.prod([(297 - i) / (300 - i) for i in range(50)])
    assert result.video_to_text.r50 == pytest.approx(100 * (1 - missed))


def test_perfect_and_worst():
    best = evaluate_scores(np.eye(20))
    assert (
        figures(best.text_to_video) == figures(best.video_to_text) == [100, 100, 100, 100, 1, 1, pytest.approx(100), 20]
    )
    worst = evaluate_scores(-np.eye(20)).text_to_video
    assert figures(worst)[:6] == [0, 0, 0, 100, 20, 20]


@pytest.mark.parametrize("tile", [(1024, 4096), (7, 5), (1, 1)])
def test_from_embeddings_as_from_their_scores(tile, monkeypatch):
    monkeypatch.setattr("collaborative_experts.retrieval.similarity.TEXTS", tile[0])
    monkeypatch.setattr("collaborative_experts.retrieval.similarity.VIDEOS", tile[1])
    text, video = random_embeddings(60, 20)
    targets = np.random.default_rng(1).integers(0, 20, 60)
    mask = np.arange(60) % 7 > 0
    result = evaluate(text, video, targets, mask)
    expected = evaluate_scores(similarity(text, video), targets, mask)
    assert figures(result.text_to_video) == pytest.approx(figures(expected.text_to_video))
    assert figures(result.video_to_text) == pytest.approx(figures(expected.video_to_text))


def test_a_score_that_rounds_otherwise_the_second_time_is_still_its_own():
    """The own score must not count as better than itself, whatever the second product gives."""
    noise = iter(range(100))

    def tiles():
        yield slice(0, 3), slice(0, 3), torch.eye(3, dtype=torch.float64) + 1e-9 * next(noise)

    result = evaluation._evaluate(tiles, torch.arange(3), torch.ones(3, dtype=torch.bool), 3)
    assert result.text_to_video.r1 == 100
    assert result.video_to_text.r1 == 100


def test_without_targets_texts_are_k_a_video():
    scores = np.random.default_rng(0).standard_normal((12, 4))
    assert evaluate_scores(scores) == evaluate_scores(scores, np.repeat(np.arange(4), 3))


def test_torch_and_lists_and_integers():
    scores = np.random.default_rng(0).integers(0, 5, (6, 3))
    expected = evaluate_scores(scores)
    same_scores = [scores.astype(dtype) for dtype in ("int8", "uint16", "uint64", ">i4", ">f8", "longdouble", "f2")]
    same_scores += [scores.tolist(), torch.tensor(scores), torch.tensor(scores).half(), scores.T.copy().T]
    same_scores += [scores[::-1, ::-1].copy()[::-1, ::-1], torch.tensor(scores.astype("f4"), requires_grad=True)]
    for same in same_scores:
        assert evaluate_scores(same) == expected
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert evaluate_scores(same, np.repeat(np.arange(3), 2).astype(">u4"), np.ones(6, ">f8")) == expected


def test_integers_beyond_64_bits():
    """Python's own integers, which no array type holds exactly, are compared in float64."""
    assert evaluate_scores([[10**30, 1], [1, 10**30]]) == evaluate_scores(np.eye(2))


def test_lists_are_compared_in_float64():
    assert evaluate_scores([[1 + 1e-12, 1.0], [1.0, 1 + 1e-12]]).text_to_video.r1 == 100


def test_read_only_scores(tmp_path):
    np.save(tmp_path / "scores.npy", np.eye(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate_scores(np.load(tmp_path / "scores.npy", mmap_mode="r")).text_to_video.r1 == 100


def test_result_as_dict_and_table():
    result = evaluate_scores(np.eye(20))
    as_dict = json.loads(json.dumps(result.to_dict()))
    assert as_dict["text_to_video"]["r1"] == 100
    assert as_dict["video_to_text"]["median_rank"] == 1
    head, *rows = str(result).splitlines()
    assert head.split() == ["R@1", "R@5", "R@10", "R@50", "MdR", "MnR", "geo.", "mean", "queries"]
    assert [row[:13] for row in rows] == ["text to video", "video to text"]
    assert all(row.split()[3] == "100.0" and row.split()[-1] == "20" for row in rows)
    assert isinstance(result, Evaluation)
    assert repr(result) == str(result)


CYCLE = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("scores", "targets", "mask", "error", "message"),
    [
        (np.zeros(3), None, None, ValueError, r"scores: expected real numbers \(T, B\), got .*, \(3,\)"),
        (np.zeros((0, 3)), None, None, ValueError, "scores: expected real numbers"),
        (np.zeros((3, 3), dtype=bool), None, None, ValueError, "scores: expected real numbers"),
        (np.full((3, 3), np.nan), None, None, ValueError, "scores: expected numbers, got NaN"),
        ([[1, 2], [3]], None, None, ValueError, "scores: expected numbers in rows of equal length, got list"),
        ([CYCLE], None, None, ValueError, "scores: expected numbers in rows of equal length, got list"),
        ([[10**400, 1]], None, None, ValueError, "scores: expected numbers within the range of float64"),
        (np.full((1, 1), 2**63, np.uint64), None, None, ValueError, r"scores: expected integers below 2\*\*63"),
        ([["a"]], None, None, TypeError, "scores: expected real numbers, got <U1"),
        ([[None]], None, None, TypeError, "scores: expected real numbers, got NoneType"),
        ({1.0}, None, None, TypeError, "scores: expected real numbers, got set"),
        (np.eye(3) * 1j, None, None, TypeError, "scores: expected real numbers, got complex128"),
        (torch.eye(3).to_sparse(), None, None, TypeError, "scores: expected a dense tensor"),
        (np.zeros((3, 3)), ["a", "b", "c"], None, TypeError, "targets: expected real numbers, got <U1"),
        (np.zeros((3, 3)), [[0], [1, 2]], None, ValueError, "targets: expected numbers in rows of equal length"),
        (np.zeros((3, 3)), [0, 10**400, 1], None, ValueError, "targets: expected numbers within the range of float64"),
        (np.zeros((3, 3)), CYCLE, None, ValueError, "targets: expected numbers in rows of equal length"),
        (np.zeros((3, 3)), {0, 1, 2}, None, TypeError, "targets: expected real numbers, got set"),
        (np.zeros((3, 3)), None, [1, None, 1], TypeError, "query_mask: expected real numbers, got NoneType"),
        (np.zeros((3, 3)), None, "111", TypeError, "query_mask: expected real numbers, got <U3"),
        (np.zeros((3, 3)), None, CYCLE, ValueError, "query_mask: expected numbers in rows of equal length"),
        (np.zeros((3, 3)), None, [1, 10**400, 1], ValueError, "query_mask: expected numbers within the range"),
        (np.zeros((4, 3)), None, None, ValueError, "targets: .*4 texts are no multiple of 3 videos"),
        (np.zeros((4, 3)), [0, 1, 2], None, ValueError, r"targets: expected \(4,\)"),
        (np.zeros((4, 3)), [0, 1, 2, 3], None, ValueError, "targets, row 3: expected 0 to 2, got 3"),
        (np.zeros((4, 3)), [0, -1, 2, 0], None, ValueError, "targets, row 1: expected 0 to 2, got -1"),
        (np.zeros((4, 3)), [0.0, 1, 2, 0], None, TypeError, "targets: expected integers"),
        (np.zeros((3, 3)), None, [1, 1], ValueError, r"query_mask: expected \(3,\) of 0 and 1"),
        (np.zeros((3, 3)), None, [1, 2, 1], ValueError, "query_mask: expected"),
        (np.zeros((3, 3)), None, [0, 0, 0], ValueError, "query_mask: expected at least one 1, got none"),
    ],
)  # fmt: skip
def test_bad_inputs(scores, targets, mask, error, message):
    with pytest.raises(error, match=message):
        evaluate_scores(scores, targets, mask)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int32"])
def test_targets_of_any_integer_type(dtype):
    scores, targets = np.random.default_rng(0).random((4, 3)), np.array([2, 0, 1, 0])
    expected = evaluate_scores(scores, targets)
    assert evaluate_scores(scores, targets.astype(dtype)) == expected
    assert evaluate_scores(scores, torch.from_numpy(targets.astype(dtype))) == expected
    with pytest.raises(ValueError, match="targets, row 3: expected 0 to 2, got 3"):
        evaluate_scores(scores, np.array([2, 0, 1, 3], dtype=dtype))


def test_numpy_settings_of_the_caller_do_not_count():
    """Numbers of extended precision that are too small for float64 are 0."""
    scores = np.array([[1, np.longdouble("1e-4000")], [0, 1]])
    with np.errstate(all="raise"):
        assert evaluate_scores(scores).text_to_video.r1 == 100


def test_bad_embeddings():
    text, video = random_embeddings(3, 3)
    with pytest.raises(TypeError, match="evaluate: expected TextEmbeddings and VideoEmbeddings"):
        evaluate(video, text)
    with pytest.raises(ValueError, match="video: expected a batch of embeddings"):
        evaluate(text, video[0])
    with pytest.raises(ValueError, match="text: expected at least one, got none"):
        evaluate(text[:0], video)
    text.embds["e2"][1] = np.nan  # an expert that every video has
    with pytest.raises(ValueError, match="evaluate: expected finite embeddings, got NaN scores"):
        evaluate(text, video)
    with pytest.raises(TypeError, match="bank: expected a QueryBank, got TextEmbeddings"):
        evaluate(text, video, bank=text)
