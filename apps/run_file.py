"""A training run described by a file, which the commands `train` and `evaluate` take and `init` writes.

    folder = "run"                 # where the run writes
    features = "features"          # a folder or a file as read_features takes it; or a table {expert = "file"}
    captions = "captions.csv"      # columns video_id, caption, split
    train = ["train", "extra"]     # splits to train on
    validation = 0.15              # a split, or the share of the training videos that is held out; 0 for none
    test = "test"                  # what evaluate evaluates
    encoder = "a model of sentence-transformers"   # left out: MiniLM-L6
    teachers = ["all-MiniLM-L6-v2", "folder"]      # encoders, each of a model that teaches this one
    drop_captions = 0.1            # share of the captions, those that the teachers rank worst, that is not trained on

    [model]                        # CE's short form without the dimensions, which the features say
    shared_dim = 512

    [training]                     # attributes of TrainingConfig
    seed = 0

Paths are relative to the file's folder. Everything in it that can be wrong is found before a sentence is embedded.
"""

from __future__ import annotations

import argparse
import json
import tomllib
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..base.checks import check_keys
from ..base.config import CEConfig, TextConfig
from ..features.features import Features, read_features
from ..features.suggest import config_for
from ..training.captions import Captions, keep_videos_with_features, read_captions, videos_of_splits
from ..training.data import CaptionedVideos, caption_videos
from ..training.encoder import SentenceEncoder
from ..training.settings import TrainingConfig, combine
from ..training.teachers import drop_captions

TEXT = {"clusters": 1, "ghost_clusters": 0, "max_tokens": 37}
"""One cluster is the mean of the words: on small sets of sentence encoders' words no more was better."""

MODEL = {"use_ce": "", "mimic_ce_dims": True, "shared_dim": 512}
"""The best of validation videos of small data sets, see benchmarks/NOTES.md; `shared_dim` is of each member."""

SEQUENCE = {"clusters": 1}
"""One cluster is the mean of the tokens. Models with more cannot be joined to one (`training.members`)."""

TEACHERS = "teachers"
"""The folder of the teachers' runs, in that of the student's."""

TEST = "test"
"""The split that is evaluated where the file names none."""

_TYPES = {
    "features": (str, dict),
    "captions": (str,),
    "folder": (str,),
    "train": (str, list),
    "validation": (str, int, float),
    "test": (str,),
    "encoder": (str,),
    "teachers": (list,),
    "drop_captions": (int, float),
    "model": (dict,),
    "training": (dict,),
}
"""Types that TOML may give for each key of a run file."""

_WORDS = {str: "text", list: "a list", dict: "a table", int: "a number", float: "a fraction"}


@dataclass(frozen=True)
class Described:
    """Videos with features, and the sentences that describe them, not yet embedded."""

    features: Features
    captions: Captions

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class TrainingVideos:
    """The videos of a run, not yet embedded.

    Attributes:
        described: the videos of the splits to train on, held-out ones included.
        rows: those of them that are trained on.
        held_out: the others, by which the best epoch is chosen; None where there are none.
        validation: the videos of a split of their own for that; None where there is none.
    """

    described: Described
    rows: np.ndarray
    held_out: np.ndarray | None = None
    validation: Described | None = None


@dataclass(frozen=True)
class TeacherScores:
    """Scores (T, B) float32 of all captions with all videos that are trained on, held-out ones included.

    Attributes:
        every: by teachers that were trained on all of them.
        search: by teachers that have not seen the held-out ones.
    """

    every: np.ndarray
    search: np.ndarray


@dataclass(frozen=True)
class Run:
    """The content of a run file; see the module's head."""

    features: Any
    captions: Path
    folder: Path
    train: str | list[str] = "train"
    validation: str | float = 0.15
    test: str | None = None
    encoder: str | None = None
    teachers: Sequence[str] = ()
    drop_captions: float = 0.0
    model: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @classmethod
    def read(cls, path: str | Path, changes: Sequence[str] = (), folder: str | Path | None = None) -> Run:
        """Read a run file.

        Args:
            changes: `key=value` that replace what the file says. Keys may be dotted; values are TOML's, or text.
            folder: replaces the file's own; relative to the working directory.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError, ValueError: it is no TOML, lacks a key, or has an unknown one or one of a wrong type.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such run file")
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected TOML: {error}") from None
        for change in changes:
            content = _merged(content, parse_change(change))
        known = [entry.name for entry in fields(cls)]
        check_keys(content, known, str(path), _below(known))
        for key in ("features", "captions"):
            if key not in content:
                raise ValueError(f"{path}: expected the key {key!r}, got {list(content)}")
        _check_types(path, content)
        try:
            return cls._from(content, path.parent, folder)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from None

    @classmethod
    def _from(cls, content: Mapping[str, Any], here: Path, folder: str | Path | None) -> Run:
        files = content["features"]
        own = Path(folder).absolute() if folder is not None else here / content.get("folder", "run")
        paths = {
            "features": {k: here / v for k, v in files.items()} if isinstance(files, dict) else here / files,
            "captions": here / content["captions"],
            "folder": own,
            "training": combine(content.get("training"), {"folder": str(own)}),
        }
        return cls(**{**content, **paths})

    def teacher_runs(self) -> list[Run]:
        """The runs of the teachers, each with its encoder, in folders of this run's."""
        folders = [self.folder / TEACHERS / f"{number}" for number in range(1, len(self.teachers) + 1)]
        return [
            replace(
                self, encoder=encoder, folder=folder, teachers=(), drop_captions=0.0,
                training=replace(self.training, folder=str(folder)),
            )
            for encoder, folder in zip(self.teachers, folders, strict=True)
        ]  # fmt: skip

    @cached_property
    def sentence_encoder(self) -> SentenceEncoder:
        return SentenceEncoder(self.encoder)

    def read_training(self) -> TrainingVideos:
        """The videos to train on and to validate with.

        Raises:
            FileNotFoundError, TypeError, ValueError: files that are missing or cannot be read, splits that no caption
                has, also that of the test where the file names it, or a validation that is trained on.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        captions = {
            key: read_captions(self.captions, split) for key, split in splits.items() if isinstance(split, str | list)
        }
        if isinstance(self.validation, str) and self.validation in (self.train, *self.train):
            raise ValueError(f"validation: expected a split that is not trained on, got {self.validation!r}")
        for key in captions.keys() - {"train"}:
            _warn_of_shared_videos(key, captions[key].video_ids, captions["train"].video_ids)
        described = self._describe(captions["train"])
        order = np.random.default_rng(self.training.seed).permutation(len(described))
        if isinstance(self.validation, str):
            return TrainingVideos(described, np.sort(order), validation=self._describe(captions["validation"]))
        held_out = round(len(described) * self.validation)
        if held_out == len(described):
            raise ValueError(f"validation: {self.validation:g} leaves none of {held_out} videos to train on")
        if self.validation and not held_out:
            warnings.warn(
                f"validation: {self.validation:g} of {len(described)} videos is none; nothing is validated",
                stacklevel=2,
            )
        return TrainingVideos(described, np.sort(order[held_out:]), np.sort(order[:held_out]) if held_out else None)

    def warn_of_trained_videos(self) -> None:
        """Warn where the test videos are trained on, as `read_training` does."""
        videos = videos_of_splits(self.captions)
        train = [self.train] if isinstance(self.train, str) else self.train
        trained = set().union(*(videos.get(split, ()) for split in train))
        _warn_of_shared_videos("test", videos[self.test or TEST], trained)

    def config(self, features: Features, text_dim: int = 1) -> CEConfig:
        """The config of a model for these features. `text_dim` is the encoder's; any will do to look for errors.

        Raises:
            TypeError, ValueError: as `config_for`.
        """
        model = MODEL | dict(self.model)
        text = TEXT | dict(model.pop("text", {})) | {"dim": text_dim}
        given = dict(model.pop("experts", {}))
        sequences = {name: SEQUENCE for name, x in features.experts.items() if isinstance(x, list)}
        experts = sequences | {name: sequences.get(name, {}) | dict(said) for name, said in given.items()}
        return replace(config_for(features, text, experts, **model), standardise=True)

    def embed(
        self, videos: TrainingVideos, teacher: TeacherScores | None = None
    ) -> tuple[CaptionedVideos, CaptionedVideos | None, CaptionedVideos | None]:
        """Training and validation videos with the token embeddings of their captions, and, where a share is held out,
        both together.

        Args:
            teacher: the teachers' scores of all captions of `videos.described` with all of its videos.
        """
        every = whole = self._embed(videos.described)
        if teacher is not None:
            every, whole = replace(whole, teacher=teacher.every), replace(whole, teacher=teacher.search)
        if videos.validation is not None:
            return self._without_worst(whole), self._embed(videos.validation), None
        if videos.held_out is None:
            return self._without_worst(whole[videos.rows]), None, None
        return self._without_worst(whole[videos.rows]), whole[videos.held_out], self._without_worst(every)

    def embed_all(self, videos: TrainingVideos) -> CaptionedVideos:
        """All videos of the splits to train on, with the token embeddings of their captions."""
        return self._embed(videos.described)

    def _without_worst(self, dataset: CaptionedVideos) -> CaptionedVideos:
        return drop_captions(dataset, self.drop_captions) if self.drop_captions else dataset

    def dataset(self, split: str | list[str], config: CEConfig | None = None) -> CaptionedVideos:
        """The videos of a split with their captions. `config` is a model's, which the features are checked against."""
        return self._embed(self._describe(read_captions(self.captions, split), config))

    def _describe(self, captions: Captions, config: CEConfig | None = None) -> Described:
        features = read_features(self.features, captions.unique_ids(), config)
        return Described(*keep_videos_with_features(features, captions)[:2])

    def _embed(self, videos: Described) -> CaptionedVideos:
        text = TEXT | dict(self.model.get("text", {}))
        max_tokens = TextConfig(1, clusters=text["clusters"], max_tokens=text["max_tokens"]).words
        return caption_videos(videos.features, videos.captions, self.sentence_encoder, max_tokens=max_tokens)


def parse_change(change: str) -> dict[str, Any]:
    """`model.shared_dim=64` as the tables that a run file would have. A value that is not TOML is text.

    Raises:
        ValueError: there is no key or no `=`.
    """
    key, equals, value = change.partition("=")
    for text in (value, json.dumps(value)):
        try:
            if equals and "\n" not in change:
                return tomllib.loads(f"{key} = {text}")
        except tomllib.TOMLDecodeError:
            continue
    raise ValueError(f"--set: expected KEY=VALUE, such as training.epochs=5, got {change!r}")


def _merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The content with values replaced, in tables below as well."""
    merged = dict(content)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _below(known: Collection[str]) -> list[str]:
    """The dotted names of settings in the tables of a run file, but for those that the file itself has, too."""
    tables = {"training": [x.name for x in fields(TrainingConfig)], "model.text": TEXT, "model": MODEL}
    return [f"{table}.{key}" for table, keys in tables.items() for key in keys if key not in known]


def _warn_of_shared_videos(key: str, videos: Iterable[str], trained: Iterable[str]) -> None:
    """Videos that are trained on tell nothing when they are validated or tested with."""
    shared = sorted(set(videos).intersection(trained))
    if shared:
        warnings.warn(
            f"{key}: {len(shared)} of its videos, such as {shared[0]!r}, are trained on; its figures are too good",
            stacklevel=3,
        )


def _check_types(path: Path, content: Mapping[str, Any]) -> None:
    for key, allowed in _TYPES.items():
        if key in content and (not isinstance(content[key], allowed) or isinstance(content[key], bool)):
            expected = " or ".join(_WORDS[kind] for kind in allowed)
            raise TypeError(f"{path}: {key}: expected {expected}, got {content[key]!r}")
    for key in ("features", "train", "teachers"):
        values = content.get(key, "")
        values = values.values() if isinstance(values, dict) else values
        if not all(isinstance(value, str) for value in values):
            raise TypeError(f"{path}: {key}: expected text, got {content[key]!r}")
    share = content.get("validation", 0)
    if not isinstance(share, str) and not 0 <= share < 1:
        raise ValueError(f"{path}: validation: expected a split, or a share from 0 to below 1, got {share!r}")
    dropped = content.get("drop_captions", 0)
    if not 0 <= dropped < 1:
        raise ValueError(f"{path}: drop_captions: expected a share from 0 to below 1, got {dropped!r}")
    if dropped and not content.get("teachers"):
        raise ValueError(f"{path}: drop_captions: expected teachers, who rank the captions; got none")
    model = content.get("model", {})
    for key in ("text", "experts"):
        if not isinstance(model.get(key, {}), dict):
            raise TypeError(f"{path}: model: {key}: expected a table, got {model[key]!r}")
    if "dim" in model.get("text", {}):
        raise ValueError(f"{path}: model: text: dim: the encoder gives it; leave it out")
    if not isinstance(model.get("text", {}).get("max_tokens", 1), int):
        raise TypeError(f"{path}: model: text: max_tokens: expected a number, got {model['text']['max_tokens']!r}")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command with a run file takes: `run`, `--folder` and `--set`."""
    parser.add_argument("run", type=Path, metavar="RUN.toml", help="as init writes it")
    parser.add_argument("--folder", type=Path, help="where the run is written; default: the file's, else run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="in place of what the file says, such as training.epochs=5; may be repeated",
    )
