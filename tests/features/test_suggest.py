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


def test_a_single_expert_is_not_gated_by_others():
    alone = Features(FEATURES.ids, {"motion": FEATURES.experts["motion"]}, {"motion": FEATURES.ind["motion"]})
    assert config_for(alone, {"dim": 384}).use_ce == ""


NOBODY = Features(("a",), {"face": np.full((1, 5), np.nan)}, {"face": np.array([0])})
REFUSED = {
    "an expert that no video has": (NOBODY, {}, ValueError, "expert 'face' is missing in every video; leave it out"),
    "settings without features": (FEATURES, {"experts": {"face": {}}}, ValueError, "no features of 'face'"),
    "experts as a list": (FEATURES, {"experts": ["motion"]}, TypeError, "config: experts: expected a dict, got list"),
    "an expert as a number": (FEATURES, {"experts": {"ocr": 5}}, TypeError, r"'ocr'\]: expected a dict, got int"),
    "an unknown choice": (FEATURES, {"share_dim": 5}, ValueError, "unknown key 'share_dim'; did you mean"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    features, arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        config_for(features, {"dim": 384}, **arguments)
