"""The hub's code example, through Towhee's own hub loader: `make demo`, or `python examples/code_example.py`.

Random features of the nine MSR-VTT experts and random token embeddings go through a Towhee pipeline, twice;
what comes out is shown and checked, and the exit status is 1 if a check fails. The loader takes the operator
from a temporary cache that links to this repository, as from `~/.towhee` after `make install`; nothing is
downloaded. So this script must not import `collaborative_experts`: that registers the operator with Towhee,
and a registered operator bypasses the loader.
"""

import copy
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from hub_cache import MODULE, hub_cache
from torch import Tensor

# Towhee imports pkg_resources, which warns its user, who can do nothing about it.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

BATCH, DIM = 8, 768
SHAPES = {
    "audio": (29, 128),
    "face": (512,),
    "i3d.i3d.0": (1024,),
    "imagenet.resnext101_32x48d.0": (2048,),
    "imagenet.senet154.0": (2048,),
    "ocr": (49, 300),
    "r2p1d.r2p1d-ig65m.0": (512,),
    "scene.densenet161.0": (2208,),
    "speech": (32, 300),
}
"""Shape of one video's features: a vector, or tokens and their vectors."""
SOMETIMES_MISSING = ("ocr", "face")


def random_inputs(
    device: torch.device | str = "cpu", seed: int = 42
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Made-up features of 8 videos, which experts each video has (1 or 0), and one caption of 37 words for each.

    Returns:
        experts {name: (8, dim) or (8, N, dim)}, ind {name: (8,)}, text (8, 1, 37, 768).
    """
    random = torch.Generator().manual_seed(seed)
    experts = {name: torch.rand(BATCH, *shape, generator=random).to(device) for name, shape in SHAPES.items()}
    ind = {
        name: torch.randint(2, (BATCH,), generator=random).to(device)
        if name in SOMETIMES_MISSING
        else torch.ones(BATCH, device=device)
        for name in SHAPES
    }
    text = torch.randn(BATCH, 1, 37, DIM, generator=random).to(device)
    return experts, ind, text


def make_pipeline(device: torch.device | str) -> Any:
    """The pipeline of the example: p(experts, ind, text)."""
    from towhee import ops, pipe

    return (
        pipe.input("experts", "ind", "text")
        .map(
            ("experts", "ind", "text"),
            ("text_embds", "vid_embds"),
            ops.video_text_embedding.collaborative_experts(device=device),
        )
        .output("experts", "ind", "text", "text_embds", "vid_embds")
    )


def same(a: Any, b: Any) -> bool:
    """Whether two tensors, or dicts or sequences of them, are equal to the last bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def check(outputs: tuple, outputs_again: tuple, inputs: tuple, inputs_before: tuple) -> dict[str, bool]:
    """What must be true of two calls with the same inputs; `outputs` are (text_embds, vid_embds)."""
    embds = [embd for side in outputs for embd in side.values()]
    return {
        "the operator came through Towhee's hub loader": MODULE in sys.modules,
        "both outputs are keyed by the nine experts": all(list(side) == list(SHAPES) for side in outputs),
        f"every embedding is ({BATCH}, {DIM}) and finite": all(
            embd.shape == (BATCH, DIM) and bool(embd.isfinite().all()) for embd in embds
        ),
        "called twice with the same inputs, it gives the same embeddings": same(outputs, outputs_again),
        "the inputs are unchanged": same(inputs, inputs_before),
    }


def main() -> int:
    """Run the example; returns the exit status."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = random_inputs(device)
    inputs_before = copy.deepcopy(inputs)
    with hub_cache():
        from towhee import DataCollection

        p = make_pipeline(device)
        collection = DataCollection(p(*inputs))
        again = DataCollection(p(*inputs))
    collection.show()

    outputs, outputs_again = ((rows[0].text_embds, rows[0].vid_embds) for rows in (collection, again))
    text_embds, vid_embds = outputs
    print(f"\n{'expert':30}{'text_embds':14}vid_embds")
    for name in text_embds:
        print(f"{name:30}{tuple(text_embds[name].shape)!s:14}{tuple(vid_embds[name].shape)}")
    print()
    checks = check(outputs, outputs_again, inputs, inputs_before)
    for statement, holds in checks.items():
        print(f"{'ok' if holds else 'FAILED':8}{statement}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
