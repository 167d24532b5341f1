"""The dict forms of a config, their round trip through JSON, and what is refused."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import towhee.models.collaborative_experts.collaborative_experts as towhee_ce
from hypothesis import given
from hypothesis import strategies as st

from collaborative_experts import MSRVTT, CEConfig, ExpertConfig
from collaborative_experts.base.config import USE_CE
from helpers import SMALL, towhee_dict


def test_default_is_towhees_default(monkeypatch):
    """MSRVTT is the config that create_model() itself builds."""
    seen = {}

    class Recorder:
        def __init__(self, **config):
            seen.update(config)

        def to(self, device):
            return self

    monkeypatch.setattr(towhee_ce, "CENet", Recorder)
    towhee_ce.create_model(device="cpu")
    before = copy.deepcopy(seen)
    assert CEConfig.from_dict(seen) == MSRVTT
    assert seen == before


@pytest.mark.parametrize("use_ce", USE_CE)
def test_towhee_form(use_ce):
    config = replace(SMALL, use_ce=use_ce)
    assert replace_dims(CEConfig.from_dict(towhee_dict(config))) == config


def replace_dims(config):
    """Without what Towhee's dict says twice (each MoEE expert's own dimension) or not at all (text max_tokens)."""
    limits = {expert.name: expert.max_tokens for expert in SMALL.experts}
    experts = tuple(replace(expert, output_dim=None, max_tokens=limits[expert.name]) for expert in config.experts)
    return replace(config, experts=experts, text=replace(config.text, max_tokens=SMALL.text.max_tokens))


def test_towhee_form_keeps_order_and_moee_dims():
    form = towhee_dict(replace(SMALL, use_ce=""))
    form["expert_dims"] = {"ocr": (900, 7), "face": [12, 9]}
    config = CEConfig.from_dict(form)
    assert config.expert_names == ("ocr", "face")
    assert config.output_dims == {"ocr": 7, "face": 9}
    assert config.experts[0] == ExpertConfig("ocr", 300, clusters=3, max_tokens=49, output_dim=7)


def test_short_form():
    short = {
        "experts": {"motion": 512, "audio": {"dim": 128, "clusters": 8}, "a.b": {"dim": 7, "clusters": 2}},
        "text": {"dim": 384, "clusters": 20},
        "shared_dim": 512,
    }
    before = copy.deepcopy(short)
    config = CEConfig.from_dict(short)
    assert short == before
    assert config.expert_names == ("motion", "audio", "a.b")
    assert [expert.variable for expert in config.experts] == [False, True, True]
    assert [expert.max_tokens for expert in config.experts] == [None, 29, None]
    assert (config.text.dim, config.text.ghost_clusters, config.text.max_tokens) == (384, 1, 37)
    assert (config.use_ce, config.use_mish, config.num_g_layers) == ("pairwise", True, 3)
    assert CEConfig.from_dict({"experts": {"a": 1, "b": 2}}).text == MSRVTT.text


names = st.text(min_size=1, max_size=8)
sizes = st.integers(1, 5000)


@given(
    experts=st.dictionaries(names, st.tuples(sizes, st.integers(0, 50), st.none() | sizes), min_size=2, max_size=6),
    use_ce=st.sampled_from(USE_CE),
    switches=st.lists(st.booleans(), min_size=4, max_size=4),
    layers=st.tuples(st.integers(1, 4), st.integers(0, 3)),
    shared_dim=sizes,
)
def test_round_trip_through_json(experts, use_ce, switches, layers, shared_dim):
    config = CEConfig(
        experts=tuple(ExpertConfig(name, *numbers, logarithm=switches[3]) for name, numbers in experts.items()),
        shared_dim=shared_dim,
        use_ce=use_ce,
        include_self=switches[0],
        use_mish=switches[1],
        use_bn_reason=switches[2],
        freeze_weights=switches[3],
        num_g_layers=layers[0],
        num_h_layers=layers[1],
    )
    assert CEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_models_from_before_logarithms_and_sums_have_their_identity():
    """It is the config as JSON. An index holds that of its model."""
    assert not {"logarithm", "summed_dim"} & set(json.dumps(MSRVTT.to_dict()).split('"'))


def test_round_trip_of_what_is_summed():
    config = CEConfig.from_dict(short(use_ce="", mimic_ce_dims=True, shared_dim=8, summed_dim=8))
    assert config.summed_dim == 8
    assert CEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int8])
def test_sizes_of_numpy_are_sizes(kind):
    """They become Python's: `int8` overflows in dim * clusters, and JSON knows none of NumPy's."""
    plain = short(experts={"a": 3, "b": {"dim": 64, "clusters": 4, "max_tokens": 3}}, shared_dim=8, num_g_layers=2)
    config = json.loads(json.dumps(plain), parse_int=lambda digits: kind(int(digits)))
    assert CEConfig.from_dict(config).to_dict() == CEConfig.from_dict(plain).to_dict()
    json.dumps(CEConfig.from_dict(config).to_dict())
    dims = {"expert_dims": {"a": [96, 8], "b": [64, 8]}, "vlad_clusters": {"a": 4, "text": 2}, "ce_shared_dim": 8}
    config = json.loads(json.dumps(dims), parse_int=lambda digits: kind(int(digits)))
    assert CEConfig.from_dict(config) == CEConfig.from_dict(dims)


def test_a_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MSRVTT.to_dict()), encoding="utf-8-sig")
    assert CEConfig.from_json(tmp_path / "config.json") == MSRVTT


def short(**changes):
    return {"experts": {"a": 3, "b": 4}, **changes}


def towhee(**changes):
    return {**towhee_dict(SMALL), **changes}


BAD = {
    "no dict": ([], TypeError, "config: expected a dict, got list"),
    "no known form": ({"modules": 1}, ValueError, "config: expected the key 'experts' (short form), 'expert_dims'"),
    "no experts": ({"experts": {}}, ValueError, "config: experts: expected at least one expert, got none"),
    "misspelt key": (short(sharde_dim=4), ValueError, "config: unknown key 'sharde_dim'; did you mean 'shared_dim'?"),
    "misspelt expert key": (short(experts={"a": {"dims": 4}}), ValueError, "config: experts['a']: unknown key 'dims'"),
    "no dim": (short(experts={"a": {"clusters": 4}}), ValueError, "config: experts['a']: expected the key 'dim'"),
    "dim 0": (short(experts={"a": 0, "b": 1}), ValueError, "config: experts['a'], dim: expected at least 1, got 0"),
    "dim a float": (short(experts={"a": {"dim": 2.5}}), TypeError, "config: experts['a'], dim: expected an integer"),
    "dim a bool": (short(experts={"a": True}), TypeError, "config: experts['a'], dim: expected an integer, got True"),
    "expert a string": (short(experts={"a": "x"}), TypeError, "config: experts['a']: expected a dict, got str"),
    "nameless": (short(experts={"": 1, "b": 2}), TypeError, "config: an expert's name is a non-empty string"),
    "one expert in pairs": (short(experts={"a": 3}), ValueError, "config: use_ce 'pairwise' pairs experts, but there"),
    "unknown form": (short(use_ce="pairs"), ValueError, "config: use_ce: expected one of 'pairwise', "),
    "switch": (short(use_mish=2), TypeError, "config: use_mish: expected True or False, got 2"),
    "switch of an expert": (
        short(experts={"a": {"dim": 3, "logarithm": "yes"}}),
        TypeError,
        "config: experts['a'], logarithm: expected True or False, got 'yes'",
    ),
    "a sum of pairs": (short(summed_dim=2), ValueError, 'config: summed_dim is for mimic_ce_dims with use_ce ""'),
    "a sum of all sizes": (short(use_ce="", summed_dim=2), ValueError, "config: summed_dim is for mimic_ce_dims"),
    "a sum of too many": (
        short(use_ce="", mimic_ce_dims=True, shared_dim=8, summed_dim=9),
        ValueError,
        "config: summed_dim: expected at most 8, got 9",
    ),
    "text clusters": (short(text={"clusters": -1}), ValueError, "config: text, clusters: expected at least 0, got -1"),
    "text key": (short(text={"dimension": 3}), ValueError, "config: text: unknown key 'dimension'"),
    "own output_dim": (
        short(experts={"a": {"dim": 3, "output_dim": 5}, "b": 1}),
        ValueError,
        "config: experts['a'], output_dim: expected shared_dim 768 (only MoEE's experts may differ), got 5",
    ),
    "towhee key": (towhee(use_cee=""), ValueError, "config: unknown key 'use_cee'; did you mean 'use_ce'?"),
    "towhee task": (towhee(task="classification"), ValueError, "config: task: expected 'retrieval', got"),
    "towhee off": (towhee(l2renorm=True), ValueError, "config: l2renorm=True is not supported by this operator"),
    "towhee mix": (towhee(concat_mix_experts=1), ValueError, "config: concat_mix_experts=1 is not supported"),
    "pairs and concat": (short(concat_experts=True), ValueError, "config: concat_experts goes with neither use_ce nor"),
    "towhee dims": (towhee(expert_dims={"a": 3}), ValueError, "config: expert_dims['a']: expected (input size, output"),
    "towhee clusters": (
        towhee(expert_dims={"audio": (255, 16), "face": (12, 16)}),
        ValueError,
        "config: expert_dims['audio']: expected a multiple of its 2 clusters, got 255",
    ),
    "towhee text": (towhee(vlad_clusters={"audio": 2}), ValueError, "config: vlad_clusters: expected the key 'text'"),
    "towhee vlad": (
        towhee(vlad_clusters={"text": 2}),
        ValueError,
        "config: expert_dims['audio']: a 'vlad' expert needs",
    ),
    "huge dim": (
        short(experts={"a": 10**12}),
        ValueError,
        "config: experts['a'], dim: expected at most 1,048,576, got",
    ),
    "huge pooling": (
        short(text={"dim": 10**6, "clusters": 10**6}),
        ValueError,
        "config: text, dim * (clusters + ghost_clusters): expected at most 4,194,304, got 1000001000000",
    ),
    "huge depth": (short(num_g_layers=10**9), ValueError, "config: num_g_layers: expected at most 64, got 1000000000"),
    "huge number": (short(shared_dim=10**5000), ValueError, "config: shared_dim: expected at most 1,048,576, got far"),
    "many experts": (
        short(experts={f"e{i}": 4 for i in range(1001)}),
        ValueError,
        "config: experts: expected at most 1,000, got 1,001",
    ),
    "towhee spatial": (towhee(expert_dims={"detection-sem": (1, 2)}), ValueError, "the spatial expert 'detection-sem'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_config(case):
    config, error, words = BAD[case]
    with pytest.raises(error, match=re.escape(words)):
        CEConfig.from_dict(config)


def test_names_are_unique():
    with pytest.raises(ValueError, match="config: experts: named twice: a"):
        CEConfig(experts=(ExpertConfig("a", 1), ExpertConfig("a", 2)))
