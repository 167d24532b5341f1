"""What the model card says of how the weights came about."""

import json

import pytest

from collaborative_experts.model.checkpoint import write_weights
from collaborative_experts.training.model_card import write_card
from helpers import JOINABLE

LINEAR = {"whitening": 0.25, "ridge": 10.0, "count": 3.0, "without": 20.06, "with": 23.0}
NOTES = {
    "data": {"videos": 40, "captions": 80, "videos_with": {"motion": 40, "sound": 10}},
    "training": {"loss": "infonce", "seed": 7},
    "metrics": {"step": 30},
}
JOINED = "Weights: 2 models, each of 50 steps on all videos, joined to one"
WITH = JOINED + " with a linear model in closed form (whitening 0.25, ridge 10), which gives 75% of a score"
FOUND = (
    ". On the validation videos the geometric mean of R@1, R@5 and R@10 was 20.1 for one of the models as it was, and "
    "23.0 so"
)
NOTHING = "; a linear model brought nothing on the validation videos, and is left out"


@pytest.mark.parametrize(
    ("refit", "said"),
    [
        (None, "Weights: the last, of step 30."),
        ({}, JOINED + "."),
        ({"linear": LINEAR}, WITH + FOUND + "."),  # of before there were sums and sharpness
        ({"linear": LINEAR | {"sharpness": 1.0, "summed": 0.0}}, WITH + FOUND + "."),
        ({"linear": LINEAR | {"summed": 0.25}}, WITH + ", 25% of that by sums over the experts" + FOUND + "."),
        ({"linear": LINEAR | {"sharpness": 0.0}}, WITH + ". All experts weigh alike" + FOUND + "."),
        (
            {"linear": LINEAR | {"sharpness": 0.5}},
            WITH + ". The logits of the experts' weights count 0.5 times" + FOUND + ".",
        ),
        (
            {"linear": LINEAR | {"count": 0.0, "sharpness": 0.0}},
            JOINED + NOTHING + ". All experts weigh alike" + FOUND + ".",
        ),
        ({"linear": LINEAR | {"count": 0.0, "with": 20.06}}, JOINED + NOTHING + "."),
    ],
)
def test_it_says_what_was_joined(refit, said, tmp_path):
    notes = NOTES if refit is None else NOTES | {"refit": {"members": 2, "steps": 50} | refit}
    write_weights(tmp_path / "best.safetensors", {}, JOINABLE, notes)
    card = write_card(tmp_path).read_text()
    assert f"{said} Embeddings of 256 numbers an expert. Seed 7.\n" in card
    assert "| sound | 6 | sequence | 25% |" in card


def test_it_says_what_figures_are_of(tmp_path):
    found = {"r1": 10.0, "r5": 20.0, "r10": 30.0, "median_rank": 9.0}
    notes = NOTES | {"metrics": {"step": 30, **found}}
    write_weights(tmp_path / "best.safetensors", {}, JOINABLE, notes)
    card = write_card(tmp_path).read_text()
    assert "Weights: the best of validation, of step 30." in card
    assert "| validation videos, text to video | 10.0 | 20.0 | 30.0 | 9.0 |  |\n" in card
    evaluation = {"all experts": {"text_to_video": found | {"queries": 1790}}}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    assert "| all experts, text to video | 10.0 | 20.0 | 30.0 | 9.0 | 1,790 |\n" in write_card(tmp_path).read_text()
