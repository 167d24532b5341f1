"""`init`: a run file with all settings, for files of features and captions."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from ..base.files import replacing
from ..features.features import Features, read_features, read_ids
from ..training.captions import Captions, read_splits
from ..training.encoder import BUNDLED_MODEL
from ..training.settings import TrainingConfig
from .run_file import MODEL, TEXT, Run

SAMPLE = 256
"""Videos whose features are looked at."""

VALIDATION_NAMES = ("validation", "valid", "val", "dev")


def write_run_file(features: str | Path, captions: str | Path, to: str | Path = "run.toml") -> Path:
    """Write a run file that trains on these files, with every setting as a comment; returns its path.

    Args:
        features: a file or a folder, as `read_features` takes them.
        captions: a CSV file with the columns `video_id`, `caption` and `split`.
        to: the file to write, which must not exist.

    Raises:
        FileExistsError: there is a file already.
        FileNotFoundError, TypeError, ValueError: files that are missing, cannot be read, or share no ids.
    """
    to = Path(to)
    if to.exists():
        raise FileExistsError(f"{to}: exists already; move it away, or name another")
    splits = read_splits(captions)
    sample, videos = _sample(features, splits)
    with replacing(to) as temporary:
        text = _text(_relative(features, to), _relative(captions, to), splits, sample, videos)
        temporary.write_text(text, encoding="utf-8")
    Run.read(to)
    return to


def _sample(features: str | Path, splits: Mapping[str, Captions]) -> tuple[Features, int]:
    """The features of some captioned videos, and the number of all that have some."""
    known = set(read_ids(features))
    captioned = dict.fromkeys(video for captions in splits.values() for video in captions.video_ids)
    found = [video for video in captioned if video in known]
    return read_features(features, found[:SAMPLE] or list(captioned)), len(found)


def _relative(path: str | Path, to: Path) -> str:
    return Path(os.path.relpath(path, to.parent)).as_posix()


def _text(features: str, captions: str, splits: Mapping[str, Captions], sample: Features, videos: int) -> str:
    train, validation, test = choose_splits(splits)
    sizes = (
        f"{_one_line(name) or '(empty)'}: {len(x.unique_ids()):,} videos, {len(x):,} captions"
        for name, x in splits.items()
    )
    looked_at = f"the first {len(sample):,} of " if len(sample) < videos else ""
    lines = [
        "# A training run; paths are relative to this file.",
        "",
        f"# Features of {looked_at}{videos:,} captioned videos:",
        *(f"#   {_one_line(line)}" for line in sample.summary().split("\n")),
        f"features = {_toml(features)}",
        "",
        "# Splits of the captions:",
        *(f"#   {line}" for line in sizes),
        f"captions = {_toml(captions)}",
        f"train = {_toml(train)}  # a split, or a list of splits",
        f"validation = {_toml(validation)}  # a split, or the share of training videos that is held out, or 0",
        f"{'# ' if test is None else ''}test = {_toml(test or 'test')}  # the split of evaluate",
        "",
        '# folder = "run"  # where the run is written',
        f"# encoder = {_toml(BUNDLED_MODEL)}  # a model of sentence-transformers: a name or a folder",
        f"# teachers = {_toml([BUNDLED_MODEL])}  # encoders, each of a model whose scores this one learns",
        "# drop_captions = 0.0  # share of the captions, those that the teachers rank worst, that is left out",
        "",
        "[model]",
        *(f"# {key} = {_toml(value)}" for key, value in MODEL.items()),
        "# experts.NAME.logarithm = true  # an expert's features are probabilities; told by their values by default",
        "",
        "[model.text]",
        *(f"# {key} = {_toml(value)}" for key, value in TEXT.items()),
        "",
        "[training]",
        *_settings(),
    ]
    return "\n".join(lines) + "\n"


def choose_splits(names: Iterable[str]) -> tuple[str, str | float, str | None]:
    """The splits to train, validate and test with, by their names; a share to hold out where none is for validation."""
    names = list(names)
    train = next((name for name in names if name.startswith("train")), names[0])
    validation = next((name for name in names if name in VALIDATION_NAMES), Run.validation)
    test = next((name for name in names if name.startswith("test")), None)
    return train, validation, test


def _settings() -> list[str]:
    """A line for each attribute of `TrainingConfig`: its default, and the first sentence of what its docstring says.

    TOML has no word for None, which is a setting that follows from the data.
    """
    attributes = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(TrainingConfig) or "", flags=re.MULTILINE)
    meanings = {key: " ".join(text.split()).partition(". ")[0].rstrip(".") for key, text in attributes}
    settings = {key: value for key, value in asdict(TrainingConfig()).items() if key != "folder"}
    values = {key: "..." if value is None else _toml(value) for key, value in settings.items()}
    width = max(len(f"{key} = {value}") for key, value in values.items())
    return [
        f"#{'   ' if settings[key] is None else ' '}{f'{key} = {value}':{width}}  # {meanings.get(key, '')}"
        for key, value in values.items()
    ]


def _toml(value: object) -> str:
    """JSON's form of text, numbers, booleans and lists is TOML's, too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(text: str) -> str:
    """A text for a comment: line breaks and other characters that TOML has in none are written as escapes."""
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("features", type=Path, metavar="FEATURES", help="a file or folder, as of extract or your own")
    parser.add_argument("captions", type=Path, metavar="CAPTIONS.csv", help="columns video_id, caption, split")
    parser.add_argument("--to", type=Path, default=Path("run.toml"), metavar="RUN.toml", help="default: run.toml")
    parser.epilog = "example: %(prog)s features.lance captions.csv"


def run_command(options: argparse.Namespace) -> int:
    """Run the command, say what was written, and return the exit status."""
    print(f"{write_run_file(options.features, options.captions, options.to)}: look through it, then train")
    return 0
