"""`embed --zero-shot`, and `search` in what it wrote: from a dataset of `extract` to answers, without weights."""

import json

import numpy as np
import pytest

pytest.importorskip("lance")

from collaborative_experts import CollaborativeExperts, VideoIndex
from collaborative_experts.__main__ import main
from collaborative_experts.apps import zero_shot as app
from collaborative_experts.features.extract.dataset import FeatureDataset, Making, Row
from collaborative_experts.features.extract.expert import Extracted
from collaborative_experts.hub.zero_shot import Spaces, ZeroShotOperator, bank_sentences
from collaborative_experts.retrieval.explain import explain
from collaborative_experts.retrieval.similarity import similarity
from collaborative_experts.retrieval.zero_shot import SENTENCES, ZeroShot, ZeroShotExpert
from collaborative_experts.training.encoder import SentenceEncoder
from helpers import write_siglip

FACTS = {"class": "x:X", "version": 1, "weights": "w", "settings": {}, "text_tower": None}
APPEARANCE = FACTS | {"dim": 4, "sequence": False, "reads_text": False, "has_labels": True}
OCR = FACTS | {"dim": 2, "sequence": True, "reads_text": True, "has_labels": False}
MOTION = FACTS | {"dim": 3, "sequence": False, "reads_text": False, "has_labels": False}
LABELS = ("rabbit", "dog", "car", "tree", "house", "ship", "bird")


class Words:
    """A sentence encoder for which each word of a few has an axis of its own."""

    dim, words = 12, (*LABELS, "hello", "world", "credits", "a")

    def __init__(self, model=None, trusted=True):
        self.model = self.name = model or "words"

    def __call__(self, sentences):
        return [np.array([self._axis(word) for word in text.split()], np.float32) for text in sentences]

    def embed(self, sentences):
        return np.stack([x.mean(0) for x in self(sentences)])

    def _axis(self, word):
        return np.eye(self.dim)[self.words.index(word) if word in self.words else self.dim - 1] + 0.01


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr("collaborative_experts.hub.zero_shot.SentenceEncoder", Words)
    monkeypatch.setattr(app, "SentenceEncoder", Words)


def seen(*labels):
    scores = tuple(float(x) for x in np.linspace(0.6, 0.1, len(labels)))
    return Extracted(np.ones(4), labels=labels, scores=scores)


def write(path, experts, clips):
    """`features.lance` of clips {expert: output}; an expert that is not there is missing."""
    dataset = FeatureDataset(path, Making({"by": "shots"}, "float32", experts))
    rows = [
        Row(
            f"film.mp4#t={i}.0,{i + 1}.0",
            "/films/film.mp4",
            float(i),
            i + 1.0,
            False,
            {x: said.get(x) for x in experts},
        )
        for i, said in enumerate(clips)
    ]
    dataset.append(rows)


@pytest.fixture
def features(tmp_path):
    clips = [
        {"appearance": seen("rabbit", "tree", "bird", "car", "dog", "ship")},
        {"appearance": seen("dog", "house")},
        {"appearance": seen("car"), "ocr": Extracted(np.ones((2, 2)), text="hello world")},
        {"ocr": Extracted(np.ones((1, 2)), text="credits " * 150)},
        {"motion": Extracted(np.ones(3))},
        {"appearance": seen("ship", "tree")},
    ]
    write(tmp_path / "features.lance", {"appearance": APPEARANCE, "motion": MOTION, "ocr": OCR}, clips)
    return tmp_path / "features.lance"


def searched(capsys, *arguments):
    assert main(["search", *map(str, arguments), "--json"]) == 0
    return [
        [(video["start_s"], video.get("metadata")) for video in answer]
        for answer in json.loads(capsys.readouterr().out)
    ]


def test_from_features_to_time_spans(features, tmp_path, capsys):
    store = tmp_path / "videos.lance"
    assert main(["embed", str(features), "--zero-shot", "--to", str(store)]) == 0
    assert "5 videos added" in capsys.readouterr().out  # the clip of motion alone is left out
    rabbit, ship, credits_, hello = searched(capsys, store, "a rabbit", "a ship", "credits", "hello world", "-k", "3")
    assert [x[0][0] for x in (rabbit, ship, credits_, hello)] == [0.0, 5.0, 3.0, 2.0]
    assert rabbit[0][1] == {"labels": {"appearance": ["rabbit", "tree", "bird", "car", "dog"]}}
    assert hello[0][1] == {"text": {"ocr": "hello world"}, "labels": {"appearance": ["car"]}}


def test_an_expert_that_finds_no_label_at_all(tmp_path, capsys):
    clips = [{"ocr": Extracted(np.ones((1, 2)), text=text)} for text in ("hello", "credits")]
    write(tmp_path / "features.lance", {"appearance": APPEARANCE, "ocr": OCR}, clips)
    store = tmp_path / "videos.lance"
    assert main(["embed", str(tmp_path / "features.lance"), "--zero-shot", "--to", str(store)]) == 0
    capsys.readouterr()
    assert [x[0][0] for x in searched(capsys, store, "hello", "credits")] == [0.0, 1.0]


def test_the_literal_form_and_the_store_alone_are_enough(features, tmp_path, monkeypatch, capsys):
    store = tmp_path / "videos.lance"
    assert main(["embed", "--zero-shot", str(features), str(store)]) == 0
    features.rename(tmp_path / "gone.lance")
    capsys.readouterr()
    assert searched(capsys, store, "a dog", "-k", "1")[0][0][0] == 1.0
    with VideoIndex(store) as index:
        zero_shot = ZeroShot.from_identity(index.model)
        assert index.experts == ("appearance", "ocr")
    assert {name: x.reads for name, x in zero_shot.experts.items()} == {"appearance": "labels", "ocr": "words"}
    monkeypatch.setattr(Words, "words", tuple(reversed(Words.words)))
    assert main(["search", str(store), "a dog"]) == 1
    assert "expected the token embeddings of words, got different ones" in capsys.readouterr().err


def test_added_later_is_on_the_same_scale(features, tmp_path, capsys):
    store = tmp_path / "videos.lance"
    app.embed_zero_shot(features, store)
    with VideoIndex(store) as index:
        before = index.model
    more = tmp_path / "more.lance"
    write(more, {"appearance": APPEARANCE, "ocr": OCR}, [{}] * 6 + [{"appearance": seen("bird")}])
    assert app.embed_zero_shot(more, store) == 1
    with VideoIndex(store) as index:
        assert (len(index), index.model) == (6, before)
    assert searched(capsys, store, "a bird", "-k", "1")[0][0][0] == 6.0
    other = tmp_path / "other.lance"
    write(other, {"appearance": APPEARANCE | {"version": 2}, "ocr": OCR}, [{"appearance": seen("bird")}])
    with pytest.raises(ValueError, match=r"'appearance': expected features of .*'version': 1.* got .*'version': 2"):
        app.embed_zero_shot(other, store)
    write(tmp_path / "one.lance", {"ocr": OCR}, [{"ocr": Extracted(np.ones((1, 2)), text="hello")}])
    with pytest.raises(ValueError, match="expected the experts appearance, ocr, got ocr"):
        app.embed_zero_shot(tmp_path / "one.lance", store)


def test_the_scale_is_that_of_clips_of_the_whole_dataset(tmp_path, monkeypatch):
    """Not of the first ones, which are often of one film."""
    monkeypatch.setattr(app, "MOST_CLIPS", 4)
    monkeypatch.setattr("collaborative_experts.features.extract.clip_facts.BATCH", 3)
    clips = [{"appearance": seen(name)} for name in ["dog"] * 4 + ["car"] * 4 + ["tree"] * 4]
    write(tmp_path / "features.lance", {"appearance": APPEARANCE}, clips)
    path, experts = tmp_path / "features.lance", app.choose_experts(tmp_path / "features.lance")
    ids, vectors = app._sample(path, experts, Spaces(Words()), None)
    assert [name.split("=")[1] for name in ids] == ["0.0,1.0", "3.0,4.0", "7.0,8.0", "11.0,12.0"]
    expected = Words().embed(["dog", "dog", "car", "tree"])
    cosine = (vectors["appearance"] * expected).sum(1) / np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(cosine, np.linalg.norm(vectors["appearance"], axis=1), rtol=1e-5)


def test_captions_fit_the_weights(features, tmp_path):
    captions = tmp_path / "captions.csv"
    ids = [f"film.mp4#t={i}.0,{i + 1}.0" for i in range(6)]
    lines = [f'"{ids[i]}",{text}' for i, text in ((0, "a rabbit"), (1, "a dog"), (2, "a car"), (5, "a ship"))]
    captions.write_text("video_id,caption\n" + "\n".join(lines) + '\nelsewhere,"a bird"\n')
    store = tmp_path / "videos.lance"
    app.embed_zero_shot(features, store, captions)
    with VideoIndex(store) as index:
        zero_shot = ZeroShot.from_identity(index.model)
    weights = {name: x.weight for name, x in zero_shot.experts.items()}
    assert weights["appearance"] > 0.6
    with pytest.raises(ValueError, match="expected no captions, or a new index"):
        app.embed_zero_shot(features, store, captions)
    captions.write_text("video_id,caption\nelsewhere,a bird\n")
    with pytest.raises(ValueError, match=r"expected ids of .*, such as 'film.mp4#t=0.0,1.0'"):
        app.embed_zero_shot(features, tmp_path / "new.lance", captions)
    assert not (tmp_path / "new.lance").exists()


def test_embeddings_are_explained(features):
    zero_shot = app._prepare(features, app.choose_experts(features), Spaces(Words()), None)
    _, vectors = next(app._iter_vectors(features, zero_shot.experts, Spaces(Words())))
    text = ZeroShotOperator(zero_shot).encode_sentences("hello world")
    found = explain(text, zero_shot.embed_videos(vectors), j=2)
    assert found.experts[found.shares.argmax()] == "ocr"
    assert "score" in str(found)


def test_towers_meet_their_own_features(tmp_path, capsys):
    pytest.importorskip("transformers")
    folder = write_siglip(tmp_path / "siglip")
    spaces = Spaces(Words())
    sentences = ["a dog runs", "two cats", "a rabbit"]
    vectors = spaces.embed(folder, sentences)
    facts = FACTS | {"text_tower": folder, "weights": spaces._tower(folder).weights, "settings": {"keep": "frames"}}
    facts |= {"dim": 32, "sequence": True, "reads_text": False, "has_labels": False}
    path, store = tmp_path / "features.lance", tmp_path / "videos.lance"
    write(path, {"appearance": facts}, [{"appearance": Extracted(np.stack([x, x]))} for x in vectors])
    assert main(["embed", str(path), "--zero-shot", "--to", str(store)]) == 0
    capsys.readouterr()
    answers = searched(capsys, store, *sentences, "-k", "1")
    with VideoIndex(store) as index:
        zero_shot = ZeroShot.from_identity(index.model)
    assert zero_shot.encoder is None
    scores = similarity(zero_shot.embed_texts({folder: vectors}), zero_shot.embed_videos({"appearance": vectors}))
    assert [answer[0][0] for answer in answers] == scores.argmax(1).tolist()
    write(
        tmp_path / "other.lance",
        {"appearance": facts | {"weights": "others"}},
        [{"appearance": Extracted(vectors[:1])}],
    )
    with pytest.raises(ValueError, match="'appearance' was extracted with weights others"):
        app.embed_zero_shot(tmp_path / "other.lance", tmp_path / "new.lance")
    write(tmp_path / "double.lance", {"appearance": facts | {"dim": 64}}, [{"appearance": Extracted(np.ones((1, 64)))}])
    with pytest.raises(
        ValueError, match=r"expected features of 32 numbers.* got 64; extract with --set appearance.keep"
    ):
        app.embed_zero_shot(tmp_path / "double.lance", tmp_path / "new.lance")


def test_a_trained_index_is_not_mixed(features, tmp_path):
    op = CollaborativeExperts(
        {"experts": {"appearance": 4}, "text": {"dim": 6}, "use_ce": "", "shared_dim": 8}, device="cpu"
    )
    store = tmp_path / "videos.lance"
    with pytest.warns(UserWarning, match="seeded initial"), VideoIndex(store) as index:
        index.add(["v"], op.encode_video({"appearance": np.ones((1, 4))}))
    with pytest.raises(ValueError, match=r"expected embeddings of the experts|embedded by another model"):
        app.embed_zero_shot(features, store)


def test_trained_embed_hands_on_the_same_metadata(features, tmp_path):
    op = CollaborativeExperts(
        {"experts": {"appearance": 4, "motion": 3, "ocr": {"dim": 2, "clusters": 1}}, "text": {"dim": 6}}, device="cpu"
    )
    op.save(tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match="seeded initial"):
        assert (
            main(
                [
                    "embed",
                    str(features),
                    "--weights",
                    str(tmp_path / "w.safetensors"),
                    "--to",
                    str(tmp_path / "v.lance"),
                ]
            )
            == 0
        )
    with VideoIndex(tmp_path / "v.lance") as index:
        rows = {row["start_s"]: row["metadata"] for row in index.to_arrow().to_pylist()}
    assert json.loads(rows[2.0]) == {"text": {"ocr": "hello world"}, "labels": {"appearance": ["car"]}}
    assert rows[4.0] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["features.lance", "--to", "v.lance"], "expected --weights FILE, or --zero-shot"),
        (["features.lance", "--zero-shot"], "expected one index, with --to"),
        (["features.lance", "v.lance", "--zero-shot", "--to", "w.lance"], "expected one index, with --to"),
        (["no.lance", "--zero-shot", "--to", "v.lance"], "there is no file or folder no.lance"),
        (["motion.lance", "--zero-shot", "--to", "v.lance"], "expected an expert with a text tower, words or labels"),
        (["features.lance", "--weights", "w.pt", "--encoder", "e", "--to", "v.lance"], "belong to --zero-shot"),
    ],
)
def test_errors_are_one_line(features, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(features.parent)
    write(features.with_name("motion.lance"), {"motion": MOTION}, [{"motion": Extracted(np.ones(3))}])
    assert main(["embed", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (features.parent / "v.lance").exists()


def stated(space, model=None):
    """What an index says whose videos meet sentences in a space, with a sentence encoder of this name."""
    encoder = {"name": "e", "model": model, "dim": 2, "probe": []}
    return ZeroShot({"x": ZeroShotExpert("words", space, {"weights": "w"})}, encoder, {space: [0.0, 0.0]})


@pytest.mark.parametrize("reads", ["words", "tower"])
def test_a_model_that_an_index_names_is_not_downloaded(reads, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr("collaborative_experts.hub.zero_shot.SentenceEncoder", SentenceEncoder)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("looked for a server"))
    asked = []
    monkeypatch.setattr("collaborative_experts.base.model_hub._answers", lambda url: asked.append(url))
    zero_shot = stated(SENTENCES if reads == "words" else "strange/model", "strange/model")
    with pytest.raises(FileNotFoundError, match=r"'strange/model' is neither .* not downloaded without .* \(--trust\)"):
        _embed_one(zero_shot, False)
    assert not asked
    with pytest.raises(FileNotFoundError, match=r"'strange/model' is neither .* cannot be reached"):
        _embed_one(zero_shot, True)
    assert len(asked) == 1


def _embed_one(zero_shot, trusted):
    ZeroShotOperator(zero_shot, "cpu", trusted)._spaces.embed(zero_shot.spaces[0], ["a dog"])


def test_operator_checks_sentences():
    zero_shot = ZeroShotOperator(ZeroShot({}, None, {}))
    for sentences in ([3], None, 5, np.array("a")):
        with pytest.raises(TypeError, match="sentences: expected text or a list of texts, got"):
            zero_shot.encode_sentences(sentences)
    with pytest.raises(ValueError, match="expected at least one"):
        zero_shot.encode_sentences([])


def test_the_bank_has_a_hundred_different_sentences():
    assert len(set(bank_sentences())) == 100
    assert all(len(text.split()) > 3 for text in bank_sentences())
