"""Text towers of tiny models with random weights, loaded from folders as the published ones are."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import transformers  # after the check that it is there

from collaborative_experts.features.extract.text_tower import TextTower
from helpers import write_siglip

SENTENCES = ["a dog runs", "A DOG RUNS", "two cats", "a dog " * 60]


def test_siglip_reads_small_letters_padded_to_its_longest(tmp_path):
    folder = write_siglip(tmp_path)
    found = TextTower(folder)(SENTENCES)
    assert found.shape == (4, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0.01
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        ["a dog runs"], padding="max_length", max_length=64, return_tensors="pt"
    )
    with torch.inference_mode():
        network = transformers.AutoModel.from_pretrained(folder).eval()
        expected = network.get_text_features(input_ids=tokens["input_ids"]).pooler_output[0]
    np.testing.assert_allclose(found[0], (expected / expected.norm()).numpy(), rtol=1e-4, atol=1e-6)


def test_clap_reads_no_more_than_its_positions(tmp_path):
    text = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 26}
    audio = {"hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2]}
    audio |= {"spec_size": 256, "patch_size": 4, "num_mel_bins": 64, "window_size": 8}
    torch.manual_seed(0)
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    transformers.ClapModel(config).save_pretrained(tmp_path)
    write_siglip(tmp_path / "other", tokenizer_to=tmp_path)
    found = TextTower(str(tmp_path))(SENTENCES)
    assert found.shape == (4, 16)
    assert np.isfinite(found).all()


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"AutoModel: .*: cannot be loaded"):
        TextTower(str(tmp_path))
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a model that embeds texts, got BertModel"):
        TextTower(str(tmp_path))
