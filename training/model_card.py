"""The model card of a run: `README.md` beside the weights, with the YAML head that model hubs read.

It says what the weights' own notes and the run's evaluation say, and nothing else. The licence is left to be filled in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.config import ExpertConfig
from ..base.files import replacing
from ..model.checkpoint import read_config, read_notes
from .run_folder import BANK, BEST, CARD, CURVE

EVALUATION = "evaluation.json"

HEAD = """\
---
library_name: collaborative-experts
tags: [text-to-video-retrieval, collaborative-experts]
license: other  # fill in: it depends on the features, the captions and the sentence encoder
metrics: [recall, median_rank]
---
"""

FIGURES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "median_rank": "median rank"}

USE = """\
```python
from collaborative_experts import collaborative_experts

op = collaborative_experts(weights_path="{weights}")
videos = op.encode_video(experts)  # raw features, as they were trained on
texts = op.encode_sentences(["a dog runs on a beach"])
```
"""

LIMITS = """\
The model knows the experts and the sentence encoder below, and no others. It ranks videos like those it was trained on;
figures on other videos, and of other languages, are not known. Captions carry the views of those who wrote them.
"""

CITATION = """\
Liu et al., "Use What You Have: Video Retrieval Using Representations From Collaborative Experts", BMVC 2019
(arXiv 1907.13487).
"""


def write_card(folder: Path) -> Path:
    """Write the card of the weights in a run's folder, with its evaluation if there is one; returns the path."""
    path = folder / CARD
    with replacing(path) as temporary:
        temporary.write_text(_card(folder), encoding="utf-8")
    return path


def read_figures(weights: Path) -> dict[str, dict[str, float]]:
    """The figures of a run's best weights by what they are of: the evaluation's, else the validation's, else none."""
    evaluation = weights.with_name(EVALUATION)
    if weights.name == BEST and evaluation.is_file():
        found = json.loads(evaluation.read_text(encoding="utf-8"))
        return {f"{name}, {way.replace('_', ' ')}": x for name, ways in found.items() for way, x in ways.items()}
    metrics = read_notes(weights).get("metrics", {})
    return {"validation videos, text to video": metrics} if "r1" in metrics else {}


def _card(folder: Path) -> str:
    notes, config = read_notes(folder / BEST), read_config(folder / BEST)
    data, training = notes["data"], notes["training"]
    encoder = notes.get("encoder", {}).get("name", "not known")
    refit = notes.get("refit")
    linear = refit.get("linear") if refit else None
    rows = "\n".join(
        f"| {expert.name} | {expert.dim} | {_form(expert)} | {data['videos_with'][expert.name] / data['videos']:.0%} |"
        for expert in config.experts
    )
    last = (
        f"{refit['members']} models, each of {refit['steps']} steps on all videos, joined to one"
        + (_linear(linear) + _weighing(linear) + _gain(linear) if linear else "")
        if refit
        else f"{'the best of validation' if 'r1' in notes['metrics'] else 'the last'}, "
        f"of step {notes['metrics']['step']}"
    )
    parts = {
        "Training data": f"{data['videos']:,} videos with {data['captions']:,} captions.\n\n"
        f"| expert | dimension | form | videos that have it |\n|---|---|---|---|\n{rows}\n",
        "Recipe": f"Sentence encoder: {encoder}. Loss: {training['loss']}. Weights: {last}. Embeddings of "
        f"{config.shared_dim} numbers an expert. Seed {training['seed']}.\n\n{_teachers(notes.get('teachers', []))}"
        f"![training curve]({CURVE})\n",
        "Figures": _figures(read_figures(folder / BEST)),
        "Use": USE.format(weights=BEST) + (f"\n`{BANK}` is its query bank.\n" if (folder / BANK).is_file() else ""),
        "Limits": LIMITS,
        "Citation": CITATION,
    }
    title = f"# Collaborative Experts: {', '.join(config.expert_names)}\n"
    return "\n".join([HEAD, title, *(f"## {name}\n\n{text}" for name, text in parts.items())])


def _form(expert: ExpertConfig) -> str:
    return ("sequence" if expert.variable else "vector") + (" of probabilities" if expert.logarithm else "")


def _linear(choice: Mapping[str, float]) -> str:
    """The part of the linear model."""
    if not choice["count"]:
        return "; a linear model brought nothing on the validation videos, and is left out"
    summed = choice.get("summed", 0)  # models of before have none
    return (
        f" with a linear model in closed form (whitening {choice['whitening']:g}, ridge {choice['ridge']:g}), "
        f"which gives {choice['count'] / (1 + choice['count']):.0%} of a score"
        + (f", {summed:.0%} of that by sums over the experts" if summed else "")
    )


def _weighing(choice: Mapping[str, float]) -> str:
    """How far the text decides the experts' weights, where that is not as the members learned."""
    sharpness = choice.get("sharpness", 1)  # models of before have none
    if sharpness == 1:
        return ""
    return (
        f". The logits of the experts' weights count {sharpness:g} times" if sharpness else ". All experts weigh alike"
    )


def _gain(choice: Mapping[str, float]) -> str:
    """What validation found of what was chosen."""
    if choice["with"] == choice["without"]:
        return ""
    return (
        ". On the validation videos the geometric mean of R@1, R@5 and R@10 was "
        f"{choice['without']:.1f} for one of the models as it was, and {choice['with']:.1f} so"
    )


def _teachers(teachers: Sequence[Mapping[str, Any]]) -> str:
    """The teachers, with their figures on the validation videos."""
    if not teachers:
        return ""
    figures = (f": {', '.join(_shown(teacher))}" if "r1" in teacher else "" for teacher in teachers)
    rows = "\n".join(f"- {teacher['encoder']}{shown}" for teacher, shown in zip(teachers, figures, strict=True))
    return (
        "It learned the mean scores of models with these sentence encoders, whose figures are those of the validation "
        f"videos, text to video, before they were trained on all:\n\n{rows}\n\n"
    )


def _shown(figures: Mapping[str, float]) -> list[str]:
    return [f"{name} {figures[key]:.1f}" for key, name in FIGURES.items()]


def _queries(figures: Mapping[str, float]) -> str:
    """How many these are of, which a card that is evaluated again on other videos tells."""
    return f"{figures['queries']:,.0f}" if "queries" in figures else ""


def _figures(rows: Mapping[str, Mapping[str, float]]) -> str:
    if not rows:
        return "None were measured.\n"
    head = f"| | {' | '.join(FIGURES.values())} | queries |\n|---|---|---|---|---|---|"
    lines = [
        f"| {name} | {' | '.join(f'{x[key]:.1f}' for key in FIGURES)} | {_queries(x)} |" for name, x in rows.items()
    ]
    return "\n".join([head, *lines]) + "\n"
