"""Caption files, and token embeddings that are computed once."""

import numpy as np
import pytest
import torch

from collaborative_experts import CaptionedVideos, CEConfig, Features, caption_videos
from collaborative_experts.training import tokens as token_files
from collaborative_experts.training.captions import Captions, read_captions
from collaborative_experts.training.data import VideoTensors
from collaborative_experts.training.encoder import PROBE_SENTENCE
from collaborative_experts.training.tokens import embed_tokens

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
        self.asked += len(sentences) * (list(sentences) != [PROBE_SENTENCE])
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
        (
            "video_id,caption\n1,a\n",
            "train",
            r"expected the columns video_id, caption, split; found video_id, caption \(split is a word such as",
        ),
        ("", None, "expected the columns video_id, caption; found none"),
        ("video_id,caption\n", None, "expected captions, found none"),
        (CSV, "val", "no caption is of split 'val'; known: 'train', 'test'"),
        (CSV, ["train", "tset"], "no caption is of split 'tset'; did you mean 'test'?"),
        ("video_id,caption\n1,a\n,b\n", None, "record 2: expected a video_id and a caption"),
        ("video_id,caption\n1,a\n2\n", None, "record 2: expected a video_id and a caption"),
        ("video_id,caption\n1,a\n2,a dog, running\n", None, "record 2: expected 2 fields, and quotes around a caption"),
        (CSV + "7,train,a dog, running\n", "test", "record 4: expected 3 fields, and quotes around a caption"),
        (CSV + '7,train,"a dog\n8,train,a cat\n', "test", "line 5: expected quotes to be closed.* end of data"),
        (CSV + '7,train,"a dog\n8,train,"a cat"\n', "test", "line 5: expected quotes to be closed.* expected after"),
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
    monkeypatch.setattr(token_files, "SENTENCES_AT_ONCE", 2)
    words = Words()
    sentences = ("one three", "a bb ccc dddd", "x", "yy zz", "end", "x")
    tokens = embed_tokens(sentences, words, tmp_path, max_tokens=3)
    assert tokens.shape == (6, 3, 3)
    assert tokens[:, :, 1].tolist() == [[3, 5, 0], [1, 2, 3], [1, 0, 0], [2, 2, 0], [3, 0, 0], [1, 0, 0]]
    assert isinstance(tokens, np.memmap)
    assert words.asked == 5
    assert np.array_equal(embed_tokens(sentences[::-1], words, tmp_path, max_tokens=3), tokens[::-1])
    assert embed_tokens(sentences[:2], words, tmp_path, max_tokens=4)[1, :, 0].tolist() == [1, 2, 3, 4]
    assert words.asked == 5
    assert embed_tokens(("new", *sentences), words, tmp_path, max_tokens=3)[:, 0, 0].tolist() == [3, 3, 1, 1, 2, 3, 1]
    assert words.asked == 5 + 1
    words.name = "other words"
    embed_tokens(sentences, words, tmp_path, max_tokens=3)
    assert words.asked == 5 + 1 + 5
    for same in (("a\nb",), ("a", "b")):  # a line break is part of a sentence
        assert len(embed_tokens(same, words, tmp_path, max_tokens=3)) == len(same)


def test_what_was_encoded_before_a_kill_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "SENTENCES_AT_ONCE", 2)
    words, sentences = Words(), ["a", "bb", "ccc", "dddd", "killed"]
    killed = type("Killed", (Words,), {"__call__": lambda self, s: words(s) if "killed" not in s else 1 / 0})()
    with pytest.raises(ZeroDivisionError):
        embed_tokens(sentences, killed, tmp_path, max_tokens=1)
    files = sorted(tmp_path.glob("*/*"))
    assert (words.asked, len(files), {path.suffix for path in files}) == (4, 2, {".safetensors"})
    files[0].write_bytes(files[0].read_bytes()[:-1])  # one that the disk damaged is as good as none, and is mended
    for asked in (4 + 2 + 1, 4 + 2 + 1):
        assert embed_tokens(sentences, words, tmp_path, max_tokens=1)[:, 0, 0].tolist() == [1, 2, 3, 4, 6]
        assert words.asked == asked


@pytest.mark.parametrize(
    "wrong", [np.zeros((0, 3)), np.zeros(3), np.zeros((2, 4)), np.full((2, 3), np.nan), np.full((2, 3), 1e6)]
)
def test_an_encoder_that_fails_leaves_nothing(tmp_path, wrong):
    words = Words()
    good = words(["ok"])[0]
    monkey = type("Broken", (Words,), {"__call__": lambda self, sentences: [good, wrong][: len(sentences)]})()
    with pytest.raises(ValueError, match=r"encoder words, 'bad': expected \(W, 3\) of numbers up to 65504"):
        embed_tokens(["ok", "bad"], monkey, tmp_path, max_tokens=3)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        embed_tokens(["a"], Words(), tmp_path / "no", max_tokens=3)


# --- captioned videos ---------------------------------------------------------------------------------------

FEATURES = Features(
    ("x", "y", "7"), {"motion": np.arange(6.0).reshape(3, 2)}, {"motion": np.array([1, 0, 1], dtype=np.int64)}
)


def test_videos_with_their_captions(file, tmp_path):
    data = caption_videos(FEATURES, read_captions(file), Words(), tmp_path, max_tokens=4)
    assert data.features.ids == ("7", "x")  # those with captions, in the captions' order
    assert data.features.experts["motion"].tolist() == [[4, 5], [0, 1]]
    assert data.targets.tolist() == [0, 0, 1]
    assert data.tokens[:, :, 0].tolist() == [[1, 3, 5, 0], [8, 1, 3, 0], [5, 6, 0, 0]]
    part = data[1:]
    assert (len(part), part.features.ids, part.targets.tolist()) == (1, ("x",), [0])
    assert np.array_equal(part.tokens, data.tokens[2:])


def test_captions_of_unknown_videos(file, tmp_path):
    with pytest.warns(UserWarning, match="1 of their 2 videos have no features, such as 'x'; they are left out"):
        data = caption_videos(FEATURES[1:], read_captions(file), Words(), tmp_path)
    assert (data.features.ids, data.targets.tolist()) == (("7",), [0, 0])
    with pytest.raises(ValueError, match=r"2 of their 2 videos have no features, such as '7'$"):
        caption_videos(FEATURES[1:2], read_captions(file), Words(), tmp_path)


@pytest.mark.parametrize(
    ("targets", "tokens", "message"),
    [
        ([0, 1], np.zeros((2, 3, 4)), "captions: video '7' has no caption"),
        ([0, 1, 3], np.zeros((3, 3, 4)), "expected targets from 0 to 2, got others"),
        ([0, 1, -1], np.zeros((3, 3, 4)), "expected targets from 0 to 2, got others"),
        ([], np.zeros((0, 3, 4)), "expected targets"),
        ([0.0, 1.0, 2.0], np.zeros((3, 3, 4)), r"expected targets \(T,\) of integers and tokens \(T, W, dim\)"),
        ([0, 1, 2], np.zeros((3, 4)), r"got \(3,\) of int64 and \(3, 4\)"),
        ([0, 1], np.zeros((3, 3, 4)), r"got \(2,\) of int64 and \(3, 3, 4\)"),
    ],
)
def test_captions_that_do_not_fit(targets, tokens, message):
    with pytest.raises(ValueError, match=message):
        CaptionedVideos(FEATURES, np.array(targets), tokens)


@pytest.mark.parametrize("name", ["targets", "tokens"])
def test_a_mask_is_not_passed_over(name):
    arrays = {"targets": np.array([2, 0, 1, 0]), "tokens": np.ones((4, 3, 4))}
    with pytest.raises(TypeError, match=f"captions: {name}: expected an array, got a masked one"):
        CaptionedVideos(FEATURES, **arrays | {name: np.ma.MaskedArray(arrays[name])})


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "uint64"])
def test_targets_of_any_integer_type(dtype):
    dataset = CaptionedVideos(FEATURES, np.array([2, 0, 1, 0], dtype=dtype), np.zeros((4, 3, 4)))
    assert dataset.targets.dtype == np.int64
    assert dataset[[0]].targets.tolist() == [0, 0]


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.tolist(),
        torch.from_numpy,
        lambda x: torch.from_numpy(x).requires_grad_() if x.dtype.kind == "f" else torch.from_numpy(x),
        lambda x: torch.from_numpy(x).bfloat16() if x.dtype.kind == "f" else torch.from_numpy(x),
        lambda x: list(torch.from_numpy(x)),
    ],
    ids=["lists", "tensors", "with gradients", "bfloat16", "lists of tensors"],
)
def test_captions_as_lists_and_tensors(form):
    targets, tokens = np.array([2, 0, 1, 0]), np.arange(48.0).reshape(4, 3, 4)
    teacher = np.arange(12.0).reshape(4, 3)
    dataset = CaptionedVideos(FEATURES, form(targets), form(tokens), teacher=form(teacher))[[0]]
    assert dataset.targets.tolist() == [0, 0]
    assert np.array_equal(dataset.tokens, tokens[[1, 3]])
    assert np.array_equal(dataset.teacher, teacher[[1, 3], :1])
    config = CEConfig.from_dict({"experts": {"motion": 2}, "text": {"dim": 4}, "use_ce": ""})
    batch = VideoTensors(dataset, config, "data").batch(np.array([0]), np.array([1]))
    assert batch[2].tolist() == tokens[[3]].tolist()


@pytest.mark.parametrize("target", [2**32, 2**62, 2**64 - 1])
def test_targets_beyond_everything_are_refused(target):
    with pytest.raises(ValueError, match="expected targets from 0 to 2, got others"):
        CaptionedVideos(FEATURES, np.array([2, 0, 1, target], dtype=np.uint64), np.zeros((4, 3, 4)))
