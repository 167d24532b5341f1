"""Models of `transformers`, by their name on a hub or from a folder. No code of a hub is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...base.dependencies import extra
from .expert import hash_files

EXTRA = "extract"


def load(kind: str, model: str, **options: object) -> Any:
    """An object of an Auto class of `transformers`, such as "AutoModel".

    Raises:
        FileNotFoundError: the model is neither a folder with such a model nor to be had from the hub.
    """
    auto = getattr(extra("transformers", EXTRA), kind)
    try:
        return auto.from_pretrained(model, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{model}: no {kind} in this folder, or on the hub as far as it is reached: {reason}"
        ) from None


def weights_of(model: str, network: Any) -> str:
    """A hash of a folder's weights, or the hub's name of the version."""
    folder = Path(model)
    if folder.is_dir():
        return hash_files(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    return str(getattr(network.config, "_commit_hash", None))
