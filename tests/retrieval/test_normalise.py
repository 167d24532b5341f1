"""Query banks against the published formulas over the full matrix, in float64."""

from functools import cache

import numpy as np
import pytest
import torch

from collaborative_experts import ModelIdentity, QueryBank, TextEmbeddings, VideoEmbeddings, evaluate, evaluate_scores
from helpers import exact_scores, random_embeddings

BETA, ALPHA = 20, 0.75


def with_hubs(texts=60, videos=20, bank=50, missing=0.3, seed=0):
    """Texts, videos of which some are hubs, and a bank of other texts; one video has no expert."""
    text, video = random_embeddings(texts, videos, missing=missing, seed=seed)
    bank, _ = random_embeddings(bank, videos, seed=seed + 1)
    for name, x in video.embds.items():
        x[: videos // 4] += 0.7 * bank.embds[name].mean(0)
        x[: videos // 4] += 0.7 * text.embds[name].mean(0)
    if missing:
        video.available[-1] = False
    return text, video, bank


def inverted_softmax(scores, bank_scores, beta=BETA):
    """QB-Norm as its published code computes it: normalised over the bank alone."""
    return np.exp(beta * scores) / np.exp(beta * bank_scores).sum(0)


def dynamic_inverted_softmax(scores, bank_scores, beta=BETA, k=1):
    """QB-Norm, the dynamic variant: only texts whose best video the bank finds too are normalised."""
    activated = np.unique(np.argsort(-bank_scores, axis=1)[:, :k])
    corrected = np.isin(scores.argmax(1), activated)
    return np.where(corrected[:, None], inverted_softmax(scores, bank_scores, beta), scores)


def nearest_neighbours(scores, bank_scores, alpha=ALPHA, k=16):
    """NNN, eq. 1 and 2."""
    return scores - alpha * np.sort(bank_scores, axis=0)[-k:].mean(0)


PUBLISHED = {
    "qb": ({}, inverted_softmax),
    "qb, beta 3": ({"beta": 3.0}, lambda s, b: inverted_softmax(s, b, 3)),
    "qb-dynamic": ({}, dynamic_inverted_softmax),
    "qb-dynamic, k 2": ({"k": 2, "beta": 5}, lambda s, b: dynamic_inverted_softmax(s, b, 5, 2)),
    "nnn": ({}, nearest_neighbours),
    "nnn, 0.5 x 4": ({"alpha": 0.5, "k": 4}, lambda s, b: nearest_neighbours(s, b, 0.5, 4)),
}


def bank_of(text, case):
    return QueryBank(text, case.split(",")[0], **PUBLISHED[case][0])


@pytest.mark.parametrize("case", ["qb", "qb, beta 3", "nnn", "nnn, 0.5 x 4"])
def test_lower_bound(case):
    """No bias is below it, and it is reached by a video that scores the same with all of the bank."""
    _, video, texts = with_hubs()
    bank = bank_of(texts, case)
    gaps = []
    for row, available in enumerate(video.available[:-1]):
        slope, least = bank.lower_bound(available)
        one = VideoEmbeddings({name: x[row] for name, x in video.embds.items()}, available)
        gaps.append(bank.biases(one) - (slope @ one.joint() + least))
    assert min(gaps) > -1e-6
    whole = VideoEmbeddings({name: x[:1] for name, x in video.embds.items()}, np.ones((1, len(texts.experts))))
    same = QueryBank(texts[np.zeros(16, dtype=int)], bank.method, bank.beta, bank.alpha)
    slope, least = same.lower_bound(whole.available[0])
    assert abs(same.biases(whole)[0] - (slope @ whole.joint()[0] + least)) < 1e-6


@pytest.fixture(params=[(1024, 1024), (23, 8)], ids=["one tile", "small tiles"])
def tiles(request, monkeypatch):
    monkeypatch.setattr("collaborative_experts.retrieval.similarity.TEXTS", request.param[0])
    monkeypatch.setattr("collaborative_experts.retrieval.similarity.VIDEOS", request.param[1])


@cache
def scored(missing, seed):
    """Texts, videos and a bank, and the scores of the texts and of the bank by definition, which take the most time."""
    text, video, bank = with_hubs(missing=missing, seed=seed)
    return text, video, bank, exact_scores(text, video), exact_scores(bank, video)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("missing", [0, 0.3, 0.6])
@pytest.mark.parametrize("case", PUBLISHED)
def test_ranks_as_the_published_formulas(case, missing):
    """From text to video as the formulas over the full matrix; from video to text as without a bank."""
    for seed in range(3):
        text, video, bank, scores, bank_scores = scored(missing, seed)
        expected = evaluate_scores(PUBLISHED[case][1](scores, bank_scores)).text_to_video
        result, plain = evaluate(text, video, bank=bank_of(bank, case)), evaluate(text, video)
        assert result.text_to_video.mean_rank == pytest.approx(expected.mean_rank)
        assert result.text_to_video.r1 == pytest.approx(expected.r1)
        assert result.text_to_video != plain.text_to_video
        assert result.video_to_text == plain.video_to_text


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("case", ["qb-dynamic", "nnn"])
def test_with_targets_and_mask(case):
    text, video, bank = with_hubs()
    targets, mask = np.random.default_rng(1).integers(0, 20, 60), np.arange(60) % 7 > 0
    corrected = PUBLISHED[case][1](exact_scores(text, video), exact_scores(bank, video))
    expected = evaluate_scores(corrected, targets, mask).text_to_video
    assert evaluate(text, video, targets, mask, QueryBank(bank, case)).text_to_video == expected


def test_some_texts_are_corrected_and_others_not():
    """Else the dynamic variant would be tested as the static one, or as none."""
    text, video, bank = with_hubs()
    activated = QueryBank(bank, "qb-dynamic").activated(video)
    share = activated[exact_scores(text, video).argmax(1)].mean()
    assert 0.3 < share < 1


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("case", ["qb", "qb, beta 3", "qb-dynamic", "nnn", "nnn, 0.5 x 4"])
def test_biases(case):
    _, video, bank = with_hubs()
    bank_scores, query_bank = exact_scores(bank, video), bank_of(bank, case)
    if case.startswith("nnn"):
        expected = -PUBLISHED[case][1](np.zeros_like(bank_scores[:1]), bank_scores)[0]
    else:
        expected = np.log(np.exp(query_bank.beta * bank_scores).sum(0)) / query_bank.beta
    biases = query_bank.biases(video)
    assert biases.dtype == np.float64
    assert np.abs(biases - expected).max() < 1e-6


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("beta", [3.0, 20.0])
def test_levels(beta):
    """One round of Sinkhorn: what a text scores with other videos than its own, and the softmax less that."""
    _, video, texts = with_hubs()
    own = np.random.default_rng(2).integers(-1, 20, 50)
    scores = exact_scores(texts, video)
    others = np.where(own[:, None] == np.arange(20), 0, np.exp(beta * scores))
    expected = np.log(others.sum(1) / (20 - (own >= 0))) / beta
    bank = QueryBank(texts, beta=beta).levelled(video, own.tolist())
    assert bank.levels.dtype == np.float32
    assert np.abs(bank.levels - expected).max() < 1e-6
    biases = np.log(np.exp(beta * (scores - expected[:, None])).sum(0)) / beta
    assert np.abs(bank.biases(video) - biases).max() < 1e-6


@pytest.mark.parametrize("levels", [np.r_[np.zeros(49), 5.0], np.r_[np.zeros(49), -5.0]], ids=["one high", "one low"])
def test_lower_bound_with_levels(levels):
    _, video, texts = with_hubs()
    bank = QueryBank(texts, levels=levels)
    biases, joint = bank.biases(video), video.joint()
    for row, available in enumerate(video.available):
        slope, least = bank.lower_bound(available)
        assert biases[row] > slope @ joint[row] + least - 1e-6


def test_a_text_that_scores_high_with_all_videos_counts_no_more():
    texts = TextEmbeddings({"a": [[1.0, 0.0], [0.0, 1.0]], "b": [[1.0, 0.0], [1.0, 0.0]]}, [[0.5, 0.5]] * 2)
    video = VideoEmbeddings({"a": [[0.0, 1.0]] * 3, "b": [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]}, [[1, 1]] * 3)
    scores = exact_scores(texts, video)
    assert (scores[1] > scores[0]).all()
    alone, other = (QueryBank(texts[rows]).levelled(video, [-1] * len(rows)) for rows in ([0], [1]))
    assert alone.biases(video) == pytest.approx(other.biases(video), abs=1e-6)
    assert QueryBank(texts[[0]]).biases(video) != pytest.approx(QueryBank(texts[[1]]).biases(video), abs=1e-6)


@pytest.mark.parametrize(
    ("videos", "targets", "error", "message"),
    [
        (20, [0] * 49, ValueError, r"targets: expected \(50,\), the row of each text's video, got \(49,\)"),
        (20, [0.0] * 50, TypeError, "targets: expected integers, the rows of the videos, got torch.float64"),
        (20, [0] * 49 + [20], ValueError, "targets, row 49: expected -1 to 19, got 20"),
        (20, [-1, -2] * 25, ValueError, "targets, row 1: expected -1 to 19, got -2"),
        (1, [0] * 50, ValueError, "levelled: expected two videos or more, got 1"),
    ],
)
def test_levels_that_are_refused(videos, targets, error, message):
    _, video, texts = with_hubs(missing=0)
    with pytest.raises(error, match=message):
        QueryBank(texts).levelled(video[:videos], targets)
    with pytest.raises(ValueError, match="expected none with the method 'nnn'"):
        QueryBank(texts, "nnn").levelled(video, [0] * 50)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("method", ["qb", "nnn"])
def test_the_bias_of_a_video_does_not_depend_on_the_others(method):
    _, video, text = with_hubs()
    bank = QueryBank(text, method)
    biases = bank.biases(video)
    assert np.abs(bank.biases(video[3:11]) - biases[3:11]).max() < 1e-6
    assert bank.biases(video[5]).shape == ()
    assert bank.biases(video[5]) == pytest.approx(biases[5], abs=1e-6)
    assert bank.biases(video[:0]).shape == (0,)


@pytest.mark.usefixtures("tiles")
def test_activated_videos():
    _, video, text = with_hubs()
    best = np.argsort(-exact_scores(text, video), axis=1)
    for k in (1, 3, 50):
        activated = QueryBank(text, "qb-dynamic", k=k).activated(video)
        assert np.flatnonzero(activated).tolist() == np.unique(best[:, :k]).tolist()
    assert QueryBank(text, "qb").activated(video).all()
    assert QueryBank(text, "qb-dynamic").activated(video[:0]).shape == (0,)


def test_one_more_component_of_the_joint_vectors():
    """The head's claim: <t, v> - W_p(t) b_v ranks within a pattern as the inverted softmax does."""
    text, video, bank = with_hubs(missing=0.4)
    expected = inverted_softmax(exact_scores(text, video), exact_scores(bank, video))
    biases = QueryBank(bank).biases(video)
    for pattern in np.unique(video.available, axis=0):
        rows = (video.available == pattern).all(1)
        extended_video = np.column_stack([video[rows].joint(), biases[rows]])
        extended_text = np.column_stack([text.joint(), -text.weights @ pattern])
        if pattern.any():
            order = np.argsort(extended_text @ extended_video.T, axis=1)
            assert np.array_equal(order, np.argsort(expected[:, rows], axis=1))


def test_a_video_without_experts():
    """It scores 0 with every text of the bank, and is ranked by that."""
    _, video, bank = with_hubs()
    assert QueryBank(bank, "qb").biases(video)[-1] == pytest.approx(np.log(len(bank)) / BETA)
    assert QueryBank(bank, "nnn").biases(video)[-1] == 0


def test_large_exponents():
    """exp(beta s) itself would overflow."""
    _, video, bank = with_hubs()
    biases = QueryBank(bank, beta=10_000).biases(video)
    assert np.abs(biases - exact_scores(bank, video).max(0)).max() < 1e-3


def test_torch():
    _, video, bank = with_hubs()
    as_torch = VideoEmbeddings({k: torch.tensor(x) for k, x in video.embds.items()}, torch.tensor(video.available))
    assert np.array_equal(QueryBank(bank).biases(as_torch), QueryBank(bank).biases(video))


@pytest.mark.parametrize("case", PUBLISHED)
def test_the_callers_defaults_change_nothing(other_defaults, case):
    text, video, bank = with_hubs()
    targets, bank = np.arange(60) // 3, bank_of(bank, case)

    def compute():
        return bank.biases(video).tolist(), bank.activated(video).tolist(), evaluate(text, video, targets, bank=bank)

    expected = compute()
    with other_defaults():
        assert compute() == expected


def test_a_bank_of_another_model():
    text, video, bank = with_hubs()
    other = TextEmbeddings(bank.embds, bank.weights, model=ModelIdentity("{}", "1"))
    named = VideoEmbeddings(video.embds, video.available, ModelIdentity("{}", "2"))
    with pytest.raises(ValueError, match="QueryBank: expected embeddings of one model"):
        evaluate(text, named, bank=QueryBank(other))
    with pytest.raises(ValueError, match="QueryBank: expected the same experts"):
        QueryBank(bank).biases(random_embeddings(1, 3, experts=2)[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": 5}, TypeError, "text: expected TextEmbeddings .*, got int"),
        ({"text": random_embeddings(2, 1)[0][0]}, ValueError, "text: expected a batch of .*, got .*one text"),
        ({"text": random_embeddings(0, 1)[0]}, ValueError, "text: expected a batch of .*, got .*0 texts"),
        ({"method": "qbnorm"}, ValueError, "method: expected one of 'qb', 'qb-dynamic', 'nnn', got 'qbnorm'"),
        ({"beta": 0}, ValueError, "beta: expected a number above 0, got 0"),
        ({"beta": float("nan")}, ValueError, "beta: expected a number above 0, got nan"),
        ({"beta": "20"}, TypeError, "beta: expected a number above 0, got '20'"),
        ({"alpha": -1.0}, ValueError, "alpha: expected a number above 0, got -1.0"),
        ({"method": "nnn", "k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"method": "nnn", "k": 51}, ValueError, "k: expected at most the number of texts in the bank, 50, got 51"),
        ({"levels": [0.0] * 49}, ValueError, r"levels: expected 50 numbers, one a text, got \(49,\)"),
        ({"levels": [float("nan")] * 50}, ValueError, "levels: expected finite numbers, got nan"),
        ({"levels": np.full(50, 1e300)}, ValueError, "levels: expected finite numbers, got inf"),
        ({"levels": ["a"] * 50}, TypeError, "levels: expected real numbers"),
        ({"levels": [0.0] * 50, "method": "nnn"}, ValueError, "levels: expected none with the method 'nnn'"),
        ({"method": "nnn", "k": 1.5}, TypeError, r"k: expected an integer, got 1\.5"),
    ],
)  # fmt: skip
def test_bad_inputs(arguments, error, message):
    with pytest.raises(error, match=message):
        QueryBank(**{"text": with_hubs()[2], **arguments})


def test_a_small_bank_averages_all_of_its_scores():
    _, video, bank = with_hubs(bank=5)
    expected = ALPHA * exact_scores(bank, video).mean(0)
    assert np.abs(QueryBank(bank, "nnn").biases(video) - expected).max() < 1e-6


def test_nan():
    _, video, bank = with_hubs(missing=0)
    video.embds["e0"][3] = np.nan
    with pytest.raises(ValueError, match="QueryBank: expected finite embeddings"):
        QueryBank(bank).biases(video)
    with pytest.raises(ValueError, match="QueryBank: expected finite embeddings"):
        QueryBank(bank).levelled(video, [0] * 50)
    with pytest.raises(ValueError, match="QueryBank: expected a batch of videos"):
        QueryBank(bank).activated(video[0])
