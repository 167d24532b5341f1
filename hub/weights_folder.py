"""The folder `weights/`: the file that an operator takes from it without being told."""

from __future__ import annotations

import warnings
from pathlib import Path

from ..base.config import MSRVTT, CEConfig
from ..model import checkpoint

WEIGHTS_DIR = Path(__file__).resolve().parents[1] / "weights"
DEFAULT_WEIGHTS = "msrvtt-train-full-ce.safetensors"


def find_weights(config: CEConfig | None, folder: Path = WEIGHTS_DIR) -> Path | None:
    """The file in `folder` whose config is `config` (any, for None); None if there is none.

    A file without a config of its own counts as the default model. One that cannot be read is passed over
    with a warning.

    Raises:
        ValueError: several fit, and none is the default model's.
    """
    fitting = []
    for path in sorted(folder.glob("*")):
        if path.suffix not in checkpoint.SUFFIXES or not path.is_file():
            continue
        try:
            config_of_file = checkpoint.read_config(path) or MSRVTT
        except ValueError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
            continue
        if config in (None, config_of_file):
            fitting.append(path)
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    if folder / DEFAULT_WEIGHTS in fitting:
        return folder / DEFAULT_WEIGHTS
    raise ValueError(
        f"weights_path: {folder} holds several files that fit ({', '.join(path.name for path in fitting)}); name one"
    )
