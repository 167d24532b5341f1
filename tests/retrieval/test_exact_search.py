"""The scan by codes: its bounds hold, and what it selects is what float64 would."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collaborative_experts.retrieval import exact_search, products
from collaborative_experts.retrieval.exact_search import (
    Chunk,
    ChunkScores,
    Queries,
    Vectors,
    best_of,
    quantise,
    scan,
    select,
)


def collection(texts, videos, dims, missing, scale, seed):
    """Weights (T, M), embeddings [(T, D)], joint vectors (n, sum of D) and availability (n, M) at random."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(len(dims)), texts).astype(np.float32)
    embeddings = [rng.standard_normal((texts, dim), dtype=np.float32) for dim in dims]
    joint = rng.standard_normal((videos, sum(dims)), dtype=np.float32) * np.float32(scale)
    available = rng.random((videos, len(dims))) >= missing
    available[~available.any(1), 0] = True
    return weights, embeddings, joint * np.repeat(available, dims, axis=1), available


def exact_scores(weights, embeddings, joint, available, dims):
    """The definition in float64, (T, n)."""
    videos = blocks(joint.astype(np.float64), dims)
    shares = [weights[:, [m]] * (embeddings[m].astype(np.float64) @ videos[m].T) for m in range(len(dims))]
    total = weights.astype(np.float64) @ available.T
    return sum(shares) / np.where(total > 0, total, 1)


def blocks(codes, dims):
    """The columns of each expert."""
    return np.split(codes, np.cumsum(dims)[:-1], axis=1)


def queries_of(weights, embeddings):
    return Queries(torch.from_numpy(weights), [torch.from_numpy(x) for x in embeddings])


collections = st.tuples(
    st.integers(1, 5),
    st.integers(1, 40),
    st.lists(st.integers(1, 33), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.4, 0.9]),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    st.integers(0, 99),
)


def scores_of(chunk, queries):
    """(T, n) float32, of all texts."""
    return torch.cat([scores for _, scores in chunk.scores(queries)])


def errors_of(chunk, queries):
    """(T, n) float64, of all pairs."""
    text, video = torch.meshgrid(torch.arange(len(queries)), torch.arange(chunk.size), indexing="ij")
    return chunk.errors(queries, text.flatten(), video.flatten()).double().numpy().reshape(len(queries), chunk.size)


@given(collections)
@settings(max_examples=150, deadline=None)
def test_bounds_hold(given_collection):
    dims = given_collection[2]
    weights, embeddings, joint, available = collection(*given_collection)
    truth = exact_scores(weights, embeddings, joint, available, dims)
    codes = quantise(joint, dims)
    chunk = Chunk(blocks(codes.coarse, dims), codes.scale, codes.residual, available)
    queries = queries_of(weights, embeddings)
    scores, errors = scores_of(chunk, queries).double().numpy(), errors_of(chunk, queries)
    assert (np.abs(scores - truth) <= errors).all()
    assert (errors <= chunk.largest_error(queries).numpy() * (1 + 1e-6)).all()
    coarse = codes.coarse * np.repeat(codes.scale.astype(np.float64), dims, axis=1)
    fine = codes.fine * np.repeat(codes.scale / np.float64(exact_search.FINE_STEPS), dims, axis=1)
    for m, (start, stop) in enumerate(pairwise(np.cumsum([0, *dims]))):
        left = np.linalg.norm((joint - coarse)[:, start:stop], axis=1)
        assert (left <= codes.residual[:, m]).all()
        assert (np.linalg.norm((joint - coarse - fine)[:, start:stop], axis=1) <= codes.fine_residual[:, m]).all()
        if dims[m] > 8:
            assert (codes.fine_residual[:, m] <= codes.residual[:, m] / 20 + 1e-30).all()


def test_bounds_hold_however_the_codes_are_held(monkeypatch):
    """FBGEMM gives float32, the others whole numbers. Codes are held by it after a second search."""
    if not products.is_exact(products.fbgemm_product):
        pytest.skip("PyTorch has no FBGEMM here")
    monkeypatch.setattr(products, "_fastest", lambda _, fbgemm: ways[fbgemm])
    monkeypatch.setattr(products, "in_background", lambda function: settling.append(function))
    ways, settling = {True: products.fbgemm_product, False: products.float_product}, []
    for texts, missing, dims in ((1, 0.0, [512, 768, 768]), (20, 0.5, [700, 800]), (3, 0.2, [512, 768, 1])):
        settling.clear()
        weights, embeddings, joint, available = collection(texts, 300, dims, missing, 1.0, 0)
        codes, queries = quantise(joint, dims), queries_of(weights, embeddings)
        chunk = Chunk(blocks(codes.coarse, dims), codes.scale, codes.residual, available)
        truth = exact_scores(weights, embeddings, joint, available, dims)
        for searches in (1, 2, 3):
            found = scores_of(chunk, queries).double().numpy()
            assert (np.abs(found - truth) <= errors_of(chunk, queries)).all()
            assert bool(settling) == (searches == 2 and min(dims) > 1)
            while settling:
                settling.pop()()


@pytest.mark.parametrize("threads", [1, 2], ids=["one thread", "two threads"], indirect=True)
@pytest.mark.parametrize("fine_bytes", [0, 2**40], ids=["by fine codes", "by vectors"])
@pytest.mark.parametrize("part", [32, 2**18], ids=["two texts at once", "all at once"])
@given(collections, st.sampled_from([1, 2, 7, 40, 100]), st.integers(1, 3))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_selects_what_float64_would(threads, part, fine_bytes, given_collection, k, copies):
    """Also where videos are copies of each other, of equal scores, and come in several chunks."""
    dims = given_collection[2]
    weights, embeddings, joint, available = collection(*given_collection)
    joint, available = np.tile(joint, (copies, 1)), np.tile(available, (copies, 1))
    n = len(joint)
    ids = np.array([f"{(7919 * row) % n:04}" for row in range(n)], dtype=object)
    bias = np.random.default_rng(1).standard_normal(n).round(1) * np.abs(joint).max()
    codes = quantise(joint, dims)
    queries = queries_of(weights, embeddings)

    def score(start):
        rows = slice(start, start + 16)
        chunk = Chunk(blocks(codes.coarse[rows], dims), codes.scale[rows], codes.residual[rows], available[rows])
        rounding = exact_search.ROUNDING * float(np.abs(bias).max())
        bias_of_chunk = torch.from_numpy(bias[rows]).float()
        return ChunkScores(
            np.arange(n)[rows],
            ((texts, scores - bias_of_chunk) for texts, scores in chunk.scores(queries)),
            chunk.largest_error(queries) + rounding,
            lambda text, video: chunk.errors(queries, text, video) + rounding,
        )

    def vectors(addresses):
        return Vectors(addresses, joint[addresses], bias[addresses])

    def fine(addresses):
        scale = codes.scale[addresses] / exact_search.FINE_STEPS
        some = blocks(codes.fine[addresses], dims)
        yield addresses, Chunk(some, scale, codes.fine_residual[addresses], available[addresses])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_search, "FINE_BYTES", fine_bytes)
        patch.setattr(exact_search, "FEW_BYTES", 0)  # more than the k best are left for the second reading
        patch.setattr(exact_search, "PART", part)
        scored = select(scan(score, range(0, n, 16), len(weights), k), queries, k, dims, vectors, fine)
    found = best_of(scored, ids[scored.video], len(weights), k)
    truth = exact_scores(weights, embeddings, joint, available, dims) - bias
    for text, answers in enumerate(found):
        assert len(answers) == min(k, n)
        best = np.sort(truth[text])[::-1][: len(answers)]
        tolerance = 1e-12 * (np.abs(truth).max() + np.abs(bias).max()) + 1e-300
        assert np.abs(answers.score - best).max() <= tolerance
        assert np.abs(answers.score - truth[text, answers.video]).max() <= tolerance
        assert len(set(answers.video)) == len(answers)
        for (score, name), (next_score, next_name) in pairwise(zip(answers.score, answers.ids, strict=True)):
            assert score > next_score or (score == next_score and name < next_name)


def test_zeros_and_tiny_weights():
    """A text whose weights are all at experts that a video lacks scores 0 with it; nothing is divided by 0."""
    dims = [4, 4]
    weights, embeddings, joint, available = collection(2, 6, dims, 0.0, 1.0, 0)
    weights[0], weights[1] = [1, 0], [1 - 1e-30, 1e-30]
    available[:3, 0], joint[:3, :4] = False, 0
    joint[0] = 0
    codes = quantise(joint, dims)
    chunk = Chunk(blocks(codes.coarse, dims), codes.scale, codes.residual, available)
    queries = queries_of(weights, embeddings)
    scores, errors = scores_of(chunk, queries), errors_of(chunk, queries)
    truth = exact_scores(weights, embeddings, joint, available, dims)
    assert scores[0, :3].tolist() == [0, 0, 0]
    assert bool(scores.isfinite().all())
    assert (np.abs(scores.numpy() - truth) <= errors + 1e-7).all()
