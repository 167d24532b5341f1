"""A training run described by a file, and its evaluation: what the commands `train` and `evaluate` do.

    folder = "run"                 # where the run writes
    features = "features"          # a folder or a file as read_features takes it; or a table {expert = "file"}
    captions = "captions.csv"      # columns video_id, caption, split
    train = ["train", "extra"]     # splits to train on
    validation = 0.15              # a split, or the share of the training videos that is held out; 0 for none
    test = "test"                  # what evaluate evaluates
    encoder = "a model of sentence-transformers"   # left out: MiniLM-L6

    [model]                        # CE's short form without the dimensions, which the features say
    shared_dim = 512

    [training]                     # attributes of TrainingConfig
    epochs = 30

Paths are relative to the file's folder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..base.checks import check_keys
from ..features.features import read_features, read_ids
from ..training.captions import read_captions
from ..training.data import CaptionedVideos, caption_videos
from ..training.encoder import SentenceEncoder
from ..training.settings import TrainingConfig, combine

TEXT = {"clusters": 1, "ghost_clusters": 0, "max_tokens": 37}
"""One cluster is the mean of the words: on small sets of sentence encoders' words no more was better."""

MODEL = {"use_ce": "", "mimic_ce_dims": True, "shared_dim": 1024}
"""What was best on validation videos of a small data set, see benchmarks/README.md."""


_TYPES = {
    "features": (str, dict),
    "captions": (str,),
    "folder": (str,),
    "train": (str, list),
    "validation": (str, int, float),
    "test": (str,),
    "encoder": (str,),
    "model": (dict,),
    "training": (dict,),
}
"""What TOML may give for each key of a run file."""

_WORDS = {str: "text", list: "a list", dict: "a table", int: "a number", float: "a fraction"}


@dataclass(frozen=True)
class Run:
    """The content of a run file; see the module's head."""

    features: Any
    captions: Path
    folder: Path
    train: str | list[str] = "train"
    validation: str | float = 0.15
    test: str = "test"
    encoder: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read a run file.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError, ValueError: it is no TOML, lacks a key, or has an unknown one or one of a wrong type.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such run file")
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected TOML: {error}") from error
        known = [entry.name for entry in fields(cls)]
        check_keys(content, known, str(path))
        for key in ("features", "captions"):
            if key not in content:
                raise ValueError(f"{path}: expected the key {key!r}, got {list(content)}")
        _check_types(path, content)
        here = path.parent
        files = content["features"]
        content["features"] = {k: here / v for k, v in files.items()} if isinstance(files, dict) else here / files
        content["captions"] = here / content["captions"]
        content["folder"] = here / content.get("folder", "run")
        content["training"] = combine(content.get("training"), {"folder": str(content["folder"])})
        return cls(**content)

    def dataset(self, split: str | list[str]) -> CaptionedVideos:
        """The videos of a split with their captions; token embeddings are kept in the user's cache."""
        captions = read_captions(self.captions, split)
        wanted = captions.unique_ids()
        features = read_features(self.features, wanted)
        if not features.available.any():
            raise ValueError(
                f"{self.captions}: none of its {len(wanted)} videos, such as {wanted[0]!r}, has features; "
                f"in {self.features} the ids are such as {read_ids(self.features)[:1]}"
            )
        encoder = SentenceEncoder(self.encoder)
        text = TEXT | dict(self.model.get("text", {}))
        return caption_videos(features, captions, encoder, max_tokens=text["max_tokens"])

    def split_training(self) -> tuple[CaptionedVideos, CaptionedVideos | None]:
        """Training and validation videos."""
        dataset = self.dataset(self.train)
        if isinstance(self.validation, str):
            return dataset, self.dataset(self.validation)
        if isinstance(self.validation, bool) or not 0 <= self.validation < 1:
            raise ValueError(f"validation: expected a split, or a share from 0 to below 1, got {self.validation!r}")
        held_out = round(len(dataset) * self.validation)
        if not held_out:
            return dataset, None
        order = np.random.default_rng(self.training.seed).permutation(len(dataset))
        return dataset[np.sort(order[held_out:])], dataset[np.sort(order[:held_out])]


def _check_types(path: Path, content: Mapping[str, Any]) -> None:
    for key, allowed in _TYPES.items():
        if key in content and (not isinstance(content[key], allowed) or isinstance(content[key], bool)):
            expected = " or ".join(_WORDS[kind] for kind in allowed)
            raise TypeError(f"{path}: {key}: expected {expected}, got {content[key]!r}")
    for key in ("features", "train"):
        values = content.get(key, "")
        values = values.values() if isinstance(values, dict) else values
        if not all(isinstance(value, str) for value in values):
            raise TypeError(f"{path}: {key}: expected text, got {content[key]!r}")
    model = content.get("model", {})
    for key in ("text", "experts"):
        if not isinstance(model.get(key, {}), dict):
            raise TypeError(f"{path}: model: {key}: expected a table, got {model[key]!r}")
    if not isinstance(model.get("text", {}).get("max_tokens", 1), int):
        raise TypeError(f"{path}: model: text: max_tokens: expected a number, got {model['text']['max_tokens']!r}")
