"""Runs: folders to a dataset, through kills, damage and failing experts."""

import csv
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from helpers import flat_frames, tone, write_media
from warm_process import Process

pytest.importorskip("av")
pytest.importorskip("lance")
pytest.importorskip("cv2")

from collaborative_experts import config_for, iter_features, read_features
from collaborative_experts.apps.extract import EXIT_PROBLEMS, add_arguments, extract, parse_settings, run_command
from collaborative_experts.base.files import local_path
from collaborative_experts.features.extract import run
from collaborative_experts.features.extract.clips import Clips
from collaborative_experts.features.extract.dataset import open_dataset
from collaborative_experts.features.extract.expert import Extracted, make_extractors
from collaborative_experts.features.extract.media import View
from collaborative_experts.features.extract.run import extract_features, find_media
from collaborative_experts.features.extract.still import make_still


class Level:
    """The mean grey level: an expert that is easy to check."""

    name, dim, sequence, reads_sound, version, views = "level", 2, False, False, 1, (View(2, 48, False),)

    def __init__(self, fail_on=(), weights="w1"):
        self.fail_on, self.weights, self.batches = fail_on, weights, []

    def __call__(self, clips):
        self.batches.append([clip.id for clip in clips])
        if any(clip.id in self.fail_on for clip in clips):
            raise ValueError("a bad clip")
        return [self._one(clip) for clip in clips]

    def _one(self, clip):
        images = clip.frames[self.views[0]].images
        return None if not len(images) else np.array([images.mean(), len(images)], dtype=np.float64)


class Words(Level):
    """An expert of words, as a sequence."""

    name, dim, sequence, reads_sound, views, reads_text = "words", 3, True, True, (), True
    labels = ("a", "b")

    def _one(self, clip):
        if clip.sound is None:
            return None
        return Extracted(np.arange(6).reshape(2, 3), text=f"said in {clip.id}", labels=("b", "a"), scores=(0.75, 0.25))


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    (folder / "below").mkdir(parents=True)
    write_media(folder / "a.mp4", flat_frames([50] * 20), sound=tone(2))
    write_media(folder / "b.mkv", flat_frames([100] * 40), codec="ffv1")
    write_media(folder / "below" / "c #1.mkv", flat_frames([150] * 10), codec="ffv1")
    write_media(folder / "d.wav", sound=tone(3))
    (folder / "notes.txt").write_text("not media")
    return folder


def rows(path):
    return open_dataset(path).to_table().to_pylist()


def cut_off(source, target):
    content = source.read_bytes()
    target.write_bytes(content[: len(content) * 2 // 3])


def problems(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def go(folder, to, *extractors, **choices):
    return extract_features(find_media(folder), to, extractors or [Level(), Words()], **choices)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_folder_to_a_dataset(media, tmp_path, workers, dtype):
    to = tmp_path / "features.lance"
    report = go(media, to, clips=Clips(2.0), workers=workers, dtype=dtype)
    assert (report.files, report.clips, report.skipped, report.problems) == (4, 6, 0, [])
    assert not (tmp_path / "features.errors.csv").exists()
    found = {row["id"]: row for row in rows(to)}
    assert set(found) == {
        "a.mp4#t=0.0,2.0",
        "b.mkv#t=0.0,2.0",
        "b.mkv#t=2.0,4.0",
        "below/c %231.mkv#t=0.0,1.0",
        "d.wav#t=0.0,2.0",
        "d.wav#t=2.0,3.0",
    }
    row = found["b.mkv#t=2.0,4.0"]
    assert (row["uri"], row["start_s"], row["end_s"]) == (str(media / "b.mkv"), 2.0, 4.0)
    assert row["level"] == [100, 4]
    assert row["words"] is row["words_text"] is None
    row = found["d.wav#t=2.0,3.0"]
    assert row["level"] is None
    assert row["words"] == [[0, 1, 2], [3, 4, 5]]
    assert row["words_text"] == "said in d.wav#t=2.0,3.0"
    assert (row["words_labels"], row["words_scores"]) == (["b", "a"], [0.75, 0.25])


def test_a_first_write_that_did_not_end(media, tmp_path):
    """Such as on a full disk: the next run makes the dataset."""
    to = tmp_path / "features.lance"
    (to / "_transactions").mkdir(parents=True)
    (to / "_transactions" / "0-1.txn").write_bytes(b"half")
    assert go(media, to).clips == len(rows(to)) > 0
    (tmp_path / "other.lance").mkdir()
    (tmp_path / "other.lance" / "notes.txt").write_text("something else")
    with pytest.raises(ValueError, match="expected a Lance dataset of features"):
        go(media, tmp_path / "other.lance")


def test_it_is_read_like_any_file_of_features(media, tmp_path):
    to = tmp_path / "features.lance"
    go(media, to, clips=Clips(2.0))
    (tmp_path / "features.errors.csv").write_text("file,clip,expert,reason\n")
    for files in (to, str(to), {"level": to, "words": to}, tmp_path / "below"):
        if files == tmp_path / "below":
            files.mkdir()
            (tmp_path / "features.errors.csv").rename(files / "features.errors.csv")
            to = to.rename(files / "features.lance")
        features = read_features(files)
        assert list(features.experts) == ["level", "words"]
        assert features.available.sum(axis=0).tolist() == [4, 3]
        assert features.experts["level"].dtype == np.float32
    ids = list(reversed(features.ids))
    again = read_features(to, [*ids, "stranger"])
    assert again.ids == (*ids, "stranger")
    assert np.array_equal(again.experts["level"][:-1], features.experts["level"][::-1], equal_nan=True)
    assert [len(part) for part in iter_features(to, batch_size=4)] == [4, 2]
    config = config_for(features, {"dim": 8})
    assert [(x.name, x.dim, x.variable) for x in config.experts] == [("level", 2, False), ("words", 3, True)]


class TestDamage:
    def test_others_go_on(self, media, tmp_path):
        (media / "empty.mp4").touch()
        (media / "text.mp4").write_text("hello")
        cut_off(media / "b.mkv", media / "e.mkv")
        to = tmp_path / "features.lance"
        report = go(media, to)
        assert {x.file for x in report.problems} == {"empty.mp4", "text.mp4", "e.mkv"}
        listed = {x["file"]: x["reason"] for x in problems(tmp_path / "features.errors.csv")}
        assert listed["empty.mp4"] == "the file is empty"
        assert "not a media file" in listed["text.mp4"]
        assert "declared" in listed["e.mkv"]
        assert {row["id"] for row in rows(to)} == {"a.mp4", "b.mkv", "below/c %231.mkv", "d.wav", "e.mkv"}
        assert "3 problems" in str(report)

    def test_what_failed_is_tried_again_and_its_line_goes(self, media, tmp_path):
        (media / "empty.mp4").touch()
        cut_off(media / "b.mkv", media / "e.mkv")
        to = tmp_path / "features.lance"
        go(media, to)
        write_media(media / "empty.mp4", flat_frames([7] * 10))
        report = go(media, to)
        assert (report.clips, report.skipped) == (1, 5)
        assert [x["file"] for x in problems(tmp_path / "features.errors.csv")] == ["e.mkv"]

    def test_the_line_of_an_expert_goes_whatever_the_name_of_the_file(self, media, tmp_path):
        name, clip = "100% #1?.mkv", "100%25 %231%3F.mkv#t=0.0,2.0"
        files = find_media((media / "b.mkv").rename(media / name))
        to = tmp_path / "features.lance"
        assert extract_features(files, to, [Level(fail_on=[clip])], Clips(2.0)).skipped == 0
        assert [(x["file"], x["clip"]) for x in problems(tmp_path / "features.errors.csv")] == [(name, clip)]
        again = extract_features(files, to, [Level()], Clips(2.0))
        assert (again.skipped, len(again.problems)) == (1, 1)
        assert extract_features(files, tmp_path / "other.lance", [Level()], Clips(2.0)).problems == []

    def test_the_line_of_a_file_that_is_gone_goes(self, media, tmp_path):
        (media / "empty.mp4").touch()
        assert len(go(media, tmp_path / "features.lance").problems) == 1
        (media / "empty.mp4").unlink()
        assert go(media, tmp_path / "features.lance").problems == []
        assert not (tmp_path / "features.errors.csv").exists()

    def test_a_file_that_vanishes(self, media, tmp_path):
        files = find_media(media)
        (media / "b.mkv").unlink()
        report = extract_features(files, tmp_path / "features.lance", [Level()])
        assert [x.file for x in report.problems] == ["b.mkv"]
        assert report.clips == 3

    def test_a_decoder_may_raise_anything(self, media, tmp_path, monkeypatch):
        real = run.read_clips

        def reading(file, *arguments):
            if file.name == "b.mkv":
                raise IndexError("deep inside")
            return real(file, *arguments)

        monkeypatch.setattr(run, "read_clips", reading)
        report = go(media, tmp_path / "features.lance")
        assert [(x.file, x.reason) for x in report.problems] == [("b.mkv", "IndexError: deep inside")]


@pytest.mark.parametrize("workers", [1, 2])
def test_names_that_are_not_unicode(tmp_path, workers):
    """Files of another system's: `é` in Latin-1, which stands for itself in the name as Python reads it."""
    media, to = tmp_path / "media", tmp_path / "features.lance"
    media.mkdir()
    try:
        for name, level in (("caf\udce9.mkv", 50), ("th\udce9.mkv", 100)):
            write_media(tmp_path / "a.mkv", flat_frames([level] * 20), codec="ffv1")
            (tmp_path / "a.mkv").rename(media / name)
    except OSError:
        pytest.skip("this file system takes Unicode alone")
    (media / "n\udce9ant.mkv").write_bytes(b"nothing")
    report = go(media, to, Level(), workers=workers)
    assert (report.files, report.clips) == (2, 2)
    found = {row["id"]: row for row in rows(to)}
    assert {name: row["level"][0] for name, row in found.items()} == {"caf\\xe9.mkv": 50, "th\\xe9.mkv": 100}
    assert local_path(found["caf\\xe9.mkv"]["uri"]) == media / "caf\udce9.mkv"
    assert make_still(local_path(found["caf\\xe9.mkv"]["uri"]))
    (problem,) = problems(tmp_path / "features.errors.csv")
    assert problem["file"] == "n\\xe9ant.mkv"
    assert go(media, to, Level(), workers=workers).skipped == 2


def test_a_link_to_nothing_is_listed(media, tmp_path):
    """As those of git-annex and DVC where the content is elsewhere."""
    (media / "elsewhere.mp4").symlink_to(tmp_path / "nothing.mp4")
    (media / "folder.mp4").symlink_to(media / "below")
    report = go(media, tmp_path / "features.lance")
    assert report.files == 4
    assert [(x.file, "no such file" in x.reason) for x in report.problems] == [("elsewhere.mp4", True)]


def test_another_folder_with_a_file_of_the_same_name(media, tmp_path):
    """As cameras name them. A folder that was copied or moved is the same."""
    to = tmp_path / "features.lance"
    go(media, to)
    copied, other = tmp_path / "copied", tmp_path / "other"
    shutil.copytree(media, copied)
    assert go(copied, to).skipped == 4
    other.mkdir()
    write_media(other / "a.mp4", flat_frames([200] * 30))
    with pytest.raises(ValueError, match=r"holds 'a\.mp4' of .*media/a\.mp4, another file than .*other/a\.mp4"):
        go(other, to)
    assert len(rows(to)) == 4
    shutil.rmtree(media)
    assert go(copied, to).skipped == 4


class TestExperts:
    def test_an_expert_that_fails_on_a_clip_misses_it_alone(self, media, tmp_path):
        to = tmp_path / "features.lance"
        level = Level(fail_on=["b.mkv#t=2.0,4.0"])
        report = go(media, to, level, Words(), clips=Clips(2.0))
        [problem] = report.problems
        assert (problem.clip, problem.expert, problem.reason) == ("b.mkv#t=2.0,4.0", "level", "ValueError: a bad clip")
        found = {row["id"]: row["level"] for row in rows(to)}
        assert found["b.mkv#t=2.0,4.0"] is None
        assert found["b.mkv#t=0.0,2.0"] == [100, 4]

    def test_an_expert_that_fails_on_all_stops_the_run(self, media, tmp_path, monkeypatch):
        monkeypatch.setattr(run, "MOST_FAILURES", 4)
        level = Level(fail_on={f"b.mkv#t={i / 2:.1f},{i / 2 + 0.5:.1f}" for i in range(8)})
        with pytest.raises(RuntimeError, match="expert 'level' failed on 4 clips in a row: ValueError: a bad clip"):
            go(media, tmp_path / "features.lance", level, clips=Clips(0.5))

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            (np.zeros(3), r"expected \(2,\) of numbers, got \(3,\) of float64"),
            (np.zeros((1, 2)), r"expected \(2,\) of numbers, got \(1, 2\)"),
            (np.array(["a", "b"]), r"of numbers, got \(2,\) of <U1"),
            (np.array([np.nan, 0]), "finite numbers up to 65504"),
            (np.ma.MaskedArray([1.0, 0.0], [False, True]), "array: expected an array, got a masked one; return None"),
            (np.array([1e6, 0]), r"up to 65504 \(float16\)"),
            (Extracted(np.zeros(2), text="\ud83d"), r"text and labels in Unicode, got '\\ud83d'"),
            (Extracted(np.zeros(2), text=7), "text and labels in Unicode, got 7"),
            (Extracted(np.zeros(2), labels=("a", None), scores=(0.5, 0.5)), "text and labels in Unicode, got None"),
            (Extracted(np.zeros(2), labels=("a",)), "a score for each of 1 labels, got 0"),
        ],
    )
    def test_outputs_of_another_form(self, media, tmp_path, output, message):
        level = Level()
        level._one = lambda clip: output
        report = go(media, tmp_path / "features.lance", level)
        assert len(report.problems) == 4
        with pytest.raises(ValueError, match=message):
            raise ValueError(report.problems[0].reason)

    def test_a_wrong_number_of_outputs(self, media, tmp_path):
        level = Level()
        level._one = None
        level.__class__ = type("Short", (Level,), {"__call__": lambda self, clips: []})
        report = go(media, tmp_path / "features.lance", level)
        assert {x.reason for x in report.problems} == {"ValueError: expected 1 outputs, one a clip, got 0"}

    def test_batches_go_across_files(self, tmp_path, monkeypatch):
        """Clips that wait are taken together, whatever their files."""
        folder = tmp_path / "media"
        folder.mkdir()
        for i in range(20):
            write_media(folder / f"{i:02}.mkv", flat_frames([i] * 3), codec="ffv1")
        level = Level()
        first = level._one
        level._one = lambda clip: (time.sleep(0.05), first(clip))[1]
        go(folder, tmp_path / "features.lance", level)
        assert sum(map(len, level.batches)) == 20
        assert max(map(len, level.batches)) > 4

    def test_clips_that_wait_are_bounded_by_their_bytes(self, media, tmp_path, monkeypatch):
        monkeypatch.setattr(run, "WAITING_BYTES", 1)
        level = Level()
        assert go(media, tmp_path / "features.lance", level, clips=Clips(0.5)).clips == 20
        assert max(map(len, level.batches)) == 1


class TestResume:
    def test_a_second_run_adds_what_is_new(self, media, tmp_path):
        to = tmp_path / "features.lance"
        go(media, to)
        before = rows(to)
        write_media(media / "e.mkv", flat_frames([9] * 10), codec="ffv1")
        level = Level()
        report = go(media, to, level, Words())
        assert level.batches == [["e.mkv"]]
        assert (report.clips, report.skipped) == (1, 4)
        assert rows(to)[:4] == before

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"clips": Clips("shots")}, "holds features with clips .*'whole'.* got .*'shots'"),
            ({"dtype": "float32"}, "dtype float16, got float32"),
            ({"extractors": [Level()]}, "experts level, words, got level"),
            ({"extractors": [Level(weights="w2"), Words()]}, "weights of 'level' w1, got w2"),
        ],
    )
    def test_mixing_is_refused(self, media, tmp_path, other, message):
        to = tmp_path / "features.lance"
        go(media, to)
        extractors = other.pop("extractors", [Level(), Words()])
        with pytest.raises(ValueError, match=message):
            go(media, to, *extractors, **other)

    def test_a_version_that_grew_is_refused(self, media, tmp_path, monkeypatch):
        go(media, tmp_path / "features.lance", Level())
        monkeypatch.setattr(Level, "version", 2)
        with pytest.raises(ValueError, match="version of 'level' 1, got 2; write to another dataset"):
            go(media, tmp_path / "features.lance", Level())

    def test_one_run_at_a_time(self, media, tmp_path):
        level = Level()
        first = level._one

        def one(clip):
            with pytest.raises(OSError, match=r"features.lance: another run is writing to it"):
                go(media, tmp_path / "features.lance", Level())
            return first(clip)

        level._one = one
        assert go(media, tmp_path / "features.lance", level).problems == []

    def test_an_interrupted_run_keeps_what_it_had(self, media, tmp_path):
        to, level = tmp_path / "features.lance", Level()
        first = level._one

        def one(clip):
            if len(level.batches) == 4:
                raise KeyboardInterrupt
            return first(clip)

        level._one = one
        with pytest.raises(KeyboardInterrupt):
            go(media, to, level, clips=Clips(0.1))
        kept = len(rows(to))
        assert kept > 0
        go(media, to, Level(), clips=Clips(0.1))
        ids = [row["id"] for row in rows(to)]
        assert len(ids) == len(set(ids)) == 100

    def test_killed_again_and_again_the_problems_are_listed(self, root, tmp_path):
        """Rows and problems are those of a run without kills, whichever process had them."""
        folder, to = tmp_path / "media", tmp_path / "features.lance"
        folder.mkdir()
        names = [f"{i}.mkv" for i in range(6)]
        for i, name in enumerate(names):
            write_media(folder / name, flat_frames(range(10 * i, 10 * i + 60)), codec="ffv1")
        bad = [f"{name}#t=1.0,1.5" for name in names]
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "sys.path[:0] = sys.argv[3:5]\n"
            "from test_run import Clips, Level, go, run\n"
            "from collaborative_experts.features.extract.dataset import FeatureDataset\n"
            "run.COMMIT_S, run.BATCH = 0, 3\n"
            "append = FeatureDataset.append\n"
            "FeatureDataset.append = lambda self, rows: (append(self, rows), print(len(self.ids), flush=True))\n"
            "go(Path(sys.argv[1]), Path(sys.argv[2]), Level(fail_on=sys.argv[5:]), clips=Clips(0.5))\n"
        )
        paths, rng, counts = [root / "tests/features/extract", root / "tests"], np.random.default_rng(0), [0]
        for kill in (True, True, True, False):
            process = Process(code, folder, to, *paths, *bad)
            if kill:
                assert process.stdout.readline(), process.stderr.read()
                time.sleep(0.02 * rng.random())
                process.kill()
            assert process.wait() == (-signal.SIGKILL if kill else 0), process.stderr.read()
            counts.append(len(rows(to)))
        assert counts == sorted(set(counts)), "a run began anew"
        assert counts[-1] == 72
        go(folder, tmp_path / "reference.lance", Level(fail_on=bad), clips=Clips(0.5))
        listed = problems(to.with_suffix(".errors.csv"))
        assert sorted(x["clip"] for x in listed) == bad
        assert {x["reason"] for x in listed} == {"ValueError: a bad clip"}
        killed, reference = ({row["id"]: row["level"] for row in rows(x)} for x in (to, tmp_path / "reference.lance"))
        assert len(killed) == 72
        assert killed == reference


class TestCommand:
    def arguments(self, *texts):
        import argparse

        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return parser.parse_args(list(texts))

    def test_from_options_to_rows(self, media, tmp_path, capsys):
        to = tmp_path / "features.lance"
        options = ["--to", str(to), "--experts", "motion, audio", "--clips", "1", "--overlap", "0.5", "--workers", "2"]
        assert run_command(self.arguments(str(media), *options)) == 0
        assert "clips of 4 files added" in capsys.readouterr().out
        assert list(read_features(to).experts) == ["motion", "audio"]
        (media / "empty.mp4").touch()
        assert run_command(self.arguments(str(media), *options)) == EXIT_PROBLEMS == 3
        assert "empty.mp4: the file is empty" in capsys.readouterr().out

    @pytest.mark.parametrize("device", ["cuda:99", "gpu"])
    def test_a_device_that_is_not_there(self, media, tmp_path, device):
        options = ["--to", str(tmp_path / "features.lance"), "--experts", "appearance", "--device", device]
        with pytest.raises(
            ValueError, match=f"device: expected one that PyTorch finds here, such as 'cpu', got '{device}'"
        ):
            run_command(self.arguments(str(media), *options))
        assert not (tmp_path / "features.lance").exists()

    def test_settings(self):
        given = parse_settings(["speech.model=/a=b", "appearance.keep=frames", "my.pkg.Faces.size=3"])
        assert given == {
            "speech": {"model": "/a=b"},
            "appearance": {"keep": "frames"},
            "my.pkg.Faces": {"size": 3.0},
        }

    @pytest.mark.parametrize("text", ["speech", "model=x", "speech.=x", ".model=x", "speech.model"])
    def test_bad_settings(self, text):
        with pytest.raises(ValueError, match=r"expected EXPERT\.KEY=VALUE"):
            parse_settings([text])

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"folder": "nowhere"}, FileNotFoundError, "nowhere: there is no such file or folder of media"),
            ({"to": "features"}, ValueError, "features: expected a name that ends in .lance"),
            ({"to": "nowhere/features.lance"}, FileNotFoundError, "there is no folder"),
            ({"clips": "scenes"}, ValueError, "expected 'whole', 'shots' or a length"),
            ({"workers": 0}, ValueError, "workers: expected at least 1, got 0"),
            ({"workers": 1.5}, TypeError, "workers: expected an integer, got 1.5"),
            ({"dtype": "int8"}, ValueError, "dtype: expected one of 'float16', 'float32', got 'int8'"),
        ],
    )
    def test_bad_arguments(self, media, tmp_path, monkeypatch, change, error, message):
        monkeypatch.chdir(tmp_path)
        given = {"folder": media, "to": "features.lance", "experts": ["motion"]} | change
        with pytest.raises(error, match=message):
            extract(given.pop("folder"), given.pop("to"), **given)

    def test_a_folder_without_media(self, tmp_path):
        (tmp_path / "notes.txt").write_text("nothing")
        with pytest.raises(ValueError, match=r"expected media files \(.*\.mp4.*\), found none"):
            find_media(tmp_path)

    def test_something_else_at_the_path(self, media, tmp_path):
        (tmp_path / "features.lance").mkdir()
        (tmp_path / "features.lance" / "x").write_text("other")
        with pytest.raises(ValueError, match="expected a Lance dataset of features"):
            go(media, tmp_path / "features.lance")
        (tmp_path / "file.lance").write_text("other")
        with pytest.raises(ValueError, match="as `extract` writes it; found a file"):
            go(media, tmp_path / "file.lance")

    def test_one_file(self, media, tmp_path):
        report = extract(media / "a.mp4", tmp_path / "features.lance", experts=["audio"])
        assert (report.clips, report.path) == (1, Path(tmp_path / "features.lance"))


def test_an_extractor_alone_reads_only_what_it_needs(media, tmp_path):
    """Sound is not decoded for an expert of pictures, nor pictures for one of sound."""
    [audio] = make_extractors(names=["audio"])
    assert go(media, tmp_path / "a.lance", audio).clips == 4
    assert read_features(tmp_path / "a.lance").available.sum() == 2
