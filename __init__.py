"""Collaborative Experts for Towhee: video and text embeddings from expert features.

Loaded by Towhee's hub loader from the operator cache, or installed and imported as the package
`collaborative_experts`, which also registers the operator with Towhee.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .base import forks
from .base.dependencies import check_dependencies

check_dependencies()
forks.register()

# Before the factory: importing the submodule of the same name later would replace it.
import_module(".collaborative_experts", __name__)

if TYPE_CHECKING:
    from .base.config import MSRVTT, CEConfig, ExpertConfig, TextConfig
    from .features.features import Features, iter_features, read_features
    from .features.suggest import config_for
    from .hub.operator import CollaborativeExperts
    from .model.cenet import Modality
    from .retrieval.embeddings import ModelIdentity, TextEmbeddings, VideoEmbeddings, concatenate
    from .retrieval.evaluation import Evaluation, RetrievalMetrics, evaluate, evaluate_scores
    from .retrieval.explain import Explanation, explain
    from .retrieval.index import VideoIndex
    from .retrieval.normalise import QueryBank
    from .retrieval.result import SearchResult
    from .retrieval.similarity import similarity, similarity_tiles
    from .training.captions import read_captions
    from .training.data import CaptionedVideos, caption_videos
    from .training.encoder import SentenceEncoder
    from .training.loop import TrainingResult
    from .training.settings import TrainingConfig

_MODULES = {
    "base.config": ("MSRVTT", "CEConfig", "ExpertConfig", "TextConfig"),
    "features.features": ("Features", "iter_features", "read_features"),
    "features.suggest": ("config_for",),
    "hub.operator": ("CollaborativeExperts",),
    "retrieval.embeddings": ("ModelIdentity", "TextEmbeddings", "VideoEmbeddings", "concatenate"),
    "retrieval.evaluation": ("Evaluation", "RetrievalMetrics", "evaluate", "evaluate_scores"),
    "retrieval.explain": ("Explanation", "explain"),
    "retrieval.index": ("VideoIndex",),
    "retrieval.normalise": ("QueryBank",),
    "retrieval.result": ("SearchResult",),
    "retrieval.similarity": ("similarity", "similarity_tiles"),
    "training.captions": ("read_captions",),
    "training.data": ("CaptionedVideos", "caption_videos"),
    "training.encoder": ("SentenceEncoder",),
    "training.loop": ("TrainingResult",),
    "training.settings": ("TrainingConfig",),
}
"""The public names, by the module that is imported when one of them is used. PyTorch takes a second to import."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "MSRVTT",
    "CEConfig",
    "CaptionedVideos",
    "CollaborativeExperts",
    "Evaluation",
    "ExpertConfig",
    "Explanation",
    "Features",
    "ModelIdentity",
    "QueryBank",
    "RetrievalMetrics",
    "SearchResult",
    "SentenceEncoder",
    "TextConfig",
    "TextEmbeddings",
    "TrainingConfig",
    "TrainingResult",
    "VideoEmbeddings",
    "VideoIndex",
    "caption_videos",
    "collaborative_experts",
    "concatenate",
    "config_for",
    "evaluate",
    "evaluate_scores",
    "explain",
    "iter_features",
    "read_captions",
    "read_features",
    "similarity",
    "similarity_tiles",
]


def collaborative_experts(
    config: CEConfig | dict[str, Any] | str | Path | None = None,
    weights_path: str | Path | None = None,
    device: str | None = None,
    modality: Modality = None,
    output: Literal["experts", "vector", "embeddings"] = "experts",
    dtype: str = "float32",
) -> CollaborativeExperts:
    """The operator, as the hub calls for it; the arguments are those of `CollaborativeExperts`.

    >>> config = {"experts": {"motion": 512, "audio": 128}, "text": {"dim": 384}, "shared_dim": 64}
    >>> op = collaborative_experts(config, device="cpu")
    >>> op.encode_text([[0.5] * 384])
    <TextEmbeddings: one text, motion (64), audio (64), NumPy float32>
    """
    from .hub.operator import CollaborativeExperts

    return CollaborativeExperts(config, weights_path, device, modality, output, dtype)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


def _register() -> None:
    """Register the operator with Towhee, by a class that makes it: the operator's own class comes with PyTorch."""
    with warnings.catch_warnings():
        # Towhee imports pkg_resources, which warns its user, who can do nothing about it.
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        from towhee import register

    class _Registered:
        def __new__(cls, *args: Any, **kwargs: Any) -> CollaborativeExperts:  # type: ignore[misc]
            return collaborative_experts(*args, **kwargs)

    register(name="video_text_embedding/collaborative_experts")(_Registered)


if __name__ == "collaborative_experts":
    # Not when Towhee's loader runs this file: a registered name would hide every version in its cache.
    _register()
