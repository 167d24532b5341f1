"""Seconds of video a second, peak memory and the share of decoding, for each extractor alone and for all of a preset.

    python benchmarks/extract.py FILM [--clips shots] [--whisper FOLDER]

The film of the table in docs/extract.md: Big Buck Bunny (c) Blender Foundation, CC BY 3.0, 596 s, 1280 x 720, 24 fps,
out of moviepy's source package (`pip download --no-deps --no-binary=moviepy moviepy==2.2.1`, in it
docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip, in it resources/bbb.mp4).
Each line is a process of its own. Features that come out are checked: every clip has its row, and none a problem.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, resident

from collaborative_experts.apps.extract import SentenceEncoder
from collaborative_experts.features.extract.clips import Clips, MediaFile, read_clips
from collaborative_experts.features.extract.dataset import open_dataset
from collaborative_experts.features.extract.expert import make_extractors
from collaborative_experts.features.extract.run import extract_features, find_media

ALONE = ("appearance", "motion", "audio", "speech", "ocr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("film", type=Path)
    parser.add_argument("--clips", default="shots")
    parser.add_argument("--whisper", type=Path, help="a folder of faster-whisper; without it, speech is left out")
    parser.add_argument("--one", help="for the processes that this one starts")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    names = [name for name in ALONE if name != "speech" or options.whisper]
    lines = ["decoding", *names, ",".join(name for name in names if name != "ocr"), ",".join(names)]
    print(f"{'experts':36} {'seconds':>8} {'x film':>7} {'waiting':>8} {'peak MB':>8} {'load':>5}")
    results = []
    for experts in lines:
        load = os.getloadavg()[0]
        command = [sys.executable, "-W", "ignore", *sys.argv, "--one", experts]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1]) | {"load": round(load, 2)}
        results.append(result)
        print(
            f"{experts:36} {result['seconds']:8.1f} {result['speed']:7.1f} {result['waiting']:7.0%} "
            f"{result['peak_mb']:8.0f} {load:5.2f}",
            flush=True,
        )
    print(json.dumps({"clips": options.clips, "results": results, **machine()}))


def measure(options: argparse.Namespace) -> dict[str, object]:
    """One line of the table."""
    names = [x for x in ALONE if x != "ocr" and x != "speech"] if options.one == "decoding" else options.one.split(",")
    settings = {"speech": {"model": str(options.whisper)}} if "speech" in names else {}
    extractors = make_extractors("offline", names, settings, encoder=SentenceEncoder())
    clips = Clips(options.clips if options.clips in ("whole", "shots") else float(options.clips))
    if options.one == "decoding":
        return decode(options.film, clips, extractors)
    warm_up(options.film, extractors)
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "features.lance"
        report = extract_features(find_media(options.film), to, extractors, clips)
        assert not report.problems, report.problems
        assert open_dataset(to).count_rows() == report.clips
    return {
        "experts": options.one,
        "clips": report.clips,
        "seconds": report.seconds,
        "speed": report.media_s / report.seconds,
        "waiting": report.waiting_s / report.seconds,
        "peak_mb": resident("VmHWM") / 1e6,
        "frames_read": {x.name: x.frames_read for x in extractors if hasattr(x, "frames_read")},
    }


def decode(film: Path, clips: Clips, extractors: list) -> dict[str, object]:
    """Decoding alone, for all experts but ocr."""
    views = frozenset(view for x in extractors for view in x.views)
    begin, count, end = time.perf_counter(), 0, 0.0
    for clip in read_clips(MediaFile(film, film.name, str(film)), clips, views, True, []):
        count, end = count + 1, clip.end_s
    seconds = time.perf_counter() - begin
    peak = resident("VmHWM") / 1e6
    return {
        "experts": "decoding",
        "clips": count,
        "seconds": seconds,
        "speed": end / seconds,
        "waiting": 1.0,
        "peak_mb": peak,
    }


def warm_up(film: Path, extractors: list) -> None:
    """One clip, so that no line pays for the first call of a library."""
    views = frozenset(view for x in extractors for view in x.views)
    clip = next(iter(read_clips(MediaFile(film, film.name, str(film)), Clips(2.0), views, True, [])))
    for extractor in extractors:
        extractor([clip])


if __name__ == "__main__":
    main()
