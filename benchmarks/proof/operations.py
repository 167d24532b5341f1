"""The operations that write files, small, each with what must hold of its files after any interruption.

An operation makes what it needs and the result of an undisturbed run in one folder, `given`, and works in another,
`place`. It says a number for each piece that it has acknowledged: a commit that returned, a file that was saved, a
state that was written. After an interruption it goes on in the same place, as its user would by the same command.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parents[1] / "tests"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402

from collaborative_experts import (  # noqa: E402
    CEConfig,
    CollaborativeExperts,
    QueryBank,
    TextEmbeddings,
    VideoEmbeddings,
    VideoIndex,
    similarity,
)
from collaborative_experts.apps import bulk  # noqa: E402
from collaborative_experts.base.lance_files import is_uncommitted  # noqa: E402
from collaborative_experts.features.extract import run as extraction  # noqa: E402
from collaborative_experts.features.extract.clips import Clips  # noqa: E402
from collaborative_experts.features.extract.dataset import FeatureDataset, open_dataset  # noqa: E402
from collaborative_experts.features.extract.media import View  # noqa: E402
from collaborative_experts.hub.fetch import fetch  # noqa: E402
from collaborative_experts.hub.published import Model  # noqa: E402
from collaborative_experts.model.cenet import initial_state  # noqa: E402
from collaborative_experts.model.checkpoint import NOTES_KEY, read_weights, write_weights  # noqa: E402
from collaborative_experts.training import loop, run_folder, schedule  # noqa: E402
from collaborative_experts.training.bank import read_bank  # noqa: E402
from collaborative_experts.training.settings import combine  # noqa: E402
from collaborative_experts.training.tokens import embed_tokens  # noqa: E402
from helpers import QUICK, TRAINABLE, captioned, flat_frames, towhee_dict, write_features, write_media  # noqa: E402

Say = Callable[[int], None]


class Wrong(Exception):  # noqa: N818, it is a finding
    """Something acknowledged is lost, or something half-made was accepted."""


def require(holds: bool, what: str) -> None:
    """Raise Wrong unless it holds."""
    if not holds:
        raise Wrong(what)


class Operation:
    """One kind of work.

    Attributes:
        name: a word for the tables.
        opens_files: True where Python opens the files, and not Lance.
        modules: what the work imports, and its processes should not each import anew.
    """

    name, opens_files, modules = "", True, ()

    def prepare(self, given: Path) -> None:
        """Make what the work needs, in a folder of its own."""

    def work(self, given: Path, place: Path, start: int, say: Say) -> None:
        """Do the pieces from a number on, or go on from what is in the place, to the end."""
        raise NotImplementedError

    def look(self, given: Path, place: Path, said: int) -> int:
        """The number of the piece to go on with, after an interruption.

        Args:
            said: the highest number that was acknowledged; -1 for none.

        Raises:
            Wrong: what was acknowledged is not there, or something is there that no run made as a whole.
        """
        raise NotImplementedError

    def finish(self, given: Path, place: Path) -> None:
        """Raise Wrong unless the place holds what the undisturbed run made, after the work came to its end."""
        raise NotImplementedError

    def is_meant(self, number: int) -> bool:
        """Whether a piece is of the kind that the operation is named for."""
        return True


@contextmanager
def after_each(owner: Any, method: str, say: Callable[[Any], None]) -> Any:
    """`say(result of the call's self)` after each call of a method of a class."""
    plain = getattr(owner, method)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain(self, *args, **kwargs)
        say(self)
        return result

    setattr(owner, method, call)
    try:
        yield
    finally:
        setattr(owner, method, plain)


def read(path: Path) -> Any:
    """The content of a file, None where there is none. Safetensors write their metadata in any order."""
    if not path.exists():
        return None
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, "np") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


# --- the index --------------------------------------------------------------------------------------------

IDS, EXPERTS, DIM = 40, 2, 8
PIECES = 40
OPERATIONS = ("add", "delete", "optimise", "calibrate")


@dataclass(frozen=True)
class State:
    """What the index holds: for each id the piece that added it, and the piece that calibrated, if any."""

    videos: dict[int, int]
    bank: int | None = None


class Index(Operation):
    """Videos are added, replaced and deleted, the index is optimised and calibrated, in a fixed order of which every
    other piece is of the kind that is named."""

    opens_files, modules = False, ("lance",)

    def __init__(self, name: str) -> None:
        self.name = name

    def is_meant(self, number: int) -> bool:
        return self._kind(number) == self.name

    def work(self, given: Path, place: Path, start: int, say: Say) -> None:
        with VideoIndex(place / "videos.lance") as index:
            for number in range(start, PIECES):
                self._apply(index, number)
                say(number)

    def look(self, given: Path, place: Path, said: int) -> int:
        """The state after the last acknowledged piece, or after the one that was under way."""
        for last in (said, said + 1):
            if self._holds(place / "videos.lance", self._after(last)):
                return last + 1
        raise Wrong(f"not the state after piece {said}, {self._kind(said)}, nor that after the next, "
                    f"{self._kind(said + 1)}")  # fmt: skip

    def finish(self, given: Path, place: Path) -> None:
        require(self._holds(place / "videos.lance", self._after(PIECES - 1)), "not the state after the last piece")

    def _kind(self, number: int) -> str:
        """The first piece adds, so that there is a store to calibrate."""
        if number == 0:
            return "add"
        return self.name if number % 2 else str(np.random.default_rng([1, number]).choice(OPERATIONS))

    def _after(self, last: int) -> State:
        state = State({})
        for number in range(last + 1):
            rng, kind = np.random.default_rng(number), self._kind(number)
            if kind == "add":
                state = replace(state, videos=state.videos | dict.fromkeys(_chosen(rng, number).tolist(), number))
            elif kind == "delete":
                gone = set(_chosen(rng, number).tolist())
                state = replace(state, videos={video: x for video, x in state.videos.items() if video not in gone})
            elif kind == "calibrate":
                state = replace(state, bank=None if rng.random() < 0.2 else number)
        return state

    def _apply(self, index: VideoIndex, number: int) -> None:
        rng, kind = np.random.default_rng(number), self._kind(number)
        if kind == "add":
            ids = _chosen(rng, number)
            index.add(ids, _videos(ids, np.full(len(ids), number)))
        elif kind == "delete":
            index.delete(_chosen(rng, number))
        elif kind == "calibrate":
            bank = _bank(number)
            index.calibrate(None if rng.random() < 0.2 else bank.text, levels=bank.levels)
        else:
            index.optimise()

    @staticmethod
    def _holds(path: Path, state: State) -> bool:
        """True where the index holds these videos, with these vectors, and corrects scores by this bank."""
        with VideoIndex(path) as index:
            if not state.videos:
                return len(index) == 0
            ids = np.array(sorted(state.videos))
            expected = _videos(ids, np.array([state.videos[video] for video in ids]))
            if len(index) != len(ids):
                return False
            table = index.to_arrow()
            stored = dict(zip(map(int, table["id"].to_pylist()), table["vector"].to_pylist(), strict=True))
            if sorted(stored) != ids.tolist() or not np.array_equal([stored[x] for x in ids], expected.joint()):
                return False
            scores = similarity(_texts(-1), expected)
            if state.bank is not None:
                scores = scores - _bank(state.bank).biases(expected)
            found = index.search(_texts(-1), IDS)
            return bool(np.abs(found.scores + np.sort(-scores, axis=1)).max() < 1e-6)


def _chosen(rng: np.random.Generator, number: int) -> np.ndarray:
    """Some ids; those of the first piece never go all."""
    return rng.choice(IDS, int(rng.integers(1, 20 if number else 40)), replace=False)


def _videos(ids: np.ndarray, numbers: np.ndarray) -> VideoEmbeddings:
    """The embeddings that pieces gave to ids."""
    pairs = zip(ids.tolist(), numbers.tolist(), strict=True)
    rows = np.stack([np.random.default_rng([2, *pair]).standard_normal((EXPERTS, DIM)) for pair in pairs])
    rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)
    available = np.ones((len(ids), EXPERTS), dtype=bool)
    available[:, 1] = (ids + numbers) % 3 > 0
    return VideoEmbeddings({f"expert {m}": rows[:, m] for m in range(EXPERTS)}, available)


def _texts(number: int) -> TextEmbeddings:
    rng = np.random.default_rng([3, number + 1])
    rows = rng.standard_normal((EXPERTS, 12, DIM), dtype=np.float32)
    weights = rng.dirichlet(np.ones(EXPERTS), 12).astype(np.float32)
    return TextEmbeddings({f"expert {m}": rows[m] for m in range(EXPERTS)}, weights)


def _bank(number: int) -> QueryBank:
    """The bank of a piece; that of every second one has levels."""
    texts = _texts(number)
    return QueryBank(texts, levels=np.linspace(0, 1, len(texts)) if number % 2 else None)


# --- features and embeddings --------------------------------------------------------------------------------


class Level:
    """The mean grey level of a clip, which takes its time."""

    name, dim, sequence, reads_sound, version, views = "level", 2, False, False, 1, (View(2, 48, False),)

    def __call__(self, clips: list[Any]) -> list[np.ndarray]:
        time.sleep(0.002 * len(clips))
        return [np.array([clip.frames[self.views[0]].images.mean(), clip.start_s]) for clip in clips]


class Extract(Operation):
    """Media files to a dataset of features, committed every few clips. It says the number of rows."""

    name, modules = "extract", ("av", "lance")

    def prepare(self, given: Path) -> None:
        (given / "media").mkdir()
        for i in range(8):
            frames = flat_frames(range(20 * i, 20 * i + 40), height=16, width=16)
            write_media(given / "media" / f"{i}.mkv", frames, codec="ffv1")
        self.work(given, given, 0, lambda number: None)

    def work(self, given: Path, place: Path, start: int, say: Say) -> None:
        extraction.COMMIT_S, extraction.BATCH = 0.02, 3
        files = extraction.find_media(given / "media")
        with after_each(FeatureDataset, "append", lambda dataset: say(len(dataset.ids))):
            extraction.extract_features(files, place / "features.lance", [Level()], Clips(0.4))

    def look(self, given: Path, place: Path, said: int) -> int:
        rows = self._rows(place)
        require(len(rows) >= said, f"{len(rows)} rows of {said} that were committed")
        expected = self._rows(given)
        require(all(expected[name] == row for name, row in rows.items()), "other rows than those of an undisturbed run")
        return 0

    def finish(self, given: Path, place: Path) -> None:
        require(self._rows(place) == self._rows(given), "not the rows of an undisturbed run")
        require(not (place / "features.errors.csv").exists(), "errors are listed")

    @staticmethod
    def _rows(place: Path) -> dict[str, Any]:
        path = place / "features.lance"
        is_there = path.exists() and not is_uncommitted(path)
        rows = open_dataset(path).to_table().to_pylist() if is_there else []
        by_id = {row["id"]: row for row in rows}
        require(len(by_id) == len(rows), "a clip is there twice")
        return by_id


class Embed(Operation):
    """Features to an index, in shards. It says the numbers of the shards that are in the journal."""

    name, modules = "embed", ("lance",)
    videos, shard = 96, 8

    def prepare(self, given: Path) -> None:
        (given / "features").mkdir()
        rng = np.random.default_rng(0)
        ids = [f"v{i:03}" for i in range(self.videos)]
        motion = rng.standard_normal((self.videos, 12), dtype=np.float32)
        motion[7], motion[9] = np.nan, np.inf
        write_features(given / "features", "npz", "motion", ids, motion)
        tokens = [rng.standard_normal((3, 6), dtype=np.float32) for _ in ids[20:]]
        write_features(given / "features", "npz by video", "sound", ids[20:], tokens)
        write_weights(given / "model.safetensors", initial_state(TRAINABLE), TRAINABLE)
        self.work(given, given, 0, lambda number: None)

    def work(self, given: Path, place: Path, start: int, say: Say) -> None:
        bulk.SHARD_BYTES = 4 * self.shard * sum(TRAINABLE.output_dims.values())
        with after_each(bulk.Journal, "finish", lambda journal: say(len(journal.finished))):
            bulk.bulk_embed(given / "features", given / "model.safetensors", place / "videos.lance", device="cpu")

    def look(self, given: Path, place: Path, said: int) -> int:
        rows, expected = self._rows(place), self._rows(given)
        missing = list(expected)[: max(0, said * self.shard - 2)]  # two of the first shards cannot be embedded
        require(rows.keys() >= set(missing), f"rows of {said} shards that were finished are not there")
        require(all(expected[name] == row for name, row in rows.items()), "other rows than those of an undisturbed run")
        return 0

    def finish(self, given: Path, place: Path) -> None:
        require(self._rows(place) == self._rows(given), "not the rows of an undisturbed run")
        require(read(place / "videos.errors.csv") == read(given / "videos.errors.csv"), "other errors are listed")
        require(not list(place.glob("videos.lance/_embed/*")), "the journal is still there")
        with VideoIndex(place / "videos.lance") as index:
            require(index.weights_path == given / "model.safetensors", "the weights are not noted")

    @staticmethod
    def _rows(place: Path) -> dict[str, Any]:
        if not (place / "videos.lance").exists():
            return {}
        with VideoIndex(place / "videos.lance") as index:
            rows = index.to_arrow().sort_by("id").to_pylist() if len(index) else []
        by_id = {row["id"]: row for row in rows}
        require(len(by_id) == len(rows), "a video is there twice")
        return by_id


# --- training and weights -----------------------------------------------------------------------------------


class Train(Operation):
    """A search for the number of steps, then two members on all videos. It says the states that were written."""

    name = "train"
    modules = ("lightning_fabric", "matplotlib.figure", "torch._dynamo", "torch.utils.tensorboard")

    def prepare(self, given: Path) -> None:
        self.work(given, given, 0, lambda number: None)

    def work(self, given: Path, place: Path, start: int, say: Say) -> None:
        run_folder.STATE_SHARE = float("inf")  # a state after each round
        schedule.MOST_STEPS, schedule.MOST_EPOCHS, schedule.VALIDATION_SHARE = 12, 1, 1
        sound = replace(TRAINABLE.experts[1], clusters=1)  # so that members can be joined
        config = replace(TRAINABLE, experts=(TRAINABLE.experts[0], sound), standardise=True)
        settings = {name: x for name, x in QUICK.items() if name != "epochs"} | {"members": 2, "batch_size": 10}
        data = captioned(40)
        state = place / "run" / run_folder.STATE
        resume = state if state.is_file() else None
        say_state = lambda folder: say(self._number(folder.path))  # noqa: E731
        with after_each(run_folder.RunFolder, "write_state", say_state):
            chosen = combine(settings, {"folder": str(place / "run")})
            loop.train(config, chosen, data[:30], data[30:], resume, refit_dataset=data)

    def look(self, given: Path, place: Path, said: int) -> int:
        folder = place / "run"
        if said >= 0 or (folder / run_folder.STATE).exists():
            require(self._number(folder) >= said, f"not the state {said} that was written")
        for name, load in ((run_folder.BEST, read_weights), (run_folder.BANK, read_bank)):
            if (folder / name).exists():
                load(folder / name)
        return 0

    def finish(self, given: Path, place: Path) -> None:
        for name in (run_folder.BEST, run_folder.BANK):
            same = self._weights(place / "run" / name) == self._weights(given / "run" / name)
            require(same, f"{name} is not that of an undisturbed run")
        require(self._history(place) == self._history(given), "other figures than those of an undisturbed run")

    @staticmethod
    def _number(folder: Path) -> int:
        """A number that grows with the states of a run: by the epochs of the search, then by those of its members."""
        state = run_folder.read_state(folder / run_folder.STATE)
        return 1000 + state["members"][0]["epoch"] if state["members"] else state["epoch"]

    @staticmethod
    def _weights(path: Path) -> Any:
        """The content of a file without the seconds that are noted in it."""
        metadata, tensors = read(path)
        notes = json.loads(metadata.get(NOTES_KEY, "{}"))
        notes.get("metrics", {}).pop("seconds", None)
        return metadata | {NOTES_KEY: notes}, tensors

    @staticmethod
    def _history(place: Path) -> list[list[str]]:
        lines = (place / "run" / run_folder.METRICS).read_text().splitlines()
        table = [line.split(",") for line in lines]
        seconds = table[0].index("seconds")
        return [row[:seconds] + row[seconds + 1 :] for row in table]


class Save(Operation):
    """Weights of two models are saved in turns to the same path. It says the number of the save."""

    name, pieces = "save", 12
    config = CEConfig.from_dict({"experts": {"motion": 512, "scene": 512}, "text": {"dim": 64}, "shared_dim": 256})

    def prepare(self, given: Path) -> None:
        for seed in range(2):
            write_weights(given / f"{seed}.safetensors", initial_state(self.config, seed=seed), self.config)
            self._operator(given, seed).save(given / f"saved{seed}.safetensors")

    def work(self, given: Path, place: Path, start: int, say: Say) -> None:
        operators = [self._operator(given, seed) for seed in range(2)]
        for number in range(start, self.pieces):
            operators[number % 2].save(place / "model.safetensors")
            say(number)

    def look(self, given: Path, place: Path, said: int) -> int:
        found = read(place / "model.safetensors")
        for last in (said, said + 1):
            if found == (None if last < 0 else read(given / f"saved{last % 2}.safetensors")):
                return last + 1
        raise Wrong(f"not the file of save {said}, nor of the next")

    def finish(self, given: Path, place: Path) -> None:
        self.look(given, place, self.pieces - 1)

    @staticmethod
    def _operator(given: Path, seed: int) -> CollaborativeExperts:
        return CollaborativeExperts(weights_path=given / f"{seed}.safetensors", device="cpu")


class Fetch(Operation):
    """A model from a server on this machine that sends it slowly, fetched again and again. It says each fetch."""

    name, modules, pieces = "fetch", ("pooch",), 4

    def prepare(self, given: Path) -> None:
        packed = io.BytesIO()
        torch.save({"state_dict": initial_state(TRAINABLE)}, packed)
        (given / "trained_model.pth").write_bytes(packed.getvalue())
        (given / "config.json").write_text(json.dumps(towhee_dict(TRAINABLE)))
        with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
            (given / "port").write_text(str(server.server_address[1]))  # the lock keeps the address
        self.work(given, given, self.pieces - 1, lambda number: None)

    def work(self, given: Path, place: Path, start: int, say: Say) -> None:
        with Site.serving(given):
            for number in range(start, self.pieces):
                fetch(self._model(given), place, force=True)
                say(number)

    def look(self, given: Path, place: Path, said: int) -> int:
        found, lock = read(place / "tiny.safetensors"), read(place / "lock.json")
        require(found in ((None,) if said < 0 else ()) + (read(given / "tiny.safetensors"),), "not what was fetched")
        require(found is None or lock is not None, "the weights came before their lock")
        require(lock in (None, read(given / "lock.json")), "not the hashes of what was fetched")
        return said + 1

    def finish(self, given: Path, place: Path) -> None:
        self.look(given, place, self.pieces - 1)
        fetch(self._model(given), place)  # there is no server any more: the file is complete, or this fails

    @staticmethod
    def _model(given: Path) -> Model:
        return Model("tiny", f"http://127.0.0.1:{(given / 'port').read_text()}/tiny")


class Site(BaseHTTPRequestHandler):
    """Sends the files of a folder in parts."""

    @classmethod
    @contextmanager
    def serving(cls, folder: Path) -> Any:
        handler = type("SiteOfFolder", (cls,), {"folder": folder})
        with ThreadingHTTPServer(("127.0.0.1", int((folder / "port").read_text())), handler) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            yield
            server.shutdown()

    def do_GET(self) -> None:
        body = (self.folder / self.path.rpartition("/")[2]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for start in range(0, len(body), 1 + len(body) // 4):
            time.sleep(0.005)
            self.wfile.write(body[start : start + 1 + len(body) // 4])

    def log_message(self, *args: Any) -> None:
        pass


class Tokens(Operation):
    """Token embeddings of several sets of sentences, kept in a folder. It says the number of the set."""

    name, pieces = "tokens", 8

    def prepare(self, given: Path) -> None:
        self.work(given, given, 0, lambda number: None)

    def work(self, given: Path, place: Path, start: int, say: Say) -> None:
        encoder = Encoder()
        for number in range(start, self.pieces):
            self._embed(place, number, encoder)
            say(number)

    def look(self, given: Path, place: Path, said: int) -> int:
        """A later call takes any file that is there, so each must be right."""
        found = {path.relative_to(place): read(path) for path in place.glob("tokens-*/*.safetensors")}
        require(len(found) >= 3 * (said + 1), f"{len(found)} files of {said + 1} sets of three")
        require(all(read(given / name) == content for name, content in found.items()), "a file is not right")
        return said + 1

    def finish(self, given: Path, place: Path) -> None:
        self.look(given, place, self.pieces - 1)

    @staticmethod
    def _embed(place: Path, number: int, encoder: Encoder) -> None:
        embed_tokens([f"sentence {i} of set {number}" for i in range(600)], encoder, place, max_tokens=12)


class Encoder:
    """Token embeddings that follow from the sentence."""

    name, dim = "stub", 64

    def __call__(self, sentences: Sequence[str]) -> list[np.ndarray]:
        return [
            np.sin(len(sentence) + np.arange(8 * self.dim, dtype=np.float32)).reshape(8, -1) for sentence in sentences
        ]


ALL: dict[str, Operation] = {
    operation.name: operation
    for operation in (Extract(), Embed(), *map(Index, OPERATIONS), Train(), Save(), Fetch(), Tokens())
}
