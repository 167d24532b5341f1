"""Models of `transformers`, by their name on a hub or from a folder. No code of a hub is run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ...base.dependencies import extra
from ...base.model_hub import load_model
from .expert import hash_files

EXTRA = "extract"


def load(kind: str, model: str, trusted: bool = True) -> Any:
    """An object of an Auto class of `transformers`, such as "AutoModel". `trusted` and errors as of `load_model`."""
    from_pretrained = getattr(extra("transformers", EXTRA), kind).from_pretrained
    return load_model(partial(from_pretrained, trust_remote_code=False), model, kind, EXTRA, trusted)


def weights_of(model: str, network: Any) -> str:
    """A hash of a folder's weights, or the hub's name of the version."""
    folder = Path(model)
    if folder.is_dir():
        return hash_files(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    return str(getattr(network.config, "_commit_hash", None))
