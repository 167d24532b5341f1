"""The text side of a model of images or sounds and texts: sentence embeddings in the space of its features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .expert import best_device
from .transformer import load, weights_of

BATCH = 64


class TextTower:
    """Sentence embeddings of SigLIP, CLAP, or another model of `transformers` that has `get_text_features`.

    Args:
        model: a name of the hub, or a folder.
        trusted: False for a name that a file states, which is not downloaded.

    Attributes:
        weights: a hash of the model's weights, as the extractor of the same model has it.

    Raises:
        FileNotFoundError: the model is not to be had.
        ValueError: a folder without a model, or a model that embeds no texts.
    """

    def __init__(self, model: str, device: str | None = None, trusted: bool = True) -> None:
        self._device = best_device(device)
        self._network = load("AutoModel", model, trusted).eval().to(self._device)
        if not hasattr(self._network, "get_text_features"):
            raise ValueError(f"{model}: expected a model that embeds texts, got {type(self._network).__name__}")
        self._tokenizer = load("AutoTokenizer", model, trusted)
        self.weights = weights_of(model, self._network)
        text = self._network.config.text_config
        # CLAP's text model counts its positions from the padding token's id on, and so has two more than it can read.
        self._most = int(text.max_position_embeddings) - (2 if text.model_type.startswith("clap") else 0)
        # SigLIP was trained on small letters, padded to its longest text without a mask.
        self._siglip = self._network.config.model_type.startswith("siglip")

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """(n, D) float32 of length 1"""
        parts = [self._run(list(sentences[start : start + BATCH])) for start in range(0, len(sentences), BATCH)]
        return np.concatenate(parts)

    @torch.inference_mode()
    def _run(self, sentences: list[str]) -> np.ndarray:
        options = {"truncation": True, "max_length": self._most, "return_tensors": "pt"}
        if self._siglip:
            tokens = self._tokenizer([x.lower() for x in sentences], padding="max_length", **options)
            inputs = {"input_ids": tokens["input_ids"].to(self._device)}
        else:
            inputs = self._tokenizer(sentences, padding=True, **options).to(self._device)
        output = self._network.get_text_features(**inputs)
        x = getattr(output, "pooler_output", output)
        return torch.nn.functional.normalize(x.float(), dim=-1).cpu().numpy()
