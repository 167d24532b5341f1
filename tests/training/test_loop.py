"""Training: the losses against loops, runs that can be repeated, interrupted and continued, and clear errors."""

import json
import math
import sys
import warnings
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from towhee.models.collaborative_experts import GatedEmbeddingUnit, MimicCEGatedEmbeddingUnit, ReduceDim

import collaborative_experts as package
from collaborative_experts import CaptionedVideos, CEConfig, Features, TextConfig, TrainingConfig
from collaborative_experts.apps.convert import convert
from collaborative_experts.model.cenet import _Normalise, _Unit, initial_state, model_of
from collaborative_experts.model.checkpoint import read_config, read_notes
from collaborative_experts.retrieval.embeddings import TextEmbeddings, VideoEmbeddings
from collaborative_experts.retrieval.similarity import similarity
from collaborative_experts.training import loop, run_folder, schedule, validation
from collaborative_experts.training.bank import BANK, read_bank
from collaborative_experts.training.data import VideoTensors
from collaborative_experts.training.linear import LinearChoice
from collaborative_experts.training.losses import MARGIN, batch_scores, info_nce, max_margin
from collaborative_experts.training.model_card import write_card
from collaborative_experts.training.objective import Objective, drop_experts
from collaborative_experts.training.settings import combine
from collaborative_experts.training.validation import embed_texts, evaluate_model
from helpers import JOINABLE, QUICK, TRAINABLE, captioned, largest_difference, untrained
from warm_process import Process, run_script


def losses(result):
    return [row["loss"] for row in result.history]


# --- losses -------------------------------------------------------------------------------------------------


def slow_max_margin(scores, margin):
    size, total = len(scores), 0.0
    for i in range(size):
        for j in range(size):
            if i != j:
                total += max(0.0, margin + scores[i][j] - scores[i][i]) + max(0.0, margin + scores[j][i] - scores[i][i])
    return total / (2 * size * (size - 1))


def slow_info_nce(scores, temperature):
    size, total = len(scores), 0.0
    for i in range(size):
        for others in ([scores[i][j] for j in range(size)], [scores[j][i] for j in range(size)]):
            total += math.log(sum(math.exp((x - scores[i][i]) / temperature) for x in others))
    return total / (2 * size)


@pytest.mark.parametrize("size", [2, 3, 17])
def test_losses_are_those_of_loops(size):
    scores = torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)) * 2 - 1
    for margin in (0.0, MARGIN, 0.7):
        expected = slow_max_margin(scores.tolist(), margin)
        assert float(max_margin(scores, margin)) == pytest.approx(expected, rel=1e-12)
    for temperature in (0.05, 1.0):
        expected = slow_info_nce(scores.tolist(), temperature)
        assert float(info_nce(scores, temperature)) == pytest.approx(expected, rel=1e-12)


def test_scores_of_a_batch_are_those_of_similarity():
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(7, 3, 5, generator=generator), dim=-1)
    video = torch.nn.functional.normalize(torch.randn(6, 3, 5, generator=generator), dim=-1)
    weights = torch.softmax(torch.randn(7, 3, generator=generator), 1)
    available = torch.rand(6, 3, generator=generator) < 0.6
    available[0] = False
    names = ("a", "b", "c")
    expected = similarity(
        TextEmbeddings({name: text[:, m] for m, name in enumerate(names)}, weights),
        VideoEmbeddings({name: video[:, m] for m, name in enumerate(names)}, available),
    )
    torch.testing.assert_close(batch_scores(text, weights, video, available), expected, rtol=0, atol=1e-6)


def test_dropping_experts_leaves_each_video_one():
    available = torch.tensor([[True, True, False], [False, True, False], [False, False, False]]).repeat(200, 1)
    kept = drop_experts(available, 0.9)
    assert not (kept & ~available).any()
    assert torch.equal(kept.any(1), available.any(1))
    assert (kept != available).any()


def test_dropping_features_leaves_padding():
    config = CEConfig.from_dict(TRAINABLE.to_dict() | {"standardise": True})
    data = VideoTensors(captioned(16), config, "data")
    weights = initial_state(config, seed=0) | data.statistics(config)
    objective = Objective(config, TrainingConfig(feature_dropout=0.5), weights)
    sound = data.features["sound"]
    dropped = objective.drop_features("sound", sound)
    padding = (sound == 0).all(-1)
    assert padding.any()
    assert (dropped[padding] == 0).all()
    changed = (dropped != sound)[~padding]
    assert 0.4 < changed.float().mean() < 0.6
    assert torch.equal(dropped[~padding][changed], weights["standardise.sound.mean"].expand_as(changed)[changed])


def test_summed_words_train_the_same_model(tmp_path, monkeypatch):
    data = captioned(16)
    decide, decided = loop._sums_words, []
    found = []
    for sums in (True, False):
        monkeypatch.setattr(loop, "_sums_words", lambda *given, sums=sums: decided.append(decide(*given)) or sums)
        settings = TrainingConfig(**QUICK, folder=str(tmp_path / f"{sums}"))
        found.append(load_file(loop.train(TRAINABLE, settings, data[:12], data[12:]).weights_path))
    assert decided == [True, True]
    for name, x in found[0].items():
        if "text_pooling.batch_norm" not in name:  # has no say with one cluster
            torch.testing.assert_close(x, found[1][name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_words_are_not_summed_where_the_model_sees_more_of_them():
    settings, clusters = TrainingConfig(), replace(TRAINABLE, text=replace(TRAINABLE.text, clusters=2))
    centred = initial_state(TRAINABLE, seed=0)
    assert not loop._sums_words(clusters, settings, None)
    assert not loop._sums_words(TRAINABLE, replace(settings, word_dropout=0.1), None)
    assert not loop._sums_words(TRAINABLE, settings, centred)  # its centre is random
    assert loop._sums_words(TRAINABLE, settings, centred | {"text_pooling.clusters2": torch.zeros(1, 10, 1)})


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "epochs"), [("infonce", 40), ("max_margin", 120)])
@pytest.mark.parametrize("form", [{"use_ce": ""}, {"use_ce": "pairwise", "mimic_ce_dims": False}])
def test_overfits_32_videos(tmp_path, loss, epochs, form):
    data = captioned(32, missing=0.2)
    op = untrained(CEConfig.from_dict(TRAINABLE.to_dict() | form))
    plain = {"expert_dropout": 0.0, "feature_dropout": 0.0, "weight_decay": 0.0, "average": 0.0}
    settings = {"epochs": epochs, "batch_size": 32, "learning_rate": 1e-2}
    op.train(settings, data, folder=str(tmp_path), loss=loss, **plain)  # each epoch's validation would take longer
    text, video = op.encode_text(data.tokens), op.encode_video(data.features.experts)
    found = package.evaluate(text, video, data.targets)
    assert found.text_to_video.r1 == 100
    assert found.video_to_text.r1 == 100
    assert op.pretrained


def test_40_percent_missing_and_what_is_left_in_the_folder(tmp_path, monkeypatch, draw_curve):
    monkeypatch.setattr(run_folder, "_draw", draw_curve)
    data, validation = captioned(64, missing=0.4), captioned(24, missing=0.4, seed=1)
    for ind in data.features.ind.values():
        ind[5] = 0  # one without anything
    result = untrained().train(QUICK, data, validation, folder=str(tmp_path), epochs=12)
    assert np.isfinite(losses(result)).all()
    assert losses(result)[-1] < losses(result)[0]
    assert result.evaluation.text_to_video.r10 > 2 * 100 * 10 / 24 * 0.7
    found = {path.name for path in tmp_path.iterdir() if not path.name.startswith("events")}
    assert found == {"best.safetensors", "bank.safetensors", "last.ckpt", "metrics.csv", "curve.png"}
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 12
    assert lines[0].startswith("epoch,step,loss,learning_rate,seconds,video_to_text_r1")
    assert any(path.name.startswith("events") for path in tmp_path.iterdir())
    notes = read_notes(result.weights_path)
    assert notes["training"]["seed"] == 0
    assert notes["data"]["videos"] == 64
    assert notes["data"]["videos_with"] == {name: int(x.sum()) for name, x in data.features.ind.items()}
    assert notes["metrics"]["epoch"] == result.best_epoch
    assert set(notes["versions"]) == {"torch", "towhee", "towhee.models", "numpy", "python"}


@pytest.mark.parametrize("history", [[], [{"epoch": 1, "loss": 2.0}]])
def test_a_curve_without_figures(tmp_path, draw_curve, history):
    draw_curve(history, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_trained_is_an_operator_that_takes_raw_features(tmp_path):
    data = captioned(64)
    op = untrained()
    result = op.train(QUICK, data, data, folder=str(tmp_path / "run"), epochs=15)
    assert op.config.standardise
    saved = op.save(tmp_path / "mine.safetensors")
    again = package.collaborative_experts(weights_path=saved, device="cpu")
    for one in (op, again):
        text = one.encode_text(np.asarray(data.tokens, dtype=np.float32))
        video = one.encode_video(data.features.experts)
        assert package.evaluate(text, video, data.targets) == result.evaluation
    assert again.identity == op.identity
    rows = data.features.experts["motion"]
    weights = again._open_weights()
    np.testing.assert_allclose(weights["standardise.motion.mean"], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(weights["standardise.motion.std"], rows.std(0), rtol=1e-4)


def test_probabilities_are_standardised_by_their_logarithm(tmp_path):
    data = captioned(64)
    experts = dict(data.features.experts)
    scores = np.random.default_rng(0).standard_normal(experts["motion"].shape) - 3
    experts["motion"] = (1 / (1 + np.exp(-2 * scores))).astype(np.float32)
    data = replace(data, features=replace(data.features, experts=experts))
    config = package.config_for(data.features, {"dim": data.tokens.shape[2]}, shared_dim=16, use_ce="")
    assert [expert.logarithm for expert in config.experts] == [name == "motion" for name in config.expert_names]
    op = package.CollaborativeExperts(config, device="cpu")
    op.train(QUICK, data, data, folder=str(tmp_path / "run"), epochs=1)
    again = package.collaborative_experts(weights_path=op.save(tmp_path / "mine.safetensors"), device="cpu")
    assert again.config == op.config
    other = package.config_for(data.features, {"dim": 10}, {"motion": {"logarithm": False}}, shared_dim=16, use_ce="")
    other = replace(other, standardise=True)
    with pytest.raises(ValueError, match=r"'motion'\], logarithm: expected True as in mine.safetensors, got False"):
        package.CollaborativeExperts(other, tmp_path / "mine.safetensors", device="cpu")
    with pytest.raises(ValueError, match="logarithm: expected True"):
        convert(tmp_path / "mine.safetensors", tmp_path / "other.safetensors", other)
    assert not (tmp_path / "other.safetensors").exists()
    weights, logarithms = again._open_weights(), np.log(experts["motion"])
    np.testing.assert_allclose(weights["standardise.motion.mean"], logarithms.mean(0), rtol=1e-5)
    np.testing.assert_allclose(weights["standardise.motion.std"], logarithms.std(0), rtol=1e-4)
    objective = Objective(op.config, TrainingConfig(feature_dropout=0.5), dict(weights))
    x = torch.from_numpy(experts["motion"])
    dropped = objective.drop_features("motion", x)
    layer = objective.model.standardise._modules["motion"]
    assert layer(dropped)[dropped != x].abs().max() < 1e-4


def test_an_operator_with_weights_goes_on_from_them(tmp_path):
    data, other = captioned(64), captioned(64, seed=5)
    op = untrained()
    first = op.train(QUICK, data, data, folder=str(tmp_path / "first"), epochs=20)
    mean = op._open_weights()["standardise.motion.mean"].clone()
    second = op.train(QUICK, other, data, folder=str(tmp_path / "second"), epochs=1, learning_rate=1e-5)
    assert losses(second)[0] < 0.5 * losses(first)[0]
    assert torch.equal(op._open_weights()["standardise.motion.mean"], mean)


def test_weights_in_half_precision_are_trained_in_single(tmp_path):
    data = captioned(16)
    first = untrained().train(QUICK, data, folder=str(tmp_path / "first"), epochs=1)
    state = {name: x.half() if x.is_floating_point() else x for name, x in load_file(first.weights_path).items()}
    torch.save(state, tmp_path / "half.pth")
    op = package.CollaborativeExperts(replace(TRAINABLE, standardise=True), tmp_path / "half.pth", device="cpu")
    result = op.train(QUICK, data, folder=str(tmp_path / "second"), epochs=1)
    assert {x.dtype for x in load_file(result.weights_path).values() if x.is_floating_point()} == {torch.float32}


def test_the_same_seed_gives_the_same_run(tmp_path):
    data = captioned(40, missing=0.2)
    runs = [
        untrained().train(QUICK, data, folder=str(tmp_path / str(k)), seed=seed) for k, seed in enumerate((7, 7, 8))
    ]
    assert losses(runs[0]) == losses(runs[1])
    assert losses(runs[0]) != losses(runs[2])
    first, second, third = (package.collaborative_experts(weights_path=run.weights_path).identity for run in runs)
    assert first == second != third


def _half():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, _half])
def test_the_callers_modes_change_nothing(tmp_path, mode, precision):
    """Neither where weights are learned from the start nor where training goes on from those that the mode loaded."""

    def run(folder):
        op, data = untrained(), captioned(24, missing=0.2)
        settings = QUICK | {"precision": precision}
        for name in ("first", "second"):
            result = op.train(settings, data[:16], data[16:], folder=str(folder / name))
        return load_file(result.weights_path)

    expected = run(tmp_path / "without")
    with mode():
        got = run(tmp_path / "within")
        recorded, cast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    assert all(torch.equal(x, expected[name]) for name, x in got.items())
    assert (recorded, cast) == (mode is _half, mode is _half)  # and what the caller set stays


def test_the_callers_defaults_change_nothing(other_defaults, tmp_path):
    """Of a search with a linear model, and of what is dropped at random."""
    data = captioned(48, missing=0.2)
    dropped = {"feature_dropout": 0.2, "word_dropout": 0.2, "expert_dropout": 0.2}

    def run(folder):
        _, settings = _arguments(SEARCH | {"patience": 2, "members": 2}, folder / "search")
        found = loop.train(JOINABLE, settings, data[:30], data[30:], refit_dataset=data)
        short = untrained().train(QUICK | dropped, data, folder=str(folder / "short"))
        bank = read_bank(folder / "search" / BANK)
        files = [load_file(result.weights_path, device="cpu") for result in (found, short)]
        return [losses(found), losses(short), bank.beta], [*files, bank.text.embds]

    expected, tensors = run(tmp_path / "expected")
    with other_defaults():
        got, others = run(tmp_path / "got")
    assert got == expected
    assert [largest_difference(*pair) for pair in zip(others, tensors, strict=True)] == [0] * 3


def test_a_model_that_does_not_pool_texts(tmp_path):
    """It learns the mean of the words without padding, which is what it takes of sentences."""
    op, data = untrained(replace(TRAINABLE, text=TextConfig(dim=10, clusters=0))), captioned(32)
    data.tokens[::2, 3:] = data.tokens[1::4, 1] = 0  # padding, and words that an encoder does not know
    result = op.train(QUICK, data, folder=str(tmp_path), epochs=10)
    assert losses(result)[-1] < 0.8 * losses(result)[0]
    words = {f"sentence {row}": x.astype(np.float32) for row, x in enumerate(data.tokens)}
    asked = op.encode_sentences(list(words), _Encoder(words))
    model = model_of(load_file(result.weights_path), op.config)
    expected = embed_texts(model, VideoTensors(data, op.config, "data"), np.arange(len(words)))
    assert largest_difference(asked.embds, expected.embds) < 1e-6


class _Encoder:
    name, dim = "words", 10

    def __init__(self, tokens):
        self._tokens = tokens

    def __call__(self, sentences):
        return [self._tokens[sentence] for sentence in sentences]


def test_half_precision_computes_with_the_weights_of_each_step(tmp_path):
    """PyTorch keeps casts of weights, which are old after a step. Losses would then stay where they began."""
    data = captioned(32)
    single, half = (
        losses(untrained().train(QUICK | {"precision": precision}, data, folder=str(tmp_path / precision), epochs=6))
        for precision in ("float32", "bfloat16")
    )
    assert single[-1] < 0.8 * single[0]
    np.testing.assert_allclose(half, single, rtol=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, precision):
    data, validation = captioned(40, missing=0.3), captioned(16, seed=1)
    settings = QUICK | {"epochs": 6, "precision": precision}
    whole = untrained().train(settings, data, validation, folder=str(tmp_path / "whole"))
    folder = tmp_path / "part"
    _interrupt(settings, data, validation, folder, epochs=2)
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 2
    op = untrained()
    resumed = op.train(settings, data, validation, folder / "last.ckpt", folder=str(folder))
    np.testing.assert_allclose(losses(resumed), losses(whole), rtol=0, atol=1e-6)
    for row, expected in zip(resumed.history, whole.history, strict=True):
        assert row["geometric_mean"] == expected["geometric_mean"]
    assert op.identity == package.collaborative_experts(weights_path=whole.weights_path).identity


def _interrupt(settings, data, validation, folder, epochs):
    """Train, and stop as Ctrl-C would in the epoch after these."""

    def step(run, *batch):
        if run.epoch == epochs:
            raise KeyboardInterrupt
        return plain(run, *batch)

    plain, op = loop._Run._run_step, untrained()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_run_step", step)
        patch.setattr(run_folder, "STATE_SHARE", math.inf)
        with pytest.raises(KeyboardInterrupt):
            op.train(settings, data, validation, folder=str(folder))


def test_resuming_into_another_folder_brings_the_best_weights(tmp_path):
    data = captioned(16)
    first = untrained().train(QUICK, data, data, folder=str(tmp_path / "a"))
    moved = untrained().train(QUICK, data, data, tmp_path / "a" / "last.ckpt", folder=str(tmp_path / "b"))
    assert moved.weights_path.read_bytes() == first.weights_path.read_bytes()
    assert moved.history == first.history


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from collaborative_experts.training import run_folder
from helpers import QUICK, captioned, untrained

run_folder.STATE_SHARE = float("inf")

plain, saved = torch.save, []

def save(state, file):
    saved.append(file)
    plain(state, file)
    if len(saved) < 3:
        return
    file.truncate(file.tell() // 2)
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = save
untrained().train(QUICK | {"epochs": 5}, captioned(16), captioned(16, seed=1), folder=sys.argv[2])
"""


def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(root, tmp_path):
    folder = tmp_path / "run"
    process = Process(KILLED, root / "tests", folder)
    assert process.wait(120) == -9, process.stderr.read()
    state = torch.load(folder / "last.ckpt", weights_only=True)
    assert state["epoch"] == 2
    package.collaborative_experts(weights_path=folder / "best.safetensors")
    settings = QUICK | {"epochs": 5}
    data, validation = captioned(16), captioned(16, seed=1)
    resumed = untrained().train(settings, data, validation, folder / "last.ckpt", folder=str(folder))
    whole = untrained().train(settings, data, validation, folder=str(tmp_path / "whole"))
    np.testing.assert_allclose(losses(resumed), losses(whole), rtol=0, atol=1e-6)


def test_patience_ends_a_run_that_does_not_get_better(tmp_path):
    data, noise = captioned(32), captioned(32, seed=3)
    noise = CaptionedVideos(noise.features, noise.targets[::-1].copy(), noise.tokens)
    result = untrained().train(QUICK, data, noise, folder=str(tmp_path), epochs=60, patience=3)
    assert len(result.history) < 60
    assert result.best_epoch == len(result.history) - 3
    best = max(result.history, key=lambda row: row["geometric_mean"])
    assert best["epoch"] == result.best_epoch


SEARCH = {"batch_size": 8, "learning_rate": 3e-3}


def test_validation_finds_the_steps_and_all_videos_are_trained_on_for_as_many(tmp_path):
    data = captioned(40)
    part, held_out = data[:30], data[30:]
    result = loop.train(*_arguments(SEARCH, tmp_path), part, held_out, refit_dataset=data)
    scores = [[row["geometric_mean"], row["video_to_text_geometric_mean"]] for row in result.history]
    best = scores.index(max(scores))  # among equals the one that is better from video to text, too
    assert result.best_step == result.history[best]["step"]
    last = result.history[-1]["step"]
    assert last >= 1.5 * result.best_step  # half as many again brought nothing better
    assert {row["learning_rate"] for row in result.history if row["step"] > 10} == {3e-3}
    notes = read_notes(result.weights_path)
    assert notes["refit"] == {"steps": round(1.5 * result.best_step), "members": 1}  # sound has two clusters
    assert notes["data"]["videos"] == 40
    assert notes["metrics"]["geometric_mean"] == pytest.approx(max(scores)[0], abs=1e-6)
    mean = load_file(result.weights_path)["standardise.motion.mean"]
    np.testing.assert_allclose(mean, data.features.experts["motion"].mean(0), rtol=1e-5)
    kept = loop.train(*_arguments(SEARCH | {"refit": False}, tmp_path / "kept"), part, held_out, refit_dataset=data)
    assert kept.history == _without_seconds(kept.history, result.history)
    notes = read_notes(kept.weights_path)
    assert notes["data"]["videos"] == 30
    assert "refit" not in notes


def _arguments(settings, folder):
    return replace(TRAINABLE, standardise=True), combine(settings, {"folder": str(folder)})


def _without_seconds(history, other):
    """`other` with the seconds of `history`."""
    return [row | {"seconds": mine["seconds"]} for row, mine in zip(other, history, strict=True)]


@pytest.mark.parametrize(("threads", "kept"), [(1, {5: None, 25: None}), (2, {45: [10, 10]})], indirect=["threads"])
def test_resumed_searches_and_refits_are_the_uninterrupted_ones(tmp_path, monkeypatch, threads, kept):
    """The search has 20 steps; then two members, on as many threads where there are some, make 5 in each epoch. `kept`
    are the steps of the members in the state that is resumed, by the step that was interrupted."""
    monkeypatch.setattr(run_folder, "STATE_SHARE", math.inf)
    monkeypatch.setattr(schedule, "MOST_STEPS", 20)
    monkeypatch.setattr(schedule, "MOST_EPOCHS", 1)
    monkeypatch.setattr(schedule, "VALIDATION_SHARE", 1)  # after each epoch
    data = captioned(40)
    datasets = data[:30], data[30:]
    config = CEConfig.from_dict(TRAINABLE.to_dict() | {"standardise": True})
    config = replace(config, experts=(config.experts[0], replace(config.experts[1], clusters=1)))

    def run(folder, *state):
        settings = combine(SEARCH | {"members": 2}, {"folder": str(tmp_path / folder)})
        return loop.train(config, settings, *datasets, *state, refit_dataset=data)

    whole = run("whole")
    assert 15 <= whole.best_step <= 20  # so that a member has from 22 to 30 steps
    linear = read_notes(whole.weights_path)["refit"]["linear"]
    parts = (linear["count"] > 0) + (linear["summed"] > 0)
    expected = replace(
        config, shared_dim=64 + parts * config.text.dim, summed_dim=config.text.dim * (linear["summed"] > 0)
    )
    assert read_config(whole.weights_path) == expected
    card = write_card(whole.weights_path.parent).read_text()
    assert "2 models, each of " in card
    assert linear["with"] >= linear["without"]
    assert ("with a linear model" if linear["count"] else "a linear model brought nothing") in card
    expected = load_file(whole.weights_path)
    for interrupted_at, steps in kept.items():
        folder = f"part {interrupted_at}"
        with monkeypatch.context() as patch:
            _interrupt_after(interrupted_at, patch)
            with pytest.raises(KeyboardInterrupt):
                run(folder)
        state = tmp_path / folder / "last.ckpt"
        members = torch.load(state, weights_only=True).get("members")
        assert (members and [member["step"] for member in members]) == steps
        resumed = run(folder, state)
        assert resumed.history == _without_seconds(resumed.history, whole.history)
        found = load_file(resumed.weights_path)
        for name, x in expected.items():
            assert torch.equal(found[name], x), (interrupted_at, name)


def test_a_refit_joins_sums_over_experts_where_they_were_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "MOST_STEPS", 4)
    choice = LinearChoice(0.25, 10.0, 2.0, summed=0.25)
    monkeypatch.setattr(loop, "choose_linear", lambda *_: (choice, {"without": 1.0, "with": 2.0}))
    data = captioned(40)
    config = CEConfig.from_dict(TRAINABLE.to_dict() | {"standardise": True})
    config = replace(config, experts=(config.experts[0], replace(config.experts[1], clusters=1)))
    settings = combine(SEARCH | {"members": 2}, {"folder": str(tmp_path)})
    result = loop.train(config, settings, data[:30], data[30:], refit_dataset=data)
    assert read_config(result.weights_path) == replace(config, shared_dim=2 * 32 + 2 * 10, summed_dim=10)
    assert read_notes(result.weights_path)["refit"]["linear"]["summed"] == 0.25
    op = package.CollaborativeExperts(weights_path=result.weights_path, device="cpu")
    video = op.encode_video(data.features.experts, data.features.ind)
    found = package.evaluate(op.encode_text(data.tokens.astype(np.float32)), video, data.targets).text_to_video
    assert found.r1 > 50


def _interrupt_after(count, patch):
    """From now on stop as Ctrl-C would after so many steps."""
    plain, steps = loop._Run._run_step, []

    def step(run, *batch):
        steps.append(run.step)
        if len(steps) > count:
            raise KeyboardInterrupt
        return plain(run, *batch)

    patch.setattr(loop._Run, "_run_step", step)


def test_every_video_is_used_in_each_pass(tmp_path, monkeypatch):
    seen = []
    plain = VideoTensors.batch

    def batch(self, videos, caption_rows):
        seen.append(videos)
        return plain(self, videos, caption_rows)

    monkeypatch.setattr(VideoTensors, "batch", batch)
    loop.train(*_arguments({"epochs": 2, "batch_size": 8}, tmp_path), captioned(21))
    assert [len(videos) for videos in seen] == [8] * 6
    for epoch in (seen[:3], seen[3:]):
        assert set(np.concatenate(epoch)) == set(range(21))
        assert all(len(set(videos)) == 8 for videos in epoch)


def test_the_schedule_of_steps():
    given = schedule.plan(TrainingConfig(steps=40, batch_size=8), 20, None)
    assert (given.steps, given.steps_per_epoch, given.found) == (40, 3, False)
    rates = [given.learning_rate(1.0, step) for step in range(40)]
    assert rates[0] < rates[1] == max(rates)
    assert rates[-1] < 0.01
    assert schedule.plan(TrainingConfig(epochs=5, batch_size=8), 20, (9, 9)).steps == 15
    assert schedule.plan(TrainingConfig(batch_size=8), 20, None).steps == schedule.DEFAULT_STEPS
    found = schedule.plan(TrainingConfig(batch_size=256), 1000, (150, 1000))
    steps_per_round = found.epochs_per_round * found.steps_per_epoch
    cost = schedule.FORWARD_SHARE * (150 + 1000) / 2 / 256
    assert cost / steps_per_round <= schedule.VALIDATION_SHARE
    assert cost / (steps_per_round - found.steps_per_epoch) > schedule.VALIDATION_SHARE
    assert not found.is_over(step=3 * steps_per_round, best_step=steps_per_round)
    assert found.is_over(step=4 * steps_per_round, best_step=steps_per_round)
    assert not found.is_over(step=14 * steps_per_round, best_step=10 * steps_per_round)
    assert found.is_over(step=15 * steps_per_round, best_step=10 * steps_per_round)


def test_of_many_captions_some_are_evaluated(monkeypatch):
    data = VideoTensors(captioned(16), TRAINABLE, "data")
    model = Objective(TRAINABLE, TrainingConfig(), initial_state(TRAINABLE, seed=0)).model
    assert evaluate_model(model, data).text_to_video.queries == 32
    monkeypatch.setattr(validation, "MOST_CAPTIONS", 10)
    found = evaluate_model(model, data)
    assert found.text_to_video.queries == 10
    assert found.video_to_text.queries == len(set(data.targets[np.linspace(0, 31, 10).round().astype(int)]))


def test_the_callers_data_is_not_touched(tmp_path):
    data = captioned(24, missing=0.3)
    before = [data.features.experts["motion"].copy(), data.tokens.copy(), data.targets.copy()]
    before += [x.copy() for x in data.features.experts["sound"] if x is not None]
    for x in (data.features.experts["motion"], data.tokens, data.targets):
        x.flags.writeable = False
    untrained().train(QUICK, data, data, folder=str(tmp_path))
    after = [data.features.experts["motion"], data.tokens, data.targets]
    after += [x for x in data.features.experts["sound"] if x is not None]
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)


def test_gradients_reach_every_parameter_and_no_input(tmp_path):
    config = CEConfig.from_dict(TRAINABLE.to_dict() | {"text": {"dim": 10, "clusters": 2, "ghost_clusters": 1}})
    objective = Objective(config, TrainingConfig(feature_dropout=0), initial_state(config, seed=0))
    data = VideoTensors(captioned(16), TRAINABLE, "data")
    features, available, tokens = data.batch(np.arange(16), np.arange(0, 32, 2))
    copies = {name: x.clone() for name, x in features.items()}
    objective(features, available, tokens).backward()
    assert [name for name, x in objective.named_parameters() if x.grad is None or not x.grad.abs().sum()] == []
    for name, x in features.items():
        assert x.grad is None
        assert torch.equal(x, copies[name])


@pytest.mark.parametrize(
    "plain", [GatedEmbeddingUnit(6, 8, True), MimicCEGatedEmbeddingUnit(6, 6, False), ReduceDim(6, 8)]
)
def test_units_have_the_values_and_gradients_of_cenets(plain):
    plain = plain.double()
    found = []
    for unit in (plain, _Unit(deepcopy(plain)).train()):
        x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = unit(x)
        (y * torch.arange(y.numel()).view_as(y)).sum().backward()
        found.append([y, x.grad, *(parameter.grad for parameter in unit.parameters() if parameter.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    zero = [torch.zeros(1, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    (_Normalise.apply(zero[0]).sum() + torch.nn.functional.normalize(zero[1]).sum()).backward()
    torch.testing.assert_close(zero[0].grad, zero[1].grad)


def test_a_missing_expert_gets_no_gradient_from_what_stands_there():
    """As at inference: nothing that stands in a missing row may change the loss."""
    objective = Objective(
        TRAINABLE, TrainingConfig(expert_dropout=0, feature_dropout=0), initial_state(TRAINABLE, seed=0)
    )
    data = VideoTensors(captioned(16, missing=0.4), TRAINABLE, "data")
    features, available, tokens = data.batch(np.arange(16), np.arange(0, 32, 2))
    features = {name: x.clone().requires_grad_() for name, x in features.items()}
    objective.eval()(features, available, tokens).backward()
    for m, x in enumerate(features.values()):
        there = x.grad.flatten(1).abs().sum(1) > 0
        assert torch.equal(there, available[:, m])


DEVICES = """
import sys
sys.path.insert(0, {tests!r})
from helpers import QUICK, captioned, untrained

op = untrained()
result = op.train(QUICK, captioned(64), captioned(16, seed=1), folder={folder!r}, epochs=30, devices=2, patience=4)
figures = result.evaluation.text_to_video.r10, len(result.history), result.best_epoch
sys.stdout.write("R@10 {{}} {{}} {{}}\\n".format(*figures))  # at once: the other process writes, too
"""


def test_two_processes_share_a_batch(root, tmp_path):
    script = tmp_path / "devices.py"
    script.write_text(DEVICES.format(tests=str(root / "tests"), folder=str(tmp_path / "run")))
    process = run_script(script)
    assert process.wait(300) == 0, process.stderr.read()
    figures = [line for line in process.stdout.read().splitlines() if line.startswith("R@10")]
    assert len(figures) == 2  # one of each process, with the same weights
    assert figures[0] == figures[1]
    assert float(figures[0].split()[1]) > 90
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + int(figures[0].split()[2])


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epoch": 3}, ValueError, "training: unknown key 'epoch'; did you mean 'epochs'"),
        ({"loss": "triplet"}, ValueError, "training: loss: expected one of 'infonce', 'max_margin', got 'triplet'"),
        ({"precision": "int8"}, ValueError, "training: precision: expected one of 'float32', 'bfloat16', 'float16'"),
        ({"precision": "float16"}, ValueError, "precision: 'float16' is not for cpu; use 'bfloat16' or 'float32'"),
        ({"epochs": 0}, ValueError, "training: epochs: expected at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "training: epochs: expected an integer, got 1.5"),
        ({"steps": 5}, ValueError, "training: expected steps or epochs, got both, 5 and 3"),
        ({"refit": 1}, TypeError, "training: refit: expected True or False, got 1"),
        ({"seed": True}, TypeError, "training: seed: expected an integer, got True"),
        ({"expert_dropout": 1.0}, ValueError, "training: expert_dropout: expected at least 0 and below 1, got 1.0"),
        ({"learning_rate": -1}, ValueError, "training: learning_rate: expected at least 1e-12, got -1"),
        ({"learning_rate": "fast"}, TypeError, "training: learning_rate: expected a number, got 'fast'"),
        ({"batch_size": 1}, ValueError, "training: batch_size: expected at least 2 and a multiple of 1 devices, got 1"),
        ({"batch_size": 9, "devices": 2}, ValueError, "expected at least 2 and a multiple of 2 devices, got 9"),
        ({"learning_rate": 1e30}, ValueError, r"training: the loss is nan in epoch 1; lower learning_rate"),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, error, message):
    op = untrained()
    identity = op.identity
    with pytest.raises(error, match=message):
        op.train(QUICK | {"folder": str(tmp_path)}, captioned(), **settings)
    assert op.identity == identity
    assert not op.pretrained


def _without(data, name):
    ind = data.features.ind | {name: np.zeros(len(data), dtype=np.int64)}
    return CaptionedVideos(Features(data.features.ids, data.features.experts, ind), data.targets, data.tokens)


def _with_token(data, row, value):
    tokens = np.array(data.tokens)
    tokens[row, 1, 2] = value
    return CaptionedVideos(data.features, data.targets, tokens)


def test_settings_of_numpy_become_pythons():
    settings = TrainingConfig(epochs=np.int64(3), seed=np.uint8(7), learning_rate=np.float32(0.5))
    assert (type(settings.epochs), type(settings.seed), type(settings.learning_rate)) == (int, int, float)
    with pytest.raises(TypeError, match=r"training: epochs: expected an integer, got 2\.0"):
        TrainingConfig(epochs=np.float64(2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda data: _without(data, "sound"), ValueError, "expert 'sound' is missing in every training video"),
        (lambda data: data.features, TypeError, "train_dataset: expected CaptionedVideos, got Features"),
        (
            lambda data: CaptionedVideos(data.features, data.targets, data.tokens[:, :, :9]),
            ValueError,
            "train_dataset: expected tokens of size 10, got 9",
        ),
        (
            lambda data: _with_token(data, row=37, value=np.nan),
            ValueError,
            "train_dataset: text, row 37: expected finite token embeddings, got NaN or Inf",
        ),
        (
            lambda data: _with_token(data, row=3, value=np.inf),
            ValueError,
            "train_dataset: text, row 3: expected finite token embeddings",
        ),
    ],
)
def test_data_that_is_refused(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        untrained().train(QUICK, change(captioned()), folder=str(tmp_path))


def test_one_side_alone_does_not_train(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        op = package.CollaborativeExperts(TRAINABLE, device="cpu", modality="text")
    with pytest.raises(ValueError, match="an operator of both sides trains, this one holds the text side only"):
        op.train(QUICK, captioned(), folder=str(tmp_path))
    with pytest.raises(TypeError, match="training_config: expected a TrainingConfig or a dict, got str"):
        untrained().train("run.toml", captioned())


def test_checkpoints_that_are_refused(tmp_path):
    data, folder = captioned(16), tmp_path / "run"
    untrained().train(QUICK, data, folder=str(folder), epochs=1)
    checkpoint = folder / "last.ckpt"
    cases = [
        (
            {"seed": 1, "epochs": 9},
            data,
            "got one of another run: seed is 1, was 0$",
        ),
        ({}, CaptionedVideos(data.features, data.targets, data.tokens[::-1].copy()), "training data is 16 videos"),
        ({}, captioned(16, seed=1), "training data is 16 videos with 32 captions .*, was 16 videos with 32 captions"),
    ]
    for settings, dataset, message in cases:
        with pytest.raises(ValueError, match=message):
            untrained().train(QUICK, dataset, None, checkpoint, folder=str(folder), **settings)
    with pytest.raises(FileNotFoundError, match="resume_checkpoint_path: there is no file"):
        untrained().train(QUICK, data, None, folder / "none.ckpt", folder=str(folder))
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a complete training checkpoint"):
        untrained().train(QUICK, data, None, checkpoint, folder=str(folder))


def test_without_the_library_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ImportError, match=r"collaborative_experts\[training\]"):
        untrained().train(QUICK, captioned(), folder=str(tmp_path))


def test_settings_as_object_dict_and_words(tmp_path):
    settings = TrainingConfig(**QUICK, folder=str(tmp_path))
    assert combine(settings, {"seed": 3}) == TrainingConfig(**QUICK, folder=str(tmp_path), seed=3)
    assert combine(None, {}) == TrainingConfig()
    json.dumps(settings.__dict__)


def test_experts_with_a_dot_resume(tmp_path):
    data = captioned(16)
    x, ind = data.features.experts["motion"], data.features.ind["motion"]
    data = CaptionedVideos(Features(data.features.ids, {"i3d.i3d.0": x}, {"i3d.i3d.0": ind}), data.targets, data.tokens)
    config = CEConfig.from_dict(TRAINABLE.to_dict() | {"experts": {"i3d.i3d.0": 12}})
    state = torch.get_rng_state()
    untrained(config).train(QUICK, data, folder=str(tmp_path / "a"))
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers go on as they were
    result = untrained(config).train(QUICK, data, None, tmp_path / "a" / "last.ckpt", folder=str(tmp_path / "a"))
    assert len(result.history) == 3
