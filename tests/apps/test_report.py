"""Reports: one file with all that was found, which opens by itself."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("lance")
pytest.importorskip("av")

from collaborative_experts import TextEmbeddings, VideoEmbeddings, VideoIndex, evaluate, similarity
from collaborative_experts.apps.report import Answer, Query, Report, render, report_search, write_report
from collaborative_experts.apps.report_run import choose, find_ranks
from helpers import random_embeddings
from pages import COUNT, HOSTILE, Letters, make_clips, make_store


class Tags(HTMLParser):
    """All tags, the classes of each, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.classes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.classes += (dict(attributes).get("class") or "").split()

    def handle_data(self, data):
        self.text += data


def test_answers_of_a_search(tmp_path, monkeypatch):
    make_clips(tmp_path)
    monkeypatch.chdir(tmp_path)  # uris are relative
    with make_store(tmp_path, Letters()) as index:
        found = index.search(["a train", HOSTILE], COUNT)
    write_report(report_search(["a train", HOSTILE], found), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    seen = Tags(page)
    assert seen.tags.count("li") == 2 * COUNT + 3
    assert "script" not in seen.tags
    assert HOSTILE in seen.text
    for name, score in zip(found.ids[0], found.scores[0], strict=True):
        assert name in seen.text
        assert f"{score:.3f}" in seen.text
    clips = {(uri, *span) for uri, span in zip(found.uris[0], found.spans[0].tolist(), strict=True)}
    assert page.count("data:image/jpeg") == len(clips) - 2  # each once; gone.mp4 is not there, broken.mp4 no film
    assert not re.search(r"https?://|<link|<img|url\((?!data:)", page)


def test_metadata_of_users_may_have_any_form(tmp_path):
    video = VideoEmbeddings({"x": np.eye(3)}, np.ones((3, 1)))
    metadata = [{"text": "hello <b>"}, {"text": ["a"], "caption": 3}, {"text": {"ocr": None, "speech": "heard"}}]
    with VideoIndex(tmp_path / "videos.lance") as index:
        index.add(["a", "b", "c"], video, metadata=metadata)
        found = index.search(TextEmbeddings({"x": np.eye(1, 3)}, np.ones((1, 1))), 3)
    report = report_search(["q"], found)
    assert {x.id: x.text for x in report.queries[0].answers} == {"a": "hello <b>", "b": "", "c": "heard"}


def test_bars_have_one_scale_and_add_up():
    answers = [Answer(1, "a", 0.4, {"x": 0.5, "y": -0.1}), Answer(2, "b", 0.25, {"x": 0.25, "y": 0.0})]
    page = render(Report("t", ["x", "y"], [Query("q", answers)]))
    widths = [[float(x) for x in re.findall(r"width:([\d.]+)%", bar)] for bar in page.split("class='bar'")[1:]]
    assert widths[0] == pytest.approx([0, 100 / 6, 500 / 6], abs=0.01)  # nothing, y to the left, x to the right
    assert widths[1] == pytest.approx([100 / 6, 250 / 6], abs=0.01)


def test_ranks_are_those_of_evaluate():
    text, video = random_embeddings(60, 30, missing=0.0)
    targets = np.arange(60) % 30
    ranks = find_ranks(text, video, targets)
    figures = evaluate(text, video, targets).text_to_video
    assert figures.mean_rank == pytest.approx(ranks.mean())
    assert figures.r5 == pytest.approx(100 * (ranks <= 5).mean())
    scores = similarity(text, video)
    assert ranks[7] == 1 + (scores[7] > scores[7, targets[7]]).sum()


def test_the_worst_come_first_then_all_ranks_evenly():
    ranks = np.random.default_rng(0).permutation(100) + 1.0
    shown = ranks[choose(ranks, 10)]
    assert shown.tolist() == sorted(shown, reverse=True)
    assert shown[:5].tolist() == [100, 99, 98, 97, 96]
    assert shown[-1] == 1
    assert sorted(choose(ranks[:3], 10)) == [0, 1, 2]
    assert len(choose(ranks, 1)) == 1
