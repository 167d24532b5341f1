"""`train`: a run file to trained weights."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.dependencies import extra
from ..hub.device import resolve_device
from ..training.loop import TrainingResult, train
from ..training.model_card import EVALUATION, FIGURES, write_card
from ..training.run_folder import BEST, SEARCH, STATE, delete_run
from ..training.settings import check_trainable
from ..training.teachers import teacher_scores
from .describe import summary
from .run_file import Run, TeacherScores, TrainingVideos, add_run_arguments


def train_run(
    path: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    changes: Sequence[str] = (),
    folder: str | Path | None = None,
) -> TrainingResult:
    """Train as the file says, its teachers first. All that can be wrong is found before the first sentence is embedded.

    Args:
        resume: continue an interrupted run of the file.
        overwrite: delete the run that is in the folder, once the data of the new one is read.
        changes, folder: as for `Run.read`.

    Raises:
        ValueError: the folder holds a run already, and neither is asked for; or both are.
        ImportError: without the packages of training, naming the extra.
        Also as `Run.read`, `Run.read_training` and `op.train`.
    """
    for module in ("lightning_fabric", "tensorboard", "matplotlib"):  # the last is used when all is done
        extra(module, "training")
    run = Run.read(path, changes, folder)
    try:
        return _train(run, resume, overwrite)
    except KeyboardInterrupt:
        if any(map(Path.is_file, _states(run))):
            raise KeyboardInterrupt("continue with --resume") from None
        raise


def _states(run: Run) -> list[Path]:
    """The states that the run and its teachers resume from."""
    return [each.folder / STATE for each in (run, *run.teacher_runs())]


def _train(run: Run, resume: bool, overwrite: bool) -> TrainingResult:
    teachers = run.teacher_runs()
    _check_folder(_states(run), resume, overwrite)
    videos = run.read_training()
    features, device = videos.described.features[videos.rows], resolve_device(None)
    check_trainable(run.training, run.config(features), len(features), device)
    config = run.config(features, run.sentence_encoder.dim)
    if _reports():
        print(f"{features.summary()}\n\nmodel: {summary(config)}\n", flush=True)
    results = [_fit(teacher, videos, resume, overwrite) for teacher in teachers]
    if not teachers:
        return _fit(run, videos, resume, overwrite)
    scores = _teacher_scores(teachers, videos)
    notes = {"teachers": [_note(teacher, result) for teacher, result in zip(teachers, results, strict=True)]}
    return _fit(run, videos, resume, overwrite, scores, notes)


def _teacher_scores(teachers: Sequence[Run], videos: TrainingVideos) -> TeacherScores:
    """The teachers' scores, and, where they were trained on the held-out videos in the end, those from before.

    A student learns from a teacher even what it knows of videos that the student does not see. Held-out videos that
    the teachers saw would find more and more steps to be better.
    """
    datasets = [teacher.embed_all(videos) for teacher in teachers]
    scores = teacher_scores([(teacher.folder / BEST, x) for teacher, x in zip(teachers, datasets, strict=True)])
    searches = [teacher.folder / SEARCH for teacher in teachers]
    if not all(path.is_file() for path in searches):
        return TeacherScores(scores, scores)
    return TeacherScores(scores, teacher_scores(zip(searches, datasets, strict=True)))


def _note(teacher: Run, result: TrainingResult) -> dict[str, Any]:
    """A teacher's encoder and its figures on the validation videos, where there are some."""
    found = result.evaluation and result.evaluation.text_to_video
    figures = {} if found is None else {key: round(getattr(found, key), 6) for key in (*FIGURES, "geometric_mean")}
    return {"encoder": teacher.sentence_encoder.name, **figures}


def _fit(
    run: Run,
    videos: TrainingVideos,
    resume: bool,
    overwrite: bool,
    teacher: TeacherScores | None = None,
    notes: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train one model, by the scores of its teachers where there are some. `resume` continues what is there."""
    config = run.config(videos.described.features[videos.rows], run.sentence_encoder.dim)
    dataset, validation, every = run.embed(videos, teacher)
    if overwrite:
        delete_run(run.folder)
    checkpoint = run.folder / STATE
    resumed = checkpoint if resume and checkpoint.is_file() else None
    settings, device = run.training, resolve_device(None)
    result = train(config, settings, dataset, validation, resumed, device=device, refit_dataset=every, notes=notes)
    if _reports():
        (run.folder / EVALUATION).unlink(missing_ok=True)  # of other weights
        write_card(run.folder)
    return result


def _check_folder(checkpoints: Sequence[Path], resume: bool, overwrite: bool) -> None:
    for folder in (checkpoint.parent for checkpoint in checkpoints):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder for the run, got a file")
    there = [checkpoint for checkpoint in checkpoints if checkpoint.is_file()]
    if resume and not there:
        raise FileNotFoundError(f"{checkpoints[0]}: there is no run to continue; train without --resume")
    if resume and overwrite:
        raise ValueError("expected --resume or --overwrite, got both")
    if there and not (resume or overwrite):
        raise ValueError(
            f"{checkpoints[0].parent}: holds a run already; continue it with --resume, or replace it with --overwrite"
        )


def _reports() -> bool:
    """True in the one of several processes sharing a run that prints."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_run_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="continue the interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")
    parser.epilog = "example: %(prog)s run.toml --folder run2 --set training.epochs=10 --set model.shared_dim=512"


def run_command(options: argparse.Namespace) -> int:
    """Run the command, print the figures, and return the exit status."""
    result = train_run(options.run, options.resume, options.overwrite, options.set, options.folder)
    if _reports():
        print(result.evaluation or f"trained {result.best_step} steps")
        print(f"weights: {result.weights_path}")
    return 0
