"""Explanations add up to the score; printed, drawn, and asked for by id."""

import numpy as np
import pytest

from collaborative_experts import explain, similarity
from helpers import random_embeddings


def test_shares_sum_to_the_score():
    text, video = random_embeddings(3, 8)
    scores = similarity(text, video)
    for i in range(3):
        for j in range(8):
            explanation = explain(text, video, i, j)
            assert abs(explanation.score - scores[i, j]) < 1e-6
            assert abs(explanation.shares.sum() - explanation.score) < 1e-6
            assert (explanation.shares[~explanation.available] == 0).all()
            assert np.array_equal(explanation.available, video.available[j])
            assert np.array_equal(explanation.weights, text.weights[i])


def test_single_items_need_no_index():
    text, video = random_embeddings(3, 8)
    assert explain(text[1], video[2]).score == explain(text, video, 1, 2).score


def test_a_video_without_experts_scores_0():
    text, video = random_embeddings(1, 1, missing=1)
    assert explain(text, video).score == 0


def test_prints_a_table():
    text, video = random_embeddings(1, 1, missing=0)
    video.available[0, 1] = False
    lines = str(explain(text, video)).splitlines()
    assert [line.split()[0] for line in lines] == ["expert", "e0", "e1", "e2", "score"]
    assert lines[2].endswith("missing")
    assert float(lines[-1].split()[1]) == pytest.approx(explain(text, video).score, abs=1e-3)


def test_plots(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    text, video = random_embeddings(1, 1)
    explanation = explain(text, video)
    figure = explanation.plot()
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(explanation.shares.tolist())
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert explanation.plot(ax) is figure
    assert len(ax.patches) == 6


@pytest.mark.parametrize(("backend", "kept"), [("agg", True), ("module://matplotlib_inline.backend_inline", False)])
def test_a_notebook_shows_a_figure_once(backend, kept, monkeypatch):
    """The inline backend shows all open figures after a cell, and the one that the cell returns."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.setattr(pyplot, "get_backend", lambda: backend)
    figure = explain(*random_embeddings(1, 1)).plot()
    assert (figure.number in pyplot.get_fignums()) is kept
    pyplot.close("all")


def test_there_must_be_such_an_item():
    text, video = random_embeddings(3, 8)
    with pytest.raises(IndexError, match="i: expected an index below 3, got 3"):
        explain(text, video, 3, 0)
    with pytest.raises(IndexError, match="j: expected an index below 8, got -9"):
        explain(text, video, 0, -9)


def test_videos_by_id():
    text, video = random_embeddings(3, 4)
    ids = ["video0", "7", "video2", "video3"]
    explanation = explain(text, video, i=1, j="7", ids=["video0", 7, "video2", "video3"])
    assert explanation.score == explain(text, video, 1, 1).score
    assert explanation.video_id == "7"
    assert explain(text, video, j=-1, ids=ids).video_id == "video3"
    assert explain(text, video).video_id is None
    assert str(explanation).splitlines()[0].split() == ["video", "7"]


def test_a_notebook_shows_the_table():
    explanation = explain(*random_embeddings(1, 1))
    assert repr(explanation) == str(explanation)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"j": "a"}, ValueError, "j: expected ids= beside the id 'a', such as ids=features.ids"),
        ({"j": "c", "ids": ["a", "b"]}, ValueError, "j: expected one of the 2 ids, such as 'a', got 'c'"),
        ({"ids": ["a"]}, ValueError, "ids: expected one for each of 2 videos, got 1"),
        ({"ids": "ab"}, TypeError, "ids: expected the ids of all videos, got the single 'ab'"),
        ({"ids": [1.5, 2.5]}, TypeError, "ids: expected text or integers, got 1.5"),
        ({"i": "a"}, TypeError, "i: expected a row, got 'a'"),
        ({"j": 0.0}, TypeError, "j: expected a row or an id, got 0.0"),
        ({"i": True}, TypeError, "i: expected a row, got True"),
    ],
)
def test_bad_inputs(arguments, error, message):
    with pytest.raises(error, match=message):
        explain(*random_embeddings(2, 2), **arguments)
