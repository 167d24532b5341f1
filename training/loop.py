"""Fit Collaborative Experts to one's own features and captions.

What is minimised is either the paper's loss, the bidirectional max-margin ranking loss (section 3.4, eq. 7), or the
symmetric cross-entropy of contrastive learning with a learned temperature ("InfoNCE"), over the scores of a batch of
videos with one caption each; missing experts are left out of a score as at inference. Beyond the paper: features are
standardised by what the training set says of them, and stored so; experts, features and words are dropped at random;
what is kept is the moving average of the weights.

A run writes into its folder: `best.safetensors` (an operator's weights), `last.ckpt` (to resume from), `metrics.csv`,
TensorBoard's events and `curve.png`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.config import CEConfig
from ..base.dependencies import extra
from ..base.files import replacing
from ..base.slices import slices
from ..model import inputs
from ..model.cenet import CEModel, initial_state, meta_model
from ..model.checkpoint import read_weights, write_weights
from ..retrieval.embeddings import TextEmbeddings, VideoEmbeddings
from ..retrieval.evaluation import Evaluation, evaluate
from .captions import CaptionedVideos

MARGIN = 0.09381161988446174
"""The authors' margin for MSR-VTT (their `configs/msrvtt/train-full-ce.json`)."""

FREE_TO_CHANGE = ("folder", "epochs", "patience")
"""Settings with which a run may be continued otherwise than it began."""

STATE = "last.ckpt"
BEST = "best.safetensors"
LEAST_DEVIATION = 1e-6
EVALUATION_CHUNK = 256


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; every default was chosen on validation videos (benchmarks/README.md).

    Attributes:
        folder: where the run writes; made if it is not there.
        loss: 'infonce' or 'max_margin'.
        temperature: of InfoNCE at the start; it is learned.
        margin: of the max-margin loss.
        epochs: passes over the training videos, at most.
        batch_size: videos of one step, over all devices.
        learning_rate: highest; it rises over the first twentieth of the steps, and falls with a half cosine.
        weight_decay: AdamW's, of matrices only.
        expert_dropout: chance that an available expert is taken from a video for a step; never its last.
        feature_dropout: chance that a feature is zeroed.
        word_dropout: chance that a word is zeroed.
        average: decay of the moving average of the weights, 0 for none.
        patience: epochs without a better validation after which training stops; 0 never stops.
        seed: of initial parameters, order, captions and dropout.
        precision: 'float32', 'bfloat16' or 'float16' (mixed).
        devices: how many GPUs (or processes on CPU) share a batch.
    """

    folder: str = "run"
    loss: str = "infonce"
    temperature: float = 0.1
    margin: float = MARGIN
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    expert_dropout: float = 0.2
    feature_dropout: float = 0.3
    word_dropout: float = 0.0
    average: float = 0.99
    patience: int = 0
    seed: int = 0
    precision: str = "float32"
    devices: int = 1

    def __post_init__(self) -> None:
        for name, choices in (("loss", tuple(LOSSES)), ("precision", tuple(_PRECISIONS))):
            if getattr(self, name) not in choices:
                known = ", ".join(map(repr, choices))
                raise ValueError(f"training: {name}: expected one of {known}, got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "devices"):
            _check_number(self, name, least=1, whole=True)
        for name in ("patience", "seed"):
            _check_number(self, name, least=0, whole=True)
        for name in ("expert_dropout", "feature_dropout", "word_dropout", "average"):
            _check_number(self, name, least=0, below=1)
        for name in ("learning_rate", "temperature"):
            _check_number(self, name, least=1e-12)
        for name in ("margin", "weight_decay"):
            _check_number(self, name, least=0)
        if self.batch_size < 2 or self.batch_size % self.devices:
            raise ValueError(
                f"training: batch_size: expected at least 2 and a multiple of {self.devices} devices, "
                f"got {self.batch_size}"
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """Raises TypeError or ValueError for unknown keys and values out of range."""
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                raise ValueError(f"training: unknown key {key!r}; known: {', '.join(known)}")
        return cls(**settings)


def combine(training_config: TrainingConfig | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> TrainingConfig:
    """A `TrainingConfig` of one, or of a dict, with some attributes replaced; raises as `TrainingConfig.from_dict`."""
    if isinstance(training_config, TrainingConfig):
        training_config = asdict(training_config)
    if training_config is not None and not isinstance(training_config, Mapping):
        raise TypeError(f"training_config: expected a TrainingConfig or a dict, got {type(training_config).__name__}")
    return TrainingConfig.from_dict({**(training_config or {}), **settings})


def _check_number(
    settings: TrainingConfig, name: str, least: float, below: float = math.inf, whole: bool = False
) -> None:
    value = getattr(settings, name)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise TypeError(f"training: {name}: expected {'an integer' if whole else 'a number'}, got {value!r}")
    if not least <= value < below:
        limit = f" and below {below:g}" if below < math.inf else ""
        raise ValueError(f"training: {name}: expected at least {least:g}{limit}, got {value!r}")


# --- losses -----------------------------------------------------------------------------------------------


def max_margin(scores: Tensor, margin: float = MARGIN) -> Tensor:
    """The bidirectional max-margin ranking loss (paper, eq. 7) of a batch.

    Args:
        scores: (B, B), row t and column v; text i belongs to video i.

    Returns:
        The mean over all pairs off the diagonal, in both directions.
    """
    own = scores.diagonal()
    above = F.relu(margin + scores - own[:, None]) + F.relu(margin + scores - own[None, :])
    others = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return above[others].mean() / 2


def info_nce(scores: Tensor, temperature: Tensor | float) -> Tensor:
    """Symmetric cross-entropy of finding a text's video and a video's text in the batch; scores as `max_margin`."""
    logits = scores / temperature
    right = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


LOSSES = {"infonce": info_nce, "max_margin": max_margin}


def batch_scores(text: Tensor, weights: Tensor, video: Tensor, available: Tensor) -> Tensor:
    """CE's score of every text with every video, differentiable.

    Args:
        text, video: (T, M, D) and (B, M, D) embeddings.
        weights: (T, M) of the texts' experts.
        available: (B, M), the videos'.
    """
    there = available.to(video.dtype)
    numerator = (text * weights.unsqueeze(2)).flatten(1) @ (video * there.unsqueeze(2)).flatten(1).T
    total = weights @ there.T
    return numerator / total.masked_fill(total == 0, 1)


# --- data -------------------------------------------------------------------------------------------------


class _Data:
    """A training or validation set as clean tensors, by video."""

    def __init__(self, dataset: CaptionedVideos, config: CEConfig, role: str) -> None:
        if not isinstance(dataset, CaptionedVideos):
            raise TypeError(f"{role}: expected CaptionedVideos, got {type(dataset).__name__}")
        if dataset.tokens.shape[2] != config.text.dim:
            raise ValueError(f"{role}: expected tokens of size {config.text.dim}, got {dataset.tokens.shape[2]}")
        video = inputs.clean_video(dataset.features.experts, dataset.features.ind, config)
        self.features, self.available = video.features, video.available
        self.tokens, self.targets = dataset.tokens, dataset.targets
        order = np.argsort(self.targets, kind="stable")
        self._captions = np.split(order, np.cumsum(np.bincount(self.targets, minlength=len(self)))[:-1])

    def __len__(self) -> int:
        return len(self.available)

    def one_caption_each(self, videos: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.choice(self._captions[video]) for video in videos])

    def batch(self, videos: np.ndarray, captions: np.ndarray) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Features, availability and tokens of some videos and captions."""
        rows = torch.from_numpy(videos)
        tokens = torch.from_numpy(np.asarray(self.tokens[captions], dtype=np.float32))
        return {name: x[rows] for name, x in self.features.items()}, self.available[rows], tokens

    def describe(self) -> str:
        """Its size and a hash of all that is in it."""
        digest = hashlib.sha256(self.targets.astype(np.int64).tobytes() + self.available.numpy().tobytes())
        for name, x in self.features.items():
            digest.update(name.encode())
            digest.update(x.contiguous().numpy())
        for rows in slices(len(self.tokens), EVALUATION_CHUNK):
            digest.update(np.ascontiguousarray(self.tokens[rows]))
        return f"{len(self)} videos with {len(self.tokens)} captions (hash {digest.hexdigest()[:8]})"

    def statistics(self, config: CEConfig) -> dict[str, Tensor]:
        """Mean and standard deviation of each feature over what is there, under the names of the weights."""
        found = {}
        for m, expert in enumerate(config.experts):
            rows = self.features[expert.name][self.available[:, m]].double().flatten(0, -2)
            rows = rows[(rows != 0).any(1)] if expert.variable else rows  # without padding
            if not len(rows):
                raise ValueError(
                    f"training: expert {expert.name!r} is missing in every training video; leave it out or mend its ids"
                )
            deviation = rows.std(0, correction=0)
            found[f"standardise.{expert.name}.mean"] = rows.mean(0).float()
            found[f"standardise.{expert.name}.std"] = deviation.masked_fill(deviation < LEAST_DEVIATION, 1).float()
        return found


# --- one step ---------------------------------------------------------------------------------------------


class _Objective(nn.Module):
    """The loss of a batch: what is called on every device."""

    def __init__(self, config: CEConfig, settings: TrainingConfig, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = meta_model(config)
        # Not strict: load_state_dict trips over the names of experts with a dot; the names are our own.
        self.model.load_state_dict({name: x.clone() for name, x in state.items()}, strict=False, assign=True)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(settings.temperature)))
        self._settings = settings
        self.gather: Any = None

    def forward(self, features: dict[str, Tensor], available: Tensor, tokens: Tensor) -> Tensor:
        settings = self._settings
        available = _drop_experts(available, settings.expert_dropout)
        tokens = _drop(tokens, settings.word_dropout, tokens.shape[:2])
        features = {name: self._drop_features(name, x) for name, x in features.items()}
        video = torch.stack(list(self.model.encode_video(features, available).values()), dim=1)
        text, weights = self.model.encode_text(tokens)
        parts = torch.stack(list(text.values()), dim=1), weights, video, available
        if self.gather is not None:
            parts = tuple(self.gather(part) for part in parts)
        scores = batch_scores(*parts)
        if settings.loss == "max_margin":
            return max_margin(scores, settings.margin)
        return info_nce(scores, self.log_temperature.exp())

    def _drop_features(self, name: str, x: Tensor) -> Tensor:
        """Features are dropped to their mean, which is 0 once standardised; scaling them up would not be."""
        rate = self._settings.feature_dropout
        if not rate or not self.training:
            return x
        dropped = torch.rand_like(x, dtype=torch.float32) < rate
        if not self.model.config.standardise:
            return x.masked_fill(dropped, 0)
        dropped &= (x != 0).any(-1, keepdim=True)  # padding stays padding
        return torch.where(dropped, self.model.standardise._modules[name].mean, x)


def _drop(x: Tensor, rate: float, shape: torch.Size) -> Tensor:
    if not rate:
        return x
    dropped = torch.rand(shape, device=x.device) < rate
    return x.masked_fill(dropped[(...,) + (None,) * (x.ndim - len(shape))], 0)


def _drop_experts(available: Tensor, rate: float) -> Tensor:
    """Each available expert is dropped with this chance, but of a video never all."""
    if not rate:
        return available
    kept = available & (torch.rand(available.shape, device=available.device) >= rate)
    return torch.where(kept.any(1, keepdim=True), kept, available)


# --- the run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingResult:
    """What a run has to show.

    Attributes:
        weights_path: the best weights, a file that an operator loads.
        best_epoch: whose they are, from 1.
        evaluation: of the best weights on the validation set; None without one.
        history: what `metrics.csv` holds, a dict an epoch.
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
    """Fit a model, writing into `settings.folder` as it goes.

    Args:
        config: the model; its `standardise` decides whether raw features are standardised by the training set.
        eval_dataset: validation videos, by which the best epoch is chosen; None keeps the last.
        resume: `last.ckpt` of an interrupted run with the same data and settings, which is then continued as if it had
            not been interrupted; `epochs` alone may differ.
        weights: parameters to start from, complete; None starts from seeded initial ones, and learns the features'
            mean and deviation.

    Raises:
        TypeError, ValueError: data that does not fit, an expert that no video has, fewer videos than a batch, a loss
            that is not finite, a checkpoint of another run.
    """
    run = _Run(config, settings, train_dataset, eval_dataset, weights, device)
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
        device: torch.device | str,
    ) -> None:
        if config.concat_experts:
            raise ValueError("training: concat_experts is an ablation without experts; it cannot be trained here")
        self.config, self.settings = config, settings
        self.data = _Data(train_dataset, config, "train_dataset")
        self.validation = _Data(eval_dataset, config, "eval_dataset") if eval_dataset is not None else None
        if len(self.data) < settings.batch_size:
            raise ValueError(
                f"training: expected at least batch_size {settings.batch_size} training videos, got {len(self.data)} "
                f"(held-out videos not counted); set batch_size to {len(self.data)} or less"
            )
        self._identity = self._describe()  # once: it reads all data
        statistics = self.data.statistics(config)
        if weights is None:
            weights = initial_state(config, seed=settings.seed) | (statistics if config.standardise else {})
        self.folder = Path(settings.folder)
        self.fabric = _fabric(settings, torch.device(device))
        objective = _Objective(config, settings, weights)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(objective, settings), lr=settings.learning_rate, fused=True
        )
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
        self.folder.mkdir(parents=True, exist_ok=True)
        tqdm = extra("tqdm", "training").tqdm
        main, epochs = self.fabric.is_global_zero, self.settings.epochs
        writer = extra("torch.utils.tensorboard", "training").SummaryWriter
        self._events = writer(self.folder, purge_step=self.epoch + 1) if main else None
        with tqdm(total=epochs, initial=self.epoch, unit=" epochs", desc="training", disable=not main) as bar:
            while self.epoch < epochs and not self._is_patience_over():
                row = self.fabric.broadcast(self._run_epoch())  # each process validates; the first one's counts
                is_best = self._note(row)
                if main:
                    self._write(row, is_best)
                self.fabric.barrier()
                bar.set_postfix({key: f"{row[key]:.3g}" for key in ("loss", "geometric_mean") if key in row})
                bar.update()
        if main:
            self._events.close()
            _draw(self.history, self.folder / "curve.png")
        self.fabric.barrier()
        found = self._evaluate(read_weights(self.folder / BEST)) if self.validation else None
        return TrainingResult(self.folder / BEST, self.best["epoch"], found, self.history)

    def _is_patience_over(self) -> bool:
        patience = self.settings.patience
        return self.validation is not None and 0 < patience <= self.epoch - self.best["epoch"]

    def _run_epoch(self) -> dict[str, float]:
        """One pass over the training videos, and the validation; what is reported of it."""
        start = time.perf_counter()
        losses = [self._run_step(*batch) for batch in self._batches()]
        self.epoch += 1
        row = {
            "epoch": self.epoch,
            "loss": float(np.mean(losses)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": time.perf_counter() - start,
        }
        if self.validation is not None:
            found = self._evaluate(self.average)
            row |= {f"video_to_text_{key}": value for key, value in asdict(found.video_to_text).items()}
            row |= asdict(found.text_to_video)
        return row

    def _batches(self) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """This process' part of each batch. Order, captions and dropout follow from the seed and the epoch alone, so
        that a resumed run goes on as the interrupted one would have."""
        settings, rank, world = self.settings, self.fabric.global_rank, self.fabric.world_size
        rng = np.random.default_rng([settings.seed, self.epoch])
        order = rng.permutation(len(self.data))
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(np.random.default_rng([settings.seed, self.epoch, rank]).integers(2**62)))
            for k in range(self.steps_per_epoch):
                videos = order[k * settings.batch_size : (k + 1) * settings.batch_size]
                captions = self.data.one_caption_each(videos, rng)
                yield self.data.batch(videos[rank::world], captions[rank::world])

    def _run_step(self, features: dict[str, Tensor], available: Tensor, tokens: Tensor) -> float:
        self.objective.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
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
        self._update_average()
        return value

    def _learning_rate(self) -> float:
        total = self.settings.epochs * self.steps_per_epoch
        warm = min(1.0, (self.step + 1) / max(1.0, 0.05 * total))
        return self.settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / total))

    def _update_average(self) -> None:
        """The moving average of the weights; shorter at the start, when they change most."""
        decay = min(self.settings.average, self.step / (10 + self.step))
        for name, x in self.model.state_dict().items():
            if x.is_floating_point():
                self.average[name].lerp_(x, 1 - decay)
            else:
                self.average[name].copy_(x)

    def _evaluate(self, weights: Mapping[str, Tensor]) -> Evaluation:
        model = meta_model(self.config)
        model.load_state_dict({name: weights[name].clone() for name in weights}, strict=False, assign=True)
        return evaluate(*embed(model.to(self.fabric.device), self.validation))

    def _note(self, row: dict[str, float]) -> bool:
        """Add an epoch to the history; whether it is the best so far."""
        self.history.append(row)
        score = row.get("geometric_mean", float(self.epoch))  # without validation, the last is the best
        is_best = score > self.best["score"]
        if is_best:
            self.best = {"epoch": self.epoch, "score": score}
        return is_best

    def _write(self, row: dict[str, float], is_best: bool) -> None:
        """Weights if they are the best so far, then the state to resume from, and the figures."""
        if is_best:
            weights = {name: x.detach().cpu() for name, x in self.average.items()}
            write_weights(self.folder / BEST, weights, self.config, self._provenance(row))
        with replacing(self.folder / STATE) as temporary:
            torch.save(self._state(), temporary)
        with replacing(self.folder / "metrics.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            writer.writeheader()
            writer.writerows(self.history)
        for key, value in row.items():
            self._events.add_scalar(key, value, self.epoch)

    def _provenance(self, row: dict[str, float]) -> dict[str, Any]:
        versions = {name: version(name) for name in ("torch", "towhee", "towhee.models", "numpy")}
        counts = {name: int(n) for name, n in zip(self.config.expert_names, self.data.available.sum(0), strict=True)}
        return {
            "training": asdict(self.settings) | {"folder": self.folder.name},
            "data": {"videos": len(self.data), "captions": len(self.data.tokens), "videos_with": counts},
            "metrics": {key: round(value, 6) for key, value in row.items()},
            "versions": versions | {"python": platform.python_version()},
        }

    # --- resume -------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        settings = {key: value for key, value in asdict(self.settings).items() if key not in FREE_TO_CHANGE}
        validation = None if self.validation is None else self.validation.describe()
        data = {"training data": self.data.describe(), "validation data": validation}
        return settings | data | {"config": json.dumps(self.config.to_dict())}

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
        if not path.is_file():
            raise FileNotFoundError(f"resume_checkpoint_path: there is no file {path}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found = state["identity"]
        except Exception as error:
            raise ValueError(f"{path}: not a complete training checkpoint: {error}") from error
        now = self._identity
        changed = [f"{key} is {now[key]}, was {found.get(key)}" for key in now if found.get(key) != now[key]]
        if changed:
            raise ValueError(f"{path}: this is not the run that it is of: {'; '.join(changed)}")
        self.objective.module.load_state_dict(state["objective"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        for name, x in state["average"].items():
            self.average[name].copy_(x)
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.history = state["history"]
        if path.parent.absolute() != self.folder.absolute() and self.fabric.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / BEST) as temporary:
                shutil.copyfile(path.with_name(BEST), temporary)


def embed(model: CEModel, data: _Data) -> tuple[TextEmbeddings, VideoEmbeddings, np.ndarray]:
    """Embeddings of a whole set in evaluation mode, and the row of each caption's video."""
    model.eval()
    names, device = model.config.expert_names, next(model.parameters()).device
    with torch.no_grad():
        videos = [
            model.encode_video(
                {name: data.features[name][rows].to(device) for name in names}, data.available[rows].to(device)
            )
            for rows in slices(len(data), EVALUATION_CHUNK)
        ]
        texts = [
            model.encode_text(torch.from_numpy(np.asarray(data.tokens[rows], dtype=np.float32)).to(device))
            for rows in slices(len(data.tokens), EVALUATION_CHUNK)
        ]
    text = TextEmbeddings(
        {name: torch.cat([embds[name] for embds, _ in texts]) for name in names}, torch.cat([w for _, w in texts])
    )
    video = VideoEmbeddings({name: torch.cat([embds[name] for embds in videos]) for name in names}, data.available)
    return text, video, data.targets


_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def _fabric(settings: TrainingConfig, device: torch.device) -> Any:
    """Lightning's Fabric: the same steps on a CPU, a GPU or several, in full or mixed precision."""
    if settings.precision == "float16" and device.type == "cpu":
        raise ValueError("training: precision: 'float16' is not for cpu; use 'bfloat16' or 'float32'")
    fabric = extra("lightning_fabric", "training").Fabric(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" and settings.devices == 1 else settings.devices,
        strategy="ddp_find_unused_parameters_true" if settings.devices > 1 else "auto",  # a loss may leave some unused
        precision=_PRECISIONS[settings.precision],
    )
    fabric.launch()
    return fabric


def _parameter_groups(objective: _Objective, settings: TrainingConfig) -> list[dict[str, Any]]:
    """Weight decay is for matrices: it would pull biases, scales and the temperature to values that mean something."""
    parameters = list(objective.parameters())
    return [
        {"params": [x for x in parameters if x.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [x for x in parameters if x.ndim <= 1], "weight_decay": 0.0},
    ]


def _draw(history: list[dict[str, float]], path: Path) -> None:
    """Loss and recalls over the epochs."""
    figure_module = extra("matplotlib.figure", "training")
    figure = figure_module.Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], color="black", label="training loss")
    left.set_xlabel("epoch")
    left.set_ylabel("loss")
    if history and "r1" in history[0]:
        right = left.twinx()
        for key, label in (("r1", "R@1"), ("r5", "R@5"), ("r10", "R@10"), ("geometric_mean", "geometric mean")):
            right.plot(epochs, [row[key] for row in history], label=label)
        right.set_ylabel("validation, text to video, %")
        right.legend(loc="lower right")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
