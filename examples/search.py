"""From files of features and captions to videos that answer sentences, through one Towhee pipeline for each side:

    python examples/search.py FEATURES CAPTIONS.csv [--weights FILE] [--index videos.lance] [--query "a dog runs" ...]

FEATURES is a folder or a file as `read_features` takes it; the captions have the columns `video_id` and `caption`.
Every video is embedded and indexed. With --query a page shows what is found for these sentences. Without, every caption
is asked, the answers are held against comparing with each video, and the evaluation says how often a caption finds
its own video.

Without --weights the model is untrained and finds its videos by chance; the way is the same.
"""

import argparse
import sys
import textwrap
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

# Towhee imports pkg_resources, which warns its user, who can do nothing about it.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

from towhee import ops, pipe  # noqa: E402

from collaborative_experts import (  # noqa: E402
    CEConfig,
    Features,
    SearchResult,
    SentenceEncoder,
    TextEmbeddings,
    VideoEmbeddings,
    VideoIndex,
    concatenate,
    config_for,
    evaluate,
    read_captions,
    read_features,
    similarity,
)
from collaborative_experts.training.captions import Captions, keep_videos_with_features  # noqa: E402

BATCH = 256


def ingest(features: Features, index: VideoIndex, config: CEConfig | None, weights: Path | None) -> VideoEmbeddings:
    """Features -> operator -> index; returns the embeddings for the evaluation."""
    op = ops.video_text_embedding.collaborative_experts(config, weights, modality="video", output="embeddings")
    p = (
        pipe.input("features")
        .map("features", ("ids", "experts", "ind"), lambda part: (part.ids, part.experts, part.ind))
        .map(("experts", "ind"), "video", op)
        .map(("ids", "video"), "stored", lambda ids, video: index.add(ids, video))  # Towhee copies what is no function
        .output("video")
    )
    starts = tqdm(range(0, len(features), BATCH), desc="videos", leave=False)
    return concatenate([p(features[start : start + BATCH]).get()[0] for start in starts])


def ask(
    sentences: Sequence[str],
    index: VideoIndex,
    encoder: SentenceEncoder,
    config: CEConfig,
    weights: Path | None,
    k: int,
) -> tuple[TextEmbeddings, SearchResult]:
    """Sentences -> words' embeddings -> operator -> index -> the ids and scores of the k best videos."""
    op = ops.video_text_embedding.collaborative_experts(config, weights, modality="text", output="embeddings")
    p = (
        pipe.input("sentences")
        .map("sentences", "tokens", lambda sentences: encoder(sentences))
        .map("tokens", "text", op)
        .map("text", "found", lambda text: index.search(text, k))
        .output("text", "found")
    )
    starts = tqdm(range(0, len(sentences), BATCH), desc="captions", leave=False)
    answers = [p(sentences[start : start + BATCH]).get() for start in starts]
    founds = [found for _, found in answers]
    arrays = (np.concatenate([getattr(found, name) for found in founds]) for name in ("ids", "scores", "shares"))
    return concatenate([text for text, _ in answers]), SearchResult(*arrays, index.experts)


def count_exact(text: TextEmbeddings, video: VideoEmbeddings, ids: Sequence[str], found: SearchResult) -> int:
    """For how many texts the index gives the best scores of all, by videos that have them."""
    scores = similarity(text, video)
    best = -np.sort(-scores, axis=1)[:, : found.ids.shape[1]]
    column = {name: i for i, name in enumerate(ids)}
    given = np.take_along_axis(scores, np.array([[column[name] for name in row] for row in found.ids]), axis=1)
    return int(((np.abs(given - best) < 1e-6) & (np.abs(found.scores - best) < 1e-6)).all(axis=1).sum())


def page(queries: Sequence[str], found: SearchResult, captions: Captions) -> str:
    """The answers as text: score, the expert that adds most to it, id, and a caption that a person wrote."""
    caption_of = dict(zip(captions.video_ids, captions.sentences, strict=True))
    lines = []
    for t, query in enumerate(queries):
        lines += ["", f"> {query}"]
        for name, score, shares in zip(found.ids[t], found.scores[t], found.shares[t], strict=True):
            most = found.experts[int(np.argmax(np.abs(shares)))]
            shown = textwrap.shorten(caption_of.get(name, ""), 70, placeholder=" ...")
            lines.append(f"  {score:+.3f}  {most:10}  {name:>8}  {shown}")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """All of it; prints as it goes."""
    if options.weights is not None and not options.weights.is_file():
        raise FileNotFoundError(f"there is no file {options.weights}")
    captions = read_captions(options.captions)
    features = read_features(options.features)
    print(features.summary())
    features = features[features.available.any(1)]  # a video without features cannot be found
    encoder = SentenceEncoder()
    config = None
    if options.weights is None:
        config = config_for(features, {"dim": encoder.dim, "clusters": 20, "max_tokens": 37}, shared_dim=512)
    with VideoIndex(options.index) as index:
        start = time.perf_counter()
        video = ingest(features, index, config, options.weights)
        if len(index) != len(features):
            raise ValueError(f"{options.index} holds other videos, too; delete it, or name another with --index")
        print(f"\nindexed   {len(index):,} videos in {time.perf_counter() - start:.1f} s -> {options.index}")
        start = time.perf_counter()
        if options.query:
            _, found = ask(options.query, index, encoder, config, options.weights, options.k)
            print(page(options.query, found, captions))
            return
        described, captions, targets = keep_videos_with_features(features, captions)
        text, found = ask(captions.sentences, index, encoder, config, options.weights, options.k)
        print(f"asked     {len(text):,} captions in {time.perf_counter() - start:.1f} s")
        exact = count_exact(text, video, features.ids, found)
        print(f"exact     {exact:,} of {len(text):,} answers are what comparing with every video gives\n")
        row = {name: i for i, name in enumerate(features.ids)}
        print(evaluate(text, video, [row[described.ids[target]] for target in targets]))
        print(page(captions.sentences[:2], found, captions))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; errors of the caller's are one line."""
    parser = argparse.ArgumentParser(description="Index videos and find them again by sentences.")
    parser.add_argument("features", type=Path, help="a folder, or one .npz or .h5 file of all experts")
    parser.add_argument("captions", type=Path, help="a CSV file with the columns video_id and caption")
    parser.add_argument("--weights", type=Path, help="of a model trained on such features; default: untrained")
    parser.add_argument("--index", type=Path, default=Path("videos.lance"), help="default: videos.lance")
    parser.add_argument("--query", nargs="*", help="sentences to answer; default: all captions, with an evaluation")
    parser.add_argument("-k", type=int, default=5, help="answers to a query; default: 5")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:  # what a pipeline makes of an operator's error, with the traceback in its text
        sys.exit(f"error: {str(error).split(', Traceback')[0]}; if {options.index} is of other videos, delete it")


if __name__ == "__main__":
    main()
