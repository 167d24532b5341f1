"""Media files of every kind: times, rotation, sound; files that are damaged or are none."""

import socket
from contextlib import suppress

import numpy as np
import pytest

from helpers import flat_frames, tone, write_media
from warm_process import Process

av = pytest.importorskip("av")

from collaborative_experts.features.extract import media  # noqa: E402
from collaborative_experts.features.extract.clips import Clips, MediaFile, read_clips  # noqa: E402
from collaborative_experts.features.extract.media import MediaError, View, open_media  # noqa: E402

GREY = View(fps=2, side=48, colour=False)


def clips_of(path, by="whole", views=(GREY,), with_sound=True, notes=None, overlap_s=0.0):
    file = MediaFile(path, path.name, str(path))
    notes = [] if notes is None else notes
    return list(read_clips(file, Clips(by, overlap_s), frozenset(views), with_sound, notes))


def levels(clip, view=GREY):
    """The mean grey level of each frame."""
    return clip.frames[view].images.reshape(len(clip.frames[view]), -1).mean(axis=1).round().astype(int).tolist()


class TestPictures:
    def test_frames_are_those_on_the_screen_at_their_times(self, tmp_path):
        path = write_media(tmp_path / "a.mkv", flat_frames(range(0, 200, 10)), codec="ffv1")
        [clip] = clips_of(path)
        assert clip.frames[GREY].times.tolist() == [0.25, 0.75, 1.25, 1.75]
        assert levels(clip) == [20, 70, 120, 170]
        assert (clip.id, clip.start_s, clip.end_s, clip.sound, clip.is_last) == ("a.mkv", 0, 2, None, True)

    def test_variable_frame_rate(self, tmp_path):
        """A picture that stands for long is one frame, and is on the screen when a later clip begins."""
        times = [0, 0.1, 0.2, 3.3, 3.4, 3.7]
        path = write_media(tmp_path / "a.mkv", flat_frames([10, 20, 30, 40, 50, 60]), times=times, codec="ffv1")
        [clip] = clips_of(path)
        assert levels(clip) == [30, 60]
        assert [levels(clip) for clip in clips_of(path, 1.0)] == [[30], [30], [30], [30, 60]]

    def test_too_many_frames_are_thinned_evenly(self, tmp_path):
        view = View(fps=10, side=48, colour=False, most=8)
        path = write_media(tmp_path / "a.mkv", flat_frames(range(100, 150)), codec="ffv1")
        [clip] = clips_of(path, views=[view])
        steps = np.diff(clip.frames[view].times)
        assert 4 <= len(clip.frames[view]) <= 8
        assert np.allclose(steps, steps[0])

    def test_pairs(self, tmp_path):
        view = View(fps=2, side=48, colour=False, pair_s=0.1)
        path = write_media(tmp_path / "a.mkv", flat_frames(range(0, 200, 10)), codec="ffv1")
        [clip] = clips_of(path, views=[view])
        assert clip.frames[view].images.shape == (4, 2, 48, 64)
        assert clip.frames[view].images[:, :, 0, 0].tolist() == [[20, 30], [70, 80], [120, 130], [170, 180]]

    @pytest.mark.parametrize("orientation", [3, 6, 8])
    def test_rotation_of_a_photo_as_pillow_has_it(self, tmp_path, orientation):
        image = pytest.importorskip("PIL.Image")
        ops = pytest.importorskip("PIL.ImageOps")
        pixels = np.zeros((64, 96, 3), np.uint8)
        pixels[:32, :48] = 255  # one bright corner
        exif = image.Exif()
        exif[0x0112] = orientation
        image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
        expected = np.asarray(ops.exif_transpose(image.open(tmp_path / "a.jpg")).convert("L"), dtype=float)
        view = View(fps=1, side=64, colour=False)
        [clip] = clips_of(tmp_path / "a.jpg", views=[view])
        shown = clip.frames[view].images[0]
        assert shown.shape == expected.shape
        assert np.abs(shown - expected).mean() < 10

    @pytest.mark.parametrize("degrees", [90, 180, -90])
    def test_rotation_of_a_video(self, tmp_path, degrees):
        pixels = np.zeros((10, 64, 96, 3), np.uint8)
        pixels[:, :32, :48] = 255
        path = write_media(tmp_path / "a.mp4", pixels, rotation=degrees)
        view = View(fps=1, side=64, colour=False)
        [clip] = clips_of(path, views=[view])
        expected = np.rot90(pixels[0, :, :, 0], round(degrees / 90))
        assert clip.frames[view].images[0].shape == expected.shape
        assert np.abs(clip.frames[view].images[0].astype(float) - expected).mean() < 10

    def test_pixels_that_are_not_square(self, tmp_path):
        path = tmp_path / "a.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
            stream.codec_context.sample_aspect_ratio = 2
            for image in flat_frames([100] * 5, 96, 96):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        [clip] = clips_of(path)
        assert clip.frames[GREY].images.shape[1:] == (48, 96)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
    def test_images(self, tmp_path, suffix):
        image = pytest.importorskip("PIL.Image")
        path = tmp_path / f"100% of it, %03d{suffix}"  # FFmpeg would look for it.000.png
        image.fromarray(flat_frames([77])[0]).save(path)
        [clip] = clips_of(path)
        assert levels(clip) == [77]
        assert clip.id == f"100%25 of it, %2503d{suffix}"

    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    def test_a_photo_larger_than_what_is_probed_with_another_behind_it(self, tmp_path, mode):
        """FFmpeg looks at 2 KB first. Phones put a second picture behind the photo."""
        image = pytest.importorskip("PIL.Image")
        for name, level in (("a.jpg", 200), ("b.jpg", 20)):
            noise = np.random.default_rng(0).integers(level - 20, level + 20, (96, 128, 3), dtype=np.uint8)
            image.fromarray(noise).convert(mode).save(tmp_path / name)
        [alone] = clips_of(tmp_path / "a.jpg")
        with (tmp_path / "a.jpg").open("ab") as file:
            file.write((tmp_path / "b.jpg").read_bytes())
        [clip] = clips_of(tmp_path / "a.jpg")
        assert levels(clip) == levels(alone) == [pytest.approx(200, abs=2)]
        assert clip.end_s == 0

    def test_an_animated_png(self, tmp_path):
        image = pytest.importorskip("PIL.Image")
        first, *others = (image.fromarray(x) for x in flat_frames([10, 20, 30]))
        first.save(tmp_path / "a.png", save_all=True, append_images=others, duration=500)
        [clip] = clips_of(tmp_path / "a.png")
        assert levels(clip) == [10, 20, 30]

    def test_names_that_ffmpeg_takes_for_protocols(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_media(tmp_path / "a.mp4", flat_frames([50] * 10)).rename("http:b.mp4")
        [clip] = clips_of(type(tmp_path)("http:b.mp4"))
        assert clip.end_s == 1

    @pytest.mark.parametrize(
        ("frames", "fps", "end_s"), [(flat_frames([9, 9]), 20, 0.1), (flat_frames([9] * 5), 1, 5), (None, 0, 0)]
    )
    def test_short_slow_and_large(self, tmp_path, frames, fps, end_s):
        if frames is None:
            frames, fps, end_s = np.zeros((2, 4320, 7680, 3), np.uint8), 10, 0.2
        [clip] = clips_of(write_media(tmp_path / "a.mp4", frames, fps))
        assert clip.end_s == pytest.approx(end_s, abs=0.01)
        assert len(clip.frames[GREY]) >= 1
        assert min(clip.frames[GREY].images.shape[1:]) == 48


class TestSound:
    def test_mono_16_khz(self, tmp_path):
        path = tmp_path / "a.wav"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=44_100)
            stream.layout = "stereo"
            both = np.repeat(tone(2, 440, 44_100), 2)[None]
            frame = av.AudioFrame.from_ndarray(both, format="s16", layout="stereo")
            frame.rate = 44_100
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        [clip] = clips_of(path)
        assert abs(len(clip.sound) - 32_000) < 50
        assert clip.sound.dtype == np.int16
        assert np.abs(np.fft.rfft(clip.sound[:16_000])).argmax() == 440
        assert len(clip.frames[GREY]) == 0

    def test_clips_have_their_own_part(self, tmp_path):
        sound = np.concatenate([tone(1, hz) for hz in (300, 500, 700, 900)])
        path = write_media(tmp_path / "a.mkv", flat_frames([50] * 40), sound=sound)
        clips = clips_of(path, 2.0, overlap_s=1.0)
        assert [clip.id for clip in clips] == [f"a.mkv#t={i}.0,{i + 2}.0" for i in range(3)]
        peaks = [[int(np.abs(np.fft.rfft(x)).argmax()) for x in np.split(clip.sound, 2)] for clip in clips]
        assert peaks == [[300, 500], [500, 700], [700, 900]]

    def test_sound_that_begins_later_and_has_a_gap(self, tmp_path):
        path = tmp_path / "a.mkv"
        with av.open(str(path), "w") as container:
            video, audio = container.add_stream("libx264", rate=10), container.add_stream("pcm_s16le", rate=16_000)
            video.width, video.height, video.pix_fmt, audio.layout = 64, 48, "yuv420p", "mono"
            for image in flat_frames([50] * 50):
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(video.encode(None))
            for start in (1, 4):
                frame = av.AudioFrame.from_ndarray(tone(1)[None], format="s16", layout="mono")
                frame.rate, frame.pts = 16_000, start * 16_000
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
        [clip] = clips_of(path)
        loud = [bool(np.abs(x).max() > 1000) for x in np.split(clip.sound[:80_000], 5)]
        assert loud == [False, True, False, False, True]

    def test_sound_of_another_rate_and_layout_from_the_middle_on(self, tmp_path):
        """As in broadcasts, and in MP3 files that were joined byte by byte."""
        path = tmp_path / "a.mp3"
        for hz, rate, layout in ((400, 44_100, "stereo"), (700, 22_050, "mono")):
            with av.open(str(tmp_path / "part.mp3"), "w") as container:
                stream = container.add_stream("libmp3lame", rate=rate, layout=layout)
                sound = np.repeat(tone(3, hz, rate), stream.codec_context.channels)[None]
                frame = av.AudioFrame.from_ndarray(sound, format="s16", layout=layout)
                frame.rate = rate
                for part in av.AudioResampler(format=stream.format, frame_size=stream.frame_size).resample(frame):
                    container.mux(stream.encode(part))
                container.mux(stream.encode(None))
            with path.open("ab") as file:
                file.write((tmp_path / "part.mp3").read_bytes())
        [clip] = clips_of(path)
        assert len(clip.sound) == pytest.approx(6 * 16_000, rel=0.05)
        peaks = [int(np.abs(np.fft.rfft(clip.sound[start : start + 16_000])).argmax()) for start in (16_000, 64_000)]
        assert peaks == [400, 700]

    def test_a_picture_is_held_as_long_as_there_is_sound(self, tmp_path):
        path = write_media(tmp_path / "a.mkv", flat_frames([50]), sound=tone(5))
        assert [(clip.start_s, clip.end_s, levels(clip)) for clip in clips_of(path, 2.0)] == [
            (0, 2, [50]),
            (2, 4, [50]),
            (4, 5, [50]),
        ]

    @pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
    def test_streams_of_unequal_length_are_no_damage(self, tmp_path, suffix):
        """Where only the shorter one is read, the file is not cut off."""
        for name, frames, seconds in (("a", 80, 3), ("b", 30, 8)):
            path = write_media(tmp_path / f"{name}{suffix}", flat_frames([50] * frames), sound=tone(seconds))
            for views, with_sound in (((GREY,), False), ((), True), ((GREY,), True)):
                notes = []
                clips_of(path, views=views, with_sound=with_sound, notes=notes)
                assert notes == []

    def test_without_its_sound_a_file_is_read_no_less(self, tmp_path):
        path = write_media(tmp_path / "a.mp4", flat_frames([50] * 20), sound=tone(2))
        assert clips_of(path, with_sound=False)[0].sound is None


# --- damage -----------------------------------------------------------------------------------------------


def video_bytes(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (50, 48, 64, 3), dtype=np.uint8)
    return write_media(tmp_path / "whole.mp4", frames, sound=tone(5)).read_bytes()


def encrypted(path, tmp_path):
    source = write_media(tmp_path / "plain.mp4", flat_frames(range(50)))
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "7" * 32, "encryption_kid": "a" * 32}
    with av.open(str(source)) as plain, av.open(str(path), "w", options=key) as container:
        stream = container.add_stream_from_template(plain.streams.video[0])
        for packet in plain.demux(plain.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)


def zero_frames(path, tmp_path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
        container.mux(stream.encode(None))


def subtitles(path, tmp_path):
    path.write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")


def playlist(path, tmp_path):
    target = write_media(tmp_path / "secret.ts", flat_frames([50] * 20), format="mpegts")
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n")


def list_of_files(path, tmp_path):
    target = write_media(tmp_path / "secret.mp4", flat_frames([50] * 20))
    path.write_text(f"ffconcat version 1.0\nfile {target}\n")


def too_large(path, tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("1", (9000, 9000)).save(path, format="png")


DAMAGE = {
    "empty": (lambda path, _: path.write_bytes(b""), "the file is empty"),
    "a text": (lambda path, _: path.write_text("hello\n" * 100), "not a media file that can be read"),
    "noise": (lambda path, _: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not a media file|no picture"),
    "cut before its index": (lambda path, tmp: path.write_bytes(video_bytes(tmp)[:9000]), "not a media file"),
    "without frames": (zero_frames, "no picture and no sound|not a media file|no stream"),
    "encrypted": (encrypted, "no picture and no sound can be decoded; video: the file is encrypted"),
    "subtitles": (subtitles, "not a media file"),
    "a playlist": (playlist, "not a media file"),
    "a list of files": (list_of_files, "not a media file"),
    "too large": (too_large, "expected at most 67 million pixels, got 9000 x 9000"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_cannot_be_read(tmp_path, damage):
    write, message = DAMAGE[damage]
    path = tmp_path / "a.mp4"
    write(path, tmp_path)
    with pytest.raises(MediaError, match=message):
        clips_of(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.ts"])
def test_no_address_is_opened(tmp_path, name):
    """A playlist of addresses would make FFmpeg go there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (tmp_path / name).write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{address}\n#EXT-X-ENDLIST\n")
        with pytest.raises(MediaError, match="not a media file"):
            clips_of(tmp_path / name)
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"), open_media(tmp_path / "a.mp4", []):
        pass


def test_a_file_that_is_cut_off_is_read_and_noted(tmp_path):
    write_media(tmp_path / "a.mkv", np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), dtype=np.uint8))
    content = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) // 2])
    notes = []
    [clip] = clips_of(tmp_path / "a.mkv", notes=notes)
    assert 3 < clip.end_s < 7
    assert any("10.0 s were declared" in note for note in notes), notes


def test_a_million_declared_frames(tmp_path):
    """AVI says how many frames there are; what is there counts."""
    path = write_media(tmp_path / "a.avi", flat_frames([50] * 10), codec="mpeg4")
    content = bytearray(path.read_bytes())
    for name, offset in ((b"avih", 24), (b"strh", 40)):
        at = content.index(name) + offset
        content[at : at + 4] = (10**6).to_bytes(4, "little")
    path.write_bytes(content)
    notes = []
    [clip] = clips_of(path, notes=notes)
    assert clip.end_s == pytest.approx(1, abs=0.1)
    assert any("declared" in note for note in notes), notes


def test_damage_in_the_middle_is_noted(tmp_path):
    content = bytearray(video_bytes(tmp_path))
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    (tmp_path / "a.mp4").write_bytes(content)
    notes = []
    [clip] = clips_of(tmp_path / "a.mp4", notes=notes)
    assert clip.end_s == pytest.approx(5, abs=0.2)


def test_time_stamps_that_jump(tmp_path):
    """A jump of days, as a recorder leaves, is no time in which a picture is held."""
    times = [0, 0.1, 0.2, 200_000, 200_000.1, 200_000.2]
    path = write_media(tmp_path / "a.mkv", flat_frames([10, 20, 30, 40, 50, 60]), times=times, codec="ffv1")
    [clip] = clips_of(path, 1.0)
    assert clip.end_s < 1.1


def test_any_damage_is_an_error_of_ours(tmp_path):
    """Bytes are changed everywhere: each file is read, or refused by a MediaError; nothing else comes out."""
    content = video_bytes(tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(content)
        for at in rng.integers(0, len(content), 20):
            changed[at] = rng.integers(256)
        (tmp_path / "a.mp4").write_bytes(changed)
        with suppress(MediaError):
            clips_of(tmp_path / "a.mp4", 1.0)


def test_a_long_film_takes_little_memory(root, tmp_path):
    """20 minutes as one clip, with sound; decoded frames would take 240 MB, sound as float32 77 MB more."""
    pytest.importorskip("cv2")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "from helpers import peak_memory\n"
        "from test_media import clips_of\n"
        "from collaborative_experts.features.extract.expert import make_extractors\n"
        "from collaborative_experts.features.extract.media import View\n"
        "before = peak_memory()\n"
        "motion, audio = make_extractors(names=['motion', 'audio'])\n"
        "[clip] = clips_of(Path(sys.argv[1]), views=[View(1, 256), *motion.views])\n"
        "print(clip.end_s, len(clip.sound), len(audio([clip])[0]), len(motion([clip])[0]))\n"
        "print(peak_memory() - before)\n"
    )
    frames = np.zeros((120, 256, 256, 3), np.uint8)
    frames[:] = np.arange(120)[:, None, None, None] % 256
    path = tmp_path / "a.mkv"
    noise = np.random.default_rng(0).integers(-900, 900, 1200 * 8000, dtype=np.int16)
    write_media(path, frames, times=[10 * i for i in range(120)], sound=noise, rate=8000)
    process = Process(code, path, root / "tests/features/extract")
    printed = process.stdout.read()
    assert process.wait() == 0, process.stderr.read()
    end_s, samples, tokens, motion, taken = map(float, printed.split())
    assert (end_s, samples, tokens, motion) == (1200, 1200 * media.SAMPLE_RATE, 1200, 288)
    assert taken < 160e6
