"""Videos and texts embedded by a Triton server, with the features as binary tensors or in shared memory.

    pip install 'tritonclient[http]'
    python examples/triton_client.py --url localhost:8000 [--shared-memory]

The server has the two graphs that docker/build_models.py makes (docs/export.md). Made-up features are sent here, in the
shapes that the server tells of. Yours come from `read_features`, tokens from the encoder of the model's training.

A server on this machine can read the features where they lie, in system shared memory: only where to find them goes
through HTTP. A server in a container needs `docker run --ipc=host` for that.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import closing, nullcontext
from uuid import uuid4

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import shared_memory

VIDEO_MODEL, TEXT_MODEL = (f"video-text-embedding.collaborative-experts-{step}" for step in (0, 1))
"""The names that Towhee gives the steps of the pipeline."""


class SharedMemory:
    """A region of system shared memory that the server opens, too. Made once, it serves many requests, one at a time.

    Raises:
        tritonclient.utils.InferenceServerException: the server cannot open it, being elsewhere, for example.
    """

    def __init__(self, client: triton.InferenceServerClient, size: int) -> None:
        self._client, self._name = client, f"collaborative_experts_{uuid4().hex}"
        self._region = shared_memory.create_shared_memory_region(self._name, f"/{self._name}", size)
        try:
            client.register_system_shared_memory(self._name, f"/{self._name}", size)
        except BaseException:
            shared_memory.destroy_shared_memory_region(self._region)
            raise

    def inputs(self, arrays: Mapping[str, np.ndarray]) -> list[triton.InferInput]:
        """Inputs that lie in the region one after the other, in place of those of the last request."""
        shared_memory.set_shared_memory_region(self._region, list(arrays.values()))
        inputs, offset = [described(*entry) for entry in arrays.items()], 0
        for tensor, array in zip(inputs, arrays.values(), strict=True):
            tensor.set_shared_memory(self._name, array.nbytes, offset)
            offset += array.nbytes
        return inputs

    def close(self) -> None:
        """Take the region from the server, and from this machine."""
        try:
            self._client.unregister_system_shared_memory(self._name)
        finally:
            shared_memory.destroy_shared_memory_region(self._region)


def embed_videos(
    client: triton.InferenceServerClient,
    experts: Mapping[str, np.ndarray],
    available: np.ndarray,
    memory: SharedMemory | None = None,
) -> dict[str, np.ndarray]:
    """{expert: (B, D)} of features {expert: (B, dim) or (B, N, dim)} and availability (B, M), experts in order."""
    arrays = {f"experts.{name}": np.asarray(x, np.float32) for name, x in experts.items()}
    arrays["available"] = np.asarray(available, bool)
    outputs = infer(client, VIDEO_MODEL, memory.inputs(arrays) if memory else binary_inputs(arrays))
    return {name.removeprefix("video."): x for name, x in outputs.items()}


def embed_texts(client: triton.InferenceServerClient, tokens: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """{expert: (T, D)} and expert weights (T, M) of token embeddings (T, W, dim)."""
    outputs = infer(client, TEXT_MODEL, binary_inputs({"tokens": np.asarray(tokens, np.float32)}))
    weights = outputs.pop("weights")
    return {name.removeprefix("text."): x for name, x in outputs.items()}, weights


def binary_inputs(arrays: Mapping[str, np.ndarray]) -> list[triton.InferInput]:
    """Inputs whose bytes are part of the request."""
    inputs = [described(*entry) for entry in arrays.items()]
    for tensor, array in zip(inputs, arrays.values(), strict=True):
        tensor.set_data_from_numpy(array, binary_data=True)
    return inputs


def described(name: str, array: np.ndarray) -> triton.InferInput:
    """An input's name, shape and type, without its numbers."""
    return triton.InferInput(name, list(array.shape), "BOOL" if array.dtype == bool else "FP32")


def infer(client: triton.InferenceServerClient, model: str, inputs: list[triton.InferInput]) -> dict[str, np.ndarray]:
    """All outputs of a model, as binary tensors."""
    names = [output["name"] for output in client.get_model_metadata(model)["outputs"]]
    wanted = [triton.InferRequestedOutput(name, binary_data=True) for name in names]
    result = client.infer(model, inputs, outputs=wanted)
    return {name: result.as_numpy(name) for name in names}


def made_up(client: triton.InferenceServerClient, model: str, rows: int, tokens: int = 20) -> dict[str, np.ndarray]:
    """Random numbers for every input of a model, in its shape; a free axis has `rows`, a second one `tokens`."""
    rng = np.random.default_rng(0)
    arrays = {}
    for tensor in client.get_model_metadata(model)["inputs"]:
        shape = [rows, *(size if size > 0 else tokens for size in tensor["shape"][1:])]
        x = rng.random(shape, np.float32)
        arrays[tensor["name"]] = x > 0.2 if tensor["datatype"] == "BOOL" else x
    return arrays


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Embed made-up videos and texts by a Triton server.")
    parser.add_argument("--url", default="localhost:8000", help="host:port of its HTTP service")
    parser.add_argument("--shared-memory", action="store_true", help="features in memory that a server here shares")
    options = parser.parse_args(arguments)
    client = triton.InferenceServerClient(options.url)
    arrays = made_up(client, VIDEO_MODEL, rows=8)
    available = arrays.pop("available")
    experts = {name.removeprefix("experts."): x for name, x in arrays.items()}
    size = available.nbytes + sum(x.nbytes for x in experts.values())
    with closing(SharedMemory(client, size)) if options.shared_memory else nullcontext() as memory:
        videos = embed_videos(client, experts, available, memory)
    texts, weights = embed_texts(client, made_up(client, TEXT_MODEL, rows=3)["tokens"])
    # CE's score: the experts' cosines, weighted by the text, over the experts that the video has
    shares = weights[:, None, :] * available[None, :, :]
    cosines = np.stack([texts[name] @ videos[name].T for name in videos], axis=2)  # (T, B, M)
    scores = (shares * cosines).sum(2) / np.maximum(shares.sum(2), 1e-12)
    for row in scores:
        print(" ".join(f"{score:6.3f}" for score in row))


if __name__ == "__main__":
    main()
