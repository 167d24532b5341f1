"""The one picture that stands for a clip."""

import io

import numpy as np
import pytest

from helpers import flat_frames, tone, write_media

av = pytest.importorskip("av")

from collaborative_experts.features.extract.still import make_still  # noqa: E402


def read(jpeg):
    with av.open(io.BytesIO(jpeg)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def striped(level, height=120, width=200):
    """A frame with contrast; its level is that of the left half."""
    frame = np.full((height, width, 3), level, np.uint8)
    frame[:, width // 2 :] = 255 - level
    return frame


def test_the_middle_of_the_clip_is_shown(tmp_path):
    frames = np.stack([striped(level) for level in range(0, 100, 5)])
    path = write_media(tmp_path / "a.mkv", frames, codec="ffv1")
    for start_s, end_s, expected in [(0, None, 50), (0, 1.0, 25), (1.0, 2.0, 75), (1.5, 9.0, 85)]:
        assert abs(read(make_still(path, start_s, end_s))[:, :80].mean() - expected) < 5


def test_a_plain_picture_is_passed_over_where_there_is_a_better_one(tmp_path):
    frames = flat_frames([0] * 20, 120, 200)
    frames[3:8] = striped(60)
    assert read(make_still(write_media(tmp_path / "a.mkv", frames, codec="ffv1"))).std() > 40
    black = write_media(tmp_path / "b.mkv", flat_frames([0] * 20), codec="ffv1")
    assert read(make_still(black)).max() < 10


def test_size_and_rotation(tmp_path):
    frames = np.stack([striped(60)] * 4)
    assert read(make_still(write_media(tmp_path / "a.mkv", frames, codec="ffv1"), side=60)).shape == (60, 100, 3)
    assert read(make_still(write_media(tmp_path / "b.mkv", frames, codec="ffv1"), side=500)).shape == (120, 200, 3)
    turned = write_media(tmp_path / "c.mp4", frames, rotation=90)
    assert read(make_still(turned, side=60)).shape == (100, 60, 3)


def test_an_image(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (320, 200), "red").save(tmp_path / "red.png")
    red, green, blue = read(make_still(tmp_path / "red.png")).reshape(-1, 3).mean(0)
    assert red > 240
    assert max(green, blue) < 15


def test_without_a_picture_there_is_none(tmp_path):
    (tmp_path / "text.mp4").write_text("nothing")
    (tmp_path / "empty.mp4").write_bytes(b"")
    sound = write_media(tmp_path / "sound.wav", sound=tone(1))
    for path in (tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "not there.mp4", sound, tmp_path):
        assert make_still(path) is None
