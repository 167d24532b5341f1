"""Fit Collaborative Experts to one's own features and captions.

The loss is the paper's or contrastive (`losses`), over the scores of a batch of videos with one caption each. Beyond
the paper, features are standardised by the statistics of the training set, inputs are dropped at random (`objective`),
and the weights that are kept are a moving average. Validation finds the number of steps (`schedule`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.config import CEConfig
from ..base.dependencies import extra
from ..base.modes import own_modes
from ..base.threads import side_by_side
from ..model.cenet import CEModel, initial_state, model_of
from ..model.checkpoint import read_weights
from ..retrieval.evaluation import Evaluation
from .bank import choose_beta, make_bank
from .data import CaptionedVideos, VideoTensors
from .encoder import EncoderIdentity
from .linear import LinearChoice, Moments, can_be_linear, choose_linear, join_linear
from .members import can_join, has_fixed_centre, join
from .objective import Objective, fixed_parameters
from .optimiser import make_fabric, make_optimiser, update_average
from .provenance import run_identity, weights_notes
from .run_folder import BEST, RunFolder, read_state
from .schedule import Schedule, plan, repeat
from .settings import TrainingConfig, fit_settings
from .validation import MOST_CAPTIONS, evaluate_model, from_columns, to_columns

CHOSEN_BY = ("geometric_mean", "video_to_text_geometric_mean")
"""Columns of `metrics.csv`: the best validation has the highest of the first, and among equals of the second."""

Batch = tuple[dict[str, Tensor], Tensor, Tensor, Tensor | None]
"""Features, availability and tokens, as from `VideoTensors.batch`, and the teachers' scores of the whole batch."""


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a run.

    Attributes:
        weights_path: the weights, a file that an operator loads: those of the best validation, or, after a refit, those
            that were trained for as many steps on all videos.
        best_epoch: the number of the best validation's epoch, from 1.
        best_step: the number of its step, from 1.
        evaluation: its figures on the validation set, None without one. A refit is not validated.
        history: the rows of `metrics.csv`, one a validation, or one an epoch without.
    """

    weights_path: Path
    best_epoch: int
    best_step: int
    evaluation: Evaluation | None
    history: list[dict[str, float]]


@own_modes()
def train(
    config: CEConfig,
    settings: TrainingConfig,
    train_dataset: CaptionedVideos,
    eval_dataset: CaptionedVideos | None = None,
    resume: str | Path | None = None,
    weights: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    refit_dataset: CaptionedVideos | None = None,
    notes: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Fit a model, and write into `settings.folder` as training goes on.

    Args:
        config: the model. Its `standardise` decides whether raw features are standardised by the training set.
        eval_dataset: the validation videos, by which the number of steps is found, or the best epoch of a given number
            is chosen. None keeps the last weights.
        resume: the `last.ckpt` of an interrupted run with the same data and settings, which is continued as if it had
            not been interrupted. `epochs`, `steps` and `patience` may differ.
        weights: all parameters to start from. None starts from seeded initial ones and learns the features' mean and
            deviation.
        refit_dataset: the videos of both sets. Where validation finds the number of steps, and unless `settings.refit`
            is False, the weights are then trained anew on these.
        notes: what the weights are to say of themselves besides, in JSON's types.

    Raises:
        TypeError, ValueError: data that does not fit, an expert that no video has, fewer than two videos, a loss that
            is not finite, a checkpoint of another run.

    Warns:
        UserWarning: `batch_size` is larger than the training set, and lowered.
    """
    device = torch.device(device)
    sums_words = _sums_words(config, settings, weights)
    data = VideoTensors(train_dataset, config, "train_dataset", sums_words)
    validation = None if eval_dataset is None else VideoTensors(eval_dataset, config, "eval_dataset", sums_words)
    settings = fit_settings(settings, config, len(data), device)
    identity = run_identity(config, settings, data, validation)
    state = None if resume is None else _read_run(Path(resume), identity)
    schedule = plan(settings, len(data), validation and (len(validation), min(MOST_CAPTIONS, len(validation.tokens))))
    fabric = make_fabric(settings, device)
    run = _Run(config, settings, schedule, fabric, data, validation, weights)
    run.encoder, run.identity, run.notes = train_dataset.encoder, identity, dict(notes or {})
    if state is not None and fabric.is_global_zero:
        run.folder.copy_best(Path(resume))
    refit = settings.refit and schedule.found and refit_dataset is not None
    search = state and state["search"]
    if search is None:
        run.load(state)
        run.train()
        if fabric.is_global_zero:
            if refit:
                run.folder.keep_search()
            run.choose_joined(_member_count(config, settings, weights) if refit else 1)
            if not refit:
                run.write_bank()
        fabric.barrier()
        search = {"best": run.best, "history": run.history}
    if refit:
        every = VideoTensors(refit_dataset, config, "refit_dataset", sums_words)
        _refit(run, every, search, weights, state["members"] if state else [])
    return _result(run.folder, search, validated=validation is not None)


def _refit(
    run: _Run,
    data: VideoTensors,
    search: dict[str, Any],
    weights: Mapping[str, Tensor] | None,
    states: Sequence[Mapping[str, Any]],
) -> None:
    """Train the members on all videos for as long as the search found best, and write the model that joins them.

    Args:
        run: the search.
        search: its best validation and history.
        states: those of interrupted members.
    """
    config, settings, fabric = run.config, run.settings, run.fabric
    schedule = repeat(search["best"]["step"], len(data), settings.batch_size)
    members = []
    for number in range(_member_count(config, settings, weights)):
        seeded = replace(settings, seed=settings.seed + number)
        members.append(_Run(config, seeded, schedule, fabric, data, None, weights))
        members[-1].load(states[number] if number < len(states) else None)
    _train_members(run, members, search)
    if fabric.is_global_zero:
        made = {"steps": schedule.steps, "members": len(members)}
        averages = [member.average for member in members]
        linear = search["best"].get("linear")
        if linear and len(members) > 1:
            made["linear"] = linear | search["best"]["linear_scores"]
            moments = Moments(model_of(averages[0], config), data)
            joined, config = join_linear(moments, averages, config, LinearChoice(**linear))
        else:
            joined, config = join(averages, config)
        notes = weights_notes(config, settings, data, run.encoder, _row_of(search))
        run.folder.write_best(joined, config, notes | run.notes | {"refit": made})
        run.folder.write_bank(make_bank(model_of(joined, config, fabric.device), data, search["best"]["beta"]))
    fabric.barrier()


def _train_members(run: _Run, members: Sequence[_Run], search: Mapping[str, Any]) -> None:
    """Train all members to the end, an epoch of each at a time, and write the state to resume from now and then."""
    fabric, steps = run.fabric, members[0].schedule.steps
    # On a CPU they share the cores better than the threads of one step do. Processes that share a batch must not.
    at_once = fabric.device.type == "cpu" and fabric.world_size == 1
    bar = extra("tqdm", "training").tqdm(
        total=steps * len(members), initial=sum(member.step for member in members), unit=" steps",
        desc="training on all videos", disable=not fabric.is_global_zero,
    )  # fmt: skip
    with bar:
        while left := [member for member in members if member.step < steps]:
            rows = list((side_by_side if at_once else map)(_Run.run_round, left))
            bar.set_postfix({"loss": f"{np.mean([row['loss'] for row in rows]):.3g}"})
            bar.update(sum(member.step for member in members) - bar.n)
            is_last = all(member.step >= steps for member in members)
            if fabric.is_global_zero and (is_last or run.folder.state_is_due()):
                with run.folder.timed_state():
                    states = [member.state() for member in members]
                    run.folder.write_state({"identity": run.identity, "search": search, "members": states})
            fabric.barrier()


def _sums_words(config: CEConfig, settings: TrainingConfig, weights: Mapping[str, Tensor] | None) -> bool:
    """True where the model sees of a caption the sum of its words alone."""
    at_zero = weights is None or not weights.get("text_pooling.clusters2", torch.zeros(1, device="cpu")).any()
    return has_fixed_centre(config.text) and at_zero and not settings.word_dropout


def _member_count(config: CEConfig, settings: TrainingConfig, weights: Mapping[str, Tensor] | None) -> int:
    """Models that a refit trains. More than one are joined, with a linear one."""
    return settings.members if weights is None and can_join(config) else 1


def _row_of(search: Mapping[str, Any]) -> dict[str, float]:
    """The row of the best validation."""
    return next(row for row in search["history"] if row["step"] == search["best"]["step"])


def _read_run(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an interrupted run. Raises as `read_state`, and ValueError for another run's."""
    state = read_state(path)
    before = state["identity"]
    changed = [f"{key} is {now}, was {before.get(key)}" for key, now in identity.items() if before.get(key) != now]
    if changed:
        raise ValueError(f"{path}: expected a checkpoint of this run, got one of another run: {'; '.join(changed)}")
    return state


def _result(folder: RunFolder, search: Mapping[str, Any], validated: bool) -> TrainingResult:
    best, history = search["best"], search["history"]
    evaluation = from_columns(_row_of(search)) if validated else None
    return TrainingResult(folder.path / BEST, best["epoch"], best["step"], evaluation, history)


class _Run:
    """The state of a training run, or of a member of its refit, and its steps."""

    def __init__(
        self,
        config: CEConfig,
        settings: TrainingConfig,
        schedule: Schedule,
        fabric: Any,
        data: VideoTensors,
        validation: VideoTensors | None,
        weights: Mapping[str, Tensor] | None,
    ) -> None:
        self.config, self.settings, self.schedule, self.fabric = config, settings, schedule, fabric
        self.data, self.validation = data, validation
        self.encoder: EncoderIdentity | None = None
        self.identity: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        statistics = data.statistics(config)
        if weights is None:
            weights = initial_state(config, seed=settings.seed) | (statistics if config.standardise else {})
            weights |= {name: torch.zeros_like(weights[name]) for name in fixed_parameters(config)}
        self.folder = RunFolder(Path(settings.folder))
        objective = Objective(config, settings, weights)
        self.optimizer = make_optimiser(objective, settings)
        self.objective, self.optimizer = fabric.setup(objective, self.optimizer)
        objective.generator = torch.Generator(fabric.device)
        if fabric.world_size > 1:
            objective.gather = lambda part: fabric.all_gather(part, sync_grads=True).flatten(0, 1)
        self.average = {name: x.detach().clone() for name, x in objective.model.state_dict().items()}
        self.epoch, self.step = 0, 0
        self.history: list[dict[str, float]] = []
        self.best = {"epoch": 0, "step": 0, "score": [-1.0]}
        self.best_weights: dict[str, Tensor] | None = None
        """The best weights while they are not written yet."""

    @property
    def model(self) -> CEModel:
        return self.objective.module.model

    def train(self) -> None:
        """Train to the end of the schedule."""
        tqdm = extra("tqdm", "training").tqdm
        main, schedule = self.fabric.is_global_zero, self.schedule
        if main:
            self.folder.open(first_epoch=self.epoch + 1)
        with tqdm(total=schedule.steps, initial=self.step, unit=" steps", desc="training", disable=not main) as bar:
            while not schedule.is_over(self.step, self.best["step"]):
                row = self.fabric.broadcast(self.run_round())  # the first process' figures count for all
                self._note(row)
                if main:
                    self._write(is_last=schedule.is_over(self.step, self.best["step"]))
                self.fabric.barrier()
                bar.set_postfix({key: f"{row[key]:.3g}" for key in ("loss", "geometric_mean") if key in row})
                bar.update(self.step - bar.n)
        if main:
            self.folder.close(self.history)
        self.fabric.barrier()

    def run_round(self) -> dict[str, float]:
        """Pass over the training videos, once or more often, and validate. Returns a row of `metrics.csv`."""
        start, losses = time.perf_counter(), []
        for _ in range(self.schedule.epochs_per_round):
            losses += [self._run_step(*batch) for batch in self._batches()]
            self.epoch += 1
        row = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": float(np.mean(losses)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": time.perf_counter() - start,
        }
        return row | (to_columns(self._validate()) if self.validation is not None else {})

    def _batches(self) -> Iterator[Batch]:
        """This process' part of each batch of an epoch. Some videos come twice where the last batch is to be full.

        Order, captions and dropout follow from the seed and the epoch alone. A resumed run therefore goes on as the
        interrupted one would have.
        """
        settings, rank, world = self.settings, self.fabric.global_rank, self.fabric.world_size
        rng = np.random.default_rng([settings.seed, self.epoch])
        order = rng.permutation(len(self.data))
        seed = int(np.random.default_rng([settings.seed, self.epoch, rank]).integers(2**62))
        self.objective.module.generator.manual_seed(seed)
        for k in range(min(self.schedule.steps_per_epoch, self.schedule.steps - self.step)):
            places = np.arange(k * settings.batch_size, (k + 1) * settings.batch_size)
            videos = order[places % len(order)]
            caption_rows = self.data.one_caption_each(videos, rng)
            gathered = np.concatenate([np.arange(len(videos))[r::world] for r in range(world)])
            teacher = self.data.teacher_scores(videos[gathered], caption_rows[gathered])
            yield *self.data.batch(videos[rank::world], caption_rows[rank::world]), teacher

    def _run_step(
        self, features: dict[str, Tensor], available: Tensor, tokens: Tensor, teacher: Tensor | None
    ) -> float:
        self.objective.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.settings.learning_rate, self.step)
        loss = self.objective(*self.fabric.to_device((features, available, tokens, teacher)))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(
                f"training: the loss is {value} in epoch {self.epoch + 1}; lower learning_rate, or check the "
                "features and the token embeddings"
            )
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        torch.clear_autocast_cache()  # PyTorch drops casts of the old weights only outside of any other autocast
        self.step += 1
        update_average(self.average, self.model.state_dict(), self.settings.average, self.step)
        return value

    def _validate(self) -> Evaluation:
        """Figures of the averaged weights."""
        return evaluate_model(model_of(_copy(self.average), self.config, self.fabric.device), self.validation)

    def _note(self, row: dict[str, float]) -> None:
        """Add a row to the history, and keep the weights if they are the best so far."""
        self.history.append(row)
        score = [row[key] for key in CHOSEN_BY] if self.validation else [self.step]  # without it, the last is the best
        if score > self.best["score"]:
            self.best = {"epoch": self.epoch, "step": self.step, "score": score}
            self.best_weights = self.average if self.validation is None else _copy(self.average)

    # --- files --------------------------------------------------------------------------------------------

    def _write(self, is_last: bool) -> None:
        """Write the figures, and, as often as `run_folder` says, the best weights and the state to resume from."""
        self.folder.write_metrics(self.history)
        if not (is_last or self.folder.state_is_due()):
            return
        with self.folder.timed_state():
            if self.best_weights is not None:
                row = _row_of({"best": self.best, "history": self.history})
                notes = weights_notes(self.config, self.settings, self.data, self.encoder, row)
                self.folder.write_best(self.best_weights, self.config, notes | self.notes)
                self.best_weights = None
            self.folder.write_state({"identity": self.identity} | self.state())

    def choose_joined(self, members: int) -> None:
        """Choose the linear model that is joined to more members than one, and beta for what is joined."""
        weights = dict(read_weights(self.folder.path / BEST))
        model = model_of(weights, self.config, self.fabric.device)
        if members > 1 and can_be_linear(self.config):
            moments = Moments(model_of(weights, self.config), self.data)
            choice, scores = choose_linear(moments, weights, self.config, self.validation)
            model = model_of(*join_linear(moments, [weights], self.config, choice))
            self.best |= {"linear": asdict(choice), "linear_scores": scores}
        self.best["beta"] = choose_beta(model, self.data, self.validation)

    def write_bank(self) -> None:
        """Write the query bank of the best weights."""
        model = model_of(dict(read_weights(self.folder.path / BEST)), self.config, self.fabric.device)
        self.folder.write_bank(make_bank(model, self.data, self.best["beta"]))

    def state(self) -> dict[str, Any]:
        """What `load` takes to go on as if nothing had been interrupted."""
        return {
            "objective": self.objective.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "average": self.average,
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "history": self.history,
        }

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Take what `state` gave; None leaves the run at its start."""
        if state is None:
            return
        self.objective.module.load_state_dict(state["objective"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        for name, x in state["average"].items():
            self.average[name].copy_(x)
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.history = state["history"]


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in weights.items()}
