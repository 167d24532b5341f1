"""The CE authors' files: config.json in every published form, trained_model.pth as they pickled it."""

import copy
import json
import random
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from collaborative_experts import CEConfig, CollaborativeExperts, similarity
from collaborative_experts.__main__ import main
from collaborative_experts.base.config import MSRVTT
from collaborative_experts.base.foreign_configs import TEXT_DIMS
from helpers import cenet, largest_difference, peak_memory, random_inputs, run_cenet

EMBED = {"temporal": "avg", "type": "embed", "fps": 25, "aggregate": "concat", "aggregate-axis": 1, "offset": 0}
VLAD = {"temporal": "vlad", "type": "embed", "flaky": True, "binarise": False}


def authors_config(**changes):
    """A resolved config.json of theirs, small; `changes` go to the blocks experts, args, loader, features."""
    config = {
        "n_gpu": 1,
        "seed": 0,
        "experts": {
            "modalities": ["scene.densenet161.0", "ocr", "face", "audio", "r2p1d.r2p1d-ig65m.0", "flow"],
            "drop_feats": "flow, none",
            "face_dim": 12,
            "ce_shared_dim": 16,
            "text_feat": "electra",
            "text_agg": "vlad",
            **changes.get("experts", {}),
        },
        "arch": {
            "type": "CENet",
            "args": {
                "use_ce": "pairwise",
                "use_mish": 1,
                "use_bn_reason": 1,
                "num_g_layers": 3,
                "num_h_layers": 0,
                "include_self": 1,
                "l2renorm": False,
                "randomise_feats": "",
                "keep_missing_modalities": False,
                "mimic_ce_dims": 0,
                "test_caption_mode": "indep",
                "vlad_clusters": {"ocr": 3, "text": 2, "audio": 2, "speech": 2, "detection-sem": 50},
                "ghost_clusters": {"text": 1, "ocr": 1, "audio": 1},
                **changes.get("args", {}),
            },
        },
        "data_loader": {
            "type": "ExpertDataLoader",
            "args": {
                "trn_cat": False,
                "batch_size": 64,
                "max_tokens": {"ocr": 5, "text": 6, "audio": 4, "speech": 3, "openpose": 50},
                "feat_aggregation": {
                    "scene.densenet161.0": {**EMBED, "feat_dims": {"embed": 22, "logits": 10}},
                    "r2p1d.r2p1d-ig65m.0": {**EMBED, "temporal": "avg-max", "feat_dims": {"embed": 7, "logits": 3}},
                    "flow": {"temporal": "avg", "type": "embed", "feat_dims": {"embed": 1024}},
                    "ocr": {**VLAD, "feat_dims": {"embed": 300}},
                    "audio": VLAD,
                    "face": {"temporal": "avg", "flaky": True, "binarise": False},
                    **changes.get("features", {}),
                },
                **changes.get("loader", {}),
            },
        },
        "optimizer": {"type": "Ranger", "args": {"lr": 0.1}},
    }
    return copy.deepcopy(config)


AVERAGED = {
    "experts": {"text_agg": "avg", "text_feat": "w2v"},
    "args": {"vlad_clusters": {"text": 0, "ocr": 3, "audio": 2}},
    "loader": {"max_tokens": {"text": 1}},
}
FORMS = {
    "CE": {},
    "MoEE": {"args": {"use_ce": ""}},
    "mimic": {"args": {"use_ce": "", "mimic_ce_dims": 1}},
    "frozen weights": {"args": {"use_ce": "", "freeze_weights": True}},
    "concat, text shorter": {"args": {"use_ce": "", "concat_experts": True}},
    "text averaged": AVERAGED,
    "text averaged, MoEE": {**AVERAGED, "args": {**AVERAGED["args"], "use_ce": ""}},
    "another encoder": {"experts": {"text_feat": "hglmm_6kd"}},
    "one expert": {"experts": {"modalities": ["ocr"]}, "args": {"use_ce": "", "mimic_ce_dims": 1}},
}


def save_as_the_authors_do(model, config, path, legacy=False, prefix="module."):
    """The module that defines ConfigParser exists only while the file is written."""
    module = types.ModuleType("parse_config")
    module.ConfigParser = type("ConfigParser", (), {"__module__": "parse_config"})
    parser = module.ConfigParser()
    parser.__dict__.update(_config=OrderedDict(config), resume=None, _save_dir=Path("data/saved"), log_levels={0: 30})
    sys.modules["parse_config"] = module
    try:
        state = OrderedDict((prefix + name, x) for name, x in model.state_dict().items())
        state[prefix + "ce.moe_fc_bottleneck1.weight"] = torch.ones(2, 2)
        torch.save(
            {
                "arch": "CENet",
                "epoch": 99,
                "state_dict": state,
                "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]},
                "monitor_best": np.float64(23.1),
                "config": parser,
            },
            path,
            _use_new_zipfile_serialization=not legacy,
        )
    finally:
        del sys.modules["parse_config"]


def tolerance(terms, values):
    """1e-6; with PyTorch 2.6 what a float32 sum of so many products may be off, where it is one of these values.

    Its oneDNN rounds as if it added one product after another, by up to half of `eps` of the sum: a random walk. The
    12,000 of "another encoder" come out 1.3e-6 off, in PyTorch 2.13 5.0e-7.
    """
    if not torch.__version__.startswith("2.6."):
        return 1e-6
    largest = max(float(x.abs().max()) for x in values.values())
    return max(1e-6, torch.finfo(torch.float32).eps / 2 * terms**0.5 * largest)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_published_form(form, legacy, tmp_path):
    """Config and weights as published, all outputs as CENet's, and again after a round trip through safetensors."""
    theirs = authors_config(**FORMS[form])
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    config = CEConfig.from_json(tmp_path / "config.json")
    reference = cenet(config)
    save_as_the_authors_do(reference, theirs, tmp_path / "trained_model.pth", legacy)
    op = CollaborativeExperts(str(tmp_path / "config.json"), tmp_path / "trained_model.pth", device="cpu")
    experts, ind, text = random_inputs(config, 5)
    ind[config.expert_names[0]] = np.array([1, 1, 0, 1, 0]) if "one" not in form else np.ones(5)
    exact = run_cenet(reference, experts, ind, text)
    texts, videos = op.encode_text(text), op.encode_video(experts, ind)
    assert np.abs(similarity(texts, videos) - exact["cross_view_conf_matrix"].numpy()).max() < 1e-6
    if "concat" not in form:
        assert largest_difference(videos.embds, exact["vid_embds"]) < 1e-6
        embds = {name: x.squeeze(1) for name, x in exact["text_embds"].items()}
        assert largest_difference(texts.embds, embds) < tolerance(config.text.pooled_dim, embds)
    again = CollaborativeExperts(weights_path=op.save(tmp_path / "w.safetensors"), device="cpu")
    assert again.config == config
    assert largest_difference(again.encode_video(experts, ind).embds, videos.embds) == 0


def test_what_the_config_says():
    config = CEConfig.from_dict(authors_config())
    assert config.expert_names == ("audio", "face", "ocr", "r2p1d.r2p1d-ig65m.0", "scene.densenet161.0")
    assert [expert.dim for expert in config.experts] == [128, 12, 300, 14, 22]
    assert [expert.clusters for expert in config.experts] == [2, 0, 3, 0, 0]
    assert [expert.max_tokens for expert in config.experts] == [4, None, 5, None, None]
    assert (config.text.dim, config.text.clusters, config.text.ghost_clusters, config.text.max_tokens) == (256, 2, 1, 6)
    moee = CEConfig.from_dict(authors_config(args={"use_ce": ""}))
    assert list(moee.output_dims.values()) == [128, 12, 300, 14, 22]
    assert CEConfig.from_dict(authors_config(experts={"text_feat": "new", "text_dim": 99})).text.dim == 99


def test_msrvtt_as_published():
    """The default model's own config.json, in the parts that matter, is the default config."""
    dims = {"imagenet.senet154.0": 2048, "scene.densenet161.0": 2208, "i3d.i3d.0": 1024,
            "imagenet.resnext101_32x48d.0": 2048, "r2p1d.r2p1d-ig65m.0": 512}  # fmt: skip
    config = authors_config(
        experts={"modalities": [*dims, "face", "ocr", "audio", "speech"], "face_dim": 512, "ce_shared_dim": 768,
                 "text_feat": "openai", "drop_feats": ""},
        args={"vlad_clusters": {"ocr": 43, "text": 28, "audio": 8, "speech": 19}, "ghost_clusters": {"text": 1}},
        loader={"max_tokens": {"ocr": 49, "text": 37, "audio": 29, "speech": 32}},
    )  # fmt: skip
    features = config["data_loader"]["args"]["feat_aggregation"]
    features.update({name: {**EMBED, "feat_dims": {"embed": dim}} for name, dim in dims.items()}, speech=VLAD)
    assert CEConfig.from_dict(config) == MSRVTT


def test_concat_with_a_longer_text(tmp_path):
    """Padded with zeros; CENet itself would replace the video by zeros."""
    config = CEConfig.from_dict(
        authors_config(args={"use_ce": "", "concat_experts": True}, experts={"text_feat": "ctrl"})
    )
    reference = cenet(config)
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    op = CollaborativeExperts(config, tmp_path / "w.pth", device="cpu", output="vector")
    experts, ind, text = random_inputs(config, 3)
    text_vector, video_vector = op(experts, ind, text)
    assert text_vector.shape == video_vector.shape == (3, 2560)
    raw = run_cenet(reference, experts, ind, text)["vid_embds"]
    pooled = np.concatenate([x.numpy() for x in raw.values()], axis=1)
    assert np.abs(video_vector[:, : pooled.shape[1]] - pooled).max() < 1e-5
    assert (video_vector[:, pooled.shape[1] :] == 0).all()


def test_every_text_encoder_has_one_dimension():
    encoders = [encoder for encoders in TEXT_DIMS.values() for encoder in encoders]
    assert len(encoders) == len(set(encoders))
    assert {"openai", "gpt2-xl-finetune", "w2v", "hglmm_6kd", "electra"} <= set(encoders)


BAD = {
    "other arch": (lambda c: c["arch"].update(type="MNNet"), "config: arch, type: expected 'CENet', got 'MNNet'"),
    "unknown argument": (lambda c: c["arch"]["args"].update(gated=1), "config: arch, args: unknown key 'gated'"),
    "l2renorm": (
        lambda c: c["arch"]["args"].update(l2renorm=True),
        "config: arch, args: l2renorm=True is not supported",
    ),
    "no experts": (lambda c: c.pop("experts"), "config: the CE authors' config.json: expected the key 'experts'"),
    "no modalities": (lambda c: c["experts"].pop("modalities"), "config: experts: expected the key 'modalities'"),
    "no clusters": (
        lambda c: c["arch"]["args"]["vlad_clusters"].pop("ocr"),
        "config: arch, args, vlad_clusters: expected the key 'ocr'",
    ),
    "no features": (
        lambda c: c["data_loader"]["args"]["feat_aggregation"].pop("audio"),
        "config: data_loader, args, feat_aggregation: expected the key 'audio'",
    ),
    "no dims": (
        lambda c: c["data_loader"]["args"]["feat_aggregation"]["scene.densenet161.0"].pop("feat_dims"),
        "config: data_loader, args, feat_aggregation, scene.densenet161.0: expected the key 'feat_dims'",
    ),
    "other pooling": (
        lambda c: c["data_loader"]["args"]["feat_aggregation"]["audio"].update(temporal="seg"),
        "expected 'vlad' or forms of avg, max, ent, std joined by '-', got 'seg'",
    ),
    "other vlad": (
        lambda c: c["data_loader"]["args"]["feat_aggregation"]["face"].update(temporal="vlad"),
        "config: data_loader, args, feat_aggregation, face: NetVLAD is known for audio, ocr, speech only",
    ),
    "unknown encoder": (
        lambda c: c["experts"].update(text_feat="gpt2-xll"),
        "the dimension of 'gpt2-xll' is not known; did you mean 'gpt2-xl'?; add it to the block as text_dim",
    ),
    "other text pooling": (
        lambda c: c["experts"].update(text_agg="max"),
        "config: experts, text_agg: expected 'vlad' or 'avg', got 'max'",
    ),
    "modalities no list": (
        lambda c: c["experts"].update(modalities="ab"),
        "config: experts, modalities: expected a list of names, got 'ab'",
    ),
    "average of tokens": (
        lambda c: c["experts"].update(text_agg="avg"),
        "config: experts, text_agg: 'avg' goes with vlad_clusters['text'] 0 and max_tokens['text'] 1, got 'avg', 2",
    ),
    "no dict": (
        lambda c: c["arch"]["args"].update(ghost_clusters=None),
        "config: ghost_clusters: expected a dict, got NoneType",
    ),
    "spatial": (
        lambda c: (
            c["experts"]["modalities"].append("detection-sem")
            or c["data_loader"]["args"]["feat_aggregation"].update({"detection-sem": VLAD})
        ),
        "the expert 'detection-sem' as configured is not supported",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_honoured_is_said(case):
    change, words = BAD[case]
    config = authors_config()
    change(config)
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        CEConfig.from_dict(config)


def test_config_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="config: there is no file"):
        CollaborativeExperts(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config: .*config.json is not JSON"):
        CollaborativeExperts(str(tmp_path / "config.json"))
    with pytest.raises(ValueError, match=r"config: mine.safetensors is a weights file; pass it as weights_path="):
        CollaborativeExperts("mine.safetensors")


def test_a_wrong_dimension_names_the_expert(tmp_path):
    torch.save(cenet(CEConfig.from_dict(authors_config())).state_dict(), tmp_path / "w.pth")
    other = authors_config()
    other["data_loader"]["args"]["feat_aggregation"]["scene.densenet161.0"]["feat_dims"]["embed"] = 23
    with pytest.raises(
        ValueError, match=re.escape("fc.weight (expert 'scene.densenet161.0'; expected (16, 23), got (16, 22))")
    ):
        CollaborativeExperts(other, tmp_path / "w.pth", device="cpu")


# --- hostile and damaged files --------------------------------------------------------------------------


class Calls:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class SetsState:
    """Pickles as a ConfigParser whose state is a call."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        module = sys.modules["parse_config"]
        return module.ConfigParser, (), self.state


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["os.system", "eval", "nested", "state", "getattr"])
def test_hostile_files_run_nothing(kind, legacy, tmp_path, monkeypatch):
    import os

    monkeypatch.chdir(tmp_path)
    touch = Calls(os.system, "touch executed")
    content, asked = {
        "os.system": (touch, "posix.system"),
        "eval": (Calls(eval, "open('executed', 'w')"), "eval"),
        "nested": ([{"deep": (Calls(list, [1]), touch)}], "list"),
        "state": (SetsState({"x": touch}), "posix.system"),
        "getattr": (Calls(getattr, "eval", "upper"), "getattr"),
    }[kind]
    module = types.ModuleType("parse_config")
    module.ConfigParser = type("ConfigParser", (), {"__module__": "parse_config"})
    monkeypatch.setitem(sys.modules, "parse_config", module)
    state = cenet(CEConfig.from_dict(authors_config())).state_dict()
    path = tmp_path / "trained_model.pth"
    torch.save({"state_dict": state, "config": content}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=re.escape(f"refused, loading it would call {asked};")):
        CollaborativeExperts(authors_config(), path, device="cpu")
    assert not (tmp_path / "executed").exists()


def mutate(content: bytes, rng: random.Random) -> bytes:
    content = bytearray(content)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(content[: rng.randrange(len(content))])
    if kind == 1:  # a block overwritten
        start = rng.randrange(len(content))
        content[start : start + rng.randrange(1, 64)] = rng.randbytes(8)
        return bytes(content)
    # flipped bits, more of them in the head, where the structure is
    span = len(content) if kind == 2 else min(len(content), 4096)
    for _ in range(rng.randrange(1, 20)):
        content[rng.randrange(span)] ^= 1 << rng.randrange(8)
    return bytes(content)


@pytest.mark.parametrize("suffix", [".pth", ".legacy.pth", ".safetensors"])
def test_damaged_files_give_our_errors_only(suffix, tmp_path):
    """60 mutations of each format: the file loads, or a ValueError says why not; memory stays bounded. Many more are
    in benchmarks/proof/files.py."""
    config = CEConfig.from_dict(authors_config())
    model = cenet(config)
    whole, damaged = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    if suffix == ".safetensors":
        save_file(model.state_dict(), whole)
    else:
        save_as_the_authors_do(model, {}, whole, legacy="legacy" in suffix)
    content, rng = whole.read_bytes(), random.Random(0)
    experts, ind, text = random_inputs(config, 2)
    refused, before = 0, peak_memory(forget=True)
    for _ in range(60):
        damaged.write_bytes(mutate(content, rng))
        try:
            op = CollaborativeExperts(config, damaged, device="cpu")
        except ValueError:
            refused += 1
        else:  # numbers may be wrong, but the model is whole
            assert [x.shape for x in op(experts, ind, text)[1].values()] == [(2, 16)] * 5
    assert refused > 14
    assert peak_memory() < before + (500 << 20)


@pytest.mark.parametrize(("seed", "suffix"), enumerate([".pth", ".safetensors"]))
def test_a_wrong_set_of_tensors_is_refused(seed, suffix, tmp_path):
    """30 random changes of the state dict itself: swapped, renamed, dropped, reshaped or retyped tensors."""
    config = CEConfig.from_dict(authors_config())
    state, rng, path = cenet(config).state_dict(), random.Random(seed), tmp_path / f"w{suffix}"
    names = [name for name, x in state.items() if x.ndim]
    for _ in range(30):
        changed, name = dict(state), rng.choice(names)
        other = rng.choice([n for n in names if state[n].shape != state[name].shape])
        kind = rng.randrange(5)
        if kind == 0:
            changed[name], changed[other] = state[other], state[name]
        elif kind == 1:
            changed[name + "x"] = changed.pop(name)
        elif kind == 2:
            del changed[name]
        elif kind == 3:
            changed[name] = state[name][None]
        else:
            changed[name] = state[name].to(rng.choice([torch.int8, torch.bool, torch.int64]))
        changed = {key: x.clone() for key, x in changed.items()}
        torch.save(changed, path) if suffix == ".pth" else save_file(changed, path)
        with pytest.raises(ValueError, match="these weights are not of this config's model"):
            CollaborativeExperts(config, path, device="cpu", modality=rng.choice([None, "video", "text"]))


def test_unusual_tensors_are_refused(tmp_path):
    config = CEConfig.from_dict(authors_config())
    state = cenet(config).state_dict()
    name = "ce.moe_fc.weight"
    for x in (state[name].to("meta"), state[name].to_sparse(), state[name].to_sparse_csr()):
        torch.save({**state, name: x}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=f"expected plain dense tensors, got others for {name}"):
            CollaborativeExperts(config, tmp_path / "w.pth", device="cpu")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_swapped_tensors_and_types(suffix, tmp_path):
    config = CEConfig.from_dict(authors_config())
    state = cenet(config).state_dict()
    path = tmp_path / f"w{suffix}"
    for change in (
        {"ce.moe_fc.weight": state["ce.moe_fc.bias"].clone(), "ce.moe_fc.bias": state["ce.moe_fc.weight"].clone()},
        {"ce.moe_fc.bias": state["ce.moe_fc.bias"].to(torch.int32)},
        {"ce.moe_fc.bias": state["ce.moe_fc.bias"].to(torch.bool)},
    ):
        changed = {**state, **change}
        torch.save(changed, path) if suffix == ".pth" else save_file(changed, path)
        with pytest.raises(ValueError, match=r"mis-shaped|of the wrong type"):
            CollaborativeExperts(config, path, device="cpu")


# --- the command line -----------------------------------------------------------------------------------


def test_convert_and_describe(tmp_path, capsys):
    theirs = authors_config()
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    model = cenet(CEConfig.from_dict(theirs))
    save_as_the_authors_do(model, theirs, tmp_path / "trained_model.pth")
    files = [str(tmp_path / name) for name in ("trained_model.pth", "out.safetensors", "config.json")]
    assert main(["convert", files[0], files[1], "--config", files[2]]) == 0
    assert CollaborativeExperts(weights_path=files[1], device="cpu").config == CEConfig.from_dict(theirs)
    capsys.readouterr()
    assert main(["describe", files[1]]) == 0
    text = capsys.readouterr().out
    assert f"parameters  {sum(x.numel() for x in model.parameters()):,}" in text
    assert "collaborative experts (pairwise)" in text
    assert "source      trained_model.pth" in text
    assert re.search(r"sha256      [0-9a-f]{64}", text)
    assert "ocr                  300 (3 clusters, 5 tokens) -> 16" in text
    assert main(["convert", files[0], files[1]]) == 1  # without its config it is taken for the default model
    assert "error: " in capsys.readouterr().err
    assert main(["describe", str(tmp_path / "none.pth")]) == 1
