"""The folder of a training run.

- `best.safetensors`: the best weights, which an operator loads
- `bank.safetensors`: their query bank (`bank`)
- `search.safetensors`: before a refit on all videos, the best weights, which have not seen those held out
- `last.ckpt`: a state to resume from, the last one at the end of a run
- `README.md`: the model card (`model_card`)
- `metrics.csv`, TensorBoard's events, `curve.png`: the figures of every epoch
"""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.config import CEConfig
from ..base.dependencies import extra
from ..base.files import replacing
from ..model.checkpoint import write_weights
from ..retrieval.normalise import QueryBank
from .bank import BANK, write_bank

BEST = "best.safetensors"
SEARCH = "search.safetensors"
STATE = "last.ckpt"
METRICS = "metrics.csv"
CARD = "README.md"
CURVE = "curve.png"
EVENTS = "events.out.tfevents.*"

STATE_SHARE = 0.03
"""Share of the time that writing states may take."""

PLOTTED_FIGURES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "geometric_mean": "geometric mean"}


class RunFolder:
    """Writes the files of a run, each completely or not at all. Only one process of a run writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state_seconds = 0.0
        self._state_written = time.perf_counter()

    def open(self, first_epoch: int) -> None:
        """Make the folder, and begin the events with this epoch."""
        self.path.mkdir(parents=True, exist_ok=True)
        writer = extra("torch.utils.tensorboard", "training").SummaryWriter
        self._events = writer(self.path, purge_step=first_epoch)

    def write_best(self, weights: Mapping[str, Tensor], config: CEConfig, notes: Mapping[str, Any]) -> None:
        write_weights(self.path / BEST, {name: x.detach().cpu() for name, x in weights.items()}, config, notes)

    def keep_search(self) -> None:
        """Keep the best weights of a search beside those of the refit that is to come."""
        with replacing(self.path / SEARCH) as temporary:
            shutil.copyfile(self.path / BEST, temporary)

    def write_bank(self, bank: QueryBank) -> None:
        write_bank(self.path / BANK, bank)

    def state_is_due(self) -> bool:
        """True once the time since the last state is long beside the time that it took to write it."""
        return (time.perf_counter() - self._state_written) * STATE_SHARE >= self._state_seconds

    @contextmanager
    def timed_state(self) -> Iterator[None]:
        """Measures what writing a state costs."""
        start = time.perf_counter()
        yield
        self._state_written = time.perf_counter()
        self._state_seconds = self._state_written - start

    def write_state(self, state: Mapping[str, Any]) -> None:
        # Opened here: PyTorch's error then has that of the full disk as its context.
        with replacing(self.path / STATE, RuntimeError) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def write_metrics(self, history: list[dict[str, float]]) -> None:
        """Write the rows of all epochs, and the last one as events."""
        row = history[-1]
        with replacing(self.path / METRICS) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            writer.writeheader()
            writer.writerows(history)
        for name, value in row.items():
            self._events.add_scalar(name, value, int(row["epoch"]))

    def close(self, history: list[dict[str, float]]) -> None:
        """End the events, and draw the curves."""
        self._events.close()
        _draw(history, self.path / CURVE)

    def copy_best(self, state_path: Path) -> None:
        """Bring the best weights from beside a state in another folder."""
        if state_path.parent.absolute() != self.path.absolute():
            self.path.mkdir(parents=True, exist_ok=True)
            with replacing(self.path / BEST) as temporary:
                shutil.copyfile(state_path.with_name(BEST), temporary)


def delete_run(path: Path) -> None:
    """Delete the files of a training run, and nothing else that lies in its folder."""
    for pattern in (BEST, BANK, SEARCH, STATE, METRICS, CURVE, CARD, EVENTS):
        for file in path.glob(pattern):
            file.unlink()


def read_state(path: Path) -> dict[str, Any]:
    """The content that `write_state` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a complete checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"resume_checkpoint_path: there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        identity = state["identity"]
    except Exception as error:
        # A damaged file raises whatever its bytes happen to mean.
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ValueError(f"{path}: not a complete training checkpoint: {reason}") from None
    return {"search": None, "members": []} | state | {"identity": dict(identity)}


def _draw(history: list[dict[str, float]], path: Path) -> None:
    """Draw the loss and the recalls over the epochs."""
    figure = extra("matplotlib.figure", "training").Figure(figsize=(7, 4))
    loss_axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    loss_axes.plot(epochs, [row["loss"] for row in history], color="black", label="training loss")
    loss_axes.set_xlabel("epoch")
    loss_axes.set_ylabel("loss")
    if history and "r1" in history[0]:
        recall_axes = loss_axes.twinx()
        for key, label in PLOTTED_FIGURES.items():
            recall_axes.plot(epochs, [row[key] for row in history], label=label)
        recall_axes.set_ylabel("validation, text to video, %")
        recall_axes.legend(loc="lower right")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
