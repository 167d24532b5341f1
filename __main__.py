"""The commands: features of media files, training runs, weight files and indexes.

python -m collaborative_experts extract FOLDER --to FEATURES.lance [--clips shots] [--preset offline|best]
python -m collaborative_experts train RUN.toml [--resume | --overwrite]
python -m collaborative_experts evaluate RUN.toml [--weights FILE]
python -m collaborative_experts embed FEATURES --weights FILE --to videos.lance
python -m collaborative_experts search videos.lance "a sentence" ... --weights FILE [-k 10] [--where SQL] [--json]
python -m collaborative_experts convert IN OUT.safetensors [--config CONFIG.json]
python -m collaborative_experts convert videos.db videos.lance
python -m collaborative_experts describe FILE [--config CONFIG.json]
python -m collaborative_experts export WEIGHTS --to MODEL.onnx [--side video|text|both] [--dtype float32|float16]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from .apps import embed, export, extract, search
from .apps.run_file import evaluate_run, table, train_run
from .base.config import MSRVTT, CEConfig
from .model.cenet import meta_model
from .model.checkpoint import check_weights, read_config, read_notes, read_weights, write_weights
from .retrieval.convert import convert_index

VERBS = {
    "extract": (extract, "features of a folder of media files"),
    "embed": (embed, "features to an index, by a trained model"),
    "search": (search, "the videos of an index that sentences describe"),
    "export": (export, "a trained model as ONNX"),
}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status; what is wrong with a file is one line."""
    parser = argparse.ArgumentParser(
        prog="python -m collaborative_experts",
        description="From media files to features, a trained model, an index, and answers.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for verb, (module, help_text) in VERBS.items():
        module.add_arguments(commands.add_parser(verb, help=help_text))
    train_parser = commands.add_parser("train", help="train as a run file says (its keys: see apps/run_file.py)")
    train_parser.add_argument("--resume", action="store_true", help="continue the interrupted run")
    train_parser.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")
    evaluate_parser = commands.add_parser("evaluate", help="figures on a run's test videos, and with experts left out")
    evaluate_parser.add_argument("--weights", type=Path, help="default: the run's best")
    for command in (train_parser, evaluate_parser):
        command.add_argument("run", type=Path, metavar="RUN.toml")
    convert_parser = commands.add_parser("convert", help="rewrite weights as safetensors, or an index .db as .lance")
    describe_parser = commands.add_parser("describe", help="what is in a weights file")
    for command in (convert_parser, describe_parser):
        command.add_argument("source", type=Path, metavar="FILE", help=".pth, .pt or .safetensors (convert: or .db)")
        command.add_argument("--config", type=Path, help="JSON; default: the one inside FILE, else the MSR-VTT model's")
    convert_parser.add_argument("target", type=Path, metavar="OUT", help=".safetensors (for .db: .lance)")
    options = parser.parse_args(arguments)
    try:
        if options.command in VERBS:
            return VERBS[options.command][0].run_command(options)
        if options.command == "convert" and options.source.suffix == ".db":
            print(f"{options.target}: {convert_index(options.source, options.target):,} videos")
            return 0
        if options.command == "train":
            result = train_run(options.run, options.resume, options.overwrite)
            if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes that share a run, one reports
                print(result.evaluation or f"trained {result.best_epoch} epochs")
                print(f"best weights, of epoch {result.best_epoch}: {result.weights_path}")
            return 0
        if options.command == "evaluate":
            print(table(evaluate_run(options.run, options.weights)))
            return 0
        config = CEConfig.from_json(options.config) if options.config else read_config(options.source)
        if config is None:
            print("no --config, and none in the file: taken for the default MSR-VTT model", file=sys.stderr)
            config = MSRVTT
        if options.command == "convert":
            convert(options.source, options.target, config)
            print(describe(options.target, config))
        else:
            print(describe(options.source, config))
    except KeyboardInterrupt:
        print("interrupted" + ("; continue with --resume" if options.command == "train" else ""), file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def convert(source: Path, target: Path, config: CEConfig) -> None:
    """Write the weights of `source` as safetensors with the config inside, after a strict check."""
    weights = read_weights(source)
    check_weights(weights, meta_model(config).state_dict(), config, source)
    write_weights(target, weights, config, {"source": source.name} | read_notes(source))


def describe(path: Path, config: CEConfig) -> str:
    """Experts, dimensions, parameters, source and hash of a weights file, as text."""
    model = meta_model(config)
    check_weights(read_weights(path), model.state_dict(), config, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    pooled = f"{config.text.clusters} clusters" if config.text.clusters else "one averaged vector"
    lines = [
        f"file        {path} ({path.stat().st_size / 1e6:.1f} MB)",
        f"sha256      {digest}",
        *(f"{key:11} {_plain(value)}" for key, value in read_notes(path).items()),
        f"parameters  {sum(x.numel() for x in model.parameters()):,}",
        f"form        {form(config)}",
        f"text        {config.text.dim} -> {pooled}, {config.text.max_tokens or 'any number of'} tokens",
        "experts",
    ]
    width = max(len(name) for name in config.expert_names)
    dims = config.output_dims
    for expert in config.experts:
        kind = (
            f"{expert.clusters} clusters, {expert.max_tokens or 'any number of'} tokens" if expert.variable else "fixed"
        )
        lines.append(f"  {expert.name:{width}}  {expert.dim} ({kind}) -> {dims.get(expert.name, 'concatenated')}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """A note without the punctuation of JSON."""
    return ", ".join(f"{key} {_plain(x)}" for key, x in value.items()) if isinstance(value, dict) else str(value)


def form(config: CEConfig) -> str:
    """The kind of model in words."""
    if config.concat_experts:
        return "concatenation"
    if config.use_ce:
        return f"collaborative experts ({config.use_ce})"
    kind = (
        "mixture of embedding experts with reduced dimensions"
        if config.mimic_ce_dims
        else "mixture of embedding experts"
    )
    return kind + (", equal weights" if config.freeze_weights else "")


if __name__ == "__main__":
    sys.exit(main())
