"""A model repository for Triton: the graphs of a model's two sides, and Towhee's pipeline of both.

    python docker/build_models.py --weights run/best.safetensors --to models [--gpu]

The repository holds three models: `pipeline`, which takes and gives JSON and runs its two steps; the ONNX graphs of the
steps, `...-0` of the video side and `...-1` of the text side. Clients may call these themselves, too
(examples/triton_client.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import towhee
from towhee import AutoConfig, ops, pipe

import collaborative_experts  # noqa: F401, which registers the operator with Towhee

LARGEST_BATCH = 1024
"""Rows of a request, and of what Triton makes of several that arrive together."""


def build_models(weights: Path, to: Path, gpu: bool = False) -> None:
    """Write the repository. The pipeline's server reads `weights` from the same path.

    Raises:
        RuntimeError: Towhee could not build it; its log says why.
    """
    config = (AutoConfig.TritonGPUConfig if gpu else AutoConfig.TritonCPUConfig)(max_batch_size=LARGEST_BATCH)
    settings = {"weights_path": str(weights.absolute()), "device": "cpu", "output": "vector"}
    operator = ops.video_text_embedding.collaborative_experts
    pipeline = (
        pipe.input("experts", "ind", "text")
        .map(("experts", "ind"), "video", operator(**settings, modality="video"), config=config)
        .map("text", "sentence", operator(**settings, modality="text"), config=config)
        .output("video", "sentence")
    )
    if not towhee.build_pipeline_model(pipeline, str(to), format_priority=["onnx"], parallelism=1):
        raise RuntimeError(f"{to}: Towhee could not build the model repository")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A model repository for Triton.")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--gpu", action="store_true", help="run the graphs on the first GPU")
    build_models(**vars(parser.parse_args()))
