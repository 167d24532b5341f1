"""Clips: windows, shots, their ids and their last one."""

import numpy as np
import pytest

from helpers import flat_frames, write_media

pytest.importorskip("av")

from collaborative_experts.features.extract.clips import Clips, MediaFile, fragment, read_clips


def spans(path, by, overlap_s=0.0):
    file = MediaFile(path, path.name, str(path))
    clips = list(read_clips(file, Clips(by, overlap_s), frozenset(), False, []))
    assert [clip.is_last for clip in clips] == [False] * (len(clips) - 1) + [True]
    return [clip.id.partition("#t=")[2] for clip in clips]


@pytest.mark.parametrize(
    ("seconds", "by", "overlap_s", "expected"),
    [
        (5, "whole", 0, [""]),
        (5, 10, 0, ["0.0,5.0"]),
        (5, 5, 0, ["0.0,5.0"]),
        (5, 2, 0, ["0.0,2.0", "2.0,4.0", "4.0,5.0"]),
        (5, 2, 1, ["0.0,2.0", "1.0,3.0", "2.0,4.0", "3.0,5.0"]),
        (4.3, 2, 0, ["0.0,2.0", "2.0,4.0"]),  # what is left is a splinter
        (0.3, 2, 0, ["0.0,0.3"]),  # but never of a file as a whole
        (5, 1.5, 0.5, ["0.0,1.5", "1.0,2.5", "2.0,3.5", "3.0,4.5", "4.0,5.0"]),
    ],
)
def test_windows(tmp_path, seconds, by, overlap_s, expected):
    path = write_media(tmp_path / "a.mkv", flat_frames([50] * round(10 * seconds)), codec="ffv1")
    assert spans(path, by, overlap_s) == expected


def test_shots_begin_at_cuts(tmp_path):
    """A sudden change of colour and brightness is a cut. A slow one is none."""
    pytest.importorskip("cv2")
    red, green, blue = (np.full((20, 48, 64, 3), x, np.uint8) for x in ((200, 30, 30), (20, 60, 20), (30, 30, 220)))
    path = write_media(tmp_path / "a.mkv", np.concatenate([red, green, blue]), codec="ffv1")
    assert spans(path, "shots") == ["0.0,2.0", "2.0,4.0", "4.0,6.0"]
    path = write_media(tmp_path / "b.mkv", flat_frames(range(0, 250, 5)), codec="ffv1")
    assert spans(path, "shots") == ["0.0,5.0"]


def test_a_flash_makes_no_shots(tmp_path):
    pytest.importorskip("cv2")
    levels = [20] * 20 + [250] * 2 + [20] * 20
    path = write_media(tmp_path / "a.mkv", flat_frames(levels), codec="ffv1")
    assert spans(path, "shots") in (["0.0,4.2"], ["0.0,2.0", "2.0,4.2"])


@pytest.mark.parametrize(
    ("name", "start_s", "end_s", "expected"),
    [
        ("film.mp4", 12, 18.5, "film.mp4#t=12.0,18.5"),
        ("a b/ü.mp4", 0, 1 / 3, "a b/ü.mp4#t=0.0,0.333"),
        ("50% #1?.mp4", 0, 1, "50%25 %231%3F.mp4#t=0.0,1.0"),
        ("film.mp4", 0, 0, "film.mp4"),
        ("film.mp4", 3600, 3610.25, "film.mp4#t=3600.0,3610.25"),
    ],
)
def test_fragments(name, start_s, end_s, expected):
    assert fragment(name, start_s, end_s) == expected


@pytest.mark.parametrize(
    ("by", "overlap_s", "error", "message"),
    [
        ("scenes", 0, ValueError, "expected 'whole', 'shots' or a length in seconds, got 'scenes'"),
        (True, 0, ValueError, "got True"),
        (None, 0, ValueError, "got None"),
        (0, 0, ValueError, "a length of at least 0.1 s, got 0"),
        (float("nan"), 0, ValueError, "got nan"),
        (float("inf"), 0, ValueError, "got inf"),
        (10, 10, ValueError, "0 to 90% of a clip's length"),
        (10, -1, ValueError, "got -1 for 10"),
        ("shots", 1, ValueError, "got 1 for 'shots'"),
        (10, "2", TypeError, "overlap: expected seconds, got '2'"),
    ],
)
def test_bad_choices(by, overlap_s, error, message):
    with pytest.raises(error, match=message):
        Clips(by, overlap_s)
