"""A small made-up corpus of real media files for `train_demo.py`: coloured shapes that move, with sounds and signs.

Each .mp4 (h264, aac) shows one shape of one colour that moves in one way on a dark, noisy background. Some have no
audio stream, most no sign. Three sentences describe each video, and a fourth, short one each of those for training. No
combination of colour, shape, motion, sound and word occurs twice, so what a model is tested on it has never seen
together.
"""

import colorsys
import csv
import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

SIDE, STRIP, CELL = 96, 16, 12
"""Pixels: a frame's width and height, the height of the sign at its bottom, the width of one letter's cell."""

FRAMES, FRAME_RATE, SAMPLE_RATE = 20, 10, 16_000
PAPER, INK = 0.85, 0.1

HUES = {"red": 0, "yellow": 55, "green": 120, "cyan": 180, "blue": 230, "pink": 310}
"""Degrees."""

SYNONYMS = {
    "red": ("red", "crimson", "scarlet"),
    "yellow": ("yellow", "golden", "lemon-coloured"),
    "green": ("green", "jade", "grass-green"),
    "cyan": ("cyan", "turquoise", "teal"),
    "blue": ("blue", "cobalt blue", "sapphire blue"),
    "pink": ("pink", "magenta", "fuchsia"),
    "disc": ("disc", "ball", "round dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge", "three-cornered shape"),
    "star": ("star", "starlet", "five-pointed star"),
    "cross": ("cross", "plus sign", "plus"),
    "left": ("drifts to the left", "moves left", "glides leftwards"),
    "right": ("drifts to the right", "moves right", "glides rightwards"),
    "up": ("rises", "moves up", "climbs upwards"),
    "down": ("falls", "moves down", "sinks downwards"),
    "round": ("goes round in circles", "circles around", "orbits a point"),
    "still": ("stands still", "does not move", "rests in its place"),
    "low": ("a deep tone hums", "a low tone sounds", "a bass note drones"),
    "high": ("a high tone rings", "a shrill tone sounds", "a piercing whistle sounds"),
    "beeps": ("something beeps", "short beeps sound", "an alarm is beeping"),
    "hiss": ("noise hisses", "a hissing noise is heard", "static rushes"),
    "rising": ("a siren winds up", "a tone slides upwards in pitch", "the pitch of a tone keeps rising"),
    "silent": ("all is silent", "there is no sound", "nothing is heard"),
}
COLOURS = tuple(HUES)
SHAPES = ("disc", "square", "triangle", "star", "cross")
MOTIONS = ("left", "right", "up", "down", "round", "still")
SOUNDS = ("low", "high", "beeps", "hiss", "rising", "silent")
WORDS = ("TAXI", "HOTEL", "MUSIC", "EXIT", "PIZZA", "BANK", "ZOO", "RADIO", "CAFE", "MARKET")
WRITTEN = 0.4
"""Share of the videos with a sign."""

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
SIGNS = ("the sign says {}", "the word {} is written below", "a sign at the bottom reads {}")
COMPLETE = ("a {colour} {shape} {motion} while {sound}{sign}", "{sound} as a {colour} {shape} {motion}{sign}")
PARTIAL = (
    "a {shape} {motion}, {sound}{sign}",
    "something {colour} {motion}, {sound}{sign}",
    "a {colour} {shape} is seen, {sound}{sign}",
    "the {shape} is {colour} and {motion}{sign}",
)
"""People do not name everything either."""

SPARSE = (
    "a {shape} {motion}",
    "something {colour} {motion}",
    "a {colour} {shape}",
    "a {colour} {shape} {motion}",
    "{sound}",
)
"""Short as a query is typed: for training only, since they describe many videos alike."""


@dataclass(frozen=True)
class Scene:
    """What a video shows; `word` is empty without a sign."""

    colour: str
    shape: str
    motion: str
    sound: str
    word: str


@dataclass(frozen=True)
class Video:
    """A file of the corpus, `split` being 'train' or 'test'."""

    name: str
    split: str
    scene: Scene
    captions: tuple[str, ...]


def make_corpus(folder: Path, count: int, seed: int = 0) -> list[Video]:
    """Write `folder/videos/*.mp4` and `folder/captions.csv`; a fifth of the videos is for testing."""
    rng = np.random.default_rng(seed)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    videos = []
    for i, scene in enumerate(tqdm(draw_scenes(count, rng), desc="videos", unit=" videos")):
        split = "test" if i % 5 == 4 else "train"
        captions = tuple(describe(scene, template, rng) for template in choose_templates(split, rng))
        video = Video(f"video{i:04}", split, scene, captions)
        write_video(folder / "videos" / f"{video.name}.mp4", draw_frames(scene, rng), make_sound(scene.sound, rng))
        videos.append(video)
    write_captions(folder / "captions.csv", videos)
    return videos


def draw_scenes(count: int, rng: np.random.Generator) -> list[Scene]:
    """Different scenes, in random order; the share with a sign is the same whatever their number."""
    written = round(count * WRITTEN)
    plain = [Scene(*parts, "") for parts in itertools.product(COLOURS, SHAPES, MOTIONS, SOUNDS)]
    signs = [Scene(*astuple(scene)[:4], word) for scene in plain for word in WORDS]
    chosen = [plain[i] for i in rng.permutation(len(plain))[: count - written]]
    chosen += [signs[i] for i in rng.permutation(len(signs))[:written]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


# --- sentences --------------------------------------------------------------------------------------------


def choose_templates(split: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Two complete ones and one that leaves something out; for training a short one, too."""
    templates = (*COMPLETE, str(rng.choice(PARTIAL)))
    return (*templates, str(rng.choice(SPARSE))) if split == "train" else templates


def describe(scene: Scene, template: str, rng: np.random.Generator) -> str:
    """A sentence with synonyms at random."""
    colour, shape, motion, sound = (rng.choice(SYNONYMS[part]) for part in astuple(scene)[:4])
    sign = ", " + rng.choice(SIGNS).format(scene.word) if scene.word else ""
    return template.format(colour=colour, shape=shape, motion=motion, sound=sound, sign=sign)


def write_captions(path: Path, videos: Sequence[Video]) -> None:
    """The columns that `read_captions` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("video_id", "split", "caption"))
        writer.writerows((video.name, video.split, sentence) for video in videos for sentence in video.captions)


# --- pictures ---------------------------------------------------------------------------------------------


def outline(shape: str) -> np.ndarray:
    """The corners (N, 2) of a shape about the origin, 1 at most from it."""
    if shape == "cross":
        arm = np.array([(-1, 3), (1, 3), (1, 1)]) / np.sqrt(10)
        quarter_turn = np.array([(0, -1), (1, 0)])
        return np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])
    corners = {"disc": 40, "square": 4, "triangle": 3, "star": 10}[shape]
    angles = 2 * np.pi * (np.arange(corners) / corners + (0.125 if shape == "square" else -0.25))
    radii = np.where(np.arange(corners) % 2, 0.4, 1.0) if shape == "star" else np.ones(corners)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def draw_path(motion: str, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the shape is in each frame, (FRAMES, 2), from 0 to `room` (2,); speed, phase and start at random."""
    time = np.arange(FRAMES)[:, None]
    if motion == "round":
        turn = rng.uniform(0.25, 0.4) * rng.choice((-1, 1)) * time + rng.uniform(0, 2 * np.pi)
        path = rng.uniform(10, 18) * np.concatenate([np.cos(turn), np.sin(turn)], axis=1)
    else:
        path = rng.uniform(1.2, 2.4) * np.array(DIRECTIONS[motion]) * time
    path = path - path.min(0)
    return path + rng.uniform(0, 1, 2) * (room - path.max(0))


def draw_frames(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """(FRAMES, SIDE, SIDE, 3) from 0 to 1."""
    hue = (HUES[scene.colour] + rng.uniform(-10, 10)) / 360
    colour = np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.8, 1), rng.uniform(0.75, 1)))
    size, tilt = rng.uniform(9, 14), rng.uniform(-0.15, 0.15)
    rotation = np.array([(np.cos(tilt), np.sin(tilt)), (-np.sin(tilt), np.cos(tilt))])
    corners = size * outline(scene.shape) @ rotation
    path = size + draw_path(scene.motion, np.array([SIDE, SIDE - STRIP]) - 2 * size, rng)
    frames = rng.normal(rng.uniform(0.08, 0.15), 0.03, (FRAMES, SIDE, SIDE, 1)).repeat(3, axis=3)
    for frame, position in zip(frames, path, strict=True):
        mask = draw_mask(corners + position)
        frame += mask[:, :, None] * (colour - frame)
    if scene.word:
        frames[:, -STRIP:] = draw_sign(scene.word, int(rng.integers(SIDE // CELL - len(scene.word) + 1)))[:, :, None]
    return frames.clip(0, 1)


def draw_mask(corners: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE), how much of each pixel the polygon covers."""
    canvas = Image.new("L", (4 * SIDE, 4 * SIDE))
    ImageDraw.Draw(canvas).polygon([(4 * x, 4 * y) for x, y in corners], fill=255)
    return np.asarray(canvas.reduce(4)) / 255


@cache
def draw_glyph(letter: str) -> np.ndarray:
    """(STRIP, CELL): a letter in the middle of its cell."""
    canvas = Image.new("L", (CELL, STRIP), round(255 * PAPER))
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(canvas).text((CELL / 2, STRIP / 2), letter, fill=round(255 * INK), font=font, anchor="mm")
    return np.asarray(canvas) / 255


def draw_sign(word: str, start: int) -> np.ndarray:
    """(STRIP, SIDE): the word from cell `start` on."""
    return np.concatenate([draw_glyph(letter) for letter in (" " * start + word).ljust(SIDE // CELL)], axis=1)


# --- sounds and files -------------------------------------------------------------------------------------


def make_sound(sound: str, rng: np.random.Generator) -> np.ndarray | None:
    """As many samples as the frames last, from -1 to 1; None if it is silent."""
    if sound == "silent":
        return None
    time = np.arange(SAMPLE_RATE * FRAMES // FRAME_RATE) / SAMPLE_RATE
    noise = rng.standard_normal(len(time)).clip(-3, 3) / 3
    if sound == "hiss":
        wave = noise
    elif sound == "rising":
        low, high = rng.uniform(200, 350), rng.uniform(1400, 2200)
        wave = np.sin(2 * np.pi * time * (low + (high - low) * time / time[-1] / 2))
    else:
        low, high = {"low": (110, 180), "high": (2200, 3200), "beeps": (700, 1100)}[sound]
        wave = np.sin(2 * np.pi * rng.uniform(low, high) * time)
    if sound == "beeps":
        wave = wave * ((rng.uniform(2.5, 4) * time + rng.uniform()) % 1 < 0.5)
    return (rng.uniform(0.1, 0.8) * (wave + 0.01 * noise)).clip(-1, 1)


def write_video(path: Path, frames: np.ndarray, sound: np.ndarray | None) -> None:
    """An .mp4 file; without an audio stream if `sound` is None."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "ultrafast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.thread_count = 1
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound is not None else None
        for pixels in (frames * 255).round().astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
        if audio is not None:
            samples = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.time_base, samples.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
            container.mux(audio.encode(samples))
            container.mux(audio.encode(None))
