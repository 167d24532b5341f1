"""Files of every kind that the package reads, small and right, a function that reads each, and ways to damage one."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from collaborative_experts import CEConfig, CollaborativeExperts, VideoIndex, read_features
from collaborative_experts.apps.run_file import Run
from collaborative_experts.model.cenet import initial_state
from collaborative_experts.model.checkpoint import write_weights
from collaborative_experts.training.captions import read_captions
from helpers import TRAINABLE, random_embeddings, random_inputs, write_features

IDS = tuple(f"video{i}" for i in range(6))
ROWS = np.random.default_rng(0).standard_normal((len(IDS), 24)).astype(np.float32)
LAYOUTS = (
    "npz", "npz by video", "npy", "npy, ids as npy", "folder", "h5", "h5 by video", "parquet", "csv",
    "pt", "pt by video", "pkl", "pickle", "lance",
)  # fmt: skip
CHECKED = ("npz", "npz by video")
"""Kinds whose format has a checksum of the content that its reader looks at, so that no change may pass."""

RUN = """folder = "run"
features = { motion = "motion.npz" }
captions = "captions.csv"
train = ["train", "extra"]
validation = 0.15
test = "test"

[model]
shared_dim = 512
text = { clusters = 1, max_tokens = 20 }

[training]
epochs = 30
learning_rate = 1e-3
"""


@dataclass(frozen=True)
class Sample:
    """A file or folder, and a function that gives what it says: arrays, text and numbers in a fixed order."""

    path: Path
    read: Callable[[Path], list[Any]]

    def copied_to(self, folder: Path) -> Path:
        """A copy of it, with what lies beside it."""
        shutil.copytree(self.path.parent, folder)
        return folder / self.path.name


def make(kind: str, folder: Path) -> Sample:
    """The sample of a kind in a folder of its own."""
    folder.mkdir(parents=True)
    if kind in LAYOUTS:
        return Sample(write_features(folder, kind, "motion", IDS, ROWS), _features)
    return {
        "safetensors": _make_weights,
        "pth": _make_weights,
        "pth, legacy": _make_weights,
        "config": _make_config,
        "run file": _make_run,
        "captions": _make_captions,
        "store": _make_store,
    }[kind](kind, folder)


KINDS = ("safetensors", "pth", "pth, legacy", *LAYOUTS, "config", "run file", "captions", "store")


# --- what is read -----------------------------------------------------------------------------------------


def _make_weights(kind: str, folder: Path) -> Sample:
    weights = initial_state(TRAINABLE)
    path = folder / f"model.{kind.split(',')[0]}"
    if kind == "safetensors":
        write_weights(path, weights, TRAINABLE, {"pretrained": True})
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "pth")
    return Sample(path, _embeddings)


def _embeddings(path: Path) -> list[Any]:
    """What an operator of these weights says."""
    op = CollaborativeExperts(None if path.suffix == ".safetensors" else TRAINABLE, path, device="cpu")
    text, video = op(*random_inputs(op.config, videos=2))
    return [np.asarray(x) for x in (*text.values(), *video.values())]


def _features(path: Path) -> list[Any]:
    features = read_features({"motion": path})
    x = features.experts["motion"]
    rows = list(x) if isinstance(x, np.ndarray) else [np.empty(0) if row is None else row for row in x]
    order = np.argsort(np.array(features.ids, dtype=object))
    there = features.ind["motion"]
    return [[features.ids[i] for i in order], there[order], *(rows[i] for i in order if there[i])]


def _make_config(kind: str, folder: Path) -> Sample:
    path = folder / "config.json"
    path.write_text(json.dumps(TRAINABLE.to_dict(), indent=1))
    return Sample(path, _config)


def _config(path: Path) -> list[Any]:
    config = CEConfig.from_json(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CollaborativeExperts(config, device="cpu")
    return [repr(config)]


def _make_run(kind: str, folder: Path) -> Sample:
    path = folder / "run.toml"
    path.write_text(RUN)
    return Sample(path, lambda path: [repr(Run.read(path)).replace(str(path.parent), "")])


def _make_captions(kind: str, folder: Path) -> Sample:
    path = folder / "captions.csv"
    lines = [f'{video},"a sentence, of {video}",{("train", "test")[i % 2]}' for i, video in enumerate(IDS)]
    path.write_text("\n".join(["video_id,caption,split", *lines]) + "\n")
    return Sample(path, lambda path: [repr(read_captions(path, "train")), repr(read_captions(path))])


def _make_store(kind: str, folder: Path) -> Sample:
    text, video = random_embeddings(3, 40)
    path = folder / "videos.lance"
    with VideoIndex(path) as index:
        ids = [f"video{i}" for i in range(40)]
        index.add(ids[:30], video[np.arange(30)], metadata=[{"number": i} for i in range(30)])
        index.add(ids[30:], video[np.arange(30, 40)])
        index.delete(ids[5:8])
        index.calibrate(text)
        index.optimise()

    def read(path: Path) -> list[Any]:
        with VideoIndex(path) as index:
            found, table = index.search(text, 10), index.to_arrow()
            some = index.read(["video1", "video33"])
            rows = [str(table.to_pylist()), some.embeddings.joint(), repr(some.metadata)]
            return [found.ids.tolist(), found.scores, *rows]

    return Sample(path, read)


def digest(content: list[Any]) -> str:
    """Equal where the content is."""
    found = hashlib.sha256()
    for x in content:
        found.update(np.ascontiguousarray(x).tobytes() if isinstance(x, np.ndarray) else repr(x).encode())
    return found.hexdigest()


def is_finite(content: list[Any]) -> bool:
    return all(np.isfinite(x).all() for x in content if isinstance(x, np.ndarray) and x.dtype.kind == "f")


# --- ways to damage a file --------------------------------------------------------------------------------


def flip(data: bytearray, at: int, rng: np.random.Generator) -> bytes:
    """Some bits somewhere, one after another."""
    for i in range(at, min(at + int(rng.integers(1, 9)), len(data))):
        data[i] ^= 1 << int(rng.integers(8))
    return bytes(data)


def replace(data: bytearray, at: int, rng: np.random.Generator) -> bytes:
    """One byte becomes another, or a letter."""
    data[at] = (data[at] + int(rng.integers(1, 256))) % 256 if rng.random() < 0.5 else int(rng.integers(32, 127))
    return bytes(data)


def truncate(data: bytearray, at: int, rng: np.random.Generator) -> bytes:
    return bytes(data[:at])


def insert(data: bytearray, at: int, rng: np.random.Generator) -> bytes:
    return bytes(data[:at] + rng.bytes(int(rng.integers(1, 64))) + data[at:])


def duplicate(data: bytearray, at: int, rng: np.random.Generator) -> bytes:
    end = at + int(rng.integers(1, 512))
    return bytes(data[:end] + data[at:end] + data[end:])


def remove(data: bytearray, at: int, rng: np.random.Generator) -> bytes:
    return bytes(data[:at] + data[at + int(rng.integers(1, 64)) :])


def zeros(data: bytearray, at: int, rng: np.random.Generator) -> bytes:
    end = min(at + int(rng.integers(1, 512)), len(data))
    return bytes(data[:at] + bytes(end - at) + data[end:])


def huge(data: bytearray, at: int, rng: np.random.Generator) -> bytes:
    """Bytes that a reader may take for a size."""
    sizes = (b"\xff" * 4, b"\xff" * 8, (2**31 - 1).to_bytes(4, "little"), (10**12).to_bytes(8, "little"))
    size = sizes[rng.integers(len(sizes))]
    return bytes(data[:at] + size + data[at + len(size) :])


def digits(data: bytearray, at: int, rng: np.random.Generator) -> bytes:
    """A number in letters, near there, becomes another one."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return huge(data, at, rng)
    start, end = min(found, key=lambda match: abs(match.start() - at)).span()
    numbers = (b"1000000000000", b"999999999", b"0", b"-1", b"1e400", b"9" * 5000)
    return bytes(data[:start] + numbers[rng.integers(len(numbers))] + data[end:])


def nest(data: bytearray, at: int, rng: np.random.Generator) -> bytes:
    """Brackets in brackets."""
    bracket = (b"[", b"(", b'{"a":', b"{a=", b'"')[rng.integers(5)]
    return bytes(data[:at] + bracket * int(rng.choice([50, 1000, 100_000])) + data[at:])


MUTATIONS = (flip, replace, truncate, insert, duplicate, remove, zeros, huge, digits, nest)


def _without_random_names(path: Path) -> str:
    """A path in a store but for what Lance chooses at random, so that a seed damages the same again."""
    return re.sub(r"[0-9a-f-]{16,}|[01]{16,}", "", path.as_posix())


def damage(path: Path, rng: np.random.Generator, only_bytes: bool) -> str:
    """Change one file of a sample in place; says what was done."""
    root = path if path.is_dir() else path.parent
    files = [x for x in root.rglob("*") if x.is_file() and x.stat().st_size and not x.name.endswith(".lock")]
    files.sort(key=lambda file: (_without_random_names(file.relative_to(root)), file.stat().st_size))
    file = files[rng.integers(len(files))]
    data = bytearray(file.read_bytes())
    at = int(rng.integers(len(data)))
    if rng.random() < 0.5:  # the structure of a file mostly stands at its ends
        at = int(rng.integers(min(len(data), 1024)))
        at = at if rng.random() < 0.5 else len(data) - 1 - at
    mutation = (flip, replace)[rng.integers(2)] if only_bytes else MUTATIONS[rng.integers(len(MUTATIONS))]
    file.write_bytes(mutation(data, at, rng))
    return f"{mutation.__name__} at {at} of {file.relative_to(root)}"
