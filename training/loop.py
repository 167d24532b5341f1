"""Fit Collaborative Experts to one's own features and captions.

The loss is the paper's or contrastive (`losses`), over the scores of a batch of videos with one caption each. Beyond
the paper, features are standardised by the statistics of the training set, inputs are dropped at random (`objective`),
and the weights that are kept are a moving average.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.config import CEConfig
from ..base.dependencies import extra
from ..model.cenet import CEModel, initial_state, meta_model
from ..retrieval.evaluation import Evaluation
from .data import CaptionedVideos, VideoTensors
from .objective import Objective
from .optimiser import learning_rate, make_fabric, make_optimiser, update_average
from .provenance import run_identity, weights_notes
from .run_folder import BEST, RunFolder, read_state
from .settings import TrainingConfig, fit_settings
from .validation import evaluate_model, from_columns, to_columns

Batch = tuple[dict[str, Tensor], Tensor, Tensor]
"""Features, availability and tokens, as from `VideoTensors.batch`."""


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a run.

    Attributes:
        weights_path: the weights of the best epoch, a file that an operator loads.
        best_epoch: the number of that epoch, from 1.
        evaluation: its figures on the validation set, None without one.
        history: the rows of `metrics.csv`, one an epoch.
    """

    weights_path: Path
    best_epoch: int
    evaluation: Evaluation | None
    history: list[dict[str, float]]


def train(
    config: CEConfig,
    settings: TrainingConfig,
    train_dataset: CaptionedVideos,
    eval_dataset: CaptionedVideos | None = None,
    resume: str | Path | None = None,
    weights: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> TrainingResult:
    """Fit a model, and write into `settings.folder` after every epoch.

    Args:
        config: the model. Its `standardise` decides whether raw features are standardised by the training set.
        eval_dataset: the validation videos, by which the best epoch is chosen. None keeps the last epoch.
        resume: the `last.ckpt` of an interrupted run with the same data and settings, which is continued as if it had
            not been interrupted. `epochs` and `patience` may differ.
        weights: all parameters to start from. None starts from seeded initial ones and learns the features' mean and
            deviation.

    Raises:
        TypeError, ValueError: data that does not fit, an expert that no video has, fewer than two videos, a loss that
            is not finite, a checkpoint of another run.

    Warns:
        UserWarning: `batch_size` is larger than the training set, and lowered.
    """
    run = _Run(config, settings, train_dataset, eval_dataset, weights, torch.device(device))
    if resume is not None:
        run.resume(Path(resume))
    return run.train()


class _Run:
    """The state of a training run, and its steps."""

    def __init__(
        self,
        config: CEConfig,
        settings: TrainingConfig,
        train_dataset: CaptionedVideos,
        eval_dataset: CaptionedVideos | None,
        weights: Mapping[str, Tensor] | None,
        device: torch.device,
    ) -> None:
        self.config = config
        self.data = VideoTensors(train_dataset, config, "train_dataset")
        self.validation = VideoTensors(eval_dataset, config, "eval_dataset") if eval_dataset is not None else None
        self.settings = settings = fit_settings(settings, config, len(self.data), device)
        self.encoder = train_dataset.encoder
        self._identity = run_identity(config, settings, self.data, self.validation)  # once: it reads all data
        statistics = self.data.statistics(config)
        if weights is None:
            weights = initial_state(config, seed=settings.seed) | (statistics if config.standardise else {})
        self.folder = RunFolder(Path(settings.folder))
        self.fabric = make_fabric(settings, device)
        objective = Objective(config, settings, weights)
        self.optimizer = make_optimiser(objective, settings)
        self.objective, self.optimizer = self.fabric.setup(objective, self.optimizer)
        if self.fabric.world_size > 1:
            objective.gather = lambda part: self.fabric.all_gather(part, sync_grads=True).flatten(0, 1)
        self.average = {name: x.detach().clone() for name, x in objective.model.state_dict().items()}
        self.epoch, self.step = 0, 0
        self.history: list[dict[str, float]] = []
        self.best = {"epoch": 0, "score": -1.0}

    @property
    def model(self) -> CEModel:
        return self.objective.module.model

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data) // self.settings.batch_size

    def train(self) -> TrainingResult:
        tqdm = extra("tqdm", "training").tqdm
        main, epochs = self.fabric.is_global_zero, self.settings.epochs
        if main:
            self.folder.open(first_epoch=self.epoch + 1)
        with tqdm(total=epochs, initial=self.epoch, unit=" epochs", desc="training", disable=not main) as bar:
            while self.epoch < epochs and not self._is_patience_over():
                row = self.fabric.broadcast(self._run_epoch())  # the first process' figures count for all
                is_best = self._note(row)
                if main:
                    self._write(row, is_best)
                self.fabric.barrier()
                bar.set_postfix({key: f"{row[key]:.3g}" for key in ("loss", "geometric_mean") if key in row})
                bar.update()
        if main:
            self.folder.close(self.history)
        self.fabric.barrier()
        best_row = self.history[self.best["epoch"] - 1]
        evaluation = from_columns(best_row) if self.validation is not None else None
        return TrainingResult(self.folder.path / BEST, self.best["epoch"], evaluation, self.history)

    def _is_patience_over(self) -> bool:
        patience = self.settings.patience
        return self.validation is not None and 0 < patience <= self.epoch - self.best["epoch"]

    def _run_epoch(self) -> dict[str, float]:
        """Pass once over the training videos, and validate. Returns a row of `metrics.csv`."""
        start = time.perf_counter()
        losses = [self._run_step(*batch) for batch in self._batches()]
        self.epoch += 1
        row = {
            "epoch": self.epoch,
            "loss": float(np.mean(losses)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": time.perf_counter() - start,
        }
        return row | (to_columns(self._validate()) if self.validation is not None else {})

    def _batches(self) -> Iterator[Batch]:
        """This process' part of each batch.

        Order, captions and dropout follow from the seed and the epoch alone. A resumed run therefore goes on as the
        interrupted one would have.
        """
        settings, rank, world = self.settings, self.fabric.global_rank, self.fabric.world_size
        rng = np.random.default_rng([settings.seed, self.epoch])
        order = rng.permutation(len(self.data))
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(np.random.default_rng([settings.seed, self.epoch, rank]).integers(2**62)))
            for k in range(self.steps_per_epoch):
                videos = order[k * settings.batch_size : (k + 1) * settings.batch_size]
                caption_rows = self.data.one_caption_each(videos, rng)
                yield self.data.batch(videos[rank::world], caption_rows[rank::world])

    def _run_step(self, features: dict[str, Tensor], available: Tensor, tokens: Tensor) -> float:
        self.objective.train()
        steps = self.settings.epochs * self.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings.learning_rate, self.step, steps)
        loss = self.objective(*self.fabric.to_device((features, available, tokens)))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(
                f"training: the loss is {value} in epoch {self.epoch + 1}; lower learning_rate, or check the features"
            )
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        self.step += 1
        update_average(self.average, self.model.state_dict(), self.settings.average, self.step)
        return value

    def _validate(self) -> Evaluation:
        """Figures of the averaged weights."""
        model = meta_model(self.config)
        model.load_state_dict({name: x.clone() for name, x in self.average.items()}, strict=False, assign=True)
        return evaluate_model(model.to(self.fabric.device), self.validation)

    def _note(self, row: dict[str, float]) -> bool:
        """Add an epoch to the history. Returns True if it is the best so far."""
        self.history.append(row)
        score = row.get("geometric_mean", float(self.epoch))  # without validation, the last is the best
        is_best = score > self.best["score"]
        if is_best:
            self.best = {"epoch": self.epoch, "score": score}
        return is_best

    def _write(self, row: dict[str, float], is_best: bool) -> None:
        """Write the weights if they are the best so far, then the state to resume from, and the figures."""
        if is_best:
            notes = weights_notes(self.config, self.settings, self.data, self.encoder, row)
            self.folder.write_best(self.average, self.config, notes)
        self.folder.write_state(self._state())
        self.folder.write_metrics(self.history)

    # --- resume -------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self._identity,
            "objective": self.objective.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "average": self.average,
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "history": self.history,
        }

    def resume(self, path: Path) -> None:
        """Take the state of an interrupted run. Raises as `read_state`, and ValueError for another run's."""
        state = read_state(path)
        before, now = state["identity"], self._identity
        changed = [f"{key} is {now[key]}, was {before.get(key)}" for key in now if before.get(key) != now[key]]
        if changed:
            raise ValueError(f"{path}: expected a checkpoint of this run, got one of another run: {'; '.join(changed)}")
        self.objective.module.load_state_dict(state["objective"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        for name, x in state["average"].items():
            self.average[name].copy_(x)
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.history = state["history"]
        if self.fabric.is_global_zero:
            self.folder.copy_best(path)
