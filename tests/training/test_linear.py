"""The linear model that is joined to trained ones, against plain numpy and scores of its parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from collaborative_experts import CaptionedVideos, Features
from collaborative_experts.model.cenet import initial_state, model_of
from collaborative_experts.training import linear as training_linear
from collaborative_experts.training.data import VideoTensors
from collaborative_experts.training.linear import LinearChoice, Moments, choose_linear, fit_linear, join_linear
from collaborative_experts.training.losses import batch_scores
from collaborative_experts.training.members import join
from collaborative_experts.training.objective import fixed_parameters
from collaborative_experts.training.validation import evaluate_model
from helpers import JOINABLE

SHARED = replace(JOINABLE, shared_dim=16)


def videos(size, seed, faint=0.0):
    """Features that say linearly what the captions say, two captions a video; a third has no sound.

    Args:
        faint: of so many videos motion says nothing, softly.
    """
    rng, world = np.random.default_rng(seed), np.random.default_rng(0)
    meaning, ways = rng.standard_normal((size, 3)), [world.standard_normal((3, dim)) for dim in (12, 6, 10)]
    motion, sound, words = (meaning @ way for way in ways)
    motion = np.where(rng.random((size, 1)) < faint, 0.3 * rng.standard_normal(motion.shape), motion)
    sequences = [x + 0.1 * rng.standard_normal((rng.integers(1, 5), 6)) for x in sound]
    targets = np.repeat(np.arange(size), 2)
    tokens = words[targets][:, None] + 0.5 * rng.standard_normal((2 * size, 4, 10))
    features = Features(
        [f"{i}" for i in range(size)],
        {"motion": motion.astype(np.float32), "sound": [x.astype(np.float32) for x in sequences]},
        {"motion": np.ones(size, dtype=np.int64), "sound": (rng.random(size) < 2 / 3).astype(np.int64)},
    )
    return VideoTensors(CaptionedVideos(features, targets, tokens.astype(np.float32)), SHARED, "data")


DATA, OTHERS = videos(60, 1), videos(40, 2)


def initial(seed):
    state = initial_state(SHARED, seed=seed) | DATA.statistics(SHARED)
    return state | {name: torch.zeros_like(state[name]) for name in fixed_parameters(SHARED)}


@torch.no_grad()
def scores(state, config):
    model = model_of(state, config)
    video = torch.stack(list(model.encode_video(OTHERS.features, OTHERS.available).values()), 1)
    text, weights = model.encode_text(torch.from_numpy(OTHERS.tokens))
    return batch_scores(torch.stack(list(text.values()), 1), weights, video, OTHERS.available).numpy()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def numpy_scores(choice, summed=False):
    """Ridge regressions from each expert to the mean of a video's whitened captions; the mean of their cosines, or the
    cosine with their sum."""
    state = DATA.statistics(SHARED)
    words, other_words = (unit(data.tokens.astype(np.float64).sum(1)) for data in (DATA, OTHERS))
    middle = words.mean(0)
    covariance = np.cov(words.T, bias=True)
    strengths, basis = np.linalg.eigh(covariance + 0.3 * np.trace(covariance) / 10 * np.eye(10))
    whiten = basis @ np.diag(strengths**-choice.whitening) @ basis.T
    y = (np.stack([words[DATA.targets == row].mean(0) for row in range(len(DATA))]) - middle) @ whiten
    predictions = []
    for m, name in enumerate(("motion", "sound")):
        sides = []
        for data in (DATA, OTHERS):
            x = data.features[name].numpy().astype(np.float64)
            mean, std = (state[f"standardise.{name}.{key}"].numpy() for key in ("mean", "std"))
            z = np.where((x == 0).all(-1, keepdims=True), 0, (x - mean) / std)
            sides.append(unit(z.sum(1) + 1e-300) if name == "sound" else z)
        there = DATA.available[:, m].numpy()
        x, other = sides[0][there] - sides[0][there].mean(0), sides[1] - sides[0][there].mean(0)
        inverse = x.T @ x + choice.ridge * np.trace(x.T @ x) / x.shape[1] * np.eye(x.shape[1])
        predictions.append(other @ np.linalg.solve(inverse, x.T @ y[there]))
    asked, there = unit((other_words - middle) @ whiten), OTHERS.available.numpy().astype(float)
    if summed:
        return asked @ unit(sum(x * there[:, m, None] for m, x in enumerate(predictions))).T
    return sum(asked @ unit(x).T * there[:, m] for m, x in enumerate(predictions)) / there.sum(1)


@pytest.mark.parametrize("choice", [LinearChoice(0.0, 3.0, 1.0), LinearChoice(0.5, 0.1, 2.0)])
def test_it_is_a_ridge_regression_to_whitened_captions(choice):
    state = initial(0)
    [linear] = fit_linear(Moments(model_of(state, SHARED), DATA), [state], SHARED, choice)
    assert linear.dim == 10  # the text's
    found = scores({**state, **linear.state}, replace(SHARED, shared_dim=10))
    np.testing.assert_allclose(found, numpy_scores(choice), atol=2e-5)


@pytest.mark.parametrize("choice", [LinearChoice(0.0, 3.0, 1.0, 1.0, 0.25), LinearChoice(0.5, 0.1, 2.0, 1.0, 0.25)])
def test_a_part_is_the_cosine_with_the_sum_of_the_regressions(choice):
    state = initial(0)
    own, summed = fit_linear(Moments(model_of(state, SHARED), DATA), [state], SHARED, choice)
    assert (own.summed, summed.summed) == (False, True)
    assert own.length == pytest.approx(np.sqrt(0.75 * choice.count))
    assert summed.length == pytest.approx(np.sqrt(0.25 * choice.count))
    found = scores({**state, **summed.state}, replace(SHARED, shared_dim=10, summed_dim=10))
    np.testing.assert_allclose(found, numpy_scores(choice, summed=True), atol=2e-5)


@torch.no_grad()
def test_sums_are_as_long_as_they_count():
    members, choice = [initial(seed) for seed in range(2)], LinearChoice(0.25, 1.0, 2.0, 1.0, 0.25)
    _, summed = fit_linear(Moments(model_of(members[0], SHARED), DATA), members, SHARED, choice)
    there = DATA.available.T
    total = sum(x * at[:, None] for x, at in zip(reduced(summed.state), there, strict=True))
    theirs = [x[at].square().sum(1).mean() for state in members for x, at in zip(reduced(state), there, strict=True)]
    count = total[there.any(0)].square().sum(1).mean() / torch.stack(theirs).mean()
    assert count == pytest.approx(0.25 * 2.0 * len(members), rel=1e-4)
    pooled = model_of(members[0], SHARED).text_pooling(torch.from_numpy(DATA.tokens))
    for name in ("ce.text_GU.0.fc", "ce.text_GU.1.fc"):
        own, *theirs = (
            (pooled @ state[f"{name}.weight"].T + state[f"{name}.bias"]).square().sum(1).mean()
            for state in (summed.state, *members)
        )
        assert own / torch.stack(theirs).mean() == pytest.approx(0.25 * 2.0 * len(members), rel=1e-4)


@torch.no_grad()
def test_videos_without_experts_do_not_lengthen_sums():
    state, lengths = initial(0), []
    for nothing in (0, 30):
        data = videos(60, 1)
        data.available[:nothing] = False
        moments = Moments(model_of(state, SHARED), data)
        there = data.available.any(1)
        _, summed = fit_linear(moments, [state], SHARED, LinearChoice(0.25, 1.0, 2.0, 1.0, 0.25))
        total = sum(x * at[:, None] for x, at in zip(reduced(summed.state), data.available.T, strict=True))
        theirs = [x[at].square().sum(1).mean() for x, at in zip(reduced(state), data.available.T, strict=True)]
        lengths.append(float(total[there].square().sum(1).mean() / torch.stack(theirs).mean()))
    assert lengths == pytest.approx([0.5, 0.5], rel=1e-4)


def test_sums_have_a_size_of_their_own(monkeypatch):
    monkeypatch.setattr(training_linear, "SUMMED_DIM", 4)
    members = [initial(seed) for seed in range(2)]
    moments = Moments(model_of(members[0], SHARED), DATA)
    own, summed = fit_linear(moments, members, SHARED, LinearChoice(0.25, 1.0, 2.0, 1.0, 0.25))
    assert (own.dim, summed.dim) == (10, 4)
    name = "ce.text_GU.0.fc.weight"  # the directions that vary most, at another length
    ratio = summed.state[name] / own.state[name][-4:]
    torch.testing.assert_close(ratio, ratio[0, 0].expand(4, 10))


def reduced(state):
    """Each expert's vectors before they are brought to length 1, of all videos."""
    model = model_of(initial(0), SHARED)
    for m, expert in enumerate(SHARED.experts):
        x = model.standardise._modules[expert.name](DATA.features[expert.name])
        x = model.pooling._modules[expert.name](x) if expert.variable else x
        yield x @ state[f"ce.video_dim_reduce.{m}.fc.weight"].T + state[f"ce.video_dim_reduce.{m}.fc.bias"]


def test_a_narrow_model_keeps_what_varies_most():
    config = replace(SHARED, shared_dim=3)
    state = initial_state(config, seed=0) | DATA.statistics(SHARED)
    state |= {name: torch.zeros_like(state[name]) for name in fixed_parameters(config)}
    choice = LinearChoice(0.0, 0.1, 1.0)
    [linear] = fit_linear(Moments(model_of(state, config), DATA), [state], config, choice)
    assert linear.dim == 3
    found = scores({**state, **linear.state}, config)
    assert np.corrcoef(found.ravel(), numpy_scores(choice).ravel())[0, 1] > 0.95


@pytest.mark.parametrize("summed", [0.0, 0.25])
@pytest.mark.parametrize("count", [0.5, 2.0])
def test_joined_scores_are_a_weighted_sum(count, summed):
    members, choice = [initial(seed) for seed in range(3)], LinearChoice(0.25, 1.0, count, 1.0, summed)
    for state in members:
        state |= _weights_of(members[0])
    moments = Moments(model_of(members[0], SHARED), DATA)
    joined, config = join_linear(moments, members, SHARED, choice)
    expected, shares = np.mean([scores(state, SHARED) for state in members], axis=0), [1 - summed, summed]
    parts = fit_linear(moments, members, SHARED, choice)
    assert config.shared_dim == 3 * 16 + 10 * len(parts)
    assert config.summed_dim == (10 if summed else 0)
    for linear, share in zip(parts, shares, strict=False):
        alone = replace(SHARED, shared_dim=10, summed_dim=10 if linear.summed else 0)
        expected = expected + count * share * scores({**members[0], **linear.state, **_weights_of(members[0])}, alone)
    found = scores(joined, config)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    assert np.abs(found - expected / (1 + count)).max() < 0.3


def _weights_of(state):
    return {name: x for name, x in state.items() if name.startswith("ce.moe_fc.")}


def test_validation_chooses_it_where_it_finds_more():
    state = initial(0)  # which knows nothing
    moments = Moments(model_of(state, SHARED), DATA)
    choice, found = choose_linear(moments, state, SHARED, OTHERS)
    assert choice.count > 0
    assert found["with"] > found["without"]
    for name, model in (("with", join_linear(moments, [state], SHARED, choice)), ("without", (state, SHARED))):
        assert evaluate_model(model_of(*model), OTHERS).text_to_video.geometric_mean == pytest.approx(found[name])
    nothing = replace(choice, count=0.0, sharpness=1.0)
    joined, config = join_linear(moments, [state], SHARED, nothing)
    assert config == SHARED
    assert all(joined[name] is x for name, x in state.items())


def test_validation_weighs_experts_alike_where_their_weights_are_noise():
    state = initial(0)
    moments = Moments(model_of(state, SHARED), DATA)
    sure = {name: 300 * x for name, x in _weights_of(state).items()}
    choice, _ = choose_linear(moments, state | sure, SHARED, OTHERS)
    assert choice.sharpness == 0
    alike = state | {name: torch.zeros_like(x) for name, x in sure.items()}
    expected = scores(*join_linear(moments, [alike], SHARED, replace(choice, sharpness=1.0)))
    np.testing.assert_allclose(scores(*join_linear(moments, [state | sure], SHARED, choice)), expected, atol=1e-6)


def test_members_alone_weigh_experts_as_chosen():
    members = [initial(seed) for seed in range(2)]
    moments = Moments(model_of(members[0], SHARED), DATA)
    joined, config = join_linear(moments, members, SHARED, LinearChoice(0.25, 1.0, 0.0, sharpness=0.5))
    as_learned, expected = join(members, SHARED)
    assert config == expected
    for name, x in as_learned.items():
        assert torch.equal(joined[name], x * 0.5 if name.startswith("ce.moe_fc.") else x)


@pytest.mark.parametrize(("faint", "expected"), [(0.6, 0.25), (0.0, 0.0)])
def test_validation_sums_experts_where_their_lengths_tell_what_they_know(faint, expected):
    data, others = videos(60, 1, faint), videos(40, 2, faint)
    state = initial(0) | data.statistics(SHARED)
    choice, _ = choose_linear(Moments(model_of(state, SHARED), data), state, SHARED, others)
    assert choice.summed == expected


def test_it_counts_nothing_where_it_finds_less():
    linear_world = initial(0)
    moments = Moments(model_of(linear_world, SHARED), DATA)
    [good] = fit_linear(moments, [linear_world], SHARED, LinearChoice(0.0, 0.1, 1.0))
    config = replace(SHARED, shared_dim=10)
    shuffled = np.random.default_rng(0).permutation(len(DATA))
    wrong = replace_targets(DATA, shuffled[DATA.targets])
    trained = {**linear_world, **good.state}
    assert choose_linear(Moments(model_of(trained, config), wrong), trained, config, OTHERS)[0].count == 0


def replace_targets(data, targets):
    other = videos(len(data), 1)
    other.targets = targets
    return other
