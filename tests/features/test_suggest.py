"""A config from features: dimensions, token sequences, and what is refused."""

import numpy as np
import pytest

from collaborative_experts import CEConfig, Features, config_for

FEATURES = Features(
    ("a", "b"),
    {
        "motion": np.ones((2, 5), dtype=np.float32),
        "ocr": [np.ones((3, 7), dtype=np.float32), None],
        "speech": [None, np.ones((90, 6), dtype=np.float32)],
    },
    {"motion": np.array([1, 1]), "ocr": np.array([1, 0]), "speech": np.array([0, 1])},
)


def test_every_expert_with_its_dimension():
    config = config_for(FEATURES, {"dim": 384, "clusters": 2}, shared_dim=64)
    expected = {
        "experts": {
            "motion": {"dim": 5},
            "ocr": {"dim": 7, "clusters": 8, "max_tokens": 3},
            "speech": {"dim": 6, "clusters": 8, "max_tokens": 50},
        },
        "text": {"dim": 384, "clusters": 2},
        "shared_dim": 64,
    }
    assert config == CEConfig.from_dict(expected)


def test_settings_of_an_expert_are_kept():
    config = config_for(FEATURES, {"dim": 384}, experts={"ocr": {"clusters": 3}})
    ocr = next(expert for expert in config.experts if expert.name == "ocr")
    assert (ocr.dim, ocr.clusters, ocr.max_tokens) == (7, 3, 3)


RNG = np.random.default_rng(0)
PROBABILITIES = np.exp(2 * RNG.standard_normal((50, 9)) - 8)
FORMS_OF_FEATURES = {
    "probabilities": (PROBABILITIES, True),
    "where some rows are missing": (np.where(np.arange(50)[:, None] < 9, np.nan, PROBABILITIES), True),
    "a few classes that are the same everywhere": (np.where(np.arange(9) < 3, 0.5, PROBABILITIES), True),
    "with zeros, as after a ReLU": (np.where(PROBABILITIES < 1e-4, 0, PROBABILITIES), False),
    "one of them rounded to zero": (np.where(PROBABILITIES.min() == PROBABILITIES, 0, PROBABILITIES), True),
    "below zero": (np.where(PROBABILITIES.min() == PROBABILITIES, -1e-6, PROBABILITIES), False),
    "above 1": (PROBABILITIES * 1e4, False),
    "evenly spread": (RNG.uniform(0.01, 1, (50, 9)), False),
    "of both signs": (RNG.standard_normal((50, 9)), False),
    "the same everywhere": (np.full((50, 9), 0.1), False),
    "the same everywhere, with rounding": (
        np.nextafter(np.full((46, 1), 0.1, np.float32), np.arange(46)[:, None] == 0),
        False,
    ),
    "a little above 1 by rounding": (np.where(PROBABILITIES.max() == PROBABILITIES, 1 + 1e-6, PROBABILITIES), True),
    "too few to tell": (PROBABILITIES[:2], False),
    "none": (np.full((50, 9), np.nan), False),
}


@pytest.mark.parametrize("sequences", [False, True], ids=["fixed", "sequences"])
@pytest.mark.parametrize("form", FORMS_OF_FEATURES)
def test_probabilities_are_told_by_their_values(form, sequences):
    x, expected = FORMS_OF_FEATURES[form]
    x = x.astype(np.float32)
    there = {"sound": np.ones(len(x), dtype=np.int64)}
    padding = np.zeros_like(x[:1])
    tokens = [np.concatenate([row[None], padding]) for row in x] if sequences else x
    features = Features(tuple(map(str, range(len(x)))), {"sound": tokens}, there)
    [expert] = config_for(features, {"dim": 384}).experts
    assert expert.logarithm == expected
    if not (x < 0).any():
        [chosen] = config_for(features, {"dim": 384}, {"sound": {"logarithm": not expected}}).experts
        assert chosen.logarithm != expected


def test_a_single_expert_is_not_gated_by_others():
    alone = Features(FEATURES.ids, {"motion": FEATURES.experts["motion"]}, {"motion": FEATURES.ind["motion"]})
    assert config_for(alone, {"dim": 384}).use_ce == ""


NOBODY = Features(("a",), {"face": np.full((1, 5), np.nan)}, {"face": np.array([0])})
REFUSED = {
    "an expert that no video has": (NOBODY, {}, ValueError, "expert 'face' is missing in each of 1 videos; leave"),
    "settings without features": (FEATURES, {"experts": {"face": {}}}, ValueError, "no features of 'face'"),
    "experts as a list": (FEATURES, {"experts": ["motion"]}, TypeError, "config: experts: expected a dict, got list"),
    "an expert as a number": (FEATURES, {"experts": {"ocr": 5}}, TypeError, r"'ocr'\]: expected a dict, got int"),
    "the logarithm of what is negative": (
        Features(("a", "b"), {"face": -np.eye(2)}, {"face": np.array([1, 1])}),
        {"experts": {"face": {"logarithm": True}}},
        ValueError,
        r"'face'\], logarithm: expected features from 0 to 1, which are probabilities, got -1",
    ),
    "an unknown choice": (FEATURES, {"share_dim": 5}, ValueError, "unknown key 'share_dim'; did you mean"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    features, arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        config_for(features, {"dim": 384}, **arguments)
