"""From files of features and captions to videos that answer sentences, through one Towhee pipeline for each side:

    python examples/search.py FEATURES CAPTIONS.csv [--weights FILE] [--index videos.db] [--query "a dog runs" ...]

FEATURES is a folder or a file as `read_features` takes it; the captions have the columns `video_id` and `caption`.
Every video is embedded and indexed; every caption is asked, and the answers are held against comparing with each video;
the evaluation says how often a caption finds its own video; a page shows the answers to the queries.

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
from collaborative_experts.captions import Captions  # noqa: E402

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
    captions = read_captions(options.captions)
    features = read_features(options.features)
    print(features.summary())
    encoder = SentenceEncoder()
    config = None
    if options.weights is None:
        config = config_for(features, {"dim": encoder.dim, "clusters": 20, "max_tokens": 37}, shared_dim=512)
    with VideoIndex(options.index) as index:
        start = time.perf_counter()
        video = ingest(features, index, config, options.weights)
        print(f"\nindexed   {len(index):,} videos in {time.perf_counter() - start:.1f} s -> {options.index}")
        start = time.perf_counter()
        text, found = ask(captions.sentences, index, encoder, config, options.weights, options.k)
        print(f"asked     {len(text):,} captions in {time.perf_counter() - start:.1f} s")
        exact = count_exact(text, video, features.ids, found)
        print(f"exact     {exact:,} of {len(text):,} answers are what comparing with every video gives\n")
        row = {name: i for i, name in enumerate(features.ids)}
        print(evaluate(text, video, [row[name] for name in captions.video_ids]))
        queries = options.query or captions.sentences[:2]
        print(page(queries, ask(queries, index, encoder, config, options.weights, options.k)[1], captions))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; errors of the caller's are one line."""
    parser = argparse.ArgumentParser(description="Index videos and find them again by sentences.")
    parser.add_argument("features", type=Path, help="a folder, or one .npz or .h5 file of all experts")
    parser.add_argument("captions", type=Path, help="a CSV file with the columns video_id and caption")
    parser.add_argument("--weights", type=Path, help="of a model trained on such features; default: untrained")
    parser.add_argument("--index", type=Path, default=Path("videos.db"), help="default: videos.db")
    parser.add_argument("--query", nargs="*", help="sentences to show the answers of; default: the first two captions")
    parser.add_argument("-k", type=int, default=5, help="answers to a query; default: 5")
    try:
        run(parser.parse_args(arguments))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
