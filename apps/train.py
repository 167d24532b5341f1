"""`train`: a run file to trained weights."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from ..features.suggest import config_for
from ..hub.device import resolve_device
from ..training.loop import TrainingResult, train
from ..training.run_folder import STATE, delete_run
from .run_file import MODEL, TEXT, Run


def train_run(path: str | Path, resume: bool = False, overwrite: bool = False) -> TrainingResult:
    """Train as the file says.

    Args:
        resume: continue an interrupted run of the file.
        overwrite: delete the run that is in the folder, once the data of the new one is read.

    Raises:
        ValueError: the folder holds a run already, and neither is asked for; or both are.
        Also as `Run.read` and `op.train`.
    """
    run = Run.read(path)
    checkpoint = run.folder / STATE
    if resume and not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: there is no run to continue; train without --resume")
    if resume and overwrite:
        raise ValueError("expected --resume or --overwrite, got both")
    if checkpoint.is_file() and not (resume or overwrite):
        raise ValueError(
            f"{run.folder}: holds a run already; continue it with --resume, or replace it with --overwrite"
        )
    dataset, validation = run.split_training()
    model = MODEL | dict(run.model)
    text = TEXT | {"dim": int(dataset.tokens.shape[2])} | dict(model.pop("text", {}))
    config = replace(config_for(dataset.features, text, **model), standardise=True)
    if _reports():
        print(f"{dataset.features.summary()}\n\nmodel {json.dumps(config.to_dict())}\n", flush=True)
    if overwrite:
        delete_run(run.folder)
    resumed = checkpoint if resume else None
    return train(config, run.training, dataset, validation, resumed, device=resolve_device(None))


def _reports() -> bool:
    """True in the one of several processes sharing a run that prints."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("run", type=Path, metavar="RUN.toml", help="as init writes it")
    parser.add_argument("--resume", action="store_true", help="continue the interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")
    parser.epilog = "example: %(prog)s run.toml"


def run_command(options: argparse.Namespace) -> int:
    """Run the command, print the figures, and return the exit status."""
    try:
        result = train_run(options.run, options.resume, options.overwrite)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("continue with --resume") from None
    if _reports():
        print(result.evaluation or f"trained {result.best_epoch} epochs")
        print(f"best weights, of epoch {result.best_epoch}: {result.weights_path}")
    return 0
