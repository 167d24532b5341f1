"""Query banks that training leaves beside the weights."""

from dataclasses import replace

import numpy as np
import pytest

import collaborative_experts as package
from collaborative_experts.apps.evaluate import ablate
from collaborative_experts.retrieval.normalise import PUBLISHED_BETA
from collaborative_experts.training import bank as banks
from collaborative_experts.training.bank import BETAS, bank_beside, choose_beta, read_bank, write_bank
from collaborative_experts.training.data import VideoTensors
from collaborative_experts.training.validation import embed_videos
from helpers import QUICK, TRAINABLE, captioned, untrained


@pytest.fixture
def trained(tmp_path):
    data = captioned(32)
    op = untrained()
    op.train(QUICK, data, captioned(16, seed=1), folder=str(tmp_path / "run"))
    return op, data, tmp_path / "run" / "bank.safetensors"


def test_the_bank_is_the_training_captions_by_the_written_weights(trained):
    op, data, path = trained
    bank = read_bank(path)
    assert bank.text.model == op.identity
    assert bank.beta in BETAS
    expected = op.encode_text(np.asarray(data.tokens, dtype=np.float32))
    for name, x in expected.embds.items():
        np.testing.assert_allclose(bank.text.embds[name], x, atol=1e-3)  # half precision
    np.testing.assert_allclose(bank.text.weights, expected.weights, atol=1e-5)
    video = op.encode_video(data.features.experts, data.features.ind)
    levelled = package.QueryBank(expected, beta=bank.beta).levelled(video, data.targets)
    np.testing.assert_allclose(bank.levels, levelled.levels, atol=1e-5)


def test_a_bank_about_one_video(monkeypatch):
    """Of two videos, where few captions are taken; levels need another one."""
    monkeypatch.setattr(banks, "MOST_IN_BANK", 2)
    data, rows = captioned(2), [0, 2, 3, 1]
    data = package.CaptionedVideos(data.features, data.targets[rows], data.tokens[rows])
    model = package.model.cenet.CEModel(TRAINABLE)
    bank = banks.make_bank(model, VideoTensors(data, TRAINABLE, "data"), 20.0)
    assert np.isfinite(bank.levels).all()


def test_a_bank_without_levels(trained, tmp_path):
    """As earlier versions wrote them."""
    bank = read_bank(trained[2])
    write_bank(tmp_path / "old.safetensors", replace(bank, levels=None))
    old = read_bank(tmp_path / "old.safetensors")
    assert old.levels is None
    assert old.beta == bank.beta


def test_evaluation_and_the_bank_of_the_same_model_only(trained, tmp_path):
    op, _, path = trained
    test, bank = captioned(24, seed=3), read_bank(path)
    found = ablate(op, test, bank)
    video = op.encode_video(test.features.experts)
    text = op.encode_text(np.asarray(test.tokens, dtype=np.float32))
    assert found["all, with bank"] == package.evaluate(text, video, test.targets, bank=bank)
    other = untrained()
    other.train(QUICK, captioned(32, seed=5), folder=str(tmp_path / "other"), seed=5)
    assert bank_beside(path.with_name("best.safetensors"), op.identity).beta == bank.beta
    assert bank_beside(path.with_name("best.safetensors"), other.identity) is None
    assert bank_beside(tmp_path / "none.safetensors", op.identity) is None


def test_of_many_captions_some_are_in_the_bank(monkeypatch, tmp_path):
    monkeypatch.setattr(banks, "MOST_IN_BANK", 10)
    untrained().train(QUICK, captioned(16), folder=str(tmp_path), epochs=1)
    bank = read_bank(tmp_path / "bank.safetensors")
    assert len(bank.text) == 10
    assert bank.beta == PUBLISHED_BETA  # there was nothing to choose it by


@pytest.mark.parametrize("best", BETAS)
def test_beta_is_the_best_of_the_validation(best, monkeypatch):
    """With levels of that beta in the bank."""
    found = []

    class Found:
        def __init__(self, beta):
            self.text_to_video = self
            self.geometric_mean = float(beta == best)

    def evaluated(*_, bank):
        found.append(bank)
        return Found(bank.beta)

    monkeypatch.setattr(banks, "evaluate", evaluated)
    model = package.model.cenet.CEModel(TRAINABLE)
    data = VideoTensors(captioned(8), TRAINABLE, "data")
    assert choose_beta(model, data, data) == best
    videos = embed_videos(model, data, np.arange(8))
    for bank in found:
        np.testing.assert_allclose(bank.levels, bank.levelled(videos, data.targets).levels, atol=1e-6)
    assert len({float(bank.levels[0]) for bank in found}) == len(BETAS)


def test_banks_that_are_refused(trained, tmp_path):
    _, _, path = trained
    with pytest.raises(FileNotFoundError, match="bank: there is no file"):
        read_bank(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="not a complete query bank"):
        read_bank(path.with_name("best.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a complete query bank"):
        read_bank(path)


def test_a_bank_is_the_same_when_written_again(trained, tmp_path):
    bank = read_bank(trained[2])
    write_bank(tmp_path / "again.safetensors", bank)
    assert (tmp_path / "again.safetensors").read_bytes() == trained[2].read_bytes()


def test_others_may_read_the_bank_as_they_may_the_weights(trained):
    bank = trained[2]
    assert bank.stat().st_mode == bank.with_name("best.safetensors").stat().st_mode
