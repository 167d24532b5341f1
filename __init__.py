"""Collaborative Experts for Towhee: video and text embeddings from expert features.

Loaded by Towhee's hub loader from the operator cache, or installed and imported as the package
`collaborative_experts`, which also registers the operator with Towhee.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .base.dependencies import check_dependencies

check_dependencies()

with warnings.catch_warnings():
    # Towhee imports pkg_resources, which warns its user, who can do nothing about it.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    from towhee import register

# All submodules before the factory: importing the submodule of the same name later would replace it.
from .base.config import MSRVTT, CEConfig, ExpertConfig, TextConfig  # noqa: E402
from .collaborative_experts import CollaborativeExperts  # noqa: E402
from .features.features import Features, iter_features, read_features  # noqa: E402
from .features.suggest import config_for  # noqa: E402
from .retrieval.embeddings import ModelIdentity, TextEmbeddings, VideoEmbeddings, concatenate  # noqa: E402
from .retrieval.evaluation import Evaluation, RetrievalMetrics, evaluate, evaluate_scores  # noqa: E402
from .retrieval.explain import Explanation, explain  # noqa: E402
from .retrieval.index import VideoIndex  # noqa: E402
from .retrieval.normalise import QueryBank  # noqa: E402
from .retrieval.result import SearchResult  # noqa: E402
from .retrieval.similarity import similarity, similarity_tiles  # noqa: E402

if TYPE_CHECKING:
    from .model.cenet import Modality
    from .training.captions import read_captions
    from .training.data import CaptionedVideos, caption_videos
    from .training.encoder import SentenceEncoder
    from .training.loop import TrainingResult
    from .training.settings import TrainingConfig

_TRAINING = {
    "CaptionedVideos": "data",
    "SentenceEncoder": "encoder",
    "TrainingConfig": "settings",
    "TrainingResult": "loop",
    "caption_videos": "data",
    "read_captions": "captions",
}
"""Public names of the training room, which is imported when one of them is used: {name: module}."""

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
    return CollaborativeExperts(config, weights_path, device, modality, output, dtype)


def __getattr__(name: str) -> Any:
    if name in _TRAINING:
        return getattr(import_module(f".training.{_TRAINING[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_TRAINING})


if __name__ == "collaborative_experts":
    # Not when Towhee's loader runs this file: a registered name would hide every version in its cache.
    register(name="video_text_embedding/collaborative_experts")(CollaborativeExperts)
