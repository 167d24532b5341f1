"""Runs described by a file: from feature files and captions to weights and figures, by the commands."""

import csv
import json
import math
import os
import re
import tomllib
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import collaborative_experts as package
from collaborative_experts.__main__ import main
from collaborative_experts.apps import init
from collaborative_experts.apps import run_file as run
from collaborative_experts.apps import train as apps_train
from collaborative_experts.apps.describe import config_of, describe, show
from collaborative_experts.apps.evaluate import ablate, evaluate_run
from collaborative_experts.apps.init import choose_splits
from collaborative_experts.apps.report_run import encode_captions
from collaborative_experts.apps.train import train_run
from collaborative_experts.features.features import Features
from collaborative_experts.model.checkpoint import read_config, read_notes
from collaborative_experts.training import loop as training
from collaborative_experts.training import run_folder, schedule
from collaborative_experts.training.captions import Captions
from collaborative_experts.training.encoder import BUNDLED_MODEL
from collaborative_experts.training.settings import TrainingConfig
from collaborative_experts.training.teachers import teacher_scores
from helpers import TRAINABLE, captioned, largest_difference, untrained

TRECVID = Path(os.environ.get("TRECVID_VTT") or Path(__file__).resolve().parents[3] / "shared/data/trecvid-vtt")

RUN = """
features = "features"
captions = "captions.csv"
validation = 0.25

[model]
shared_dim = 32

[training]
epochs = 12
batch_size = 8
learning_rate = 3e-3
"""


class Numbers:
    """An encoder for sentences of numbers: each word is a vector of its digits."""

    dim = 10

    def __init__(self, model=None):
        self.name = model or "numbers"

    def __call__(self, sentences):
        return [np.array([self._digits(word) for word in text.split()], dtype=np.float32) for text in sentences]

    def _digits(self, word):
        return [float(x) for x in word.split(",")] if "," in word else [float(len(word))] * self.dim


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with features in two formats, captions of 48 training and 16 test videos, and a run file."""
    monkeypatch.setattr(run, "SentenceEncoder", Numbers)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = captioned(64, missing=0.2)
    files = tmp_path / "features"
    files.mkdir()
    np.savez(files / "motion.npz", video_id=data.features.ids, motion=data.features.experts["motion"])
    sound = zip(data.features.ids, data.features.experts["sound"], strict=True)
    np.savez(files / "sound.npz", **{name: x for name, x in sound if x is not None})
    with (tmp_path / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video_id", "split", "caption"])
        for target, tokens in zip(data.targets, data.tokens, strict=True):
            words = " ".join(",".join(f"{x:.3f}" for x in token) for token in tokens)
            writer.writerow([data.features.ids[target], "train" if target < 48 else "test", words])
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    return tmp_path


def test_train_and_evaluate(folder, capsys):
    assert main(["train", str(folder / "run.toml")]) == 0
    printed = capsys.readouterr().out
    assert "text to video" in printed
    assert re.search(
        r"^model: .+; embeddings: motion \d+, sound \d+; words: \d+ -> \d clusters?$", printed, re.MULTILINE
    )
    assert f"{folder / 'run' / 'best.safetensors'}" in printed
    report = folder / "report.html"
    assert main(["evaluate", str(folder / "run.toml"), "--html", str(report), "--queries", "6"]) == 0
    page = report.read_text("utf-8")
    assert page.count("<section class='query'>") == 6
    assert page.count("the right one") >= 6
    printed = capsys.readouterr().out
    (folder / "run").rename(folder / "moved")  # the weights and their bank are all that is needed
    assert main(["evaluate", str(folder / "run.toml"), "--weights", str(folder / "moved" / "best.safetensors")]) == 0
    assert capsys.readouterr().out == printed
    names = ["all experts", "all, with bank", "only motion", "only sound", "without motion", "without sound"]
    rows = printed.splitlines()[2:-1]
    assert [row[: max(map(len, names))].rstrip() for row in rows] == names
    assert printed.splitlines()[-1] == "32 captions, 16 videos; recalls in percent"
    written = json.loads((folder / "run" / "evaluation.json").read_text())
    assert list(written) == names
    assert written["all experts"]["text_to_video"]["queries"] == 32
    assert written["all experts"]["text_to_video"]["r5"] > 60
    assert written["without motion"] == written["only sound"]
    for row, figures in zip(rows, written.values(), strict=True):
        expected = [figures[way][key] for way in figures for key in ("r1", "r5", "r10", "median_rank")]
        assert [float(x) for x in row.split()[-8:]] == pytest.approx(expected, abs=0.051)
    assert written["all experts"]["text_to_video"]["r1"] >= written["only motion"]["text_to_video"]["r1"]


def split_training(path):
    content = run.Run.read(path)
    return content.embed(content.read_training())[:2]


def test_the_model_card_says_what_the_run_found(folder):
    path = folder / "run.toml"
    train_run(path)
    card = (folder / "run" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: collaborative-experts\n")
    assert "36 videos with 72 captions" in card
    assert "| sound | 6 | sequence | " in card
    assert "Sentence encoder: numbers. Loss: infonce." in card
    assert "| validation videos, text to video | " in card
    found = evaluate_run(path)
    card = (folder / "run" / "README.md").read_text()
    assert "validation videos" not in card
    printed = show(describe(folder / "run" / "best.safetensors", config_of(folder / "run" / "best.safetensors", None)))
    assert "\nbank        72 captions\n" in printed
    for name, result in found.items():
        for way, x in (("text to video", result.text_to_video), ("video to text", result.video_to_text)):
            assert f"\nfigures     {name}, {way}: R@1 {x.r1:.1f}, R@5 {x.r5:.1f}, " in printed
            assert f"| {name}, {way} | {x.r1:.1f} | {x.r5:.1f} | {x.r10:.1f} | {x.median_rank:.1f} |" in card


def test_validation_videos_are_held_out_by_the_seed(folder):
    one, held_out = split_training(folder / "run.toml")
    assert (len(one), len(held_out)) == (36, 12)
    assert not set(one.features.ids) & set(held_out.features.ids)
    again, _ = split_training(folder / "run.toml")
    assert again.features.ids == one.features.ids
    whole = run.Run.read(folder / "run.toml").dataset("train")
    row = whole.features.ids.index(held_out.features.ids[3])
    np.testing.assert_array_equal(held_out.tokens[held_out.targets == 3], whole.tokens[whole.targets == row])


@pytest.mark.parametrize(("validation", "sizes"), [("0", (48, None)), ('"test"', (48, 16))])
def test_validation_by_split_or_none(folder, validation, sizes):
    path = folder / "run.toml"
    path.write_text(RUN.replace("validation = 0.25", f"validation = {validation}"))
    parts = split_training(path)
    assert tuple(part and len(part) for part in parts) == sizes


def test_resume_by_the_command(folder, capsys):
    path = folder / "run.toml"
    path.write_text(RUN.replace("epochs = 12", "epochs = 2"))
    assert main(["train", str(path)]) == 0
    path.write_text(RUN.replace("epochs = 12", "epochs = 3"))
    assert main(["train", str(path), "--resume"]) == 0
    assert len((folder / "run" / "metrics.csv").read_text().splitlines()) == 1 + 3
    assert len(list((folder / "cache").rglob("*.safetensors"))) == 1  # embedded once
    capsys.readouterr()
    assert main(["train", str(path)]) == 1  # nothing is overwritten by mistake
    assert "holds a run already; continue it with --resume, or replace it with --overwrite" in capsys.readouterr().err
    assert main(["train", str(path), "--folder", str(path)]) == 1
    assert f"error: {path}: expected a folder for the run, got a file\n" in capsys.readouterr().err
    (folder / "run" / "notes.txt").write_text("mine")
    assert main(["train", str(path), "--overwrite"]) == 0
    assert len((folder / "run" / "metrics.csv").read_text().splitlines()) == 1 + 3
    assert (folder / "run" / "notes.txt").read_text() == "mine"
    assert main(["train", str(path), "--resume", "--overwrite"]) == 1
    assert "expected --resume or --overwrite, got both" in capsys.readouterr().err
    (folder / "run" / "last.ckpt").unlink()
    assert main(["train", str(path), "--resume"]) == 1
    assert "last.ckpt: there is no run to continue; train without --resume" in capsys.readouterr().err


def test_a_student_of_teachers_resumes_to_the_same_weights(folder, monkeypatch):
    path = folder / "run.toml"
    with_teachers = 'teachers = ["numbers", "other"]\ndrop_captions = 0.1\n'
    path.write_text(with_teachers + RUN.replace("epochs = 12", "epochs = 3"))
    whole = package.model.checkpoint.read_weights(train_run(path, folder=folder / "whole").weights_path)
    teachers = [folder / "whole" / "teachers" / name / "best.safetensors" for name in ("1", "2")]
    assert [read_notes(teacher)["encoder"]["name"] for teacher in teachers] == ["numbers", "other"]
    assert read_notes(teachers[0])["data"]["captions"] == 72
    notes, card = read_notes(folder / "whole" / "best.safetensors"), (folder / "whole" / "README.md").read_text()
    assert notes["data"]["captions"] == 65  # 0.1 of 72 are left out
    assert [teacher["encoder"] for teacher in notes["teachers"]] == ["numbers", "other"]
    for teacher, path_of in zip(notes["teachers"], teachers, strict=True):
        assert teacher["r1"] == read_notes(path_of)["metrics"]["r1"]
        assert f"\n- {teacher['encoder']}: R@1 {teacher['r1']:.1f}, R@5 " in card
    found = evaluate_run(path, folder=folder / "whole")
    assert found["teachers' mean"].text_to_video.r5 > 20
    assert found["teachers, with bank"].video_to_text == found["teachers' mean"].video_to_text

    step, steps = training._Run._run_step, []

    def interrupted(self, *batch):
        steps.append(1)
        if len(steps) == 2 * 15 + 8:  # in the second epoch of the student
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(training._Run, "_run_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_run(path)
    monkeypatch.setattr(training._Run, "_run_step", step)
    again = package.model.checkpoint.read_weights(train_run(path, resume=True).weights_path)
    for name, x in dict(whole).items():
        torch.testing.assert_close(x, again[name], rtol=0, atol=0)
    path.write_text(RUN.replace("epochs = 12", "epochs = 3"))
    alone = package.model.checkpoint.read_weights(train_run(path, folder=folder / "alone").weights_path)
    assert any((x != alone[name]).any() for name, x in dict(whole).items())


def test_a_students_search_is_taught_by_teachers_that_have_not_seen_its_validation(folder, monkeypatch):
    """What the teachers know of held-out videos reaches a student, by whichever videos it learns from them."""
    monkeypatch.setattr(schedule, "MOST_STEPS", 10)
    monkeypatch.setattr(schedule, "MOST_EPOCHS", 1)
    path, taught = folder / "run.toml", []
    searching = RUN.replace("epochs = 12", "members = 1")
    path.write_text('teachers = ["numbers"]\n' + searching)
    plain = apps_train.train

    def recorded(*given, **named):
        taught.append((given[2].teacher, named["refit_dataset"].teacher))
        return plain(*given, **named)

    monkeypatch.setattr(apps_train, "train", recorded)
    train_run(path)
    path.write_text(searching)
    content = run.Run.read(path)
    videos = content.read_training()
    whole = content.embed_all(videos)
    for scores, refit, rows in zip(taught[1], ("false", "true"), (videos.rows, slice(None)), strict=True):
        found = train_run(path, changes=[f"training.refit={refit}"], folder=folder / refit)
        expected = replace(whole, teacher=teacher_scores([(found.weights_path, whole)]))[rows]
        np.testing.assert_array_equal(scores, expected.teacher)


def test_weights_know_their_encoder(folder):
    """Sentences are embedded by the encoder of the training, and by no other."""
    result = train_run(folder / "run.toml")
    op = package.CollaborativeExperts(weights_path=result.weights_path, device="cpu")
    sentence = "1,2,3,4,5,6,7,8,9,0 0,1,0,1,0,1,0,1,0,1"
    expected = op.encode_text(Numbers()([sentence]))[0]  # a list, which is padded as in training
    found = op.encode_sentences(sentence, Numbers())
    np.testing.assert_array_equal(found.embds["motion"], expected.embds["motion"])
    other = type("Shifted", (Numbers,), {"_digits": lambda self, word: [1.0] * 10})()
    with pytest.raises(ValueError, match="expected the token embeddings of numbers, got different ones"):
        op.encode_sentences(sentence, other)
    with pytest.raises(ValueError, match="the weights need numbers; pass encoder="):
        package.CollaborativeExperts(weights_path=result.weights_path, device="cpu").encode_sentences(sentence)


def test_ctrl_c_says_how_to_go_on(folder, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Run, "_run_step", interrupt)
    assert main(["train", str(folder / "run.toml")]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")  # before there was a state
    monkeypatch.undo()
    monkeypatch.setattr(run_folder, "STATE_SHARE", math.inf)  # after each epoch
    run_round, rounds = training._Run.run_round, iter([True])

    def run_one(self):
        return run_round(self) if next(rounds, False) else interrupt()

    monkeypatch.setattr(training._Run, "run_round", run_one)
    assert main(["train", str(folder / "run.toml")]) == 130
    assert capsys.readouterr().err.endswith("interrupted; continue with --resume\n")


def test_captions_of_videos_without_features_are_left_out(folder):
    with (folder / "captions.csv").open("a", encoding="utf-8") as file:
        file.write('nobody,test,"1,2,3,4,5,6,7,8,9,0"\n')
    with pytest.warns(UserWarning, match="1 of their 17 videos have no features, such as 'nobody'; they are left out"):
        assert len(run.Run.read(folder / "run.toml").dataset("test")) == 16


def test_ids_that_nothing_has(folder, capsys):
    text = (folder / "captions.csv").read_text().replace("video", "clip ").replace("clip _id", "video_id")
    (folder / "captions.csv").write_text(text)
    assert main(["train", str(folder / "run.toml")]) == 1
    error = capsys.readouterr().err
    assert "the ids asked for and " in error
    assert "share no ids, such as 'clip 0' in the first and 'video0' in the second" in error


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("validation = 0.25", "validate = 0.25", "unknown key 'validate'; did you mean 'validation'?"),
        ('features = "features"\n', "", "expected the key 'features', got"),
        (
            "validation = 0.25",
            "validation = 1.5",
            "validation: expected a split, or a share from 0 to below 1, got 1.5",
        ),
        ("validation = 0.25", "epochs = 3", "unknown key 'epochs'; did you mean 'training.epochs'?"),
        ("validation = 0.25", "share_dim = 3", "unknown key 'share_dim'; did you mean 'model.shared_dim'?"),
        ("epochs = 12", "epoch = 12", "run.toml: training: unknown key 'epoch'"),
        ("shared_dim = 32", "share_dim = 32", "unknown key 'share_dim'"),
        ("captions.csv", "none.csv", "captions: there is no file"),
        ('"features"', '"none"', "features: there is no file or folder"),
        ("[model]", "[model", "expected TOML"),
        ("epochs = 12", f"epochs = {'9' * 5000}", "run.toml: expected TOML: "),
        ("epochs = 12", f"epochs = {'[' * 5000}", "run.toml: expected TOML: "),
        ('"captions.csv"', "5", "run.toml: captions: expected text, got 5"),
        ('"features"', "5", "run.toml: features: expected text or a table, got 5"),
        ('features = "features"', "features = {motion = 1}", "run.toml: features: expected text, got {'motion': 1}"),
        ("validation = 0.25", "validation = true", "validation: expected text or a number or a fraction, got True"),
        ("shared_dim = 32", "text = 5", "run.toml: model: text: expected a table, got 5"),
        ("shared_dim = 32", "experts = 3", "run.toml: model: experts: expected a table, got 3"),
        ("shared_dim = 32", 'text = {max_tokens = "x"}', "max_tokens: expected a number, got 'x'"),
        ("validation = 0.25", "train = []", "expected the name of a split, got an empty list"),
        ("validation = 0.25", "train = [1]", "run.toml: train: expected text, got [1]"),
    ],
)
def test_what_is_wrong_with_a_run_is_one_line(folder, capsys, old, new, message):
    path = folder / "run.toml"
    assert old in RUN
    path.write_text(RUN.replace(old, new))
    assert main(["train", str(path)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("validation = 0.25", 'test = "tset"', "no caption is of split 'tset'; did you mean 'test'?"),
        ("validation = 0.25", 'train = ["train", "extra"]', "no caption is of split 'extra'; "),
        ("validation = 0.25", 'validation = "train"', "expected a split that is not trained on, got 'train'"),
        ("shared_dim = 32", "use_ce = 5", "use_ce"),
        ("shared_dim = 32", "experts = {motoin = {dim = 3}}", "no features of 'motoin'; did you mean 'motion'?"),
        ("shared_dim = 32", "experts = {motion = {diim = 3}}", "unknown key 'diim'; did you mean 'dim'?"),
        ("shared_dim = 32", "text = {clustres = 2}", "unknown key 'clustres'; did you mean 'clusters'?"),
        ("shared_dim = 32", "text = {dim = 2}", "model: text: dim: the encoder gives it; leave it out"),
        ("epochs = 12", "devices = 40\nbatch_size = 40 #", "expected at least 40 training videos, got 36"),
        ("epochs = 12", 'precision = "float16"', "precision: 'float16' is not for cpu"),
        ('"features"', '{motion = "features/none.npz"}', "none.npz"),
    ],
)
def test_errors_come_before_the_encoder(folder, capsys, monkeypatch, old, new, message):
    class Never(Numbers):
        def __init__(self, model=None):
            raise AssertionError("the encoder was loaded")

    monkeypatch.setattr(run, "SentenceEncoder", Never)
    monkeypatch.setattr("collaborative_experts.apps.train.resolve_device", lambda _: torch.device("cpu"))
    path = folder / "run.toml"
    path.write_text(RUN.replace("batch_size = 8\n", "").replace(old, new))
    assert main(["train", str(path)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [message in line for line in errors if line.startswith("error: ")] == [True], errors


def test_videos_of_two_splits_are_warned_of(folder):
    with (folder / "captions.csv").open("a", encoding="utf-8") as file:
        file.write('video0,test,"1,2,3,4,5,6,7,8,9,0"\n')
    path = folder / "run.toml"
    path.write_text('test = "test"\n' + RUN)
    with pytest.warns(UserWarning, match="test: 1 of its videos, such as 'video0', are trained on"):
        run.Run.read(path).read_training()
    path.write_text(RUN.replace("epochs = 12", "epochs = 1"))
    train_run(path)
    with pytest.warns(UserWarning, match="test: 1 of its videos, such as 'video0', are trained on"):
        evaluate_run(path)
    with pytest.warns(UserWarning, match="test: 48 of its videos, such as 'video0', are trained on"):
        evaluate_run(path, changes=["test=train"])
    with (folder / "captions.csv").open("a", encoding="utf-8") as file:
        file.write("video1,unfinished,\n")  # a split that is not asked for may be so
    with pytest.warns(UserWarning, match="test: 1 of its videos"):
        evaluate_run(path)


def test_shares_of_few_videos(folder):
    read = partial(run.Run.read, folder / "run.toml")
    with pytest.warns(UserWarning, match=r"validation: 0\.01 of 48 videos is none; nothing is validated"):
        assert read(["validation=0.01"]).read_training().held_out is None
    with pytest.raises(ValueError, match=r"validation: 0\.999 leaves none of 48 videos"):
        read(["validation=0.999"]).read_training()


def test_changes_on_the_command_line(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["run.toml", "--folder", "second", "--set", "training.epochs=1", "--set", "model.shared_dim=16"]
    assert main(["train", *arguments, "--set", "encoder=digits"]) == 0
    assert "second/best.safetensors" in capsys.readouterr().out
    assert not (folder / "run").exists()
    config = read_config("second/best.safetensors")
    assert config.shared_dim == 16
    assert read_notes("second/best.safetensors")["encoder"]["name"] == "digits"
    assert main(["evaluate", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((folder / "second" / "evaluation.json").read_text())
    assert main(["train", "run.toml", "--set", "training.epoch=1"]) == 1
    assert "training: unknown key 'epoch'; did you mean 'epochs'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "content"),
    [
        ("training.epochs=5", {"training": {"epochs": 5}}),
        ("encoder=a/b", {"encoder": "a/b"}),
        ('encoder="a/b"', {"encoder": "a/b"}),
        ("train=['a', 'b']", {"train": ["a", "b"]}),
        ('model.experts."i3d.i3d.0".dim = 7', {"model": {"experts": {"i3d.i3d.0": {"dim": 7}}}}),
        ("a==b", {"a": "=b"}),
    ],
)
def test_parse_change(change, content):
    assert run.parse_change(change) == content


@pytest.mark.parametrize("change", ["epochs", "=5", "a..b=5", "a=1\nb=2"])
def test_a_change_that_is_none(change):
    with pytest.raises(ValueError, match="--set: expected KEY=VALUE, such as "):
        run.parse_change(change)


def test_evaluate_refuses_another_encoder(folder, capsys):
    path = folder / "run.toml"
    path.write_text(RUN.replace("epochs = 12", "epochs = 1"))
    assert main(["train", str(path)]) == 0

    class Others(Numbers):
        def _digits(self, word):
            return [1.0] * self.dim

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "SentenceEncoder", Others)
        assert main(["evaluate", str(path)]) == 1
    assert "expected the token embeddings of numbers, got different ones" in capsys.readouterr().err


def test_init_writes_a_run_file(folder, capsys, monkeypatch):
    (folder / "run.toml").unlink()
    (folder / "runs").mkdir()
    monkeypatch.chdir(folder)
    assert main(["init", "features", "captions.csv", "--to", "runs/first.toml"]) == 0
    written = (folder / "runs" / "first.toml").read_text()
    found = run.Run.read("runs/first.toml")
    assert (found.features, found.captions) == (Path("runs/../features"), Path("runs/../captions.csv"))
    assert (found.train, found.validation, found.test) == ("train", 0.15, "test")
    assert "#   train: 48 videos, 96 captions" in written
    assert re.search(r"^# Features of \d+ captioned videos:$", written, flags=re.MULTILINE)
    assert re.search(r"#   motion +\(12,\)", written)
    assert len(found.read_training().rows) == 41
    assert main(["init", "features", "captions.csv", "--to", "runs/first.toml"]) == 1
    assert "runs/first.toml: exists already" in capsys.readouterr().err
    monkeypatch.setattr("collaborative_experts.apps.init.SAMPLE", 5)
    assert main(["init", "features", "captions.csv", "--to", "sampled.toml"]) == 0
    assert re.search(r"^# Features of the first 5 of \d\d captioned videos:$", Path("sampled.toml").read_text(), re.M)
    # Every setting is there, with its default, if it has one.
    (folder / "runs" / "first.toml").write_text(re.sub(r"^# (?=[a-z_]+ = )", "", written, flags=re.MULTILINE))
    every = run.Run.read("runs/first.toml")
    assert every.training == found.training
    assert every.model == run.MODEL | {"text": run.TEXT}
    assert every.encoder == BUNDLED_MODEL
    for setting in fields(TrainingConfig):
        assert setting.name == "folder" or re.search(rf"^# +{setting.name} = .+  # \S", written, flags=re.MULTILINE)
    assert re.search(r"^# +steps = .+  # the number of steps$", written, flags=re.MULTILINE)  # whole sentences
    assert re.search(r"^# +members = .+ joins to one whose .+ \(`linear`\)$", written, flags=re.MULTILINE)


def test_init_takes_names_with_line_breaks():
    """A split's name is data: it begins no line of the run file."""
    captions = Captions(("a",), ("a dog",))
    sample = Features(("a",), {"motion": np.ones((1, 3))}, {"motion": np.ones(1)})
    for name in ('x\nfolder = "elsewhere"', "train\r\n[model]", "train\x7f\x00\u2028"):
        written = init._text("features", "captions\x7f.csv", {name: captions}, sample, 1)
        content = tomllib.loads(written)
        assert content["train"] == name
        assert set(content) == {"features", "captions", "train", "validation", "model", "training"}
        assert f"#   {init._one_line(name)}: 1 videos" in written


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["test", "train"], ("train", 0.15, "test")),
        (["train", "val", "testing"], ("train", "val", "testing")),
        (["all"], ("all", 0.15, None)),
    ],
)
def test_choose_splits(names, chosen):
    assert choose_splits(names) == chosen


def test_a_batch_larger_than_the_training_set_is_lowered(folder):
    path = folder / "run.toml"
    path.write_text(RUN.replace("batch_size = 8", "batch_size = 80").replace("epochs = 12", "epochs = 1"))
    with pytest.warns(UserWarning, match="batch_size 80 is lowered to 36, as there are 36 training videos"):
        assert train_run(path).best_epoch == 1


def test_a_run_file_with_a_byte_order_mark(folder):
    plain = run.Run.read(folder / "run.toml")
    (folder / "run.toml").write_text(RUN, encoding="utf-8-sig")
    assert run.Run.read(folder / "run.toml") == plain


def test_no_run_file(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "run.toml")]) == 1
    assert "there is no such run file" in capsys.readouterr().err


def test_texts_that_are_averaged_are_evaluated():
    """Without their padding."""
    op, data = untrained(replace(TRAINABLE, text=package.TextConfig(dim=10, clusters=0))), captioned(8)
    data.tokens[::2, 2:] = 0
    expected = op.encode_text([x[x.any(1)] for x in data.tokens])
    assert largest_difference(encode_captions(op, data).embds, expected.embds) < 1e-6
    assert "only motion" in ablate(op, data)


def test_one_expert_has_nothing_to_leave_out():
    data = captioned(8)
    config = {"experts": {"motion": 12}, "text": {"dim": 10, "clusters": 1, "ghost_clusters": 0}, "use_ce": ""}
    features = package.Features(
        data.features.ids, {"motion": data.features.experts["motion"]}, {"motion": data.features.ind["motion"]}
    )
    dataset = package.CaptionedVideos(features, data.targets, data.tokens)
    assert list(ablate(untrained(package.CEConfig.from_dict(config)), dataset)) == ["all experts"]


@pytest.mark.skipif(not TRECVID.is_dir(), reason="the TRECVID-VTT features are not here")
def test_on_real_features(tmp_path, monkeypatch):
    """A few epochs find far more than chance would (R@10 2%), among 500 unseen videos."""
    (tmp_path / "run.toml").write_text(f"""
features = "{TRECVID / "experts.npz"}"
captions = "{TRECVID / "captions.csv"}"
validation = 0
[model]
shared_dim = 256
[training]
epochs = 3
batch_size = 64
""")
    train_run(tmp_path / "run.toml")
    found = evaluate_run(tmp_path / "run.toml")
    assert found["all experts"].text_to_video.queries == 1790
    assert found["all experts"].text_to_video.r10 > 15
    assert found["all experts"].text_to_video.r10 > found["only audio"].text_to_video.r10 > 4
