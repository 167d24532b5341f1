"""A query bank kept with an index gives what correcting the whole matrix of scores gives."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lance")

from collaborative_experts import QueryBank, VideoIndex, similarity
from collaborative_experts.retrieval import embedded, store
from helpers import check_best, random_embeddings, some

NAMES = np.array([f"video {i:03}" for i in range(60)])
LEVELS = np.linspace(-0.5, 0.5, 40)
METHODS = (
    {"method": "qb", "beta": 30.0},
    {"method": "nnn", "k": 3},
    {"method": "qb-dynamic"},
    {"method": "qb", "levels": LEVELS},
    {"method": "qb-dynamic", "levels": LEVELS},
)


def corrected_scores(text, video, bank):
    """The definition over the full matrix."""
    scores = similarity(text, video).astype(np.float64)
    finds_activated = bank.activated(video)[scores.argmax(1)]
    return scores - finds_activated[:, None] * bank.biases(video)


def check(index, text, video, bank, names=NAMES, k=10):
    """The index gives the best by the definition."""
    return check_best(index, text, corrected_scores(text, video, bank), names, k)


@pytest.fixture
def filled(tmp_path):
    text, video = some(7)
    bank, _ = some(40, seed=1)
    with VideoIndex(tmp_path / "videos.lance") as index:
        index.add(NAMES, video)
        yield index, text, video, bank


@pytest.mark.parametrize("settings", METHODS, ids=lambda x: x["method"] + " levels" * ("levels" in x))
def test_as_the_full_matrix(filled, settings, monkeypatch):
    monkeypatch.setattr(embedded, "BANK_TEXTS", 16)
    index, text, video, texts = filled
    plain = index.search(text, 10)
    index.calibrate(texts, **settings)
    bank = QueryBank(texts, **settings)
    found = check(index, text, video, bank)
    assert found.ids.tolist() != plain.ids.tolist()
    with VideoIndex(index.uri) as again:
        check(again, text, video, bank)
    with VideoIndex(index.uri, memory=10) as streamed:
        check(streamed, text, video, bank)
    index.calibrate(None)
    assert index.search(text, 10).ids.tolist() == plain.ids.tolist()


@pytest.mark.parametrize("settings", METHODS, ids=lambda x: x["method"] + " levels" * ("levels" in x))
def test_videos_that_are_added_and_deleted_later(tmp_path, settings):
    text, video = some(7)
    texts, _ = some(40, seed=1)
    bank = QueryBank(texts, **settings)
    with VideoIndex(tmp_path / "videos.lance") as index:
        index.add(NAMES[:20], video[:20])
        index.calibrate(texts, **settings)
        check(index, text, video[:20], bank)
        index.add(NAMES[20:], video[20:])
        check(index, text, video, bank)
        index.add(NAMES[10:15], video[30:35])
        index.delete(NAMES[40:])
        now = video[np.r_[0:10, 30:35, 15:40]]
        check(index, text, now, bank, NAMES[:40])
        index.optimise()
        check(index, text, now, bank, NAMES[:40])


def test_all_videos_deleted_then_added(filled):
    index, text, video, texts = filled
    index.delete(NAMES[::2])
    index.calibrate(texts)
    index.add(NAMES[::2], video[::2])
    check(index, text, video, QueryBank(texts))


def test_another_bank_replaces_the_first(filled):
    index, text, video, texts = filled
    index.calibrate(texts, "nnn")
    index.calibrate(texts[:20], "qb", beta=5.0)
    check(index, text, video, QueryBank(texts[:20], beta=5.0))
    assert sum(name.startswith("bias_") for name in index._open._store._dataset.schema.names) == 1


def test_optimise_removes_banks_that_no_version_asks_for(filled, monkeypatch):
    index, text, video, texts = filled
    folder = Path(index.uri) / "_banks"
    index.calibrate(texts)
    index.calibrate(texts[:20])
    index.optimise()
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setattr(store, "KEPT", timedelta(0))
    index.optimise()
    assert len(list(folder.iterdir())) == 1
    check(index, text, video, QueryBank(texts[:20]))


def test_similar_videos_are_not_corrected(filled):
    index, _, video, texts = filled
    before = index.search_like(NAMES[0], 5), index.search_like(video[:2], 5)
    index.calibrate(texts)
    after = index.search_like(NAMES[0], 5), index.search_like(video[:2], 5)
    assert [x.ids.tolist() for x in after] == [x.ids.tolist() for x in before]
    assert np.abs(after[0].scores - before[0].scores).max() < 1e-6


def test_restricted_searches_are_corrected(filled):
    index, text, video, texts = filled
    index.calibrate(texts)
    scores = corrected_scores(text, video[:20], QueryBank(texts))
    assert index.search(text, 1, ids=NAMES[:20]).ids[:, 0].tolist() == NAMES[:20][scores.argmax(1)].tolist()


def test_what_is_no_bank(filled, tmp_path):
    index, _, video, texts = filled
    other, _ = random_embeddings(3, 5, 2, 6, 0, 0)
    for arguments, error, message in (
        ((video,), TypeError, "expected TextEmbeddings"),
        ((texts[0],), ValueError, "expected a batch"),
        ((texts, "softmax"), ValueError, "method"),
        ((texts, "qb", -1.0), ValueError, "beta"),
        ((other,), ValueError, "expected embeddings of the experts"),
    ):
        with pytest.raises(error, match=message):
            index.calibrate(*arguments)
    with VideoIndex(tmp_path / "empty.lance") as empty, pytest.raises(ValueError, match="holds no videos"):
        empty.calibrate(texts)
