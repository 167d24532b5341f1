"""Embeddings of tokens and sentences by a BERT (Devlin et al., 2019), without the import of `transformers`.

That import takes longer than a whole search. A folder of sentence-transformers whose network is a plain BERT, such as
MiniLM-L6, is therefore read here: its tokenizer by `tokenizers`, its network by the functions of PyTorch. The result is
that of sentence-transformers up to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..base.dependencies import extra
from ..base.slices import slices
from ..base.threads import in_order

SENTENCES_AT_ONCE = 16
"""Sentences of a batch. Several batches are embedded at once, a thread each: the threads of one product would wait for
one another, on a busy machine several times as long as they compute."""

_PLAIN = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
"""Entries of config.json, which are BERT's defaults, too."""

_MODULES = ("Transformer", "Pooling", "Normalize")
"""Modules of sentence-transformers that leave the token embeddings as the network gives them."""

_MEAN = "pooling_mode_mean_tokens"
"""The setting of pooling by the mean of the tokens, the only one that is read here."""


class Bert:
    """The network and the tokenizer of a folder that `is_plain_bert`.

    Attributes:
        dim: the dimension of a token embedding.
    """

    def __init__(self, folder: Path) -> None:
        self._config = _read(folder / "config.json")
        self.dim: int = self._config["hidden_size"]
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        weights = load_file(folder / "model.safetensors", device=str(self._device))
        self._weights = {_name(name): x.float() for name, x in weights.items() if x.is_floating_point()}
        self._tokenizer = extra("tokenizers", "text").Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_longest(folder, self._config))
        self._tokenizer.no_padding()
        self._is_normalised = "Normalize" in map(_kind, _read(folder / "modules.json"))

    def embed(self, sentences: Sequence[str]) -> np.ndarray:
        """(n, dim) float32, the mean of the token embeddings of each sentence, of length 1 where the model says so."""
        means = np.array([x.mean(0) for x in self.encode(sentences)], dtype=np.float32).reshape(-1, self.dim)
        return means / np.linalg.norm(means, axis=1, keepdims=True) if self._is_normalised else means

    def encode(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """(W_i, dim) float32 for each sentence, W_i its number of word pieces with those of begin and end."""
        pieces = [x.ids for x in self._tokenizer.encode_batch([sentence.strip() for sentence in sentences])]
        by_length = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        found: list[np.ndarray] = [np.empty(0)] * len(pieces)
        batches = [by_length[rows] for rows in slices(len(pieces), SENTENCES_AT_ONCE)]
        spread = in_order if len(batches) > 1 and self._device.type == "cpu" else map
        embedded_batches = spread(lambda rows: self._embed([pieces[i] for i in rows]), batches)
        for batch, embedded in zip(batches, embedded_batches, strict=True):
            for i, x in zip(batch, embedded, strict=True):
                found[i] = x[: len(pieces[i])].copy()
        return found

    @torch.inference_mode()
    def _embed(self, pieces: list[list[int]]) -> np.ndarray:
        """Ids of word pieces -> (B, W, dim), W the longest."""
        longest = max(map(len, pieces))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in pieces], device=self._device)  # (B, W)
        lengths = torch.tensor([len(row) for row in pieces], device=self._device)
        seen = (torch.arange(longest, device=self._device) < lengths[:, None])[:, None, None]  # (B, 1, 1, W)
        weights = self._weights
        x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
        x = self._normalise(x + weights["embeddings.position_embeddings.weight"][:longest], "embeddings")
        for number in range(self._config["num_hidden_layers"]):
            x = self._layer(x, seen, f"encoder.layer.{number}")
        return x.cpu().numpy()

    def _layer(self, x: Tensor, seen: Tensor, name: str) -> Tensor:
        """(B, W, dim) -> (B, W, dim): attention and a network of two layers, each added and normalised."""
        linear, heads = partial(self._linear, name), self._config["num_attention_heads"]
        query, key, value = (
            linear(f"attention.self.{kind}", x).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, W, dim / heads)
            for kind in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2)
        x = self._normalise(x + linear("attention.output.dense", attended), f"{name}.attention.output")
        wide = F.gelu(linear("intermediate.dense", x))
        return self._normalise(x + linear("output.dense", wide), f"{name}.output")

    def _linear(self, layer: str, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{layer}.{name}.weight"], self._weights[f"{layer}.{name}.bias"])

    def _normalise(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self._weights[f"{name}.LayerNorm.{kind}"] for kind in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias, self._config["layer_norm_eps"])


def is_plain_bert(folder: Path) -> bool:
    """True for a folder of sentence-transformers whose embeddings `Bert` gives."""
    files = ("config.json", "modules.json", "tokenizer.json", "model.safetensors")
    if not all((folder / name).is_file() for name in files):
        return False
    config, modules = _read(folder / "config.json"), _read(folder / "modules.json")
    settings = _read(folder / "sentence_bert_config.json") | _read(folder / "config_sentence_transformers.json")
    return (
        config.get("model_type") == "bert"
        and all(config.get(key, value) == value for key, value in _PLAIN.items())
        and modules[0].get("path") == ""
        and all(_kind(module) in _MODULES for module in modules)
        and all(_is_mean(folder / module["path"]) for module in modules if _kind(module) == "Pooling")
        and not settings.get("do_lower_case")
        and not settings.get("default_prompt_name")
    )


def _kind(module: dict[str, Any]) -> str:
    """The class of a module of sentence-transformers, without its place in their package."""
    return str(module.get("type", "")).rpartition(".")[2]


def _is_mean(folder: Path) -> bool:
    """True for pooling by the mean of the tokens alone."""
    modes = {key for key, value in _read(folder / "config.json").items() if key.startswith("pooling_mode") and value}
    return modes == {_MEAN}


def _name(theirs: str) -> str:
    """The name of a tensor as `transformers` writes it now; old files have others."""
    return (
        theirs.removeprefix("bert.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias")
    )


def _longest(folder: Path, config: dict[str, Any]) -> int:
    """The most word pieces of a sentence."""
    settings, tokenizer = _read(folder / "sentence_bert_config.json"), _read(folder / "tokenizer_config.json")
    longest: int = config["max_position_embeddings"]
    return settings.get("max_seq_length") or min(longest, tokenizer.get("model_max_length") or longest)


def _read(path: Path) -> Any:
    """JSON; `{}` where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
