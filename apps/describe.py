"""`describe`: the experts, dimensions, origin and hash of a weights file."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.config import MSRVTT, CEConfig
from ..model.cenet import meta_model
from ..model.checkpoint import check_weights, read_config, read_notes, read_weights
from ..training.bank import BANK, read_bank
from ..training.model_card import FIGURES, read_figures
from ..training.run_folder import BEST


def describe(path: str | Path, config: CEConfig) -> dict[str, Any]:
    """The content of a weights file: `file`, `bytes`, `sha256`, `notes`, `parameters`, `form`, `config`, `output_dims`.

    Of a run's weights also `figures`, those of the model card, and `bank`, the number of captions of its query bank.

    Raises:
        FileNotFoundError, ValueError: no such file, or weights that do not fit the config.
    """
    path = Path(path)
    model = meta_model(config)
    check_weights(read_weights(path), model.state_dict(), config, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    bank = path.with_name(BANK)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": digest,
        "notes": read_notes(path),
        "figures": read_figures(path),
        "bank": len(read_bank(bank).text) if path.name == BEST and bank.is_file() else None,
        "parameters": sum(x.numel() for x in model.parameters()),
        "form": form(config),
        "config": config.to_dict(),
        "output_dims": dict(config.output_dims),
    }


def summary(config: CEConfig) -> str:
    """The kind of model, the dimensions of its embeddings and what it makes of words, in a line."""
    dims = ", ".join(f"{name} {dim}" for name, dim in config.output_dims.items())
    text = config.text
    pooled = f"{text.clusters} cluster{'s' if text.clusters > 1 else ''}" if text.clusters else "one averaged vector"
    return f"{form(config)}; embeddings: {dims}; words: {text.dim} -> {pooled}"


def show(content: Mapping[str, Any]) -> str:
    """The result of `describe` as text."""
    text, experts = content["config"]["text"], content["config"]["experts"]
    pooled = f"{text['clusters']} clusters" if text["clusters"] else "one averaged vector"
    lines = [
        f"file        {content['file']} ({content['bytes'] / 1e6:.1f} MB)",
        f"sha256      {content['sha256']}",
        *(f"{key:11} {_plain(value)}" for key, value in content["notes"].items()),
        *(f"figures     {name}: {_figures(row)}" for name, row in content["figures"].items()),
        *([f"bank        {content['bank']:,} captions"] if content["bank"] else []),
        f"parameters  {content['parameters']:,}",
        f"form        {content['form']}",
        f"text        {text['dim']} -> {pooled}, {text['max_tokens'] or 'any number of'} tokens",
        "experts",
    ]
    width = max(map(len, experts))
    for name, expert in experts.items():
        kind = "fixed"
        if expert["clusters"]:
            kind = f"{expert['clusters']} clusters, {expert['max_tokens'] or 'any number of'} tokens"
        if expert.get("logarithm") and content["config"]["standardise"]:
            kind += ", by its logarithm"
        lines.append(
            f"  {name:{width}}  {expert['dim']} ({kind}) -> {content['output_dims'].get(name, 'concatenated')}"
        )
    return "\n".join(lines)


def config_of(weights: Path, config: Path | None) -> CEConfig:
    """The config of a JSON file, else the one inside the weights, else the default, of which stderr is told."""
    found = CEConfig.from_json(config) if config else read_config(weights)
    if found is None:
        print("no --config, and none in the file: taken for the default MSR-VTT model", file=sys.stderr)
    return found or MSRVTT


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
    return (
        kind
        + (", equal weights" if config.freeze_weights else "")
        + (f", {config.summed_dim} numbers summed over experts" if config.summed_dim else "")
    )


def _figures(row: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {row[key]:.1f}" for key, label in FIGURES.items())


def _plain(value: Any) -> str:
    """A note without the punctuation of JSON, what is not set, and an encoder's probe, which no one reads."""
    if isinstance(value, list):
        return "; ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(x)}" for key, x in value.items() if key != "probe" and x is not None)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("weights", type=Path, metavar="FILE", help=".pth, .pt or .safetensors")
    parser.add_argument("--config", type=Path, help="JSON; default: the one inside FILE, else the MSR-VTT model's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "example: %(prog)s run/best.safetensors"


def run_command(options: argparse.Namespace) -> int:
    """Run the command, print the content, and return the exit status."""
    content = describe(options.weights, config_of(options.weights, options.config))
    print(json.dumps(content) if options.json else show(content))
    return 0
