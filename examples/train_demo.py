"""From media files to a trained model that finds them by sentences, on a corpus made for it, in minutes on a CPU:

    python examples/train_demo.py [--folder demo] [--videos 600] [--query "a red star moves up" ...]

Small videos are made (`demo_corpus.py`); five simple experts look at and listen to the files alone and write feature
files; a run file is written, trained and evaluated as `python -m collaborative_experts train FOLDER/run.toml` does; the
test videos, each of a combination of properties that training never had, are indexed and answer queries. FOLDER then
holds videos/, captions.csv, features/, run.toml, run/, videos.lance and contact_sheet.png. Where FOLDER has an index
already, the queries alone are answered anew.

What it needs is the extra `demo`: `pip install -e '.[demo]'`.
"""

import argparse
import pickle
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from demo_corpus import CELL, FRAME_RATE, FRAMES, SAMPLE_RATE, SIDE, STRIP, draw_glyph, make_corpus
from matplotlib.colors import rgb_to_hsv
from matplotlib.figure import Figure
from tqdm import tqdm

from collaborative_experts import (
    CollaborativeExperts,
    Evaluation,
    SearchResult,
    SentenceEncoder,
    VideoIndex,
    read_captions,
    read_features,
)
from collaborative_experts.apps.evaluate import evaluate_run
from collaborative_experts.apps.train import train_run
from collaborative_experts.training.run_folder import BEST, STATE

RUN = """\
folder = "run"
features = "features"
captions = "captions.csv"
train = "train"
validation = 0.15
test = "test"

[model]
shared_dim = 128

[training]
epochs = 60
batch_size = 128
"""

QUERIES = (
    "a scarlet star standing still with a high whistle, the word RADIO underneath",
    "a blue plus sign going up over a hissing noise",
    "yellow square falling, TAXI on the sign, static",
    "something turquoise that circles around",
    "a green ball moving left",
    "a sign that reads HOTEL",
)
"""Of the corpus of seed 0 each describes one test video or more; the last three say only a part."""

BANDS, LOUDEST, TOKENS_A_SECOND = 24, 4.0, 10
VIVID, HUE_BINS, GRID = 0.3, 24, 12
LETTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BEST_OF = 5


# --- the experts ------------------------------------------------------------------------------------------


def read_video(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames (T, SIDE, SIDE, 3) from 0 to 1, and samples; None without an audio stream."""
    frames, samples = [], []
    with av.open(str(path)) as container:
        for frame in container.decode():
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
            else:
                samples.append(frame.to_ndarray()[0])
    return np.stack(frames).astype(np.float32) / 255, np.concatenate(samples) if samples else None


def measure_vividness(frames: np.ndarray) -> np.ndarray:
    """(T, SIDE, SIDE): how far from grey each pixel is; background and sign are grey."""
    channels = np.moveaxis(frames, 3, 0).copy()
    return channels.max(0) - channels.min(0)


def see_colour(frames: np.ndarray, vividness: np.ndarray) -> np.ndarray:
    """(HUE_BINS,): how often each hue occurs among the vivid pixels."""
    hue, saturation, value = rgb_to_hsv(frames[vividness > VIVID]).T
    counts, _ = np.histogram(hue, HUE_BINS, (0, 1), weights=saturation * value)
    return counts / counts.sum()


def locate(vividness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the vivid pixels of each frame are: their centre (T, 2), x and y, and their distance from it (T,)."""
    weights = np.where(vividness > VIVID, vividness, 0)
    weights = weights / weights.sum((1, 2), keepdims=True)
    y, x = np.mgrid[: vividness.shape[1], : vividness.shape[2]]
    centre = np.stack([(weights * x).sum((1, 2)), (weights * y).sum((1, 2))], axis=1)
    squares = (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2
    return centre, np.sqrt((weights * squares).sum((1, 2)))


def see_shape(vividness: np.ndarray, centre: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """(GRID * GRID,): the silhouette, centred, of one size, averaged over the frames."""
    steps = np.linspace(-2, 2, GRID)
    x = (centre[:, 0, None, None] + distance[:, None, None] * steps[None, None, :]).round().astype(int)
    y = (centre[:, 1, None, None] + distance[:, None, None] * steps[None, :, None]).round().astype(int)
    frame = np.arange(len(vividness))[:, None, None]
    seen = vividness[frame, y.clip(0, SIDE - 1), x.clip(0, SIDE - 1)].mean(0)
    return (seen / seen.max()).ravel()


def see_motion(centre: np.ndarray) -> np.ndarray:
    """The centre's steps from frame to frame, their lengths, and its way as a whole, in pixels a frame."""
    steps = np.diff(centre, axis=0)
    return np.concatenate([steps.ravel(), np.hypot(*steps.T), steps.mean(0), np.abs(steps).mean(0)])


def hear(samples: np.ndarray) -> np.ndarray:
    """(N, BANDS): the logarithm of the energy in each band for each tenth of a second, against the loudest's."""
    size = SAMPLE_RATE // TOKENS_A_SECOND
    windows = samples[: len(samples) // size * size].reshape(-1, size) * np.hanning(size)
    energy = np.abs(np.fft.rfft(windows)) ** 2
    edges = np.geomspace(60, SAMPLE_RATE / 2, BANDS + 1) * size / SAMPLE_RATE
    bands = np.add.reduceat(energy, edges.astype(int)[:-1], axis=1)
    return np.log10(bands / bands.max() + 10**-LOUDEST) + LOUDEST


def read_sign(frames: np.ndarray) -> str:
    """The letters on the strip, '' without one: the nearest glyph of each cell."""
    strip = frames[:, -STRIP:].mean((0, 3))
    if strip.mean() < 0.5:
        return ""
    cells = strip.reshape(STRIP, -1, CELL).swapaxes(0, 1)
    glyphs = np.stack([draw_glyph(letter) for letter in LETTERS])
    differences = ((cells[:, None] - glyphs) ** 2).sum((2, 3))
    return "".join(LETTERS[i] for i in differences.argmin(1)).strip()


def consult_experts(path: Path) -> dict[str, np.ndarray | str | None]:
    """What each expert says of a file; the sign as text."""
    frames, samples = read_video(path)
    vividness = measure_vividness(frames)
    centre, distance = locate(vividness)
    return {
        "colour": see_colour(frames, vividness),
        "shape": see_shape(vividness, centre, distance),
        "motion": see_motion(centre),
        "sound": None if samples is None else hear(samples),
        "words": read_sign(frames),
    }


def extract(videos: Path, folder: Path) -> None:
    """A feature file for each expert, each in another format that `read_features` takes."""
    paths = sorted(videos.glob("*.mp4"))
    found = [consult_experts(path) for path in tqdm(paths, desc="experts", unit=" videos")]
    ids = [path.stem for path in paths]
    columns = {name: [said[name] for said in found] for name in found[0]}
    signs = sorted(set(columns["words"]) - {""})
    tokens = dict(zip(signs, SentenceEncoder()(signs), strict=True))
    folder.mkdir(exist_ok=True)
    np.savez(folder / "colour.npz", video_id=ids, colour=np.stack(columns["colour"]))
    pq.write_table(
        pa.table({"video_id": ids, "shape": [x.tolist() for x in columns["shape"]]}), folder / "shape.parquet"
    )
    np.save(folder / "motion.npy", np.stack(columns["motion"]))
    (folder / "motion.ids.txt").write_text("\n".join(ids))
    with h5py.File(folder / "sound.h5", "w") as file:
        for name, x in zip(ids, columns["sound"], strict=True):
            if x is not None:
                file[name] = x
    words = {name: tokens[sign] for name, sign in zip(ids, columns["words"], strict=True) if sign}
    (folder / "words.pkl").write_bytes(pickle.dumps(words))


# --- the run ----------------------------------------------------------------------------------------------


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Print how long a part took."""
    start = time.perf_counter()
    yield
    print(f"-- {part}: {time.perf_counter() - start:.1f} s", flush=True)


def ablation(found: Mapping[str, Evaluation]) -> str:
    """Text to video, a line for each choice of experts."""
    lines = [f"{'text to video':16}    R@1    R@5   R@10    MdR"]
    for name, result in found.items():
        x = result.text_to_video
        lines.append(f"{name:16} {x.r1:6.1f} {x.r5:6.1f} {x.r10:6.1f} {x.median_rank:6.1f}")
    return "\n".join(lines)


def build(folder: Path, videos: int, seed: int) -> None:
    """Everything up to the index."""
    with timed("corpus"):
        make_corpus(folder, videos, seed)
    with timed("experts"):
        extract(folder / "videos", folder / "features")
        print(read_features(folder / "features").summary())
    run = folder / "run.toml"
    run.write_text(RUN)
    with timed("training"):
        result = train_run(run, resume=(folder / "run" / STATE).is_file())
        print(f"best epoch: {result.best_epoch}, its validation\n{result.evaluation}")
    with timed("evaluation"):
        print(ablation(evaluate_run(run)))
    with timed("index"):
        store(folder)


def store(folder: Path) -> None:
    """Index the test videos, with their files and the words that were read in them."""
    features = read_features(folder / "features", read_captions(folder / "captions.csv", "test").unique_ids())
    op = CollaborativeExperts(weights_path=folder / "run" / BEST, modality="video")
    paths = [(folder / "videos" / f"{name}.mp4").resolve() for name in features.ids]
    signs = [read_sign(read_video(path)[0]) for path in paths]
    with VideoIndex(folder / "videos.lance") as index:
        index.add(
            features.ids,
            op.encode_video(features.experts, features.ind),
            uris=[str(path) for path in paths],
            spans=[(0.0, FRAMES / FRAME_RATE)] * len(paths),
            metadata=[{"text": {"words": sign}} if sign else None for sign in signs],
        )
        index.note_weights(folder / "run" / BEST)


def answer(folder: Path, queries: Sequence[str]) -> SearchResult:
    """The best test videos for sentences as somebody types them."""
    op = CollaborativeExperts(weights_path=folder / "run" / BEST, modality="text")
    text = op.encode_text(SentenceEncoder()(list(queries)))
    with VideoIndex(folder / "videos.lance") as index:
        return index.search(text, BEST_OF)


def draw_sheet(folder: Path, queries: Sequence[str], found: SearchResult) -> None:
    """`contact_sheet.png`: a row for each query, with a frame, the score and a caption of each answer."""
    captions = read_captions(folder / "captions.csv", "test")
    pairs = zip(reversed(captions.video_ids), reversed(captions.sentences), strict=True)
    caption_of = dict(pairs)  # the first of each, which is complete
    figure = Figure(figsize=(2 * BEST_OF, 3.1 * len(queries)), layout="constrained")
    rows = figure.subfigures(len(queries), squeeze=False)[:, 0]
    for row, query, names, scores in zip(rows, queries, found.ids, found.scores, strict=True):
        row.suptitle(f"“{query}”", fontsize=11, fontweight="bold")
        cells = row.subplots(1, BEST_OF)
        for cell, name, score in zip(cells, names, scores, strict=False):
            frames, _ = read_video(folder / "videos" / f"{name}.mp4")
            cell.imshow(frames[len(frames) // 2])
            cell.set_title(f"{score:+.3f}", fontsize=9)
            cell.set_xlabel(textwrap.fill(caption_of[name], 30), fontsize=7)
        for cell in cells:
            cell.set(xticks=[], yticks=[])
    figure.savefig(folder / "contact_sheet.png", dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; errors of the caller's are one line."""
    parser = argparse.ArgumentParser(description="Make videos, train on them, and find them by sentences.")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything is written; default: demo")
    parser.add_argument("--videos", type=int, default=600, help="how many are made; default: 600")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus; default: 0")
    parser.add_argument("--query", nargs="+", default=QUERIES, help="sentences to answer; default: six of ours")
    options = parser.parse_args(arguments)
    try:
        if not (options.folder / "videos.lance").exists():
            build(options.folder, options.videos, options.seed)
        with timed("queries"):
            draw_sheet(options.folder, options.query, answer(options.folder, options.query))
        print(f"the answers to {len(options.query)} queries: {options.folder / 'contact_sheet.png'}")
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
