"""Caption files, and token embeddings that are computed once."""

import numpy as np
import pytest

from collaborative_experts import captions
from collaborative_experts.captions import Captions, embed_tokens, read_captions

CSV = 'video_id,split,caption\n7,train,A dog runs.\n7,train,"Running, a dog"\nx,test,Zwölf Katzen\n'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


class Words:
    """Each word is its length, in every dimension; counts what it is asked for."""

    name, dim = "words", 3

    def __init__(self):
        self.asked = 0

    def __call__(self, sentences):
        self.asked += len(sentences)
        return [np.array([[len(word)] * 3 for word in sentence.split()], dtype=np.float32) for sentence in sentences]


def test_reads_all_or_a_split(file):
    assert read_captions(file) == Captions(("7", "7", "x"), ("A dog runs.", "Running, a dog", "Zwölf Katzen"))
    assert read_captions(file).unique_ids() == ("7", "x")
    assert read_captions(file, "test").video_ids == ("x",)
    assert len(read_captions(file, ["train", "test"])) == 3


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        ("id,caption\n1,a\n", None, "expected the columns video_id, caption; found id, caption"),
        ("video_id,caption\n1,a\n", "train", "expected the columns video_id, caption, split; found video_id, caption"),
        ("", None, "expected the columns video_id, caption; found none"),
        ("video_id,caption\n", None, "expected captions, found none"),
        (CSV, "val", r"expected captions of split \['val'\], found none"),
        ("video_id,caption\n1,a\n,b\n", None, "record 2: expected a video_id and a caption"),
        ("video_id,caption\n1,a\n2\n", None, "record 2: expected a video_id and a caption"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, text, split, message):
    path = tmp_path / "captions.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_captions(path, split)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"captions: there is no file .*captions\.csv"):
        read_captions(tmp_path / "captions.csv")
    (tmp_path / "captions.csv").write_bytes(b"video_id,caption\n1,\xff\xfe\n")
    with pytest.raises(ValueError, match="expected a CSV file in UTF-8"):
        read_captions(tmp_path / "captions.csv")


def test_tokens_are_padded_cut_and_computed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "BATCH", 2)
    words = Words()
    sentences = ("one three", "a bb ccc dddd", "x", "yy zz", "end")
    tokens = embed_tokens(sentences, words, tmp_path, max_tokens=3)
    assert tokens.shape == (5, 3, 3)
    assert tokens[:, :, 1].tolist() == [[3, 5, 0], [1, 2, 3], [1, 0, 0], [2, 2, 0], [3, 0, 0]]
    assert isinstance(tokens, np.memmap)
    assert np.array_equal(embed_tokens(sentences, words, tmp_path, max_tokens=3), tokens)
    assert words.asked == 5
    embed_tokens(sentences, words, tmp_path, max_tokens=4)
    embed_tokens(sentences[:4], words, tmp_path, max_tokens=3)
    words.name = "other words"
    embed_tokens(sentences, words, tmp_path, max_tokens=3)
    assert words.asked == 5 + 5 + 4 + 5


@pytest.mark.parametrize(
    "wrong", [np.zeros((0, 3)), np.zeros(3), np.zeros((2, 4)), np.full((2, 3), np.nan), np.full((2, 3), 1e6)]
)
def test_an_encoder_that_fails_leaves_nothing(tmp_path, wrong):
    words = Words()
    good = words(["fine"])[0]
    monkey = type("Broken", (Words,), {"__call__": lambda self, sentences: [good, wrong]})()
    with pytest.raises(ValueError, match=r"encoder words, 'bad': expected \(W, 3\) of numbers up to 65504"):
        embed_tokens(["fine", "bad"], monkey, tmp_path, max_tokens=3)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        embed_tokens(["a"], Words(), tmp_path / "no", max_tokens=3)
