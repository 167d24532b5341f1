"""Scores beside CENet's, and the evaluation of a large test set without and with a query bank: time, share of the
machine's limit, memory.

    python benchmarks/retrieval.py [--quick]

The embeddings are random, since no time depends on their values. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json

import torch
import torch.nn.functional as F
from common import MSRVTT, machine, matmul_rate, medians, watched
from towhee.models.collaborative_experts.collaborative_experts import sharded_cross_view_inner_product

from collaborative_experts import QueryBank, TextEmbeddings, VideoEmbeddings, evaluate, similarity

TEST_SET = (59_800, 2_990)
"""Captions and videos of the MSR-VTT test set."""

BANK = 5_000
"""Captions in the query bank."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size, to see that it runs")
    quick = parser.parse_args().quick
    torch.set_grad_enabled(False)
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    results = {"machine": machine()}
    for missing in (0.0, 0.3):
        scores = compare(*((100, 1000) if quick else (1000, 10_000)), missing)
        results[f"similarity, {missing:.0%} missing"] = scores
        print(
            f"similarity {scores['texts']:,} x {scores['videos']:,}, {missing:.0%} of the experts missing: "
            f"CENet {scores['cenet'] * 1e3:.0f} ms, ours {scores['ours'] * 1e3:.0f} ms, "
            f"{scores['cenet'] / scores['ours']:.1f}x; {scores['limit']:.0%} of the best matrix product; "
            f"largest difference {scores['difference']:.1e}",
            flush=True,
        )
    for bank in (0, BANK // 10 if quick else BANK):
        name = "evaluate, with a query bank" if bank else "evaluate"
        results[name] = run = test_set(*((5980, 299) if quick else TEST_SET), bank)
        print(
            f"{name} {run['texts']:,} x {run['videos']:,}: {run['seconds']:.1f} s, peak {run['peak'] / 1e6:.0f} MB "
            f"beyond the embeddings ({run['embeddings'] / 1e6:.0f} MB)",
            flush=True,
        )
    print(json.dumps(results))


def random_embeddings(texts: int, videos: int, missing: float) -> tuple[TextEmbeddings, VideoEmbeddings]:
    """Unit vectors of the default model's nine experts."""
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> dict[str, torch.Tensor]:
        return {
            name: F.normalize(torch.randn(rows, dim, generator=generator)) for name, dim in MSRVTT.output_dims.items()
        }

    experts = len(MSRVTT.experts)
    available = torch.rand(videos, experts, generator=generator) >= missing
    available[:, 0] = True  # CENet divides 0 by 0 where a video has no expert
    weights = torch.randn(texts, experts, generator=generator).softmax(1)
    return TextEmbeddings(unit(texts), weights), VideoEmbeddings(unit(videos), available)


def compare(texts: int, videos: int, missing: float) -> dict[str, float]:
    """Times of CENet's own scores and ours, and the largest difference between them."""
    text, video = random_embeddings(texts, videos, missing)
    ind = {name: video.available[:, m].float() for m, name in enumerate(video.experts)}

    def cenet() -> torch.Tensor:
        return sharded_cross_view_inner_product(
            video.embds, {name: x[:, None] for name, x in text.embds.items()}, text.weights,
            list(text.experts), l2renorm=False, ind=ind, keep_missing_modalities=False,
        )  # fmt: skip

    rate = matmul_rate(torch.float32)
    theirs, ours = medians(cenet, lambda: similarity(text, video), repeats=7)
    flops = 2 * texts * videos * sum(MSRVTT.output_dims.values())
    difference = float((cenet() - similarity(text, video)).abs().max())
    return {"texts": texts, "videos": videos, "cenet": theirs, "ours": ours, "limit": flops / ours / rate,
            "difference": difference}  # fmt: skip


def test_set(texts: int, videos: int, bank: int) -> dict[str, float]:
    """Time and memory of `evaluate`; the first `bank` texts are the query bank."""
    text, video = random_embeddings(texts, videos, missing=0.3)
    size = sum(x.nbytes for side in (text, video) for x in side.embds.values())
    query_bank = QueryBank(text[:bank], "qb-dynamic") if bank else None
    _, seconds, peak = watched(lambda: evaluate(text, video, bank=query_bank))
    return {"texts": texts, "videos": videos, "seconds": seconds, "peak": peak, "embeddings": size}


if __name__ == "__main__":
    main()
