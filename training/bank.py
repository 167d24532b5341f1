"""The query bank of a trained model: training captions that tell which videos are hubs.

The bank is embedded with the final weights and kept beside them, with the level of each caption among their
videos. Its beta is the one that was best for the validation videos, whose captions the bank does not hold while beta is
chosen (`retrieval.normalise` has the method).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..base.files import replacing
from ..model.cenet import CEModel
from ..model.checkpoint import fingerprint
from ..retrieval.arrays import as_tensor
from ..retrieval.embeddings import ModelIdentity, TextEmbeddings, VideoEmbeddings
from ..retrieval.evaluation import evaluate
from ..retrieval.normalise import PUBLISHED_BETA, QueryBank
from .data import VideoTensors
from .validation import MOST_CAPTIONS, embed_texts, embed_videos, some_captions

BANK = "bank.safetensors"
"""The name of the file, in the folder of the weights."""

MOST_IN_BANK = 2000
"""Captions of the bank; of more, as many are taken evenly. More change the figures by less than 0.1."""

BETAS = (14.0, 20.0, 28.0)
"""Inverse temperatures that are chosen from, about the published one: the validation videos are too few to tell between
more."""

METADATA_KEY = "collaborative_experts.bank"


def choose_beta(model: CEModel, data: VideoTensors, validation: VideoTensors | None) -> float:
    """The beta with the best geometric mean, text to video, of the validation set; the published one without a set."""
    if validation is None:
        return PUBLISHED_BETA
    asked = some_captions(validation, MOST_CAPTIONS)
    text, video = embed_texts(model, validation, asked), embed_videos(model, validation, np.arange(len(validation)))
    bank, videos, targets = _captions_and_videos(model, data)

    def score(beta: float) -> float:
        levelled = QueryBank(bank, beta=beta).levelled(videos, targets)
        found = evaluate(text, video, validation.targets[asked], bank=levelled)
        return found.text_to_video.geometric_mean

    return max(BETAS, key=score)


def make_bank(model: CEModel, data: VideoTensors, beta: float) -> QueryBank:
    """The bank of a data set's captions, on the CPU, with the identity of the model."""
    text, videos, targets = _captions_and_videos(model, data)
    levelled = QueryBank(text, beta=beta).levelled(videos, targets)
    weights = {name: x.detach().cpu() for name, x in model.state_dict().items()}
    identity = ModelIdentity(json.dumps(model.config.to_dict()), fingerprint(weights))
    embds = {name: x.cpu() for name, x in text.embds.items()}
    return replace(levelled, text=TextEmbeddings(embds, text.weights.cpu(), model=identity))


def _captions_and_videos(model: CEModel, data: VideoTensors) -> tuple[TextEmbeddings, VideoEmbeddings, np.ndarray]:
    """The captions of a bank, the videos that they describe, and the row of each caption's video among these."""
    captions = some_captions(data, MOST_IN_BANK)
    targets = data.targets[captions]
    videos = np.union1d(targets, [0, 1])  # two at least, were all captions of the bank about one
    return embed_texts(model, data, captions), embed_videos(model, data, videos), np.searchsorted(videos, targets)


def write_bank(path: Path, bank: QueryBank) -> None:
    """Write a bank with method "qb", its embeddings in half precision, and its levels where it has any."""
    tensors = {f"embds.{name}": as_tensor(x).half().contiguous() for name, x in bank.text.embds.items()}
    tensors |= {} if bank.levels is None else {"levels": as_tensor(bank.levels)}
    model = bank.text.model
    content = {"beta": bank.beta, "experts": list(bank.text.embds), "config": model.config, "weights": model.weights}
    with replacing(path, SafetensorError) as temporary:
        save_file(tensors | {"weights": as_tensor(bank.text.weights).contiguous()}, temporary,
                  {METADATA_KEY: json.dumps(content)})  # fmt: skip


def read_bank(path: str | Path) -> QueryBank:
    """The bank in a file that training wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a complete bank.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"bank: there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            content: Mapping = json.loads((file.metadata() or {})[METADATA_KEY])
            embds = {name: _as_float(file.get_tensor(f"embds.{name}")) for name in content["experts"]}
            text = TextEmbeddings(
                embds, _as_float(file.get_tensor("weights")),
                model=ModelIdentity(content["config"], content["weights"]),
            )  # fmt: skip
            levels = _as_float(file.get_tensor("levels")) if "levels" in file.keys() else None  # noqa: SIM118
            return QueryBank(text, beta=content["beta"], levels=levels)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a complete query bank: {error}") from error


def bank_beside(weights: Path, model: ModelIdentity) -> QueryBank | None:
    """The bank beside a weights file, None where there is none of this model. Raises as `read_bank`."""
    path = weights.with_name(BANK)
    bank = read_bank(path) if path.is_file() else None
    return bank if bank is not None and bank.text.model == model else None


def _as_float(x: torch.Tensor) -> np.ndarray:
    return x.float().numpy()
