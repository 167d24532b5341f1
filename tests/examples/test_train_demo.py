"""The demo's experts read off the files what was drawn; its test videos are combinations that training never had."""

import csv
import importlib

import numpy as np
import pytest

from collaborative_experts import read_features

COUNT = 24


@pytest.fixture(scope="module")
def modules(root):
    """`demo_corpus` and `train_demo`, which import each other by name, as when one is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "examples"))
        yield importlib.import_module("demo_corpus"), importlib.import_module("train_demo")


@pytest.fixture(scope="module")
def corpus(modules, tmp_path_factory):
    """The folder, and the videos in it."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, modules[0].make_corpus(folder, COUNT, seed=1)


@pytest.fixture(scope="module")
def said(modules, corpus):
    """What the experts say of each file."""
    folder, videos = corpus
    return {video.name: modules[1].consult_experts(folder / "videos" / f"{video.name}.mp4") for video in videos}


def test_corpus_has_all_kinds(corpus):
    """Otherwise the tests below would hold of nothing."""
    scenes = [video.scene for video in corpus[1]]
    assert {scene.motion for scene in scenes} == {"left", "right", "up", "down", "round", "still"}
    assert len({scene.colour for scene in scenes}) == 6
    assert {scene.word == "" for scene in scenes} == {scene.sound == "silent" for scene in scenes} == {True, False}


def test_words_are_read(corpus, said):
    for video in corpus[1]:
        assert said[video.name]["words"] == video.scene.word


@pytest.mark.parametrize("start", [0, 2])
def test_every_word_is_read_wherever_it_starts(modules, start):
    demo_corpus, train_demo = modules
    for word in demo_corpus.WORDS:
        strip = demo_corpus.draw_sign(word, start)
        frames = np.broadcast_to(strip[None, :, :, None], (2, *strip.shape, 3))
        assert train_demo.read_sign(frames) == word


def test_dominant_hue_is_the_colour(modules, corpus, said):
    hues = modules[0].HUES
    for video in corpus[1]:
        histogram = said[video.name]["colour"]
        degrees = (histogram.argmax() + 0.5) * 360 / len(histogram)
        away = abs((degrees - hues[video.scene.colour] + 180) % 360 - 180)
        assert away < 25, video


def test_motion_has_the_direction(modules, corpus, said):
    demo_corpus, _ = modules
    for video in corpus[1]:
        motion, steps = said[video.name]["motion"], demo_corpus.FRAMES - 1
        mean = motion[: 2 * steps].reshape(steps, 2).mean(0)
        length = motion[2 * steps : 3 * steps].mean()
        if video.scene.motion == "round":
            assert length > 2 * np.hypot(*mean), video
        elif video.scene.motion == "still":
            assert length < 0.3, video
        else:
            assert mean @ demo_corpus.DIRECTIONS[video.scene.motion] > 0.95 * length, video


def test_sound_is_missing_where_silent(corpus, said):
    for video in corpus[1]:
        assert (said[video.name]["sound"] is None) == (video.scene.sound == "silent")


def test_tones_are_heard_where_they_are(corpus, said):
    loudest = {
        video.scene.sound: said[video.name]["sound"].mean(0).argmax()
        for video in corpus[1]
        if video.scene.sound in ("low", "high")
    }
    assert loudest["low"] < loudest["high"]


def test_feature_files_have_what_the_experts_said(modules, corpus, said):
    folder, videos = corpus
    modules[1].extract(folder / "videos", folder / "features")
    features = read_features(folder / "features", [video.name for video in videos])
    assert set(features.experts) == {"colour", "motion", "shape", "sound", "words"}
    assert features.ind["sound"].tolist() == [int(video.scene.sound != "silent") for video in videos]
    assert features.ind["words"].tolist() == [int(video.scene.word != "") for video in videos]
    for name in ("colour", "motion", "shape"):
        assert features.ind[name].all()
        expected = np.stack([said[video.name][name] for video in videos])
        np.testing.assert_allclose(features.experts[name], expected, rtol=1e-5, atol=1e-6)


def test_splits_share_no_combination(modules, corpus):
    scenes = modules[0].draw_scenes(600, np.random.default_rng(0))
    assert len(set(scenes)) == 600
    of = {split: {video.scene for video in corpus[1] if video.split == split} for split in ("train", "test")}
    assert len(of["train"]) + len(of["test"]) == COUNT
    assert not of["train"] & of["test"]


def test_captions_file_has_all_sentences(corpus):
    folder, videos = corpus
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = [(video.name, video.split, caption) for video in videos for caption in video.captions]
    assert [(row["video_id"], row["split"], row["caption"]) for row in rows] == expected
    assert {video.split: len(video.captions) for video in videos} == {"train": 4, "test": 3}


def test_corpus_follows_from_the_seed(modules, corpus, tmp_path):
    folder, videos = corpus
    assert modules[0].make_corpus(tmp_path, COUNT, seed=1) == videos
    name = f"{videos[0].name}.mp4"
    assert (tmp_path / "videos" / name).read_bytes() == (folder / "videos" / name).read_bytes()
